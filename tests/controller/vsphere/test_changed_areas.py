from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import ChangesUnknown
from holdfast_common.extents import Extent
from holdfast_common.job_spec import AreaSource
from holdfast_controller.facts import DiskDecision, DiskFacts, SnapshotFacts
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import change_tracking, changed_areas
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_lab.server import RunningLab
from support.vms import CRASH, vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at

KIB64 = 64 * 1024


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


@pytest.fixture
def gate() -> CountingGate:
    return CountingGate()


@pytest.fixture
def session(lab: RunningLab, gate: CountingGate) -> Iterator[VsphereSession]:
    with session_at(lab, gate=gate) as made:
        change_tracking.ensure_enabled(made, vm_named(made, "web"))
        yield made


def first_change_id(session: VsphereSession, ledger: JobLedger) -> str:
    web = vm_named(session, "web")
    with temporary_snapshot(session, ledger, vm=web, wish=CRASH) as made:
        return made.disks[0].change_id


def decision(disk: DiskFacts, since: str, areas: AreaSource = AreaSource.CHANGED) -> DiskDecision:
    return DiskDecision(device_key=disk.device_key, areas=areas, since=since, reason="a test")


def write(lab: RunningLab, *offsets: int) -> None:
    (disk,) = lab.lab.machine("web").disks()
    for offset in offsets:
        disk.disk.guest_write(offset, b"x" * 512)


def areas_now(
    session: VsphereSession,
    ledger: JobLedger,
    since: str,
    *,
    areas: AreaSource = AreaSource.CHANGED,
    full_on_failure: bool = True,
) -> changed_areas.DiskAreas:
    made: SnapshotFacts
    with temporary_snapshot(session, ledger, vm=vm_named(session, "web"), wish=CRASH) as made:
        return changed_areas.areas_of_disk(
            session,
            made,
            made.disks[0],
            decision(made.disks[0], since, areas),
            full_on_failure=full_on_failure,
        )


def test_only_what_changed_is_read(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger
) -> None:
    since = first_change_id(session, ledger)
    write(lab, 0, 3 * KIB64 + 512)
    found = areas_now(session, ledger, since)
    assert found.source is AreaSource.CHANGED
    assert found.extents == (
        Extent(offset=0, length=KIB64),
        Extent(offset=3 * KIB64, length=KIB64),
    )


def test_nothing_changed_is_nothing_read(session: VsphereSession, ledger: JobLedger) -> None:
    found = areas_now(session, ledger, first_change_id(session, ledger))
    assert (found.source, found.extents) == (AreaSource.CHANGED, ())


def test_rule_01_a_list_that_was_cut_is_asked_on_to_the_capacity(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger, gate: CountingGate
) -> None:
    since = first_change_id(session, ledger)
    write(lab, *[number * 4 * KIB64 for number in range(8)])
    whole = areas_now(session, ledger, since)
    lab.lab.misbehaviour.arm("cut_change_lists", times=None, parameters={"keep": "1"})
    before = gate.count("QueryChangedDiskAreas")
    assert areas_now(session, ledger, since) == whole
    assert gate.count("QueryChangedDiskAreas") - before >= 8


def test_rule_06_an_unknown_change_id_means_the_whole_disk_with_its_reason(
    session: VsphereSession, ledger: JobLedger
) -> None:
    found = areas_now(session, ledger, "52 00 00/1")
    assert found.source is AreaSource.EVERYTHING
    assert found.length == 4 << 20
    assert "FileFault" in found.reason
    with pytest.raises(ChangesUnknown):
        areas_now(session, ledger, "52 00 00/1", full_on_failure=False)


@pytest.mark.parametrize("fault", ["FileFault", "NotSupported", "SystemError", "NoPermission"])
def test_rule_06_a_query_that_fails_never_means_no_changes(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger, fault: str
) -> None:
    since = first_change_id(session, ledger)
    lab.lab.misbehaviour.arm(
        "fail_call", match={"method": "QueryChangedDiskAreas"}, parameters={"fault": fault}
    )
    found = areas_now(session, ledger, since)
    assert found.source is AreaSource.EVERYTHING
    assert found.length == 4 << 20


def test_rule_09_an_error_of_the_allocated_map_never_means_nothing_allocated(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger
) -> None:
    first_change_id(session, ledger)
    lab.lab.misbehaviour.arm("fail_call", match={"method": "QueryChangedDiskAreas"})
    found = areas_now(session, ledger, "*", areas=AreaSource.ALLOCATED)
    assert found.source is AreaSource.EVERYTHING
    assert found.length == 4 << 20
    assert found.reason.startswith("a test; ")


def test_rule_09_one_extent_over_all_means_everything(
    session: VsphereSession, ledger: JobLedger
) -> None:
    first_change_id(session, ledger)
    found = areas_now(session, ledger, "*", areas=AreaSource.ALLOCATED)
    assert found.source is AreaSource.EVERYTHING, "on NFS vSphere says that all is allocated"


class Answer:
    """An answer of a vSphere that lies about its shape."""

    def __init__(self, start: int, length: int, *areas: tuple[int, int]) -> None:
        self.startOffset = start
        self.length = length
        self.changedArea = [type("Area", (), {"start": a, "length": n})() for a, n in areas]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(0, 0),
        Answer(0, -1),
        Answer(512, 4 << 20),
        Answer(0, 1024, (2048, 512)),
        Answer(0, 4 << 20, (0, 0)),
        Answer(0, 1024, (512, 1024)),
        None,
    ],
)
def test_rule_01_an_answer_without_progress_or_out_of_its_range_is_an_error(
    session: VsphereSession,
    ledger: JobLedger,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer | None,
) -> None:
    monkeypatch.setattr(changed_areas, "_ask", lambda *_, **__: answer)
    found = areas_now(session, ledger, "52/1")
    assert found.source is AreaSource.EVERYTHING

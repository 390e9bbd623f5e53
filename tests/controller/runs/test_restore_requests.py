"""What is asked of a restore: wrong wishes are told before anything is done, and a done one stays done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import (
    HoldfastError,
    NotFound,
    Refused,
    TargetFailed,
    TimedOut,
    UsageError,
)
from holdfast_common.identity import PointId
from holdfast_common.job_spec import FileFormat
from holdfast_controller.runs import restore_in_place
from holdfast_controller.runs.requests import RestoreDiskRequest, RestoreVmRequest
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from holdfast_lab.snapshots import discard_snapshots, take_snapshot
from support.one_process import OneProcess, digest, disk_truth, guest_writes, one_process
from support.restored_disks import disk_start

MIB = 1 << 20


def disk(seed: int) -> DiskPlan:
    return DiskPlan(size_bytes=MIB, content="random", content_bytes=MIB // 4, seed=seed)


PLAN = InventoryPlan(
    machines=(
        MachinePlan(
            name="web",
            datastore="nfs1",
            power="off",
            change_tracking=True,
            disks=(disk(1), disk(2)),
        ),
        MachinePlan(name="proxy", datastore="vmfs1", disks=()),
    )
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=PLAN) as running:
        yield running


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path_factory.mktemp("holdfast"), lab) as ready:
        yield ready


@pytest.fixture(scope="module")
def point(holdfast: OneProcess) -> PointId:
    return PointId(holdfast.record(holdfast.back_up("web")).point_id)


def held(lab: RunningLab, vm: str, number: int = 0) -> str:
    """The digest of a VM's disk as the lab's own reader finds it."""
    device = lab.lab.machine(vm).disks()[number]
    return digest(disk_start(lab, vm, device.key, device.disk.capacity_bytes))


def file_request(
    holdfast: OneProcess, point: PointId, number: int, name: str
) -> RestoreDiskRequest:
    return RestoreDiskRequest(
        point_id=point,
        disk_number=number,
        path=str(holdfast.folder / "restores" / name),
        format=FileFormat.FLAT,
    )


@pytest.mark.parametrize(
    "places",
    [
        {"name": "copy"},
        {"host": "esx1.lab"},
        {"folder": "/dc1"},
        {"datastore": "nfs2"},
        {"disk_datastores": ((2000, "nfs2"),)},
    ],
    ids=str,
)
def test_a_place_beside_in_place_is_a_usage_error(
    holdfast: OneProcess, point: PointId, places: dict[str, str]
) -> None:
    request = RestoreVmRequest(point_id=point, in_place=True, **places)  # type: ignore[arg-type]  # a test's own words
    with pytest.raises(UsageError, match="--in-place leaves"):
        holdfast.engine.start_restore_vm(request, dry_run=True)


def test_a_vm_with_snapshots_of_its_own_is_not_called_a_linked_clone(
    holdfast: OneProcess, lab: RunningLab, point: PointId
) -> None:
    machine = lab.lab.machine("web")
    take_snapshot(machine, name="mine", memory=False, quiesce=False)
    try:
        with pytest.raises(Refused, match="the VM has snapshots") as refused:
            holdfast.engine.start_restore_vm(
                RestoreVmRequest(point_id=point, in_place=True), dry_run=True
            )
        assert "clone" not in str(refused.value)
    finally:
        discard_snapshots(machine, machine.snapshots())


@pytest.mark.parametrize("error", [TimedOut, Refused])
def test_a_restore_in_place_that_cannot_be_started_is_done_all_the_same(
    holdfast: OneProcess,
    lab: RunningLab,
    point: PointId,
    monkeypatch: pytest.MonkeyPatch,
    error: type[HoldfastError],
) -> None:
    truth = disk_truth(lab, "web")
    guest_writes(lab, "web", 65536)

    def fail(*_: object) -> None:
        raise error("it does not start")

    monkeypatch.setattr(restore_in_place, "power_on", fail)
    job = holdfast.ended(
        holdfast.engine.start_restore_vm(
            RestoreVmRequest(point_id=point, in_place=True, power_on=True), dry_run=False
        )
    )
    assert str(job.state) == "partial", job.error
    assert [each.code for each in job.warnings] == ["power_on"]
    assert job.attempt == 1
    assert held(lab, "web") == truth


def restored_file(holdfast: OneProcess, request: RestoreDiskRequest) -> JobRow:
    return holdfast.ended(holdfast.engine.start_restore_disk(request, dry_run=False))


@pytest.mark.parametrize(("number", "ordinal"), [(0, 0), (1, 1), (2000, 0), (2001, 1)])
def test_a_disk_is_named_by_its_number_or_its_key(
    holdfast: OneProcess, lab: RunningLab, point: PointId, number: int, ordinal: int
) -> None:
    request = file_request(holdfast, point, number, f"number-{number}.vmdk")
    assert str(restored_file(holdfast, request).state) == "done"
    content = Path(request.path).with_name(f"number-{number}-flat.vmdk").read_bytes()
    assert digest(content) == held(lab, "web", ordinal)


@pytest.mark.parametrize("number", [2, 2002, -1])
def test_a_disk_that_the_point_lacks_is_told_with_those_that_it_has(
    holdfast: OneProcess, point: PointId, number: int
) -> None:
    with pytest.raises(NotFound, match=r"1 or 2001 \(Hard disk 2\)"):
        holdfast.engine.start_restore_disk(
            file_request(holdfast, point, number, "none.vmdk"), dry_run=True
        )


@pytest.mark.parametrize("taken", ["taken.vmdk", "taken-flat.vmdk"])
def test_a_file_that_exists_is_refused_in_the_plan(
    holdfast: OneProcess, point: PointId, taken: str
) -> None:
    folder = holdfast.folder / "restores"
    (folder / taken).write_text("somebody's")
    try:
        request = file_request(holdfast, point, 0, "taken.vmdk")
        for dry_run in (True, False):
            with pytest.raises(Refused, match="nothing is overwritten"):
                holdfast.engine.start_restore_disk(request, dry_run=dry_run)
        assert (folder / taken).read_text() == "somebody's"
    finally:
        (folder / taken).unlink()


def test_a_plan_makes_no_file(holdfast: OneProcess, point: PointId) -> None:
    before = sorted((holdfast.folder / "restores").iterdir())
    request = file_request(holdfast, point, 0, "planned.vmdk")
    assert holdfast.engine.start_restore_disk(request, dry_run=True).plan
    assert sorted((holdfast.folder / "restores").iterdir()) == before


def test_a_folder_that_is_not_there_is_told_in_the_plan(
    holdfast: OneProcess, point: PointId
) -> None:
    with pytest.raises(TargetFailed):
        holdfast.engine.start_restore_disk(
            file_request(holdfast, point, 0, "absent/disk.vmdk"), dry_run=True
        )

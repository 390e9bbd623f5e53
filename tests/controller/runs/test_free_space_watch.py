"""A datastore that runs full under our snapshot: the copy ends, the snapshot goes, before the VMs stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from holdfast_common.errors import Cancelled, DatastoreFull, VsphereFailed
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import JobSpec
from holdfast_controller.configuration import DatastoreFloor
from holdfast_controller.facts import VmFacts
from holdfast_controller.runs import free_space_watch
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.free_space_watch import FreeSpaceWatch, free_space_watched, shortest
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.vsphere.free_space import FreeSpace, read_free_space
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_lab.inventory_plan import DatastorePlan, DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.agent_in_this_process import nothing
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes, one_process
from support.vms import CRASH, snapshot_names, vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at
from support.waiting import wait_until

MIB = 1 << 20
CAPACITY = 20 * MIB
PIECE = 256 * 1024
DONE = JobResult(outcome=Outcome.DONE)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    """``web`` alone on a small datastore, which its redo log can fill."""
    web = MachinePlan(name="web", datastore="small", disks=(DiskPlan(size_bytes=64 * MIB),))
    plan = InventoryPlan(
        datastores=(
            DatastorePlan(name="small", kind="NFS", capacity_bytes=CAPACITY),
            DatastorePlan(name="vmfs1"),
        ),
        machines=(web, MachinePlan(name="proxy", datastore="vmfs1", disks=())),
    )
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> CountingGate:
    monkeypatch.setattr(free_space_watch, "LOOK_SECONDS", 0.01)
    return CountingGate()


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab, gate: CountingGate) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab, gate=gate) as ready:
        yield ready


def free_bytes(lab: RunningLab) -> int:
    (small,) = [store for store in lab.lab.datastores() if store.name == "small"]
    return small.free_bytes()


def test_rule_19_a_copy_is_cut_off_and_its_snapshot_goes_before_the_datastore_is_full(
    holdfast: OneProcess, lab: RunningLab, gate: CountingGate
) -> None:
    under_the_snapshot: list[str] = []

    def looked_again() -> bool:
        """A whole look after this was called; False: the copy is cut off."""
        before = gate.count("RefreshDatastore")
        wait_until(
            lambda: bool(holdfast.agent.cancelled) or gate.count("RefreshDatastore") >= before + 2,
            what="another look",
        )
        return not holdfast.agent.cancelled

    def guest_is_busy(_: JobSpec) -> None:
        under_the_snapshot.extend(snapshot_names(lab, "web"))
        offset = 0
        while looked_again():
            guest_writes(lab, "web", offset, length=PIECE)
            offset += PIECE

    holdfast.agent.before = guest_is_busy
    job = holdfast.back_up("web", transport="direct")
    assert len(under_the_snapshot) == 1
    assert job.error is not None
    assert (str(job.state), job.error.code, job.attempt) == ("failed", "datastore_full", 1)
    assert "small runs full" in job.error.message
    assert job.error.advice
    assert snapshot_names(lab, "web") == []
    assert not holdfast.world.ledger.open_entries()
    assert free_bytes(lab) > CAPACITY // 20
    assert not holdfast.world.catalogue.points()
    assert lab.control.call("compare", vm="web")["equal"]
    holdfast.agent.before = nothing
    assert disk_content(holdfast, holdfast.back_up("web")) == disk_truth(lab, "web")


def test_a_datastore_with_room_lets_the_copy_end(holdfast: OneProcess, lab: RunningLab) -> None:
    job = holdfast.back_up("web", transport="direct")
    assert disk_content(holdfast, job) == disk_truth(lab, "web")
    assert not [warning for warning in job.warnings if warning.code == "free_space"]


def test_what_cannot_be_watched_is_a_warning_and_the_copy_goes_on(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def blind(*_: object, **__: object) -> list[FreeSpace]:
        looks.append(1)
        raise VsphereFailed("nobody looks")

    monkeypatch.setattr(free_space_watch, "read_free_space", blind)
    holdfast.agent.before = lambda _: wait_until(lambda: bool(looks), what="a look")
    job = holdfast.back_up("web", transport="direct")
    assert str(job.state) == "done"
    (warning,) = [warning for warning in job.warnings if warning.code == "free_space"]
    assert "nobody looks" in warning.message


def test_a_bug_in_a_look_is_told_and_the_watch_goes_on(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def broken(*_: object, **__: object) -> list[FreeSpace]:
        looks.append(1)
        raise KeyError("a bug")

    monkeypatch.setattr(free_space_watch, "read_free_space", broken)
    holdfast.agent.before = lambda _: wait_until(lambda: len(looks) > 1, what="another look")
    job = holdfast.back_up("web", transport="direct")
    (warning,) = [warning for warning in job.warnings if warning.code == "free_space"]
    assert "KeyError" in warning.message


def test_what_was_committed_before_the_cut_is_a_point(
    lab: RunningLab, gate: CountingGate, tmp_path: Path
) -> None:
    with session_at(lab, gate=gate) as session:
        vm = vm_named(session, "web")
        with temporary_snapshot(session, job_ledger(tmp_path), vm=vm, wish=CRASH) as snapshot:
            lab.lab.misbehaviour.arm("datastore_full", match={"datastore": "small"}, times=None)
            with free_space_watched(session, snapshot) as watch:
                low(watch)
                assert watch.judged(DONE).outcome is Outcome.DONE
                with pytest.raises(DatastoreFull):
                    watch.judged(JobResult(outcome=Outcome.CANCELLED))
            with pytest.raises(DatastoreFull), free_space_watched(session, snapshot) as watch:
                low(watch)
                raise Cancelled("cancelled before the agent started")
            lab.lab.misbehaviour.disarm()


def low(watch: FreeSpaceWatch) -> None:
    wait_until(lambda: watch.is_low, what="the datastore is seen to be full")


def test_room_is_read_although_vsphere_measures_nothing_anew(lab: RunningLab) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        lab.lab.misbehaviour.arm(
            "fail_call",
            match={"method": "Refresh*"},
            parameters={"fault": "NoPermission"},
            times=None,
        )
        space = room_of(session, vm, frozen_links={})
    assert (space.name, space.capacity_bytes) == ("small", CAPACITY)
    assert 0 < space.free_bytes <= CAPACITY


def test_only_what_was_written_above_the_frozen_links_is_to_be_merged(
    lab: RunningLab, tmp_path: Path
) -> None:
    guest_writes(lab, "web", 0, length=4 * MIB)
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        with temporary_snapshot(session, job_ledger(tmp_path), vm=vm, wish=CRASH) as snapshot:
            frozen = {disk.device_key: len(disk.chain) for disk in snapshot.protected_disks}
            before = room_of(session, vm, frozen_links=frozen).redo_log_bytes
            guest_writes(lab, "web", 8 * MIB, length=2 * MIB)
            written = room_of(session, vm, frozen_links=frozen).redo_log_bytes - before
            assert 2 * MIB <= written < 3 * MIB
            assert before < MIB
            assert room_of(session, vm, frozen_links={}).redo_log_bytes == 0
        assert room_of(session, vm, frozen_links=frozen).redo_log_bytes == 0


def room_of(session: VsphereSession, vm: VmFacts, *, frozen_links: Mapping[int, int]) -> FreeSpace:
    (space,) = read_free_space(
        session,
        vm_moref=vm.moref,
        datastore_morefs=[vm.disks[0].chain[0].datastore_moref],
        frozen_links=frozen_links,
    )
    return space


def test_the_datastore_with_the_least_room_is_named() -> None:
    def space(name: str, free: int, *, capacity: int = 1000, redo_logs: int = 0) -> FreeSpace:
        return FreeSpace(
            name=name, capacity_bytes=capacity, free_bytes=free, redo_log_bytes=redo_logs
        )

    assert shortest([space("a", 50), space("b", 999)]) is None
    assert shortest([space("unknown", 0, capacity=0)]) is None
    assert shortest([space("a", 300, redo_logs=250)]) is None
    assert shortest([merging := space("a", 300, redo_logs=251)]) is merging
    found = shortest([space("a", 49), space("b", 7), space("c", 999)])
    assert found is not None
    assert found.name == "b"


def test_the_floor_is_the_one_of_the_configuration(
    holdfast: OneProcess, lab: RunningLab, gate: CountingGate
) -> None:
    world = holdfast.world
    strict = replace(
        world,
        configuration=msgspec.structs.replace(
            world.configuration, datastores=DatastoreFloor(free_bytes_min=CAPACITY)
        ),
    )
    engine = Engine(strict)
    engine.reconciled()
    started = engine.start_backup(BackupRequest(selectors=("web",)), dry_run=False)
    job = holdfast.ended(started)
    engine.close()
    world.stopping.clear()
    assert job.error is not None
    assert (job.error.code, job.error.exit_status) == ("refused", 15)
    assert "is the floor" in job.error.message
    assert "controller.toml" in job.error.message
    assert gate.count("CreateSnapshot_Task") == 0
    assert str(holdfast.back_up("web").state) == "done"

"""What was skipped, lowered or left behind makes a job partial, and its run exit code 3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.errors import Refused, SourceFailed, StoreFailed
from holdfast_common.identity import PointId
from holdfast_common.job_result import ErrorReport, JobResult, Warned
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.ledger import EntryKind
from holdfast_controller.runs import restore_in_place, restore_vm
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.service import follower as follower_module
from holdfast_controller.service.follower import RunFollower, run_end
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    disk = DiskPlan(size_bytes=1 << 16)
    plan = InventoryPlan(
        machines=(
            MachinePlan(name="web", datastore="nfs1", power="off", disks=(disk,)),
            MachinePlan(name="db", datastore="nfs1", disks=(disk, disk)),
            MachinePlan(name="proxy", datastore="vmfs1", disks=()),
        )
    )
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


def end_of(holdfast: OneProcess, job: JobRow) -> tuple[str, int]:
    return run_end(holdfast.world.jobs.jobs_of_run(job.run_id))


def codes(job: JobRow) -> list[str]:
    return [warned.code for warned in job.warnings]


def restored(holdfast: OneProcess, job: JobRow, *, name: str = "") -> JobRow:
    request = RestoreVmRequest(point_id=PointId(job.point_id), name=name, in_place=not name)
    return holdfast.ended(holdfast.engine.start_restore_vm(request, dry_run=False))


def test_a_restore_in_place_that_leaves_the_old_disks_files_is_partial(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    point = holdfast.back_up("web")
    lab.lab.misbehaviour.arm("fail_call", match={"method": "DeleteVirtualDisk_Task"}, times=None)
    job = restored(holdfast, point)
    assert holdfast.world.ledger.open_entries(job_id=job.job_id)
    assert "left_behind" in codes(job)
    assert end_of(holdfast, job) == ("partial", 3)


def test_a_restored_vm_that_leaves_something_else_behind_is_partial(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = holdfast.back_up("web")

    def left(*_: object) -> list[Warned]:
        (job,) = holdfast.world.jobs.unfinished()
        ledger = holdfast.world.job_ledger(job)
        ledger.ledger.debt(ledger.intend(EntryKind.FOLDER, {}), "it is in use")
        return []

    monkeypatch.setattr(restore_vm, "put_nvram", left)
    job = restored(holdfast, point, name="web2")
    assert [warned.message for warned in job.warnings if warned.code == "left_behind"] == [
        "a folder of this job could not be given back yet: it is in use"
    ]
    assert end_of(holdfast, job) == ("partial", 3)


@pytest.mark.parametrize("name", ["web2", ""])
def test_a_restore_that_had_reached_its_aim_is_neither_failed_nor_done_again(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    point = holdfast.back_up("web")
    holdfast.world.lifecycle._attempts_max = 2
    attempts = []

    def failing(result: JobResult, _: object) -> JobResult:
        attempts.append(result)
        raise StoreFailed("the disk is full")

    monkeypatch.setattr(restore_vm if name else restore_in_place, "judged", failing)
    job = restored(holdfast, point, name=name)
    assert len(attempts) == 1
    assert codes(job)[-1] == "not_finished"
    assert end_of(holdfast, job) == ("partial", 3)
    assert not holdfast.world.ledger.open_entries()


def test_a_disk_that_is_skipped_makes_the_backup_partial_and_is_told_once(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    with lab.lab.lock:
        lab.lab.machine("db").disks()[1].mode = "independent_persistent"
    job = holdfast.back_up("db")
    told = [warned.message for warned in job.warnings]
    assert len([text for text in told if "Hard disk 2 is not in the backup" in text]) == 1
    assert end_of(holdfast, job) == ("partial", 3)
    assert holdfast.record(job).job_id == job.job_id


def test_a_lower_consistency_than_was_asked_is_partial(holdfast: OneProcess) -> None:
    job = holdfast.back_up("db", consistency="cold")
    assert codes(job) == ["consistency"]
    assert end_of(holdfast, job) == ("partial", 3)
    assert end_of(holdfast, holdfast.back_up("web", consistency="cold")) == ("done", 0)


REFUSED = ErrorReport.of(Refused("a rule forbids it"))
FAILED = ErrorReport.of(SourceFailed("a disk cannot be read"))


@pytest.mark.parametrize(
    ("jobs", "end"),
    [
        ([("done", None), ("done", None)], ("done", 0)),
        ([("done", None), ("partial", None)], ("partial", 3)),
        ([("done", None), ("failed", REFUSED)], ("partial", 3)),
        ([("partial", None), ("failed", REFUSED)], ("partial", 3)),
        ([("failed", REFUSED), ("failed", REFUSED)], ("failed", 15)),
        ([("done", None), ("failed", FAILED)], ("failed", 1)),
        ([("done", None), ("failed", REFUSED), ("failed", FAILED)], ("failed", 1)),
        ([("partial", None), ("cancelled", None)], ("cancelled", 1)),
    ],
)
def test_the_end_of_a_run_says_the_worst_of_its_jobs(
    holdfast: OneProcess, jobs: list[tuple[str, ErrorReport | None]], end: tuple[str, int]
) -> None:
    row = holdfast.back_up("web")
    rows = [replace(row, state=JobState(state), error=error) for state, error in jobs]
    assert run_end(rows) == end


def test_who_follows_a_run_misses_nothing_when_the_database_fails_for_a_moment(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = holdfast.back_up("web")
    jobs = holdfast.world.jobs
    follower = RunFollower(holdfast.world, job.run_id)

    def failing(*_: object, **__: object) -> object:
        raise StoreFailed("the disk fails")

    with monkeypatch.context() as broken:
        broken.setattr(follower_module, "job_detail_message", failing)
        with pytest.raises(StoreFailed):
            follower.next_events()
    events = follower.next_events()
    assert len([event for event in events if event.WhichOneof("event") == "log"]) == len(
        jobs.events(job.job_id)
    )
    assert follower.ended

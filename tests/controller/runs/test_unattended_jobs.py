"""Every way in which a job's thread can end, or not begin, without its job: the job ends all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import FormatError, StoreFailed
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import JobSpec
from holdfast_controller.decide.job_state import JobEvent, JobState
from holdfast_controller.runs import back_up_image
from holdfast_controller.runs.lifecycle import Lifecycle
from holdfast_controller.runs.world import World
from holdfast_controller.store.new_jobs import NewJob
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process, one_round
from support.vms import snapshot_names
from support.waiting import wait_until

# whoever waits for a thread that is to end
SECONDS = 30.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    web = MachinePlan(name="web", datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 16),))
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    plan = InventoryPlan(machines=(web, proxy))
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running


class Exit(BaseException):
    """Something that not even `except Exception` catches."""


def wait_until_left(holdfast: OneProcess) -> None:
    wait_until(
        lambda: not holdfast.world.attended._attended, seconds=SECONDS, what="the thread ends"
    )


@pytest.mark.parametrize("failure", [ZeroDivisionError, Exit, MemoryError])
def test_whatever_ends_the_thread_of_a_job_the_job_fails_with_it(
    holdfast: OneProcess,
    lab: RunningLab,
    failure: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Lifecycle, job_id: str, outcome: object) -> None:
        del job_id, outcome
        raise failure("in the thread")

    with monkeypatch.context() as once:
        once.setattr(Lifecycle, "_end", broken)
        (job_id,) = holdfast.start("web").job_ids
        wait_until_left(holdfast)
    assert not holdfast.world.jobs.job(job_id).ended
    assert holdfast.world.attended.is_to_look()
    one_round(holdfast.reconciler)
    # its point is there, and that is what counts
    assert holdfast.world.jobs.job(job_id).state is JobState.DONE
    assert holdfast.back_up("web").state is JobState.DONE


def test_a_thread_that_ends_in_the_middle_gives_everything_back(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise Exit("in the middle")

    with monkeypatch.context() as once:
        once.setattr(back_up_image, "areas_of_disk", broken)
        (job_id,) = holdfast.start("web").job_ids
        wait_until_left(holdfast)
    one_round(holdfast.reconciler)
    job = holdfast.world.jobs.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert "in the middle" in job.error.message
    assert snapshot_names(lab, "web") == []
    assert holdfast.back_up("web").state is JobState.DONE


def test_a_job_whose_thread_cannot_be_started_begins_as_soon_as_one_can(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    holdfast.world.keeper.keys()  # the first look at the repository needs a thread of its own
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", none_left)
        started = holdfast.start("web")
        assert holdfast.reconciler.begin_round() == []
    holdfast.engine.reconciled()
    assert holdfast.ended(started).state is JobState.DONE
    one_round(holdfast.reconciler)


def test_a_job_that_was_written_down_but_never_begun_fails(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise StoreFailed("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(holdfast.world.jobs, "jobs_of_run", failing)
        with pytest.raises(StoreFailed):
            holdfast.start("web")
    (job,) = holdfast.world.jobs.unfinished()
    one_round(holdfast.reconciler)
    assert holdfast.world.jobs.job(job.job_id).state is JobState.FAILED
    assert holdfast.back_up("web").state is JobState.DONE


def test_an_unattended_job_that_was_cancelled_ends_as_cancelled_although_no_agent_can_be_asked(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = holdfast.world
    wanted = NewJob(kind="backup", subject="web", vcenter_id=holdfast.vcenter_id, lineage_id="l/1")
    (job,) = world.jobs.jobs_of_run(world.jobs.create_run(kind="backup", request={}, jobs=[wanted]))
    for event in ("queue", "start", "quiesce", "snapshot", "transfer", "commit"):
        world.jobs.advance(job.job_id, JobEvent(event))
    monkeypatch.setattr(holdfast.agent, "connected", list)
    one_round(holdfast.reconciler)
    assert not world.jobs.job(job.job_id).ended
    holdfast.engine.cancel(job.job_id)
    one_round(holdfast.reconciler)
    assert world.jobs.job(job.job_id).state is JobState.CANCELLED


def test_a_job_that_waits_ends_at_once_when_it_is_cancelled(
    tmp_path: Path, lab: RunningLab
) -> None:
    with one_process(tmp_path / "holdfast", lab, reconciled=False) as holdfast:
        (job_id,) = holdfast.start("web").job_ids
        assert holdfast.engine.cancel(job_id).state is JobState.CANCELLED
        holdfast.engine.reconciled()
        assert holdfast.back_up("web").state is JobState.DONE
        assert holdfast.world.jobs.job(job_id).state is JobState.CANCELLED


def test_a_job_that_waits_is_interrupted_when_the_controller_stops(
    tmp_path: Path, lab: RunningLab
) -> None:
    with one_process(tmp_path / "holdfast", lab, reconciled=False) as holdfast:
        (job_id,) = holdfast.start("web").job_ids
        holdfast.engine.close()
        assert holdfast.world.jobs.job(job_id).state is JobState.INTERRUPTED


def test_a_job_goes_on_although_it_cannot_be_asked_for_a_while_whether_it_was_cancelled(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def failing(*_: object) -> bool:
        asked.set()
        raise StoreFailed("the disk is full")

    def slow(_: JobSpec) -> None:
        assert asked.wait(SECONDS)
        holdfast.world.lifecycle.__dict__.pop("stopped")

    holdfast.agent.before = slow
    monkeypatch.setitem(holdfast.world.lifecycle.__dict__, "stopped", _once_true(failing))
    job = holdfast.back_up("web")
    assert (job.state, asked.is_set()) == (JobState.DONE, True)


def test_a_bug_in_the_waiting_thread_stops_the_agent_before_its_snapshot_goes(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_end: list[list[str]] = []

    def failing(*_: object) -> bool:
        raise ZeroDivisionError

    def slow(_: JobSpec) -> None:
        wait_until(lambda: holdfast.agent.cancelled != [], seconds=SECONDS, what="it is cancelled")
        at_the_end.append(snapshot_names(lab, "web"))

    holdfast.agent.before = slow
    monkeypatch.setitem(holdfast.world.lifecycle.__dict__, "stopped", _once_true(failing))
    job = holdfast.back_up("web")
    assert job.state is JobState.FAILED
    assert [len(names) for names in at_the_end] == [1]
    assert snapshot_names(lab, "web") == []


@pytest.mark.parametrize("failure", [FormatError("not of this job"), ZeroDivisionError("a bug")])
def test_a_result_that_can_never_be_kept_ends_its_attempt_and_its_point_is_found(
    holdfast: OneProcess, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(world: World, job_id: str, result: JobResult) -> None:
        del world, job_id, result
        raise failure

    monkeypatch.setattr(back_up_image, "record_point", refusing)
    job = holdfast.back_up("web")
    assert job.state is JobState.DONE
    assert holdfast.record(job).job_id == job.job_id


def _once_true(then: object) -> object:
    """Not to stop when it is first asked, which is before the agent starts."""
    calls = iter(range(1_000_000))

    def stopped(job_id: str) -> bool:
        if next(calls) == 0:
            return False
        assert callable(then)
        return bool(then(job_id))

    return stopped

"""The controller keeps its repository by itself: by the engine, an agent and the lab, in windows that the test opens."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import RepositoryFailed, StoreFailed
from holdfast_common.identity import JobId, PointId
from holdfast_common.job_result import DamageFound, JobResult, Outcome
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.loss import DamagedObject
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.scrub import scrub_packs
from holdfast_controller.decide.job_state import JobEvent, JobState
from holdfast_controller.decide.keeping import KeepingTask
from holdfast_controller.runs import scrub_packs as scrubbing_module
from holdfast_controller.runs.keeping_state import (
    busy,
    held_up,
    keeping_failures,
    keeping_states,
)
from holdfast_controller.runs.pausing import pause, resume
from holdfast_controller.runs.policy_runs import TRIES_SECONDS
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.repository_verdict import repository_verdict
from holdfast_controller.runs.verified_data import last_look, read_back_at
from holdfast_controller.runs.why import explain
from holdfast_controller.store import settings as names
from holdfast_controller.store.keeping import KeepingTable
from holdfast_controller.store.new_jobs import NewJob
from holdfast_lab.server import RunningLab
from support.kept_repositories import SECONDS, KeptRepository, only
from support.one_process import OneProcess, disk_content, disk_truth, one_round

OVERWRITTEN = 1 << 18  # bytes, between two points


@pytest.fixture
def kept(holdfast: OneProcess) -> KeptRepository:
    return KeptRepository(holdfast)


def why_not(kept: KeptRepository, task: str) -> str:
    """What holds it up, as `status` tells it when it is due."""
    return held_up(kept.world, KeepingTask(task))


def test_points_are_forgotten_space_is_reclaimed_and_what_remains_restores(
    holdfast: OneProcess, lab: RunningLab, kept: KeptRepository
) -> None:
    kept.policy("web", keep_last=1)
    old = kept.points(4, lab=lab)
    before = kept.stored_bytes()
    kept.look(hours=1)
    first = {"forget": kept.job("forget")}
    for task in ("prune", "scrub", "check"):
        kept.look(minutes=1)
        first[task] = kept.job(task)
    assert {name: str(job.state) for name, job in first.items()} == dict.fromkeys(
        ("forget", "prune", "scrub", "check"), "done"
    ), {name: job.error for name, job in first.items()}
    assert kept.known() == {old[-1]}
    gone = [
        each.object for each in holdfast.world.audit.entries() if each.action == "forget a point"
    ]
    assert set(gone) == set(old[:-1])
    assert {each.actor for each in holdfast.world.audit.entries() if each.object in old} == {
        "the controller"
    }
    kept.look(minutes=1)
    assert len(holdfast.world.jobs.latest(limit=50)) == 8, "nothing is due twice"
    kept.look(days=1)
    kept.job("forget")
    kept.look(minutes=1)
    pruned = kept.job("prune")
    row = holdfast.world.prunes.of_job(pruned.job_id)
    assert row is not None
    assert row.counts["deleted_bytes"] > 0, row.plan
    assert kept.stored_bytes() < before - 2 * OVERWRITTEN * 9 // 10
    job = holdfast.world.jobs.job(JobId(holdfast.world.catalogue.point(old[-1]).job_id))
    assert disk_content(holdfast, job) == disk_truth(lab, "web")


def test_a_vm_that_no_policy_covers_keeps_everything_and_without_a_rule_no_job_is_begun(
    kept: KeptRepository,
) -> None:
    old = kept.points(3)
    kept.look(hours=1)
    slot = kept.slot("forget")
    assert (slot.run_id, slot.told) == ("", "no policy says how many points are kept")
    kept.job("prune")
    kept.policy("other*", keep_last=1)
    kept.look(days=1)
    assert kept.job("forget").state is JobState.DONE
    assert kept.known() == set(old)
    told = [each.detail for each in kept.world.jobs.events(kept.job("forget").job_id)]
    assert "3 points: no policy covers its VM" in told


def test_held_points_and_those_that_a_job_reads_stay(
    holdfast: OneProcess, kept: KeptRepository
) -> None:
    kept.policy("web", keep_last=1)
    first, second, third, fourth = kept.points(4)
    holdfast.engine.care.hold(PointId(first), reason="a court", actor="anna", check=lambda: None)
    restore = NewJob(kind="restore", subject="web")
    holdfast.world.jobs.create_run(kind="restore", request={"point": second}, jobs=[restore])
    kept.look(hours=1)
    assert kept.job("forget").state is JobState.DONE
    assert kept.known() == {first, second, fourth}
    assert third not in kept.known()


def test_the_last_good_point_stays_also_when_all_newer_ones_are_damaged(
    holdfast: OneProcess, kept: KeptRepository
) -> None:
    kept.policy("web", keep_last=1)
    first, second, third = kept.points(3)
    checked = holdfast.world.jobs.create_run(
        kind="check",
        request={"read_data": True, "subset": "", "points": []},
        jobs=[NewJob(kind="check", subject="some points")],
    )
    (job,) = holdfast.world.jobs.jobs_of_run(checked)
    found = [DamageFound(object_name="x", problem="cut", point_id=each) for each in (second, third)]
    holdfast.world.damages.keep(job.job_id, JobResult(outcome=Outcome.FAILED, damages=tuple(found)))
    holdfast.world.jobs.advance(job.job_id, JobEvent.END_CANCELLED)
    kept.look(hours=1)
    assert kept.job("forget").state is JobState.DONE
    assert {first, third} <= kept.known()
    assert second not in kept.known()


def test_nothing_is_deleted_while_the_clock_or_a_policy_or_the_data_is_in_doubt(
    holdfast: OneProcess, kept: KeptRepository
) -> None:
    kept.policy("web", keep_last=1)
    old = kept.points(2)
    world = holdfast.world
    world.settings.set(names.CLOCK_DOUBT, "it went ahead by 400 days")
    kept.look(hours=1)
    assert world.keeping.last("forget") is None, "it stays due"
    assert "went ahead by 400 days" in why_not(kept, "forget")
    assert "--accept-clock" in why_not(kept, "prune")
    assert kept.job("scrub").state is JobState.DONE, "what only reads goes on"
    world.settings.set(names.CLOCK_DOUBT, "")
    world.settings.set(names.DAMAGED_PACKS, "aa")
    check = world.jobs.create_run(
        kind="check", request={}, jobs=[NewJob(kind="check", subject="repository")]
    )
    (job,) = world.jobs.jobs_of_run(check)
    world.jobs.advance(job.job_id, JobEvent.QUEUE)
    assert "a check has not ended" in busy(kept.world)
    for event in (JobEvent.START, JobEvent.TRANSFER, JobEvent.CLEAN, JobEvent.END_DONE):
        world.jobs.advance(job.job_id, event)
    assert "nothing is deleted while something is damaged" in why_not(kept, "forget")
    world.settings.set(names.DAMAGED_PACKS, "")
    assert why_not(kept, "forget") == ""
    with world.catalogue._database.transaction() as connection:
        connection.execute("UPDATE policies SET content = replace(content, 'UTC', 'Mars/X')")
    kept.look(minutes=1)
    failed = kept.job("forget")
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert "while a policy cannot be read" in failed.error.message
    assert kept.known() == set(old)


class Slow:
    """Packs are compared one by one, as they are let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

        def slowly(
            store: ObjectStore, packs: Iterable[tuple[bytes, int]]
        ) -> Iterator[tuple[bytes, DamagedObject | None]]:
            for each in scrub_packs(store, packs):
                self.reached.release()
                assert self.go_on.acquire(timeout=SECONDS)
                yield each

        monkeypatch.setattr(scrubbing_module, "scrub_packs", slowly)
        monkeypatch.setattr(scrubbing_module, "NOTE_PACKS", 1)

    def wait(self) -> None:
        """Until one was compared."""
        assert self.reached.acquire(timeout=SECONDS)

    def let(self, packs: int = 1) -> None:
        self.go_on.release(packs)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


def scrubbing(holdfast: OneProcess, lab: RunningLab, parts: int = 1) -> KeptRepository:
    """With some packs, of which one of so many parts is due at seven."""
    found = KeptRepository(holdfast, f"{only('scrub')}scrub.read_days = {parts}\n")
    found.points(3, lab=lab)
    return found


def compared(kept: KeptRepository) -> list[str]:
    """What scrubs told, oldest first."""
    jobs = [job for job in kept.world.jobs.latest(limit=50) if job.kind == "scrub"]
    return [
        each.detail
        for job in reversed(jobs)
        for each in kept.world.jobs.events(job.job_id)
        if each.event == "compared"
    ]


def test_the_end_of_a_window_stops_what_is_at_work_and_says_so_and_the_next_day_goes_on_from_there(
    holdfast: OneProcess, lab: RunningLab, slow: Slow
) -> None:
    kept = scrubbing(holdfast, lab)
    kept.look(hours=1)
    slow.wait()
    slow.let()
    slow.wait()  # the first pack was noted
    kept.look(hours=5)
    slow.let(100)
    stopped = kept.job("scrub")
    assert (stopped.state, stopped.error and stopped.error.code) == (
        JobState.INTERRUPTED,
        "window_closed",
    )
    assert stopped.error is not None
    assert "the window of keeping's scrub closed" in stopped.error.message
    kept.look(minutes=1)
    (state,) = [each for each in keeping_states(kept.world) if each.task == "scrub"]
    assert (state.is_well, state.last_run) == (False, stopped.run_id)
    assert "window" in state.result
    assert "; its next run, at " in state.result
    assert kept.slot("scrub").run_id == stopped.run_id, "not before the next day"
    kept.look(hours=20)
    again = kept.job("scrub")
    assert again.state is JobState.DONE
    assert again.run_id != stopped.run_id
    packs = len(list((holdfast.folder / "repository" / "packs").rglob("*/*")))
    assert compared(kept) == [f"{packs - 1} packs of {packs}"]
    assert holdfast.world.settings.get(names.SCRUBBED_AT)


def test_what_a_restart_or_a_pause_stopped_is_gone_on_with_for_the_same_moment(
    holdfast: OneProcess, lab: RunningLab, slow: Slow
) -> None:
    kept = scrubbing(holdfast, lab)
    kept.look(hours=1)
    slow.wait()
    first = kept.slot("scrub")
    slow.let(1)
    kept.engine._world.stopping.set()
    slow.let(100)
    assert kept.job("scrub").state is JobState.INTERRUPTED
    kept.engine.close()
    kept.another_life()
    kept.look(minutes=1)
    second = kept.slot("scrub")
    assert second.slot == first.slot
    assert second.run_id != first.run_id
    slow.let(100)
    assert kept.job("scrub").state is JobState.DONE
    kept.engine.close()


def test_what_a_killed_controller_left_is_gone_on_with_after_the_reconciler_ended_it(
    holdfast: OneProcess, kept: KeptRepository
) -> None:
    world = holdfast.world
    kept.points(1)
    kept.settings = only("prune")
    kept.another_life()
    kept.look(hours=1)
    first = kept.job("prune")
    with world.catalogue._database.transaction() as connection:  # as if it had been killed in it
        connection.execute(
            "UPDATE jobs SET state = 'transferring', finished_at = '' WHERE job_id = ?",
            (first.job_id,),
        )
        connection.execute("UPDATE runs SET finished_at = '' WHERE run_id = ?", (first.run_id,))
    kept.look(minutes=1)
    assert kept.slot("prune").run_id == first.run_id, "it has not ended"
    one_round(Reconciler(world, Orphans()))
    kept.look(minutes=1)
    again = kept.job("prune")
    assert (again.run_id != first.run_id, again.state) == (True, JobState.DONE)
    kept.look(minutes=1)
    assert kept.slot("prune").run_id == again.run_id


def test_while_everything_is_paused_nothing_begins_and_afterwards_it_does(
    holdfast: OneProcess, kept: KeptRepository
) -> None:
    kept.points(1)
    pause(holdfast.world, holdfast.engine, actor="anna", reason="firmware")
    kept.look(hours=1)
    assert all(holdfast.world.keeping.last(task) is None for task in KeepingTask)
    assert why_not(kept, "prune") == "everything is paused"
    resume(holdfast.world, holdfast.engine, actor="anna")
    kept.look(minutes=1)
    assert kept.slot("forget").told
    assert kept.job("prune").state is JobState.DONE


def test_a_scrub_goes_through_all_packs_in_its_days_and_tells_of_a_damaged_one(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    kept = scrubbing(holdfast, lab, parts=3)
    packs = sorted((holdfast.folder / "repository" / "packs").rglob("*/*"))
    for hours in (1, 24, 24):
        kept.look(hours=hours)
        assert kept.job("scrub").state is JobState.DONE
    counts = [int(text.split()[0]) for text in compared(kept)]
    assert max(counts) < len(packs) <= sum(counts)
    assert holdfast.world.settings.get(names.SCRUBBED_AT)
    for pack in packs:  # whichever is next
        pack.chmod(0o600)
        content = bytearray(pack.read_bytes())
        content[100] ^= 1
        pack.write_bytes(content)
    kept.look(days=1)
    job = kept.job("scrub")
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "integrity"
    damaged = set(holdfast.world.settings.get(names.DAMAGED_PACKS).split())
    rows = holdfast.world.damages.rows(job.job_id, start=0, count=10)
    assert damaged == {row.object_name.rpartition("/")[2] for row in rows}
    assert damaged <= {pack.name for pack in packs}
    assert "damaged" in repository_verdict(holdfast.world).damage


def test_a_check_reads_a_share_and_what_was_read_back_is_known_by_vm(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    kept = KeptRepository(holdfast, f"{only('check')}check.read_days = 1\n")
    points = kept.points(2, lab=lab)
    assert read_back_at(holdfast.world) == {}
    kept.look(hours=1)
    assert kept.job("check").state is JobState.DONE
    found = last_look(holdfast.world)
    assert found is not None
    assert (found.unproven_packs, bool(found.oldest_at)) == (0, True)
    lineage = holdfast.world.catalogue.point(points[-1]).lineage_id
    newest = holdfast.world.catalogue.point(points[-1]).created_at
    assert read_back_at(holdfast.world) == {lineage: newest}


def test_a_task_that_cannot_begin_is_told_after_an_hour_and_tried_as_long_as_its_window_is_open(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptRepository(holdfast, only("check", "mon-sun 07:00-20:00"))
    kept.points(1)
    with monkeypatch.context() as away:
        away.setattr(type(holdfast.agent), "connected", lambda _: [])
        kept.look(hours=1)
        kept.look(seconds=TRIES_SECONDS - 60)
        assert failures(kept) == []
        kept.look(seconds=120)
        assert holdfast.world.keeping.last("check") is None, "it stays due"
        ((key, text),) = failures(kept)
        assert key == "check"
        assert "cannot begin: " in text and "no connected proxy reaches the repository" in text
        kept.look(hours=3)
        kept.another_life()
        kept.look(minutes=1)
    kept.look(seconds=30)
    assert holdfast.world.keeping.last("check") is None, "too early for another try"
    kept.look(minutes=15)
    assert kept.job("check").state is JobState.DONE
    assert failures(kept) == []


def failures(kept: KeptRepository) -> list[tuple[str, str]]:
    """As `status` would tell them at the time of the test's morning."""
    later = LaterClock(kept.now - kept.holdfast.world.clock.now())
    world = replace(kept.world, clock=later)
    return [(each.key, each.text) for each in keeping_failures(world)]


@dataclass
class LaterClock(SystemClock):
    """The machine's clock, and as much later."""

    later: timedelta

    def now(self) -> datetime:
        return super().now() + self.later


def test_what_the_end_of_a_window_stopped_is_gone_on_with_in_the_next_one(
    holdfast: OneProcess, lab: RunningLab, slow: Slow
) -> None:
    """Due once a month: the next moment is far away."""
    kept = scrubbing(holdfast, lab)
    day = kept.now.day
    kept.settings = kept.settings.replace('"0 7 * * *"', f'"0 7 {day} * *"')
    kept.another_life()
    kept.look()
    kept.look(hours=1)
    slow.wait()
    slow.let()
    slow.wait()
    kept.look(hours=5)
    slow.let(100)
    stopped = kept.job("scrub")
    ((_, text),) = failures(kept)
    assert f"; it goes on at {kept.now + timedelta(hours=19):%Y-%m-%d} 07:00Z" in text
    kept.look(minutes=1)
    assert kept.slot("scrub").run_id == stopped.run_id, "its window is shut"
    kept.look(hours=20)
    again = kept.job("scrub")
    assert (again.state, again.run_id != stopped.run_id) == (JobState.DONE, True)
    assert kept.slot("scrub").slot.day == day, "for the same moment"
    assert failures(kept) == []
    kept.look(minutes=1)
    assert kept.slot("scrub").run_id == again.run_id
    kept.engine.close()


@pytest.mark.parametrize("call", range(4))
def test_a_forget_that_fails_at_any_deletion_drops_nothing_else_and_the_next_one_does_the_rest(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    kept = KeptRepository(holdfast, only("forget"))
    kept.policy("web", keep_last=1)
    old = kept.points(4)
    delete, calls = DirectoryStore.delete, []

    def failing(store: DirectoryStore, name: str) -> None:
        if name.startswith("points/"):
            calls.append(name)
            if len(calls) > call:
                raise RepositoryFailed("the disk fails", name=name)
        delete(store, name)

    with monkeypatch.context() as broken:
        broken.setattr(DirectoryStore, "delete", failing)
        kept.look(hours=1)
        job = kept.job("forget")
    assert len(kept.known()) == max(1, 4 - call)
    assert old[-1] in kept.known()
    assert job.state is (JobState.DONE if call == 3 else JobState.FAILED)
    there = {path.name for path in (holdfast.folder / "repository" / "points").rglob("*/*")}
    assert {holdfast.world.catalogue.point(each).job_id for each in kept.known()} == there
    kept.look(days=1)
    assert kept.job("forget").state is JobState.DONE
    assert kept.known() == {old[-1]}


def test_the_moment_and_its_run_are_there_together_or_not_at_all(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptRepository(holdfast, only("prune"))
    kept.points(1)
    with monkeypatch.context() as broken:

        def failing(*_: object) -> None:
            raise StoreFailed("the disk fails")

        broken.setattr(KeepingTable, "take", failing)
        kept.look(hours=1)
    assert [job.kind for job in holdfast.world.jobs.latest(limit=5)] == ["backup"]
    kept.look(minutes=2)
    assert kept.job("prune").state is JobState.DONE
    (run,) = {job.run_id for job in holdfast.world.jobs.latest(limit=5) if job.kind == "prune"}
    told = {
        each.question: each.answer
        for each in explain(holdfast.world, holdfast.engine.dispatcher, run)
    }
    assert "the controller, which keeps the repository (prune was due at" in told["asked by"]

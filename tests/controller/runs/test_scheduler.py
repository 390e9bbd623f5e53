"""Policies carried out: by the engine, an agent and the lab, on a clock that the test moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_common.errors import (
    Interrupted,
    NotFound,
    Refused,
    StoreFailed,
    VsphereUnavailable,
)
from holdfast_common.identity import JobId, RunId
from holdfast_common.job_result import Warned
from holdfast_common.job_spec import BackUpDisks, JobSpec
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.policy import LevelRule, Policy
from holdfast_controller.runs.loads import vcenter_gate
from holdfast_controller.runs.pausing import keep_paused, pause, pause_of, resume
from holdfast_controller.runs.policy_runs import TRIES_SECONDS
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.results import NOT_PROTECTED
from holdfast_controller.runs.schedule_warnings import schedule_warnings
from holdfast_controller.runs.scheduler import Scheduler
from holdfast_controller.runs.why import explain
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.policies import StoredPolicy
from holdfast_controller.store.policy_slots import PolicySlot
from holdfast_controller.store.settings import PAUSED
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.vms import snapshot_names
from support.waiting import wait_until

SECONDS = 30.0
EVENING = "mon-sun 22:00-06:00"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    machines = [
        MachinePlan(name=name, datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 16),))
        for name in ("web", "db", "mail")
    ]
    machines.append(MachinePlan(name="proxy", datastore="vmfs1", disks=()))
    plan = InventoryPlan(machines=tuple(machines))
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running


@dataclass
class Night:
    """A scheduler at its ten o'clock, and the policy that is due then."""

    holdfast: OneProcess
    scheduler: Scheduler
    now: datetime

    def policy(self, *vms: str, **fields: object) -> StoredPolicy:
        """A policy that is due at ten, made the day before by its last slot."""
        values = {"name": "gold", "start": "0 22 * * *", "window": EVENING, **fields}
        policy = Policy(vms=vms, **values)  # type: ignore[arg-type]  # plain values
        stored = self.holdfast.world.policies.create(policy, actor="anna")
        yesterday = PolicySlot(
            policy_id=stored.policy_id,
            slot=self.now - timedelta(days=1),
            calendar=f"{policy.calendar.expression} UTC",
        )
        self.holdfast.world.policy_slots.take(yesterday)
        return stored

    def look(self, **later: float) -> None:
        """The scheduler looks; so much later."""
        self.now += timedelta(**later)
        self.scheduler.look(self.now)

    def slot(self, stored: StoredPolicy) -> PolicySlot:
        """The newest."""
        found = self.holdfast.world.policy_slots.last(stored.policy_id)
        assert found is not None
        return found

    def jobs(self, stored: StoredPolicy) -> dict[str, JobRow]:
        """Of the newest slot's run, at their end."""
        run_id = RunId(self.slot(stored).run_id)
        jobs = self.holdfast.world.jobs
        wait_until(
            lambda: all(job.ended for job in jobs.jobs_of_run(run_id)),
            seconds=SECONDS,
            what="the run ends",
        )
        return {job.subject: job for job in jobs.jobs_of_run(run_id)}

    def states(self, stored: StoredPolicy) -> dict[str, str]:
        return {name: str(job.state) for name, job in self.jobs(stored).items()}


def tonight() -> datetime:
    """Ten o'clock of a night to come, so that nothing that is made now is later than it."""
    return (datetime.now(UTC) + timedelta(days=2)).replace(hour=22, minute=0, second=3)


@contextmanager
def night_of(folder: Path, lab: RunningLab) -> Iterator[Night]:
    with one_process(folder, lab) as holdfast:
        yield Night(holdfast, Scheduler(holdfast.world, holdfast.engine), tonight())


@pytest.fixture
def night(tmp_path: Path, lab: RunningLab) -> Iterator[Night]:
    with night_of(tmp_path / "holdfast", lab) as ready:
        yield ready


@dataclass
class Held:
    """Backups that do not go on until they are let."""

    reached: threading.Semaphore
    go_on: threading.Event

    def wait(self) -> None:
        assert self.reached.acquire(timeout=SECONDS)


def hold(night: Night) -> Held:
    """Every backup's agent waits before it works, until it is let or cancelled."""
    held = Held(threading.Semaphore(0), threading.Event())
    agent = night.holdfast.agent

    def before(_: JobSpec) -> None:
        count = len(agent.cancelled)
        held.reached.release()
        wait_until(
            lambda: held.go_on.is_set() or len(agent.cancelled) > count,
            seconds=SECONDS,
            what="it may go on, or is cancelled",
        )

    agent.before = before
    return held


def _refusing(*_: object, **__: object) -> None:
    raise Refused("no proxy agent is connected")


def _unavailable(_: str) -> VsphereSession:
    raise VsphereUnavailable("vCenter does not answer")


def test_an_agent_may_be_away_as_long_as_the_policy_says(night: Night) -> None:
    stored = night.policy("web", resume_within="10m")
    night.look()
    assert night.states(stored) == {"web": "done"}
    assert night.holdfast.agent.leases_seconds == [600.0]
    run_id = RunId(night.slot(stored).run_id)
    saved = night.holdfast.world.runs.run(run_id).request
    assert (
        BackupRequest.again(saved).resume_seconds == 600
    )  # its tries and its reconciler ask there
    night.holdfast.back_up("web")
    assert night.holdfast.agent.leases_seconds[1:] == [0.0]


def test_a_due_policy_backs_its_vms_up_once(night: Night) -> None:
    stored = night.policy("web", "d*", exclude=("mail",))
    night.look(hours=-1)
    assert night.slot(stored).run_id == ""
    night.look(hours=1)
    assert night.states(stored) == {"web": "done", "db": "done"}
    first = night.slot(stored)
    for _ in range(3):
        night.look(minutes=1)
    assert night.slot(stored) == first
    request = night.holdfast.world.runs.run(RunId(first.run_id)).request
    assert request["policy"] == "gold"
    night.look(days=1)
    second = night.slot(stored)
    assert (second.slot - first.slot, second.missed) == (timedelta(days=1), 0)
    assert {job.level for job in night.jobs(stored).values()} == {"incremental"}


def test_a_window_that_closes_stops_what_is_at_work_and_ends_what_waits(
    night: Night, lab: RunningLab
) -> None:
    stored = night.policy("web", "db", "mail")
    held = hold(night)
    night.look()
    held.wait()
    held.wait()  # two backups at once is what this controller may do
    night.look(hours=7, minutes=59)
    assert not any(job.ended for job in _jobs(night, stored))
    night.look(minutes=1)
    jobs = night.jobs(stored)
    assert {str(job.state) for job in jobs.values()} == {"interrupted"}
    for job in jobs.values():
        assert job.error is not None
        assert job.error.code == "window_closed"
        assert "gold" in job.error.text()
        assert job.attempt == 1
    assert sorted(str(job.agent_id) != "" for job in jobs.values()) == [False, True, True]
    assert [snapshot_names(lab, name) for name in ("web", "db", "mail")] == [[], [], []]
    # nothing is begun outside of the window, nor gone on with in the next one, which has a run of its own
    night.look(hours=1)
    run = night.slot(stored).run_id
    night.holdfast.agent.before = lambda _: None
    night.look(hours=15)
    assert night.slot(stored).run_id != run
    assert set(night.states(stored).values()) == {"done"}


def _jobs(night: Night, stored: StoredPolicy) -> list[JobRow]:
    return night.holdfast.world.jobs.jobs_of_run(RunId(night.slot(stored).run_id))


def test_what_the_controllers_end_stopped_is_gone_on_with_in_the_same_night(
    tmp_path: Path, lab: RunningLab
) -> None:
    with night_of(tmp_path / "holdfast", lab) as night:
        stored = night.policy("web", "db", "mail")
        held = hold(night)
        night.look()
        held.wait()
        first = night.slot(stored)
        night.holdfast.engine.close()
        assert set(night.states(stored).values()) == {"interrupted"}
        world = night.holdfast.world
        world.stopping.clear()
        # another life of the controller
        again = type(night.holdfast.engine)(world)
        again.reconciled()
        night.holdfast.agent.before = lambda _: None
        scheduler = Scheduler(world, again)
        scheduler.look(night.now + timedelta(minutes=1))
        after = night.slot(stored)
        assert after.slot == first.slot
        assert after.run_id != first.run_id
        assert night.states(stored) == {"web": "done", "db": "done", "mail": "done"}
        scheduler.look(night.now + timedelta(minutes=2))
        assert night.slot(stored) == after
        again.close()


def test_a_selector_that_names_nothing_holds_no_other_up(night: Night) -> None:
    stored = night.policy("web", "gone*", exclude=("never-there",))
    night.look()
    assert "gone* names no VM" in night.slot(stored).told
    assert "never-there names no VM" in night.slot(stored).told
    assert night.states(stored) == {"web": "done"}


def test_a_vm_at_work_is_left_out_by_its_name_and_job(night: Night) -> None:
    held = hold(night)
    (other,) = night.holdfast.start("db").job_ids
    held.wait()
    stored = night.policy("web", "db")
    night.look()
    assert f"db: left out, it is at work in job {other}" in night.slot(stored).told
    held.go_on.set()
    assert night.states(stored) == {"web": "done"}


def test_a_policy_whose_vms_are_all_at_work_is_written_down_and_backs_none_up_twice(
    night: Night,
) -> None:
    held = hold(night)
    (other,) = night.holdfast.start("db").job_ids
    held.wait()
    stored = night.policy("db")
    night.look()
    slot = night.slot(stored)
    assert (slot.run_id, slot.told) == ("", f"db: left out, it is at work in job {other}")
    held.go_on.set()
    wait_until(lambda: night.holdfast.world.jobs.job(other).ended, seconds=SECONDS, what="it ends")
    night.look(minutes=1)
    assert night.slot(stored) == slot


def test_a_run_that_cannot_begin_is_told_at_once_and_tried_as_long_as_the_window_is_open(
    night: Night,
) -> None:
    stored = night.policy("late*")
    before = night.slot(stored)
    night.look()
    told = " ".join(schedule_warnings(night.holdfast.world))
    assert "gold could not begin its run of" in told
    assert "selects no VM" in told
    night.look(seconds=TRIES_SECONDS - 10)
    night.look(hours=5)
    assert night.slot(stored) == before
    # another life of the controller, in which the VM is there
    world = night.holdfast.world
    changed = replace(stored.policy, vms=("web",))
    world.policies.replace(stored.policy_id, changed, revision=stored.revision, actor="anna")
    night.scheduler = Scheduler(world, night.holdfast.engine)
    night.look(minutes=1)
    assert night.slot(stored).slot > before.slot
    assert night.states(stored) == {"web": "done"}
    assert "could not begin" not in " ".join(schedule_warnings(world))


def test_why_a_run_of_thousands_cannot_begin_is_told_shortly_and_of_each_vm(night: Night) -> None:
    night.policy("web", "db", "mail")
    night.holdfast.agent.away = True
    night.look()
    (warning,) = schedule_warnings(night.holdfast.world)
    assert warning.count("no proxy agent is connected") == 1
    assert all(name in warning for name in ("web", "db", "mail"))
    (answer,) = reasons(night, "web")["policy gold"]
    assert "cannot begin yet" in answer
    assert "no proxy agent is connected" in answer


def test_a_run_that_could_not_begin_in_its_window_is_made_up_for_by_the_next_one(
    night: Night,
) -> None:
    stored = night.policy("web")
    with pytest.MonkeyPatch.context() as away:
        away.setattr(night.holdfast.engine, "start_backups", _refusing)
        night.look()
        night.look(hours=7, minutes=59)
    night.look(hours=2)
    assert night.slot(stored).run_id == ""
    assert "gold could not begin" in " ".join(schedule_warnings(night.holdfast.world))
    night.look(hours=14, minutes=1)
    assert (night.slot(stored).missed, night.states(stored)) == (1, {"web": "done"})


def test_a_clock_that_was_years_ahead_for_a_while_stops_no_policy(night: Night) -> None:
    stored = night.policy("web")
    right = night.now
    night.look(days=800)
    night.jobs(stored)
    night.now = right
    night.look()
    last = night.holdfast.world.policy_slots.last(stored.policy_id, until=night.now)
    assert last is not None
    assert last.slot == right.replace(second=0, microsecond=0)
    assert last.run_id


def test_nights_that_a_clock_was_ahead_by_are_not_lost_when_it_is_right_again(night: Night) -> None:
    stored = night.policy("web")
    right = night.now
    for _ in range(3):
        night.look(days=1)
        night.jobs(stored)
    slots = night.holdfast.world.policy_slots
    wrong = {each.slot: each.run_id for each in slots.latest(stored.policy_id)}
    night.now = right + timedelta(minutes=1)
    night.look()
    unfinished = night.holdfast.world.jobs.unfinished
    wait_until(lambda: not unfinished(), seconds=SECONDS, what="tonight's run ends")
    for _ in range(3):
        night.look(hours=1)
    for days in (1, 2, 3):
        night.now = right + timedelta(days=days)
        night.look()
        slot = slots.last(stored.policy_id, until=night.now)
        assert slot is not None
        assert slot.slot == night.now.replace(second=0, microsecond=0)
        assert slot.run_id not in ("", wrong.get(slot.slot)), days
        assert night.states(stored) == {"web": "done"}


def test_a_clock_that_goes_back_for_a_moment_begins_no_run_twice(night: Night) -> None:
    stored = night.policy("web")
    night.look()
    night.jobs(stored)
    first, right = night.slot(stored), night.now
    night.look(days=-300)
    night.look(minutes=50)
    night.now = right + timedelta(hours=1)
    night.look()
    assert night.slot(stored) == first


def stopped_in_the_middle(night: Night, stored: StoredPolicy) -> PolicySlot:
    """The policy's run was at work, a pause stopped it, and the pause is over."""
    held = hold(night)
    night.look()
    held.wait()
    holdfast = night.holdfast
    pause(holdfast.world, holdfast.engine, actor="anna", reason="")
    night.jobs(stored)
    holdfast.agent.before = lambda _: None
    resume(holdfast.world, holdfast.engine, actor="anna")
    return night.slot(stored)


def test_what_was_stopped_is_gone_on_with_though_it_could_not_be_at_first(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = night.policy("web")
    first = stopped_in_the_middle(night, stored)

    def failing(*_: object, **__: object) -> None:
        raise StoreFailed("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(night.holdfast.engine, "start_backups", failing)
        night.look(minutes=1)
    night.look(minutes=1)
    assert night.slot(stored).run_id != first.run_id
    assert night.states(stored) == {"web": "done"}


def test_a_run_that_cannot_be_gone_on_with_does_not_hold_the_next_one_up(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = night.policy("web")
    first = stopped_in_the_middle(night, stored)

    with monkeypatch.context() as away:
        away.setattr(night.holdfast.engine, "start_backups", _refusing)
        night.look(minutes=1)
    night.look(days=1)
    assert night.slot(stored).slot - first.slot == timedelta(days=1)
    assert night.states(stored) == {"web": "done"}


def test_what_failed_because_a_vcenter_was_away_is_backed_up_in_the_same_night(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = night.policy("web", "db", attempts_max=1)
    with monkeypatch.context() as away:
        away.setattr(night.holdfast.world.vcenters, "session", _unavailable)
        night.look()
        assert set(night.states(stored).values()) == {"failed"}
    first = night.slot(stored)
    night.look(minutes=16)
    assert night.slot(stored).run_id != first.run_id
    assert night.states(stored) == {"web": "done", "db": "done"}
    again = night.slot(stored)
    night.look(minutes=16)
    assert night.slot(stored) == again


def test_a_vm_whose_proxy_went_away_before_its_snapshot_is_backed_up_in_the_same_night(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = night.policy("web", attempts_max=1)
    holdfast = night.holdfast
    real = holdfast.world.vcenters.session

    def leaving(vcenter_id: str) -> VsphereSession:
        holdfast.agent.away = True
        return real(vcenter_id)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(holdfast.world.vcenters, "session", leaving)
        night.look()
        (job,) = night.jobs(stored).values()
    assert job.error is not None
    assert (str(job.state), job.error.code, job.error.exit_status) == ("failed", "no_proxy", 15)
    holdfast.agent.away = False
    night.look(minutes=16)
    assert night.states(stored) == {"web": "done"}


def test_a_stopped_vm_that_is_at_work_in_another_job_is_waited_for(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = night.policy("web")
    first = stopped_in_the_middle(night, stored)
    holdfast = night.holdfast
    holdfast.engine.dispatcher.shut(vcenter_gate(holdfast.vcenter_id))
    other = holdfast.start("web")
    night.look(minutes=1)
    assert night.slot(stored) == first
    with monkeypatch.context() as away:
        away.setattr(holdfast.world.vcenters, "session", _unavailable)
        holdfast.engine.dispatcher.open(vcenter_gate(holdfast.vcenter_id))
        assert str(holdfast.ended(other).state) == "failed"
    night.look(minutes=1)
    assert night.slot(stored).run_id != first.run_id
    assert night.states(stored) == {"web": "done"}


def test_what_was_stopped_does_not_wait_for_the_end_of_the_other_backups_of_its_run(
    night: Night,
) -> None:
    stored = night.policy("web", "db")
    world, agent = night.holdfast.world, night.holdfast.agent
    go_on, stopped = threading.Event(), threading.Event()

    def is_let_go_of() -> bool:
        return stopped.is_set() or bool(agent.cancelled)

    def before(spec: JobSpec) -> None:
        assert isinstance(spec.work, BackUpDisks)
        holds = go_on.is_set if spec.work.vm.name == "db" else is_let_go_of
        wait_until(holds, seconds=SECONDS, what="it may go on, or is cancelled")

    agent.before = before
    night.look()
    run_id = RunId(night.slot(stored).run_id)
    (web,) = (job for job in world.jobs.jobs_of_run(run_id) if job.subject == "web")
    world.lifecycle.stops.ask(web.job_id, Interrupted("something ended it"))
    wait_until(lambda: world.jobs.job(web.job_id).ended, seconds=SECONDS, what="it stops")
    stopped.set()
    night.look(minutes=1)  # others of the run may be stopping too
    night.look(minutes=1)
    (again,) = world.jobs.latest(subject="web", limit=1)
    assert again.run_id != run_id
    wait_until(lambda: world.jobs.job(again.job_id).ended, seconds=SECONDS, what="it ends")
    assert str(world.jobs.job(again.job_id).state) == "done"
    night.look(minutes=1)
    go_on.set()
    assert night.states(stored) == {"web": "interrupted", "db": "done"}
    assert world.jobs.latest(subject="web", limit=1)[0].job_id == again.job_id


def test_one_policy_that_cannot_begin_holds_no_other_up(night: Night) -> None:
    night.policy("nobody*", name="a-first")
    stored = night.policy("web", name="b-second")
    night.look()
    assert night.states(stored) == {"web": "done"}


def test_a_bug_that_one_policy_meets_holds_no_other_up(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.policy("web", name="a-first")
    stored = night.policy("db", name="b-second")
    real = night.scheduler.runs.begin_due

    def broken(each: StoredPolicy, now: datetime) -> object:
        if each.policy.name == "a-first":
            raise ZeroDivisionError
        return real(each, now)

    monkeypatch.setattr(night.scheduler.runs, "begin_due", broken)
    night.look()
    assert night.states(stored) == {"db": "done"}


def test_a_vm_is_read_whole_after_so_many_days(night: Night) -> None:
    # the points are made by the real clock, some two days before the test's
    stored = night.policy("web", level=LevelRule(full_days=5))
    night.look()
    night.jobs(stored)
    night.look(days=1)
    assert {job.level for job in night.jobs(stored).values()} == {"incremental"}
    night.look(days=5)
    assert {(job.level_asked, job.level) for job in night.jobs(stored).values()} == {
        ("compare", "full")
    }
    assert "web: read whole and compared, 5 days after it was last" in night.slot(stored).told
    assert night.slot(stored).missed == 4


def test_what_waits_for_a_deleted_policys_window_ends(night: Night) -> None:
    stored = night.policy("web", "db", "mail")
    held = hold(night)
    night.look()
    held.wait()
    held.wait()
    world = night.holdfast.world
    world.policies.delete(stored.policy_id, revision=stored.revision, actor="anna")
    night.look(minutes=1)
    held.go_on.set()
    assert sorted(night.states(stored).values()) == ["done", "done", "interrupted"]


def test_a_pause_stops_what_is_at_work_and_a_resume_goes_on_with_it(
    night: Night, lab: RunningLab
) -> None:
    holdfast, stored = night.holdfast, night.policy("web")
    held = hold(night)
    (own,) = holdfast.start("mail").job_ids
    night.look()
    held.wait()
    held.wait()
    assert pause(holdfast.world, holdfast.engine, actor="anna", reason="firmware") == 2
    assert {str(job.state) for job in night.jobs(stored).values()} == {"interrupted"}
    wait_until(lambda: holdfast.world.jobs.job(own).ended, seconds=SECONDS, what="it stops")
    error = holdfast.world.jobs.job(own).error
    assert error is not None
    assert (error.code, "firmware" in error.text()) == ("paused", True)
    assert [snapshot_names(lab, name) for name in ("web", "mail")] == [[], []]
    with pytest.raises(Refused, match="paused already"):
        pause(holdfast.world, holdfast.engine, actor="bert", reason="")
    waits = holdfast.start("db")
    first = night.slot(stored)
    night.look(minutes=1)
    assert night.slot(stored) == first
    assert holdfast.world.jobs.job(waits.job_ids[0]).state is JobState.QUEUED

    holdfast.agent.before = lambda _: None
    assert resume(holdfast.world, holdfast.engine, actor="anna") == []
    assert holdfast.ended(waits).state is JobState.DONE
    night.look(minutes=1)
    assert night.states(stored) == {"web": "done"}
    assert night.slot(stored).slot == first.slot
    newest = holdfast.world.jobs.latest(subject="mail", limit=1)[0]
    assert newest.job_id != own
    wait_until(
        lambda: holdfast.world.jobs.job(newest.job_id).state is JobState.DONE,
        seconds=SECONDS,
        what="what was stopped is done",
    )
    with pytest.raises(Refused, match="nothing is paused"):
        resume(holdfast.world, holdfast.engine, actor="anna")


def test_a_resume_goes_on_with_what_was_stopped_of_a_run_that_has_not_ended(night: Night) -> None:
    holdfast = night.holdfast
    held = hold(night)
    request = BackupRequest(selectors=("web", "db", "mail"))
    started = holdfast.engine.start_backup(request, dry_run=False)
    held.wait()
    held.wait()
    pause(holdfast.world, holdfast.engine, actor="anna", reason="")
    jobs = holdfast.world.jobs

    def stopped() -> list[str]:
        rows = jobs.jobs_of_run(RunId(str(started.run_id)))
        return [job.subject for job in rows if job.state is JobState.INTERRUPTED]

    wait_until(lambda: len(stopped()) == 2, seconds=SECONDS, what="two have stopped")
    assert resume(holdfast.world, holdfast.engine, actor="anna") == []
    newest = {name: jobs.latest(subject=name, limit=1)[0] for name in stopped()}
    held.go_on.set()
    assert started.run_id not in {job.run_id for job in newest.values()}
    wait_until(lambda: not jobs.unfinished(), seconds=SECONDS, what="all have ended")
    assert {str(jobs.job(job.job_id).state) for job in newest.values()} == {"done"}


def test_a_resume_names_what_has_not_stopped_yet(night: Night) -> None:
    holdfast, at_work, go_on = night.holdfast, threading.Event(), threading.Event()

    def before(_: JobSpec) -> None:
        at_work.set()
        assert go_on.wait(SECONDS)

    holdfast.agent.before = before
    started = holdfast.start("web")
    assert at_work.wait(SECONDS)
    pause(holdfast.world, holdfast.engine, actor="anna", reason="")
    (told,) = resume(holdfast.world, holdfast.engine, actor="anna")
    assert "web has not stopped yet" in told
    assert f"holdfast job retry {started.run_id} --failed" in told
    go_on.set()
    assert holdfast.ended(started).state is JobState.INTERRUPTED


def test_what_waits_is_given_to_no_proxy_that_went_away(night: Night) -> None:
    holdfast, stored = night.holdfast, night.policy("web")
    dispatcher = holdfast.engine.dispatcher
    dispatcher.shut(vcenter_gate(holdfast.vcenter_id))
    night.look()
    holdfast.agent.away = True
    night.look(minutes=1)
    dispatcher.open(vcenter_gate(holdfast.vcenter_id))
    (job,) = _jobs(night, stored)
    assert job.state is JobState.QUEUED
    assert reasons(night, "web")["waits now for"][0].startswith("connection of proxy ")
    holdfast.agent.away = False
    night.look(minutes=1)
    assert night.states(stored) == {"web": "done"}


def test_what_only_a_proxy_could_do_that_does_not_come_back_is_planned_anew(night: Night) -> None:
    holdfast, stored = night.holdfast, night.policy("web")
    dispatcher = holdfast.engine.dispatcher
    dispatcher.shut(vcenter_gate(holdfast.vcenter_id))
    night.look()
    first = night.slot(stored)
    holdfast.agent.away = True
    night.look(minutes=1)
    dispatcher.open(vcenter_gate(holdfast.vcenter_id))
    night.look(minutes=11)
    (job,) = night.jobs(stored).values()
    assert job.error is not None
    assert (job.state, job.error.code) == (JobState.INTERRUPTED, "interrupted")
    assert "went away" in job.error.text()
    holdfast.agent.away = False
    night.look(minutes=16)
    assert night.slot(stored).run_id != first.run_id
    assert night.states(stored) == {"web": "done"}


def test_a_pause_outlives_the_controller(night: Night) -> None:
    holdfast = night.holdfast
    pause(holdfast.world, holdfast.engine, actor="anna", reason="a move")
    found = pause_of(holdfast.world)
    assert found is not None
    assert (found.actor, found.reason) == ("anna", "a move")
    holdfast.engine.close()
    holdfast.world.stopping.clear()
    again = type(holdfast.engine)(holdfast.world)
    keep_paused(holdfast.world, again)
    again.reconciled()
    started = again.start_backup(BackupRequest(selectors=("web",)), dry_run=False)
    assert again.dispatcher.waits(started.job_ids[0])[-1].load.text == "pause by an operator"
    again.close()
    assert holdfast.ended(started).state is JobState.INTERRUPTED


def test_a_pause_whose_end_the_database_did_not_confirm_is_over_all_the_same(night: Night) -> None:
    holdfast = night.holdfast
    pause(holdfast.world, holdfast.engine, actor="anna", reason="a move")
    waits = holdfast.start("web")
    # the database wrote it, and failed then: `resume` went no further, and nothing is paused any more
    holdfast.world.settings.set(PAUSED, "")
    night.look()
    assert holdfast.ended(waits).state is JobState.DONE


def reasons(night: Night, name: str) -> dict[str, list[str]]:
    """What `holdfast why` answers, by question."""
    engine, found = night.holdfast.engine, dict[str, list[str]]()
    for each in explain(night.holdfast.world, engine.dispatcher, name):
        found.setdefault(each.question, []).append(each.answer)
    return found


def test_why_tells_what_was_decided_and_what_was_waited_for(night: Night) -> None:
    stored = night.policy("web", "db", "mail", exclude=("never-there",))
    held = hold(night)
    night.look()
    held.wait()
    held.wait()
    run_id = night.slot(stored).run_id
    (waiting,) = [job for job in _jobs(night, stored) if job.state is JobState.QUEUED]
    assert reasons(night, waiting.job_id)["waits now for"] == ["limit on all backups"]
    wait_until(lambda: _waited(night, waiting.job_id) > 0.3, seconds=SECONDS, what="it waits")
    held.go_on.set()
    jobs = night.jobs(stored)
    told = reasons(night, jobs["web"].job_id)
    assert told["what"] == ["backup of web: done"]
    assert told["asked by"][0].startswith("policy gold, at ")
    assert told["level"] == ["full: there is no previous point (incremental was asked)"]
    assert "direct" in told["transport"][0]
    assert told["what took longest"]
    of_waiting = reasons(night, waiting.job_id)
    assert of_waiting["waited for"] == ["limit on all backups"]
    of_run = reasons(night, run_id)
    assert of_run["what"] == ["backup of 3: 3 done"]
    assert of_run["told"] == ["the selector never-there names no VM"]
    assert of_run["jobs waited, all together, for"] == ["limit on all backups"]
    assert reasons(night, "web")["newest job"] == [jobs["web"].job_id]
    with pytest.raises(NotFound, match="no job, no run and no VM"):
        explain(night.holdfast.world, night.holdfast.engine.dispatcher, "nothing")


def test_why_names_what_failed_in_a_run_and_what_was_told_of_a_vm_beside_that_vm(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = night.policy("web", "db", level=LevelRule(full_days=1), attempts_max=1)
    night.look()
    night.jobs(stored)
    with monkeypatch.context() as away:
        away.setattr(night.holdfast.world.vcenters, "session", _unavailable)
        night.look(days=1)
        jobs = night.jobs(stored)
    for name, other in (("web", "db"), ("db", "web")):
        told = reasons(night, jobs[name].job_id)["told"]
        assert told == [f"{name}: read whole and compared, 1 days after it was last"]
        assert other not in told[0]
    failed = reasons(night, night.slot(stored).run_id)["failed"]
    assert sorted(text.partition(": ")[0] for text in failed) == ["db", "web"]
    assert all("vCenter does not answer" in text for text in failed)


def test_why_a_backup_is_partial_is_told(night: Night) -> None:
    independent = Warned(code=NOT_PROTECTED, message="Hard disk 2 is independent")
    night.holdfast.agent.after = lambda _, result: replace(result, warnings=(independent,))
    assert str(night.holdfast.back_up("web").state) == "partial"
    assert reasons(night, "web")["why partial"] == ["Hard disk 2 is independent"]


def test_why_a_vm_names_the_policies_that_select_it_and_when_they_are_due(night: Night) -> None:
    night.policy("web")
    (answer,) = reasons(night, "web")["policy gold"]
    assert answer.startswith("selects it, next due at 20")
    assert reasons(night, "db")["policies"][0].startswith("no policy selects it")
    assert "no disk" in reasons(night, "proxy")["what to back up"][0]


def test_status_is_short_though_thousands_of_vms_were_left_out(night: Night) -> None:
    stored = night.policy("web")
    told = "; ".join(f"vm{number}: left out, it is at work in job 1" for number in range(3000))
    slot = PolicySlot(policy_id=stored.policy_id, slot=night.now, calendar="", told=told)
    night.holdfast.world.policy_slots.take(slot)
    (warning,) = schedule_warnings(night.holdfast.world)
    assert len(warning) < 300
    assert "and 2997 more" in warning


def _waited(night: Night, job_id: JobId) -> float:
    return sum(wait.seconds for wait in night.holdfast.engine.dispatcher.waits(job_id))


def test_status_warns_of_a_pause_and_of_a_policy_that_did_nothing(night: Night) -> None:
    world = night.holdfast.world
    assert schedule_warnings(world) == []
    night.policy("nobody*")
    night.look()
    night.look(seconds=TRIES_SECONDS)
    pause(world, night.holdfast.engine, actor="anna", reason="firmware")
    first, second = schedule_warnings(world)
    assert "paused since" in first
    assert "by anna: firmware" in first
    assert "policy gold could not begin its run of" in second
    assert "selects no VM" in second

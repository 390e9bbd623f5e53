"""A run of a policy that an operator begins: as the policy says, but outside its calendar."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_common.errors import NotFound, NothingProtected, Refused
from holdfast_common.identity import RunId
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.policy import LevelRule, Policy
from holdfast_controller.runs.loads import window_gate
from holdfast_controller.runs.pausing import pause, resume
from holdfast_controller.runs.policy_by_hand import RunByHand, run_policy
from holdfast_controller.runs.scheduler import Scheduler
from holdfast_controller.runs.why import explain
from holdfast_controller.service.backup_actions import BackupActions
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.waiting import wait_until

SECONDS = 30.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    machines = [
        MachinePlan(name=name, datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 16),))
        for name in ("web", "db")
    ]
    machines.append(MachinePlan(name="proxy", datastore="vmfs1", disks=()))
    plan = InventoryPlan(machines=tuple(machines))
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab) as ready:
        yield ready


def window(begin: float, end: float) -> str:
    """Of every day, from so many hours from now on."""
    opens, closes = (datetime.now(UTC) + timedelta(hours=hours) for hours in (begin, end))
    return f"mon-sun {opens:%H:%M}-{closes:%H:%M}"


def make(holdfast: OneProcess, **fields: object) -> Policy:
    """Due once in four years."""
    values: dict[str, object] = {"vms": ("web", "db"), "start": "0 0 29 2 *", **fields}
    policy = Policy(name="gold", **values)  # type: ignore[arg-type]  # plain values
    return holdfast.world.policies.create(policy, actor="anna").policy


def run(holdfast: OneProcess, **how: object) -> RunByHand:
    return run_policy(holdfast.world, holdfast.engine, "gold", **how)  # type: ignore[arg-type]  # plain values


def jobs_of(holdfast: OneProcess, found: RunByHand) -> dict[str, JobRow]:
    """At their end."""
    assert found.started.run_id is not None
    run_id = RunId(found.started.run_id)

    def rows() -> list[JobRow]:
        return holdfast.world.jobs.jobs_of_run(run_id)

    wait_until(lambda: all(job.ended for job in rows()), seconds=SECONDS, what="the run ends")
    return {job.subject: job for job in rows()}


def test_a_run_backs_up_what_the_policy_selects_as_it_says_and_uses_no_due_moment(
    holdfast: OneProcess,
) -> None:
    make(holdfast, exclude=("db",), priority=70, level=LevelRule(full_days=30))
    (stored,) = holdfast.world.policies.policies()
    found = run(holdfast)
    assert found.told == ()
    jobs = jobs_of(holdfast, found)
    assert {name: str(job.state) for name, job in jobs.items()} == {"web": "done"}
    assert holdfast.world.policy_slots.last(stored.policy_id) is None
    request = holdfast.world.runs.run(jobs["web"].run_id).request
    assert (request["policy"], request["by_hand"]) == ("gold", True)
    reasons = explain(holdfast.world, holdfast.engine.dispatcher, jobs["web"].job_id)
    assert any("an operator, who ran policy gold" in each.answer for each in reasons)
    again = run(holdfast)
    assert jobs_of(holdfast, again)["web"].level_asked == "incremental"
    full = run(holdfast, level="full")
    assert jobs_of(holdfast, full)["web"].level_asked == "full"


def test_a_shut_window_is_ignored_and_told(holdfast: OneProcess) -> None:
    make(holdfast, window=window(2, 3))
    found = run(holdfast)
    (told,) = found.told
    assert told.startswith("the policy's window is shut until ")
    scheduler = Scheduler(holdfast.world, holdfast.engine)
    scheduler.look(holdfast.world.clock.now())
    assert {str(job.state) for job in jobs_of(holdfast, found).values()} == {"done"}


def test_a_run_in_an_open_window_stops_when_it_closes(holdfast: OneProcess) -> None:
    make(holdfast, window=window(-1, 2))
    (stored,) = holdfast.world.policies.policies()
    reached, agent = threading.Event(), holdfast.agent

    def until_cancelled(_: object) -> None:
        reached.set()
        wait_until(lambda: bool(agent.cancelled), seconds=SECONDS, what="it is cancelled")

    agent.before = until_cancelled
    found = run(holdfast)
    assert found.told[0].startswith("this run stops when the policy's window closes, at ")
    assert reached.wait(SECONDS)
    scheduler = Scheduler(holdfast.world, holdfast.engine)
    scheduler.look(holdfast.world.clock.now())
    assert holdfast.engine.dispatcher.running_on(window_gate(stored.policy_id, "gold"))
    scheduler.look(holdfast.world.clock.now() + timedelta(hours=3))
    jobs = jobs_of(holdfast, found)
    errors = {job.error.code for job in jobs.values() if job.error is not None}
    assert (len(jobs), errors) == (2, {"window_closed"})


def test_a_pause_refuses_it_with_the_reason_and_a_dry_run_tells_it(holdfast: OneProcess) -> None:
    make(holdfast)
    pause(holdfast.world, holdfast.engine, actor="anna", reason="firmware")
    with pytest.raises(Refused, match="paused") as refused:
        run(holdfast)
    assert refused.value.facts["reason"] == "firmware"
    assert "holdfast resume" in refused.value.advice
    planned = run(holdfast, dry_run=True)
    assert planned.started.run_id is None
    assert "it would be refused" in " ".join(planned.told)
    assert any(line.startswith("web: ") for line in planned.started.plan)


def test_a_backup_and_a_retry_by_hand_are_refused_while_all_is_paused(holdfast: OneProcess) -> None:
    """They would stand in the queue without a word until somebody resumes."""
    ended = holdfast.back_up("web")
    pause(holdfast.world, holdfast.engine, actor="anna", reason="firmware")
    actions = BackupActions(holdfast.world, holdfast.engine)
    with pytest.raises(Refused, match="paused") as refused:
        actions.start_backup(operator_pb2.StartBackupRequest(vms=["web"]))
    assert (refused.value.facts["by"], refused.value.facts["reason"]) == ("anna", "firmware")
    with pytest.raises(Refused, match="paused"):
        actions.retry_run(operator_pb2.RetryRequest(run_id=ended.run_id, failed=True))
    planned = actions.start_backup(operator_pb2.StartBackupRequest(vms=["web"], dry_run=True))
    assert planned.plan


def test_what_a_pause_stopped_of_it_is_begun_anew_within_the_same_window(
    holdfast: OneProcess,
) -> None:
    """No due moment began it, so the scheduler does not go on with it."""
    make(holdfast, vms=("web",), window=window(-1, 2))
    (stored,) = holdfast.world.policies.policies()
    reached, agent = threading.Event(), holdfast.agent

    def until_cancelled(_: object) -> None:
        reached.set()
        wait_until(lambda: bool(agent.cancelled), seconds=SECONDS, what="it is cancelled")

    agent.before = until_cancelled
    found = run(holdfast)
    assert reached.wait(SECONDS)
    pause(holdfast.world, holdfast.engine, actor="anna", reason="")
    assert jobs_of(holdfast, found)["web"].state is JobState.INTERRUPTED
    agent.cancelled.clear()
    reached.clear()
    assert resume(holdfast.world, holdfast.engine, actor="anna") == []
    assert reached.wait(SECONDS)
    assert holdfast.engine.dispatcher.running_on(window_gate(stored.policy_id, "gold"))
    agent.cancelled.append("let go")  # type: ignore[arg-type]  # anything ends the wait


def test_what_cannot_be_run_is_told(holdfast: OneProcess) -> None:
    with pytest.raises(NotFound):
        run(holdfast)
    made = make(holdfast, vms=("web",), enabled=False)
    assert run(holdfast, dry_run=True).told == (
        "the policy is switched off: its calendar begins no run",
    )
    held = threading.Event()
    holdfast.agent.before = lambda _: wait_until(held.is_set, seconds=SECONDS, what="let go")
    first = run(holdfast)
    with pytest.raises(Refused, match="all its VMs are at work"):
        run(holdfast)
    held.set()
    jobs_of(holdfast, first)
    (stored,) = holdfast.world.policies.policies()
    holdfast.world.policies.replace(
        stored.policy_id, replace(made, vms=("nosuch",)), revision=stored.revision, actor="anna"
    )
    with pytest.raises(NothingProtected):
        run(holdfast)

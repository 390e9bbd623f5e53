"""What operators do: they back up, cancel, retry, pause, resume and edit policies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from holdfast_common.identity import JobId, RunId
from holdfast_controller.decide.policy import LevelRule, Policy, WhenNotReached
from holdfast_controller.decide.retention import RetentionRule
from holdfast_controller.decide.retries import RetryKind
from holdfast_controller.runs import pausing
from holdfast_controller.runs.requests import BackupRequest, RetryRequest

if TYPE_CHECKING:
    from simulation.deeds import Deeds
    from simulation.simulation import Simulation

ACTOR: Final = "local:0"
NEVER: Final = "0 0 1 1 *"  # not while a seed lasts


def is_as_after_faults(simulation: Simulation) -> bool:
    """Whether `resume` did all that it is for."""
    world = simulation.controller.world
    if not simulation.controller.is_up or world is None:
        return True  # another look will see
    starts = [stored.policy.start for stored in world.policies.policies()]
    wanted = [NEVER] if simulation.scenario.keep_last else []
    return starts == wanted and not pausing.is_paused(world)


def resume(simulation: Simulation) -> None:
    """When faults stop, nothing is paused any more, no policy begins anything, and what is kept is known."""

    def work() -> None:
        world, engine = simulation.controller.world, simulation.controller.engine
        assert world is not None
        assert engine is not None
        for stored in world.policies.policies():
            world.policies.delete(stored.policy_id, revision=stored.revision, actor=ACTOR)
        if simulation.scenario.keep_last:
            world.policies.create(_policy(simulation, start=NEVER), actor=ACTOR)
        if pausing.is_paused(world):
            pausing.resume(world, engine, actor=ACTOR)

    if simulation.controller.is_up:
        simulation.operator("resume", work)
    else:
        kernel = simulation.kernel

        def later() -> None:
            resume(simulation)

        kernel.call_at(kernel.now + 1.0, later)


def look(simulation: Simulation) -> None:
    """The scheduler looks, as it does every few seconds."""

    def work() -> None:
        world, scheduler = simulation.controller.world, simulation.controller.scheduler
        assert world is not None
        assert scheduler is not None
        scheduler.look(world.clock.now())

    simulation.operator("look", work)


def _backup(simulation: Simulation, number: int) -> bool:
    def work() -> None:
        engine = simulation.controller.engine
        assert engine is not None
        vms = [vm.name for vm in simulation.vms]
        chosen = tuple(vms) if number % 3 == 0 else (vms[number % len(vms)],)
        request = BackupRequest(
            selectors=chosen,
            level="full" if number % 7 == 6 else "incremental",
            consistency="filesystem" if number % 5 == 4 else "crash",
            when_not_reached=(
                WhenNotReached.LOWER,
                WhenNotReached.FAIL,
                WhenNotReached.RETRY,
            )[number % 11 % 3],
            transport="hotadd" if number % 4 == 3 else "",
        )
        engine.start_backup(request, dry_run=False)

    simulation.operator("backup", work)
    return simulation.controller.is_up


def _cancel(simulation: Simulation, number: int) -> bool:
    rows = simulation.connection.execute(
        "SELECT job_id FROM jobs WHERE finished_at IS NULL OR finished_at = '' ORDER BY job_id"
    ).fetchall()
    if not rows:
        return False
    job_id = JobId(str(rows[number % len(rows)][0]))

    def work() -> None:
        engine = simulation.controller.engine
        assert engine is not None
        engine.cancel(job_id)

    simulation.operator("cancel", work)
    return simulation.controller.is_up


def _retry(simulation: Simulation, number: int) -> bool:
    rows = simulation.connection.execute(
        "SELECT run_id FROM runs WHERE finished_at != '' ORDER BY run_id"
    ).fetchall()
    if not rows:
        return False
    run_id = RunId(str(rows[number % len(rows)][0]))

    def work() -> None:
        engine = simulation.controller.engine
        assert engine is not None
        engine.retry(RetryRequest(run_id=run_id, kinds=frozenset(RetryKind)), dry_run=False)

    simulation.operator("retry", work)
    return simulation.controller.is_up


def _look(simulation: Simulation, number: int) -> bool:
    """The scheduler looks; its policy is due once a minute."""
    del number

    def work() -> None:
        world, scheduler = simulation.controller.world, simulation.controller.scheduler
        assert world is not None
        assert scheduler is not None
        if not world.policies.policies():
            world.policies.create(_policy(simulation), actor=ACTOR)
        scheduler.look(world.clock.now())

    simulation.operator("look", work)
    return simulation.controller.is_up


def _policy(simulation: Simulation, *, start: str = "* * * * *") -> Policy:
    return Policy(
        name="minutely",
        vms=("vm*",),
        start=start,
        retention=RetentionRule(keep_last=simulation.scenario.keep_last),
        consistency="crash",
        level=LevelRule(full_days=30),
    )


def _edit(simulation: Simulation, number: int) -> bool:
    def work() -> None:
        world, scheduler = simulation.controller.world, simulation.controller.scheduler
        assert world is not None
        assert scheduler is not None
        found = world.policies.policies()
        if not found:
            world.policies.create(_policy(simulation), actor=ACTOR)
            return
        stored = found[0]
        if number % 4 == 0:
            world.policies.delete(stored.policy_id, revision=stored.revision, actor=ACTOR)
        else:
            window = "" if number % 3 else "mon-sun 01:00-01:01"
            changed = replace(stored.policy, priority=number % 100, window=window)
            world.policies.replace(stored.policy_id, changed, revision=stored.revision, actor=ACTOR)
        scheduler.look(world.clock.now())

    simulation.operator("edit", work)
    return simulation.controller.is_up


def _pause(simulation: Simulation, number: int) -> bool:
    del number

    def work() -> None:
        world, engine = simulation.controller.world, simulation.controller.engine
        assert world is not None
        assert engine is not None
        if pausing.is_paused(world):
            pausing.resume(world, engine, actor=ACTOR)
        else:
            pausing.pause(world, engine, actor=ACTOR, reason="a test")

    simulation.operator("pause", work)
    return simulation.controller.is_up


OPERATORS: Final[Deeds] = {
    "backup": _backup,
    "cancel": _cancel,
    "look": _look,
    "retry": _retry,
    "a policy is edited": _edit,
    "pause and resume": _pause,
}

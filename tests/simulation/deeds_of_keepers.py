"""What concerns the keeping of points: operators hold, let go, forget, prune, check and edit rules; clocks and storage fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from holdfast_common.identity import PointId
from holdfast_common.job_spec import BackUpDisks
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_controller.decide.policy import WhenNotReached
from holdfast_controller.decide.retention import RetentionRule
from holdfast_controller.runs import clock_watch
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.requests import (
    BackupRequest,
    CheckRequest,
    ForgetRequest,
    PruneRequest,
)
from simulation.deeds_of_operators import ACTOR
from simulation.virtual_controller import GRACE_SECONDS

if TYPE_CHECKING:
    from simulation.deeds import Deeds
    from simulation.simulation import Simulation


LOOK_SECONDS: Final = 0.5
QUIESCED: Final = "CreateSnapshotEx_Task"


def forget_by_hand(simulation: Simulation, point_id: str) -> None:
    """Until it was told that it is done: who was not told asks again."""
    watch = simulation.watch
    watch.by_hand.add(point_id)

    def work(engine: Engine) -> None:
        engine.care.forget([PointId(point_id)], actor=ACTOR, dry_run=False)
        watch.by_hand.discard(point_id)

    _asked(simulation, "forget by hand", work)


def _asked(simulation: Simulation, name: str, work: Callable[[Engine], object]) -> bool:
    def ask() -> None:
        engine = simulation.controller.engine
        assert engine is not None
        work(engine)

    simulation.operator(name, ask)
    return simulation.controller.is_up


def _point(simulation: Simulation, number: int) -> PointId | None:
    rows = simulation.connection.execute("SELECT point_id FROM points ORDER BY 1").fetchall()
    return PointId(str(rows[number % len(rows)][0])) if rows else None


def _hold(simulation: Simulation, number: int) -> bool:
    point_id = _point(simulation, number)
    if point_id is None:
        return False

    def work(engine: Engine) -> None:
        engine.care.hold(point_id, reason="a test", actor=ACTOR, check=lambda: None)
        simulation.watch.held.add(point_id)

    return _asked(simulation, "hold", work)


def _unhold(simulation: Simulation, number: int) -> bool:
    """What is held; where nothing is, something that is held first."""
    names = simulation.agents.repository.storage.names("holds/")
    if not names:
        if not _hold(simulation, number):
            return False
        kernel = simulation.kernel
        kernel.call_at(kernel.now + 1 + number % 60, lambda: _unhold_soon(simulation, number))
        return True
    point_id = names[number % len(names)].rpartition("/")[2]

    def work(engine: Engine) -> None:
        simulation.watch.held.discard(point_id)
        engine.care.unhold(point_id, actor=ACTOR, check=lambda: None)

    return _asked(simulation, "unhold", work)


def _unhold_soon(simulation: Simulation, number: int) -> None:
    if simulation.agents.repository.storage.names("holds/") and simulation.faults_go_on:
        _unhold(simulation, number)


def _forget(simulation: Simulation, number: int) -> bool:
    point_id = _point(simulation, number)
    if point_id is None or not simulation.controller.is_up:
        return False
    forget_by_hand(simulation, point_id)
    return True


def _forget_by_policies(simulation: Simulation, number: int) -> bool:
    del number
    wanted = ForgetRequest(actor=ACTOR)
    return _asked(
        simulation, "forget by policies", lambda engine: engine.of_repository.forget(wanted)
    )


def prune(simulation: Simulation, *, accept_clock: bool = False) -> bool:
    """Begin a round. ``accept_clock``: whoever asks has seen that the clock is right."""
    limits = PruneLimits(grace=timedelta(seconds=GRACE_SECONDS), accept_clock=accept_clock)
    wanted = PruneRequest(limits=limits, actor=ACTOR)

    def work(engine: Engine) -> None:
        world = simulation.controller.world
        assert world is not None
        if accept_clock:
            clock_watch.accept_clock(world)
        engine.start_prune(wanted)

    return _asked(simulation, "prune", work)


def _prune(simulation: Simulation, number: int) -> bool:
    """Some rounds, each after the grace time of the one before: beside whoever writes meanwhile."""
    for later in range(1, 1 + number % 3):
        seconds = later * (GRACE_SECONDS + 1)
        simulation.kernel.call_at(simulation.kernel.now + seconds, lambda: _again(simulation))
    return prune(simulation)


def _again(simulation: Simulation) -> None:
    if simulation.faults_go_on:
        prune(simulation)


def _check(simulation: Simulation, number: int) -> bool:
    """A proxy reads a point, and somebody wants it forgotten meanwhile."""
    point_id = _point(simulation, number)
    if point_id is None:
        return False
    wanted = CheckRequest(read_data=False, point_ids=(point_id,))
    asked = _asked(simulation, "check", lambda engine: engine.start_check(wanted))
    if asked and number % 2:
        kernel = simulation.kernel
        kernel.call_at(kernel.now + 0.5 + number % 3, lambda: _forget_soon(simulation, point_id))
    return asked


def _forget_soon(simulation: Simulation, point_id: PointId) -> None:
    if simulation.controller.is_up and simulation.faults_go_on:
        forget_by_hand(simulation, point_id)


def _edit_retention(simulation: Simulation, number: int) -> bool:
    def work() -> None:
        world = simulation.controller.world
        assert world is not None
        for stored in world.policies.policies():
            rule = RetentionRule(keep_last=number % 4)
            changed = replace(stored.policy, retention=rule, enabled=number % 5 != 0)
            world.policies.replace(stored.policy_id, changed, revision=stored.revision, actor=ACTOR)

    simulation.operator("edit the retention", work)
    return simulation.controller.is_up


def _storage_fails(simulation: Simulation, number: int) -> bool:
    simulation.agents.repository.storage.failing += 1 + number % 3
    return True


def _clock_for_a_while(simulation: Simulation, number: int) -> bool:
    """It jumps, and jumps back: a host's clock, until time synchronisation puts it right."""
    seconds = (3600.0, 400 * 86400.0, 3600.0, -3600.0, -400 * 86400.0)[number % 5]
    simulation.watch.clock_moved(seconds, simulation.controller)
    kernel = simulation.kernel

    def back() -> None:
        if simulation.faults_go_on:
            simulation.watch.clock_moved(-seconds, simulation.controller)

    kernel.call_at(kernel.now + 10 + number % 80, back)
    return True


def _dies_while_it_keeps(simulation: Simulation, number: int) -> bool:
    simulation.watch.dies_after = 1 + number % 40
    return True


def _reaches_less(simulation: Simulation, number: int) -> bool:
    """A backup whose guest cannot be made quiet: its point holds less than was asked for."""
    failed = simulation.model.wrong.tasks_failed
    failed[QUIESCED] = failed.get(QUIESCED, 0) + 1
    wanted = BackupRequest(
        selectors=(simulation.vms[number % len(simulation.vms)].name,),
        consistency="filesystem",
        when_not_reached=WhenNotReached.LOWER,
    )
    return _asked(simulation, "backup", lambda engine: engine.start_backup(wanted, dry_run=False))


def _writer_dies(simulation: Simulation, number: int) -> bool:
    """While it writes, whenever that is; prunes wait for its lease, and delete what it left."""
    kernel, agents = simulation.kernel, simulation.agents

    def look() -> None:
        writing = [
            agent
            for agent in agents.all
            if any(isinstance(work.spec.work, BackUpDisks) for work in agent.works.values())
        ]
        if not simulation.faults_go_on:
            return
        if not writing:
            kernel.call_at(kernel.now + LOOK_SECONDS, look)
            return
        agent = writing[number % len(writing)]
        agent.life.crash_at = agent.life.steps + 3 + number % 14
        kernel.call_at(kernel.now + 10 + number % 20, lambda: agents.restart(agent))
        for later in range(3):
            seconds = 8 + later * (GRACE_SECONDS + 1)
            kernel.call_at(kernel.now + seconds, lambda: _again(simulation))

    look()
    return True


KEEPERS: Final[Deeds] = {
    "hold": _hold,
    "unhold": _unhold,
    "forget by hand": _forget,
    "forget by policies": _forget_by_policies,
    "prune": _prune,
    "check a point": _check,
    "a retention is edited": _edit_retention,
    "the storage fails": _storage_fails,
    "the clock jumps for a while": _clock_for_a_while,
    "the controller dies while it keeps": _dies_while_it_keeps,
    "a writer dies before a prune": _writer_dies,
    "a backup reaches less": _reaches_less,
}

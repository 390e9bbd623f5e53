"""What vCenters do: they are down, end logins, lose replies, fail tasks, are slow, and leave links behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from simulation.deeds import Deeds
    from simulation.simulation import Simulation


def _down(simulation: Simulation, number: int) -> bool:
    simulation.model.wrong.down_until = simulation.kernel.now + 1 + number % 60
    return True


def _logins_end(simulation: Simulation, number: int) -> bool:
    del number
    model = simulation.model
    model.counts["logins ended"] = model.counts.get("logins ended", 0) + len(model.logins)
    model.logins.clear()
    return True


def _lose_replies(simulation: Simulation, number: int) -> bool:
    simulation.model.wrong.replies_lost += 1 + number % 2
    return True


_TASKS: Final = (
    "CreateSnapshot_Task",
    "RemoveSnapshot_Task",
    "ConsolidateVMDisks_Task",
    "ReconfigVM_Task",
    "CreateSnapshotEx_Task",
)


def _task_fails(simulation: Simulation, number: int) -> bool:
    failed = simulation.model.wrong.tasks_failed
    method = _TASKS[number % len(_TASKS)]
    failed[method] = failed.get(method, 0) + 1 + number % 3
    return True


def _links_stay(simulation: Simulation, number: int) -> bool:
    simulation.model.wrong.leaves_links += 1 + number % 2
    return True


def _slow(simulation: Simulation, number: int) -> bool:
    simulation.model.wrong.slow_tasks = 2.0 + number % 20
    return True


VCENTERS: Final[Deeds] = {
    "vCenter is down": _down,
    "logins end": _logins_end,
    "replies are lost": _lose_replies,
    "a task fails": _task_fails,
    "links stay": _links_stay,
    "tasks are slow": _slow,
}

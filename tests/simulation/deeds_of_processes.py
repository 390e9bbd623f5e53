"""What happens to processes and messages, to the database, the repository and the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from simulation.deeds_of_operators import OPERATORS

if TYPE_CHECKING:
    from simulation.deeds import Deeds
    from simulation.simulation import Simulation


def _crash_controller(simulation: Simulation, number: int) -> bool:
    life = simulation.controller.life
    if life.dead:
        return False
    asks = OPERATORS["backup"]
    if number % 5 == 0 and asks(simulation, number // 5):  # while its jobs are written down
        life.crash_at = life.steps + 2 + number % 3
    else:
        life.crash_at = life.steps + 1 + number % 150
    return True


def _stop_controller(simulation: Simulation, number: int) -> bool:
    del number
    up = simulation.controller.is_up
    simulation.controller.stop()
    return up


def _crash_agent(simulation: Simulation, number: int) -> bool:
    agents = simulation.agents
    agent = agents.all[number % len(agents.all)]
    kernel = simulation.kernel
    agent.life.crash_at = agent.life.steps + 1 + number % 6
    kernel.call_at(kernel.now + 1 + number % 20, lambda: agents.restart(agent))
    return True


def _partition(simulation: Simulation, number: int) -> bool:
    agent = simulation.agents.all[number % len(simulation.agents.all)]
    agent.away_until = simulation.kernel.now + 1 + number % 40
    return True


def _lose_answers(simulation: Simulation, number: int) -> bool:
    agent = simulation.agents.all[number % len(simulation.agents.all)]
    agent.lost_messages += 1 + number % 3
    return True


def _repeat(simulation: Simulation, number: int) -> bool:
    agent = simulation.agents.all[number % len(simulation.agents.all)]
    agent.repeated_messages += 1 + number % 3
    return True


def _delay(simulation: Simulation, number: int) -> bool:
    simulation.agents.delays = 2.0 + number % 30
    return True


def _store_before(simulation: Simulation, number: int) -> bool:
    simulation.controller.wrong.before += 1 + number % 4
    return True


def _store_after(simulation: Simulation, number: int) -> bool:
    simulation.controller.wrong.after += 1 + number % 4
    return True


def _full(simulation: Simulation, number: int) -> bool:
    del number
    simulation.agents.repository.storage.full = True
    return True


def _clock(simulation: Simulation, number: int) -> bool:
    simulation.watch.clock_moved(
        (-3600.0, 3600.0, -400 * 86400.0, 400 * 86400.0)[number % 4], simulation.controller
    )
    return True


PROCESSES: Final[Deeds] = {
    "crash the controller": _crash_controller,
    "stop the controller": _stop_controller,
    "crash an agent": _crash_agent,
    "partition an agent": _partition,
    "lose answers": _lose_answers,
    "repeat messages": _repeat,
    "delay messages": _delay,
    "the store fails before": _store_before,
    "the store fails after": _store_after,
    "the repository is full": _full,
    "the clock jumps": _clock,
}

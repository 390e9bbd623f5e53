"""What each event of a scenario does: what operators, guests, networks, disks and vCenters do to a controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from simulation.deeds_of_guests import GUESTS
from simulation.deeds_of_keepers import KEEPERS
from simulation.deeds_of_operators import OPERATORS
from simulation.deeds_of_processes import PROCESSES
from simulation.deeds_of_vcenters import VCENTERS
from simulation.scenario import Event

if TYPE_CHECKING:
    from simulation.simulation import Simulation

Deed = Callable[[], object]
Deeds = dict[str, Callable[["Simulation", int], bool]]  # whether it happened


def do(simulation: Simulation, event: Event) -> None:
    """Have it happen; what cannot happen just now does not."""
    if _ALL[event.kind](simulation, event.number):
        simulation.faults[event.kind] += 1
        simulation.kernel.trace.append(f"{simulation.kernel.now:.3f} {event.kind}")


def set_up(simulation: Simulation) -> None:
    """Nothing yet: the policy is made by an operator when the controller is there."""
    simulation.model.wrong.slow_tasks = 1.0


_ALL: Final[Deeds] = {**OPERATORS, **KEEPERS, **PROCESSES, **VCENTERS, **GUESTS}

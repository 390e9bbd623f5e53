"""The smallest part of a scenario that still goes wrong in the same way: fewer faults, then fewer VMs, then fewer deeds.

What is left is told as a command that repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from simulation.scenario import FAULTS, Scenario, scenario_of
from simulation.simulation import repeat_command, simulate

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Of a seed's scenario, these events by their numbers, and so many of its VMs, the first ones."""

    events: tuple[int, ...]
    vms: int

    @classmethod
    def whole(cls, scenario: Scenario) -> Part:
        return cls(events=tuple(range(len(scenario.events))), vms=len(scenario.vm_sizes))

    def of(self, scenario: Scenario) -> Scenario:
        """The scenario with nothing else in it."""
        return replace(
            scenario,
            events=tuple(scenario.events[number] for number in self.events),
            vm_sizes=scenario.vm_sizes[: self.vms],
        )

    def command(self, seed: int) -> str:
        """For people."""
        numbers = ",".join(map(str, self.events)) or "none"
        return f"{repeat_command(seed)} --events {numbers} --vms {self.vms}"


def failure_of(scenario: Scenario) -> str:
    """What went wrong, without the names and numbers that differ from run to run; empty: nothing did."""
    try:
        simulate(scenario)
    except Exception as error:  # noqa: BLE001 - whatever it is, the smaller scenario must do the same
        words = re.sub(r"[A-Z0-9]{6,}|\d+(\.\d+)?|'[^']*'", "#", str(error))
        return f"{type(error).__name__}: {words.partition(':')[0]}"
    return ""


def shrunk(seed: int, failure: Callable[[Scenario], str] = failure_of) -> Part:
    """A part of a failing seed that fails alike, and of which nothing can be left out. Takes some seconds."""
    scenario = scenario_of(seed)
    part = Part.whole(scenario)
    wanted = failure(scenario)
    assert wanted, "this seed ends in order"

    def fails(smaller: Part) -> bool:
        return failure(smaller.of(scenario)) == wanted

    def without_events(part: Part, *, faults: bool) -> Part:
        chosen = [n for n in part.events if (scenario.events[n].kind in FAULTS) == faults]
        others = set(part.events) - set(chosen)

        def with_only(kept: Sequence[int]) -> Part:
            return replace(part, events=tuple(sorted(others | set(kept))))

        return with_only(smallest(chosen, lambda kept: fails(with_only(kept))))

    part = without_events(part, faults=True)
    while part.vms > 1 and fails(fewer := replace(part, vms=part.vms - 1)):
        part = fewer
    return without_events(part, faults=False)


def smallest(items: Sequence[Item], fails: Callable[[Sequence[Item]], bool]) -> list[Item]:
    """Some of the items for which it still fails, and not without any one of them.

    Delta debugging as Zeller and Hildebrandt describe it (2002): halves first, then finer pieces.
    """
    left = list(items)
    if left and fails([]):
        return []
    pieces = 2
    while len(left) > 1:
        size = -(-len(left) // pieces)
        for start in range(0, len(left), size):
            rest = left[:start] + left[start + size :]
            if rest and fails(rest):
                left, pieces = rest, max(pieces - 1, 2)
                break
        else:
            if size == 1:
                break
            pieces = min(pieces * 2, len(left))
    return left

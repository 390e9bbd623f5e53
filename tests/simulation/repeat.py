"""Repeats one seed with everything that happened, or many: `python -m simulation.repeat 4711 [LAST]`.

``--shrink`` looks for the smallest part of a failing seed that fails alike; ``--events`` and ``--vms`` repeat a part.
``--traces`` prints nothing but each seed's digest of everything that happened; ``--until-one-fails`` stops at the first that does.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from dataclasses import replace

from simulation.scenario import Scenario, scenario_of
from simulation.shrinking import Part, shrunk
from simulation.simulation import Simulation, simulate


def main() -> int:
    """1 when a seed failed."""
    parser = argparse.ArgumentParser(prog="simulation.repeat", description=__doc__)
    parser.add_argument("first", type=int, metavar="SEED")
    parser.add_argument("last", type=int, metavar="LAST", nargs="?")
    parser.add_argument("--traces", action="store_true")
    parser.add_argument("--until-one-fails", action="store_true")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--events", metavar="NUMBERS")
    parser.add_argument("--vms", type=int)
    asked = parser.parse_args()
    seeds = range(asked.first, (asked.last or asked.first) + 1)
    if asked.traces:
        for seed in seeds:
            say(f"{seed} {simulate(scenario_of(seed)).trace}")
        return 0
    if asked.shrink:
        part = shrunk(asked.first)
        for event in part.of(scenario_of(asked.first)).events:
            say(event.text())
        say(part.command(asked.first))
        return 1
    if asked.until_one_fails:
        return int(any(not repeated(scenario_of(seed), tells_all=False) for seed in seeds))
    began = time.process_time()
    failed = 0
    for seed in seeds:
        scenario = part_of(scenario_of(seed), events=asked.events, vms=asked.vms)
        failed += not repeated(scenario, tells_all=len(seeds) == 1)
    say(f"{len(seeds)} seeds, {failed} failed, {time.process_time() - began:.1f} CPU seconds")
    return min(failed, 1)


def part_of(scenario: Scenario, *, events: str | None, vms: int | None) -> Scenario:
    """``events``: numbers with commas between, or none; None, as with ``vms``: all."""
    part = Part.whole(scenario)
    if events is not None:
        numbers = tuple(map(int, events.split(","))) if events != "none" else ()
        part = replace(part, events=numbers)
    if vms is not None:
        part = replace(part, vms=vms)
    return part.of(scenario)


def repeated(scenario: Scenario, *, tells_all: bool) -> bool:
    """Whether a seed, or a part of it, ended in order."""
    run = Simulation(scenario)
    problem = ""
    try:
        run.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, people want to see it
        problem = f"seed {scenario.seed}: {type(error).__name__}: {error}"
        if tells_all:
            traceback.print_exc()
    if tells_all:
        say(f"{scenario.vm_sizes} blocks, {scenario.proxies} proxies, lies {sorted(scenario.lies)}")
        for event in scenario.events:
            say(event.text())
        say("\n".join(run.kernel.trace))
    if problem:
        say(problem)
    return not problem


def say(text: str) -> None:
    """To standard output."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

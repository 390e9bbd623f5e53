"""A seed that fails is made as small as it can be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.repeat import part_of
from simulation.scenario import FAULTS, Scenario, scenario_of
from simulation.shrinking import Part, shrunk, smallest

PROJECT = Path(__file__).parents[2]


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40), max_size=5))
def test_nothing_that_is_needed_is_left_out_and_nothing_else_stays(
    items: set[int], needed: set[int]
) -> None:
    wanted = needed & items

    def fails(kept: Sequence[int]) -> bool:
        return wanted <= set(kept)

    assert set(smallest(sorted(items), fails)) == wanted


def test_of_a_failing_seed_the_fault_and_the_vm_that_do_it_are_left() -> None:
    seed = next(
        seed
        for seed in range(1000)
        if len(scenario_of(seed).vm_sizes) > 1
        and sum(each.kind in FAULTS for each in scenario_of(seed).events) > 2
    )
    guilty = [n for n, each in enumerate(scenario_of(seed).events) if each.kind in FAULTS][1]
    event = scenario_of(seed).events[guilty]

    def failure(scenario: Scenario) -> str:
        return "it fails" if event in scenario.events else ""

    part = shrunk(seed, failure)
    assert part == Part(events=(guilty,), vms=1)
    told = part.command(seed)
    assert told.endswith(f"simulation.repeat {seed} --events {guilty} --vms 1")
    assert part_of(scenario_of(seed), events=str(guilty), vms=1) == part.of(scenario_of(seed))


def test_a_failure_of_the_product_is_shrunk_to_one_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.invariants.ATTEMPTS_MAX", 0)
    part = shrunk(1)
    assert part.vms == 1
    assert len(part.events) <= 1


def test_a_part_is_repeated_by_its_command() -> None:
    command = [sys.executable, "-m", "simulation.repeat", "1", "--events", "0", "--vms", "1"]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={"PYTHONPATH": ":".join([str(PROJECT / "tests"), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "1 seeds, 0 failed" in done.stdout

"""The simulation: 2,000 seeds without a violation, everything of it seen at least once, and each seed the same anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from holdfast_controller.decide.job_state import JobState
from simulation.scenario import DEEDS, FAULTS, KEEPING, scenario_of
from simulation.shrinking import shrunk
from simulation.simulation import Report, simulate
from simulation.virtual_disks import LIES
from simulation.virtual_time import Violation
from support import figures_summary

PROJECT = Path(__file__).parents[2]
SEEDS = 2_000
PART = 500
LONG_SEEDS = 20_000
LONG_PART = 1_000
TWICE = range(11, 31)
RUN_SECONDS = 120.0

# What a backup's job can go through; what else the table allows belongs to restores.
SEEN = (
    "planned -> queued",
    "planned -> interrupted",
    "queued -> preflight",
    "queued -> cancelled",
    "queued -> interrupted",
    "preflight -> quiescing",
    "preflight -> cleaning",
    "preflight -> interrupted",
    "quiescing -> snapshotting",
    "snapshotting -> transferring",
    "snapshotting -> cleaning",
    "snapshotting -> interrupted",
    "transferring -> committing",
    "transferring -> cleaning",
    "transferring -> interrupted",
    "committing -> cleaning",
    "cleaning -> queued",
    "cleaning -> done",
    "cleaning -> partial",
    "cleaning -> failed",
    "cleaning -> cancelled",
    "cleaning -> interrupted",
)
HAPPENED = (
    "a point was committed",
    "a message came twice",
    "an answer was lost",
    "an attempt was lost",
    "an audit found a lie",
    "a point was read",
    "a point was forgotten by hand",
    "a point was forgotten by policies",
    "prune deleted of packs",
    "prune deleted of maps",
    "keeping kept what is held",
    "a prune waited for writers",
    "a prune waited for its grace time",
    "the clock was not believed",
)


def totals(reports: list[Report]) -> tuple[Counter[str], Counter[str], int]:
    """Transitions, kinds of fault, and restores that were compared."""
    transitions: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for report in reports:
        transitions.update(report.transitions)
        faults.update(report.faults)
    return transitions, faults, sum(report.restores for report in reports)


def counts(reports: list[Report]) -> dict[str, Counter[str]]:
    """As they are added up over all parts and told at the end of a test run."""
    transitions, faults, restores = totals(reports)
    sums = Counter({"seeds": len(reports), "restores compared": restores})
    sums["steps"] = sum(each.steps for each in reports)
    return {
        "simulation": sums,
        "simulation, transitions": transitions,
        "simulation, what happened": faults,
    }


def check_totals(reports: list[Report]) -> None:
    """What was never seen fails."""
    transitions, faults, restores = totals(reports)
    wanted = [*DEEDS, *FAULTS, *KEEPING, *HAPPENED, *(f"lie {each}" for each in LIES)]
    unseen = [name for name in SEEN if not transitions[name]]
    unseen += [name for name in wanted if not faults[name]]
    assert not unseen
    assert restores


def run_part(first: int, count: int, record_property: figures_summary.RecordProperty) -> None:
    reports = [ended(seed) for seed in range(first, first + count)]
    figures_summary.tell_counts(record_property, counts(reports))
    check_totals(reports)


def ended(seed: int) -> Report:
    """A seed; one that fails is told with its smallest part that fails alike."""
    try:
        return simulate(scenario_of(seed))
    except Exception as error:
        error.add_note(f"the smallest part that fails alike: {shrunk(seed).command(seed)}")
        raise


@pytest.mark.parametrize("part", range(SEEDS // PART))
def test_seeds_end_in_order(part: int, record_property: figures_summary.RecordProperty) -> None:
    run_part(part * PART, PART, record_property)


@pytest.mark.long
@pytest.mark.parametrize("part", range(LONG_SEEDS // LONG_PART))
def test_many_seeds_end_in_order(
    part: int, record_property: figures_summary.RecordProperty
) -> None:
    run_part(100_000 + part * LONG_PART, LONG_PART, record_property)


def test_a_seed_is_the_same_in_another_process() -> None:
    command = [sys.executable, "-m", "simulation.repeat", "--traces"]
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT / "tests"), *sys.path])
    done = subprocess.run(
        [*command, str(TWICE.start), str(TWICE.stop - 1)],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=True,
    )
    here = [f"{seed} {simulate(scenario_of(seed)).trace}" for seed in TWICE]
    assert done.stdout.splitlines() == here


def test_every_state_of_a_backup_is_among_those_that_must_be_seen() -> None:
    seen = {each for name in SEEN for each in name.split(" -> ")}
    of_restores = {JobState.PREPARING, JobState.VERIFYING, JobState.SWITCHING}
    assert seen == {str(each) for each in JobState} - of_restores


def test_what_fails_tells_its_seed_and_how_it_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.invariants.ATTEMPTS_MAX", 0)
    with pytest.raises(Violation) as caught:
        simulate(scenario_of(1))
    assert any("simulation.repeat 1" in note for note in caught.value.__notes__)

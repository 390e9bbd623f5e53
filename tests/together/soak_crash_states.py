"""Crash states and failing calls for a while: ``make soak SECONDS=600 SEED=1``.

Each seed is one run of every workload: the disks that a crash may leave of it are judged, then one call of it
fails. A seed that fails is tried again with ``SEED=<it> SECONDS=1``. Sums are kept in pytest's cache.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from support.call_faults import run_with_fault
from support.crash_judge import judge_workload
from support.crash_workloads import WORKLOADS, recording
from support.faulty_files import CallFault, FaultKind
from support.shared_work import shared_work

SECONDS = float(os.environ.get("HOLDFAST_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("HOLDFAST_SOAK_SEED", "1"))
CACHE = "holdfast/soak-crash-states"
FAULTS_OF_A_SEED = 50
CALLS = 400  # a fault behind the last call is a clean run


@pytest.mark.timeout(0)
def test_nothing_is_lost_for_as_long_as_it_is_tried(request: pytest.FixtureRequest) -> None:
    cache = request.config.cache
    assert cache is not None
    total: dict[str, int] = cache.get(CACHE, {})
    end = time.monotonic() + SECONDS
    seed = SEED
    while True:
        for name in WORKLOADS:
            judged = judge_workload(name, seeds=[seed])
            assert not judged.losses, f"seed {seed}: {judged.losses[0]}"
            add(total, states=judged.states, images=judged.images, faults=fail_calls(name, seed))
        add(total, seeds=1)
        seed += 1
        if time.monotonic() >= end:
            break
    cache.set(CACHE, total)
    told = ", ".join(f"{count} {what}" for what, count in total.items())
    print(
        f"\nsoak of crash states: seeds {SEED} to {seed - 1}; all soaks together: {told}, 0 losses"
    )


def fail_calls(name: str, seed: int) -> int:
    """Some calls of a workload fail; how many did."""
    chance = random.Random(f"{seed}-{name}")
    hits = 0
    with shared_work():
        made = recording(name, seed=seed)
        for _ in range(FAULTS_OF_A_SEED):
            kind = chance.choice(list(FaultKind))
            fault = CallFault(kind, chance.randrange(CALLS), chance.random() < 0.5)
            hits += bool(run_with_fault(made, fault).hit)
    return hits


def add(total: dict[str, int], **more: int) -> None:
    for what, count in more.items():
        total[what] = total.get(what, 0) + count

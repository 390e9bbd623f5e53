"""Seeds of the simulation for a while: ``make soak SECONDS=600 SEED=1``. The sum of all soaks is kept in pytest's cache."""

from __future__ import annotations

import os
import time

import pytest

from simulation.scenario import scenario_of
from simulation.simulation import simulate

SECONDS = float(os.environ.get("HOLDFAST_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("HOLDFAST_SOAK_SEED", "1"))
SEEDS_OF_ONE_SOAK = 10_000_000
CACHE = "holdfast/soak-simulation"


def test_seeds_end_in_order_for_a_while(request: pytest.FixtureRequest) -> None:
    cache = request.config.cache
    assert cache is not None
    ends_at = time.monotonic() + SECONDS
    seed = first = SEED * SEEDS_OF_ONE_SOAK
    restores, seconds = 0, 0.0
    while time.monotonic() < ends_at:
        report = simulate(scenario_of(seed))
        restores += report.restores
        seconds += report.seconds
        seed += 1
    before = int(cache.get(CACHE, 0))
    cache.set(CACHE, before + seed - first)
    print(f"seeds {seed - first} restores compared {restores} virtual hours {seconds / 3600:.0f}")
    print(f"seeds of all soaks {before + seed - first}")
    assert restores

"""Random damages for a while: part of ``make soak SECONDS=600 SEED=1``. A seed is one damage."""

from __future__ import annotations

import os
import random
import time

import pytest

from common.repository.test_damage import judge
from support.damages import KINDS, Damage

SECONDS = float(os.environ.get("HOLDFAST_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("HOLDFAST_SOAK_SEED", "1"))
FIRST = 1_000_000  # no seed of `make test-long`


@pytest.mark.timeout(0)
def test_random_damages() -> None:
    until = time.monotonic() + SECONDS
    seed = SEED
    while time.monotonic() < until or seed == SEED:
        chance = random.Random(seed)
        wrong = judge(chance.choice(KINDS), chance.choice(list(Damage)), FIRST + seed)
        if wrong:
            pytest.fail(f"soak: seed {seed} FAILED: {wrong}", pytrace=False)
        seed += 1
    print(f"soak: damages of seeds {SEED} to {seed - 1}: all found; go on with SEED={seed}")

from __future__ import annotations

from collections import Counter

import pytest

from support.prune_schedules import run_schedules
from support.shared_work import shared_work

SHORT = 200  # schedules in `make test`, some 6 s of a core
LONG = 20_000  # some eight minutes of a core
PARTS = 8


def assert_eventful(counts: Counter[str], schedules: int) -> None:
    """What never happens shows nothing."""
    often = ("acknowledged", "deleted objects", "forgotten", "prune-ended", "crashed")
    for what in (*often, "rotated", "revoked"):
        assert counts[what] > schedules / 10, (what, counts)
    assert counts["half-revoked"] > schedules / 50, counts
    assert counts["repacked"] > schedules / 50, counts
    assert counts["unpublished"] > schedules / 50, counts


@pytest.mark.repeats
def test_no_schedule_of_prunes_backups_crashes_and_clocks_loses_what_a_point_needs() -> None:
    with shared_work():
        counts = run_schedules(range(SHORT))
    print(f"{SHORT} schedules: {dict(counts)}")
    assert_eventful(counts, SHORT)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_of_many_loses_what_a_point_needs(part: int) -> None:
    each = LONG // PARTS
    with shared_work():
        counts = run_schedules(range(SHORT + part * each, SHORT + (part + 1) * each))
    print(f"{each} schedules: {dict(counts)}")
    assert_eventful(counts, each)

"""A crash at any moment: no acknowledged point is lost, no half point shows, every repository opens.

The counts are told per workload; `make test` judges at least 5,000 distinct disks, `make test-long` 50,000 others.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from support.crash_judge import Tally, judge_workload
from support.crash_summary import PROPERTY
from support.crash_workloads import IMAGES, WORKLOADS

LONG = 10  # times as many
LONG_SEEDS = 1000  # where the long run begins
PARTS = 4  # of each workload, each a minute or so, so that several processes share them
# Its first disks, nearly empty, are the same for every seed: its parts share the disks, not the seeds.
SHARED_SEEDS = {"init"}
DISTINCT_MIN = 200


def test_there_is_a_share_for_every_workload_and_enough_of_them() -> None:
    assert set(IMAGES) == set(WORKLOADS)
    assert min(IMAGES.values()) >= DISTINCT_MIN
    assert sum(IMAGES.values()) >= 5000


@pytest.mark.repeats
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_whatever_a_crash_leaves_can_be_opened_restored_and_gone_on_with(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    judged(judge_workload(name, seeds=count(), images_max=IMAGES[name]), record_property)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name in sorted(WORKLOADS) for part in range(PARTS)]
)
def test_a_crash_at_any_moment_of_many_more_runs(
    name: str, part: int, record_property: Callable[[str, object], None]
) -> None:
    share = -(-IMAGES[name] * LONG // PARTS)
    if name in SHARED_SEEDS:
        tally = judge_workload(
            name,
            seeds=count(LONG_SEEDS),
            images_max=share,
            is_mine=lambda state: state.digest % PARTS == part,
        )
    else:
        tally = judge_workload(name, seeds=count(LONG_SEEDS + part, PARTS), images_max=share)
    judged(tally, record_property)


def judged(tally: Tally, record_property: Callable[[str, object], None]) -> None:
    record_property(PROPERTY, tally.counts())
    assert not tally.losses, "\n".join(str(loss) for loss in tally.losses[:10])
    assert tally.images >= DISTINCT_MIN

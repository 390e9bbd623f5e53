"""Change tracking was caught: which earlier points may lack what it did not tell. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PointReading:
    """How an earlier point came to its disks. ``by_hint``: keys of those of which not everything was read."""

    point_id: str
    by_hint: frozenset[int]


def suspect_points(earlier: Sequence[PointReading], disks: Collection[int]) -> list[str]:
    """The points in doubt, newest first. ``earlier``: of the lineage, newest first; ``disks``: those lied about.

    What was not told may have changed at any time since the disk was last read whole: that point is proven,
    and so is everything before it as far as this lie goes.
    """
    doubtful = set(disks)
    found = []
    for point in earlier:
        doubtful &= point.by_hint
        if not doubtful:
            break
        found.append(point.point_id)
    return found

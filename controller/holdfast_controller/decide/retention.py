"""Which restore points a rule leaves over. Pure: points in, points out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPoint:
    """A point as a rule sees it."""

    point_id: str
    lineage_id: str
    created_at: str  # UTC text, which sorts by time


def beyond_last(points: Sequence[KnownPoint], *, keep_last: int) -> list[KnownPoint]:
    """All but the newest ``keep_last`` of each lineage; nothing when that is 0: no rule is no order."""
    if keep_last < 1:
        return []
    by_lineage: dict[str, list[KnownPoint]] = {}
    for point in sorted(points, key=lambda each: (each.created_at, each.point_id), reverse=True):
        by_lineage.setdefault(point.lineage_id, []).append(point)
    return [point for lineage in by_lineage.values() for point in lineage[keep_last:]]

"""Runs: which part of a disk is data, known zeros, or left to the parent."""

from __future__ import annotations

import enum
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class RunKind(enum.Enum):
    """What one link says about a range."""

    DATA = "data"
    ZERO = "zero"
    ABSENT = "absent"  # ask the parent; zeros if there is none


class Run(NamedTuple):
    """``[offset, offset + length)`` of the disk; ``position`` is where data lies in the file."""

    kind: RunKind
    offset: int
    length: int
    position: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Area:
    """``[offset, offset + length)`` of a disk, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte after the area."""
        return self.offset + self.length


def joined(areas: Iterable[Area]) -> Iterator[Area]:
    """Neighbouring and overlapping areas become one; the input is sorted by offset."""
    current: Area | None = None
    for area in areas:
        if current is None:
            current = area
        elif area.offset <= current.end:
            current = Area(current.offset, max(current.end, area.end) - current.offset)
        else:
            yield current
            current = area
    if current is not None:
        yield current


def rounded_out(areas: Iterable[Area], granularity: int, capacity: int) -> Iterator[Area]:
    """Areas widened to whole granules, clipped to the capacity, and joined."""
    return joined(
        Area(
            area.offset // granularity * granularity,
            min(-(-area.end // granularity) * granularity, capacity)
            - area.offset // granularity * granularity,
        )
        for area in areas
    )


def union(first: Iterable[Area], second: Iterable[Area]) -> Iterator[Area]:
    """All that is in one or the other; both are sorted by offset and their areas do not overlap."""
    return joined(heapq.merge(first, second))

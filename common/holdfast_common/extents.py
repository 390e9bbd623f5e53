"""Byte ranges of a disk: half open, in bytes, and the few operations on lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Extent:
    """The bytes ``[offset, offset + length)``; never empty."""

    offset: int
    length: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length <= 0:
            raise ValueError(f"not an extent: offset={self.offset} length={self.length}")

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


def merged(extents: Iterable[Extent]) -> list[Extent]:
    """Sorted, with overlapping and touching extents joined."""
    result: list[Extent] = []
    for extent in sorted(extents):
        if result and extent.offset <= result[-1].end:
            if extent.end > result[-1].end:
                start = result[-1].offset
                result[-1] = Extent(offset=start, length=extent.end - start)
        else:
            result.append(extent)
    return result


def aligned(extents: Iterable[Extent], *, unit: int, capacity_bytes: int) -> list[Extent]:
    """Widened to multiples of ``unit``, clipped to the capacity, merged."""
    widened = []
    for extent in extents:
        start = extent.offset // unit * unit
        end = min(-(-extent.end // unit) * unit, capacity_bytes)
        if end > start:
            widened.append(Extent(offset=start, length=end - start))
    return merged(widened)


def intersected(left: Sequence[Extent], right: Sequence[Extent]) -> list[Extent]:
    """What lies in both; both are merged lists in ascending order."""
    result: list[Extent] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start = max(left[i].offset, right[j].offset)
        end = min(left[i].end, right[j].end)
        if end > start:
            result.append(Extent(offset=start, length=end - start))
        if left[i].end <= right[j].end:
            i += 1
        else:
            j += 1
    return result


def split(extents: Iterable[Extent], *, unit: int) -> Iterator[Extent]:
    """Cut at every multiple of ``unit``, in order; no piece crosses one."""
    for extent in extents:
        offset = extent.offset
        while offset < extent.end:
            end = min((offset // unit + 1) * unit, extent.end)
            yield Extent(offset=offset, length=end - offset)
            offset = end


def total_length(extents: Iterable[Extent]) -> int:
    """Bytes in all of them together."""
    return sum(extent.length for extent in extents)

"""Which parts of a disk are asked for: ascending, aligned, in little memory.

Before `stream`: a changed-area list of a large disk may have a million entries.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from holdfast_common.errors import FormatError
from holdfast_common.extents import Extent


class CompactExtents(Sequence[Extent]):
    """Merged ascending extents in 16 bytes each; a list of `Extent` needs seven times as much."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        """Takes what `ascending` yields."""
        self._offsets = array("Q")
        self._lengths = array("Q")
        self.total_bytes = 0
        for extent in extents:
            self._offsets.append(extent.offset)
            self._lengths.append(extent.length)
            self.total_bytes += extent.length

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Extent: ...
    @overload
    def __getitem__(self, index: slice) -> list[Extent]: ...
    def __getitem__(self, index: int | slice) -> Extent | list[Extent]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Extent(offset=self._offsets[index], length=self._lengths[index])

    def __iter__(self) -> Iterator[Extent]:
        for offset, length in zip(self._offsets, self._lengths, strict=True):
            yield Extent(offset=offset, length=length)


def ascending(extents: Iterable[Extent], *, unit: int, capacity_bytes: int) -> Iterator[Extent]:
    """Widened to ``unit``, clipped to the capacity, and joined, one at a time.

    Raises: FormatError, when an extent begins before an earlier one.
    """
    offset = end = 0  # what is joined so far
    latest = 0
    for extent in extents:
        if extent.offset < latest:
            raise FormatError(
                "areas of a disk are not in ascending order",
                offset=extent.offset,
                after=latest,
            )
        latest = extent.offset
        start = extent.offset // unit * unit
        stop = min(-(-extent.end // unit) * unit, capacity_bytes)
        if stop <= start:
            continue
        if start > end:
            if end > offset:
                yield Extent(offset=offset, length=end - offset)
            offset = start
        end = max(end, stop)
    if end > offset:
        yield Extent(offset=offset, length=end - offset)


def told_apart(
    wanted: Iterable[Extent], allocated: Iterable[Extent]
) -> Iterator[tuple[Extent, bool]]:
    """``wanted`` cut into parts that are allocated (True) and parts that are not; both ascending."""
    remaining = iter(allocated)
    current = next(remaining, None)
    for extent in wanted:
        offset = extent.offset
        while offset < extent.end:
            while current is not None and current.end <= offset:
                current = next(remaining, None)
            if current is None or current.offset >= extent.end:
                yield Extent(offset=offset, length=extent.end - offset), False
                break
            if current.offset > offset:
                yield Extent(offset=offset, length=current.offset - offset), False
                offset = current.offset
            end = min(current.end, extent.end)
            yield Extent(offset=offset, length=end - offset), True
            offset = end

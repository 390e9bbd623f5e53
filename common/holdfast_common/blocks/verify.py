"""Two disks compared block by block: what was restored against what was backed up.

After two streams over the same wanted parts, before the verdict of a job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from holdfast_common.blocks.read_ahead import Block
from holdfast_common.errors import FormatError
from holdfast_common.extents import Extent
from holdfast_common.units import SECTOR_BYTES

_WORD_BYTES: Final = 8
DIFFERING_MAX: Final = 100  # ranges that are named; all are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``differing``: the first ranges that differ, in whole sectors, at most `DIFFERING_MAX`.

    ``compared_bytes`` counts where at least one of the two disks holds data. ``damage``: why the
    second disk cannot be decoded from its last differing range on; empty: it was read whole.
    """

    compared_bytes: int
    differing_bytes: int
    differing: tuple[Extent, ...]
    damage: str = ""


def compare(
    expected: Iterable[Block],
    actual: Iterable[Block],
    *,
    progressed: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Compare all blocks over the same wanted parts of disks of one size.

    ``progressed`` is told the bytes of each piece that should hold data. A piece of the second disk
    that is so damaged that it cannot be decoded differs, and ends the comparison.
    Raises: what either source raises, but no FormatError of the second.
    """
    found = _Found()
    damage = ""
    try:
        for one, other in _side_by_side(expected, actual):
            progressed(one.length if one.data is not None else 0)
            if one.data is None and other.data is None:
                continue
            found.compared_bytes += one.length
            for extent in _differing_sectors(one, other):
                found.add(extent)
    except _Undecodable as error:
        found.add(error.extent)
        damage = str(error)
    return Comparison(
        compared_bytes=found.compared_bytes,
        differing_bytes=found.differing_bytes,
        differing=tuple(found.extents),
        damage=damage,
    )


class _Undecodable(Exception):
    """The second disk cannot be decoded here."""

    def __init__(self, message: str, extent: Extent) -> None:
        super().__init__(message)
        self.extent = extent


class _Found:
    """Differing ranges, joined where they touch."""

    def __init__(self) -> None:
        self.compared_bytes = 0
        self.differing_bytes = 0
        self.extents: list[Extent] = []

    def add(self, extent: Extent) -> None:
        self.differing_bytes += extent.length
        if self.extents and self.extents[-1].end == extent.offset:
            start = self.extents[-1].offset
            self.extents[-1] = Extent(offset=start, length=extent.end - start)
        elif len(self.extents) < DIFFERING_MAX:
            self.extents.append(extent)


def _side_by_side(
    expected: Iterable[Block], actual: Iterable[Block]
) -> Iterator[tuple[Block, Block]]:
    """Both streams cut to the same offsets and lengths."""
    left, right = iter(expected), iter(actual)
    one = next(left, None)
    other = _decoded(right, one)
    while one is not None and other is not None:
        assert one.offset == other.offset, "two streams over different parts were compared"
        length = min(one.length, other.length)
        yield _head(one, length), _head(other, length)
        one = _tail(one, length) or next(left, None)
        other = _tail(other, length) or _decoded(right, one)
    assert one is None, "the first stream has more parts"
    assert other is None, "the second stream has more parts"


def _decoded(right: Iterator[Block], expected: Block | None) -> Block | None:
    try:
        return next(right, None)
    except FormatError as error:
        if expected is None:
            raise
        here = Extent(offset=expected.offset, length=expected.length)
        raise _Undecodable(str(error), here) from error


def _head(block: Block, length: int) -> Block:
    data = None if block.data is None else block.data[:length]
    return Block(block.offset, length, data)


def _tail(block: Block, length: int) -> Block | None:
    if length == block.length:
        return None
    data = None if block.data is None else block.data[length:]
    return Block(block.offset + length, block.length - length, data)


def _differing_sectors(one: Block, other: Block) -> Iterator[Extent]:
    if _are_equal(one, other):
        return
    left, right = _bytes_of(one), _bytes_of(other)
    starts = np.arange(0, one.length, SECTOR_BYTES)
    differs = np.logical_or.reduceat(left != right, starts)
    edges = np.flatnonzero(np.diff(differs.astype(np.int8), prepend=0, append=0))
    for start, stop in edges.reshape(-1, 2).tolist():
        low, high = start * SECTOR_BYTES, min(stop * SECTOR_BYTES, one.length)
        yield Extent(offset=one.offset + low, length=high - low)


def _are_equal(one: Block, other: Block) -> bool:
    """Eight bytes at a time: of whole sectors nothing is left over."""
    if one.length % _WORD_BYTES:
        return bool(np.array_equal(_bytes_of(one), _bytes_of(other)))
    if one.data is None or other.data is None:
        data = one.data if other.data is None else other.data
        return data is None or not np.frombuffer(data, np.uint64).any()
    return bool(
        np.array_equal(np.frombuffer(one.data, np.uint64), np.frombuffer(other.data, np.uint64))
    )


def _bytes_of(block: Block) -> npt.NDArray[np.uint8]:
    if block.data is None:
        return np.zeros(block.length, dtype=np.uint8)
    return np.frombuffer(block.data, dtype=np.uint8)

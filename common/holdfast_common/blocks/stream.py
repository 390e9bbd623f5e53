"""Extents of a source -> ascending blocks, zeros told apart, read ahead in bounded memory.

After a transport (or the repository's reader), before the repository's writer or a sink. Blocks
begin at multiples of 64 KiB and never cross a multiple of 1 MiB, unless they are zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from holdfast_common.blocks.read_ahead import WINDOW_BYTES, Block, BufferPool, Piece, ReadAhead
from holdfast_common.blocks.source import BlockSource, SequentialSource
from holdfast_common.blocks.wanted import ascending, told_apart
from holdfast_common.errors import FormatError, HoldfastError
from holdfast_common.extents import Extent, split

UNIT_BYTES: Final = 64 * 1024  # the least that an incremental stores, and that has a digest
_ZEROS_AT_ONCE: Final = 256  # blocks of 100 bytes; as many pieces wait as the reader may be ahead


class BlockStream:
    """Blocks of the wanted parts of a disk; iterate it once, inside ``with``.

    The source belongs to the stream's thread until the ``with`` ends; whoever opened it closes it.
    """

    def __init__(
        self, produce: Callable[[BufferPool], Iterator[Piece]], *, check: Callable[[], None]
    ) -> None:
        self._read_ahead = ReadAhead(produce)
        self._check = check
        self.read_bytes = 0  # what was read of the source; what it says is zero is not read

    def __enter__(self) -> Self:
        self._read_ahead.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._read_ahead.stop()
        except HoldfastError:
            if error is None:  # what ended the work tells more than a read that hangs
                raise

    def __iter__(self) -> Iterator[Block]:
        """Raises: what the source raises, and what ``check`` raises."""
        for piece in self._read_ahead.pieces(self._check):
            self.read_bytes += piece.read_bytes
            yield from piece.blocks


def random_stream(
    source: BlockSource, wanted: Iterable[Extent], *, check: Callable[[], None]
) -> BlockStream:
    """The wanted parts (ascending) of a source that can be read anywhere.

    Parts are widened to 64 KiB. What the source knows to be zero is not read.
    """

    def produce(pool: BufferPool) -> Iterator[Piece]:
        for part, is_allocated in random_parts(source, wanted):
            if not is_allocated:
                yield Piece([Block(part.offset, part.length, None)])
                continue
            for window in split([part], unit=WINDOW_BYTES):
                buffer = pool.take()
                source.read_into(window.offset, buffer[: window.length])
                blocks = _told_apart_by_unit(window.offset, buffer[: window.length])
                yield Piece(blocks, buffer, window.length)

    return BlockStream(produce, check=check)


def random_parts(source: BlockSource, wanted: Iterable[Extent]) -> Iterator[tuple[Extent, bool]]:
    """The wanted parts (ascending), widened to 64 KiB, and whether they have to be read or are zero."""
    capacity = source.capacity_bytes
    parts = ascending(wanted, unit=UNIT_BYTES, capacity_bytes=capacity)
    known = source.allocated()
    allocated = ascending(
        whole(capacity) if known is None else known, unit=UNIT_BYTES, capacity_bytes=capacity
    )
    return told_apart(parts, allocated)


def sequential_stream(
    source: SequentialSource, wanted: Iterable[Extent], *, check: Callable[[], None]
) -> BlockStream:
    """The wanted parts (ascending) of a source that only comes whole; all of it is read."""

    def produce(pool: BufferPool) -> Iterator[Piece]:
        capacity = source.capacity_bytes
        parts = _Parts(ascending(wanted, unit=UNIT_BYTES, capacity_bytes=capacity))
        done = 0
        for offset, buffer, length, read_bytes in _windows(source, pool):
            yield from _zeros(parts.take(done, offset))
            blocks: list[Block] = []
            for part in parts.take(offset, offset + length):
                start = part.offset - offset
                view = buffer[start : start + part.length]
                blocks += _told_apart_by_unit(part.offset, view)
            yield Piece(blocks, buffer, read_bytes)
            done = offset + length
        yield from _zeros(parts.take(done, capacity))

    return BlockStream(produce, check=check)


def whole(capacity_bytes: int) -> list[Extent]:
    """All of a disk as wanted parts."""
    return [Extent(offset=0, length=capacity_bytes)] if capacity_bytes else []


class _Parts:
    """Wanted parts, taken in ascending order range by range."""

    def __init__(self, parts: Iterator[Extent]) -> None:
        self._parts = parts
        self._current = next(parts, None)

    def take(self, start: int, end: int) -> Iterator[Extent]:
        """The parts within ``[start, end)``; all of them are taken before others are asked for."""
        while self._current is not None and self._current.offset < end:
            low = max(self._current.offset, start)
            high = min(self._current.end, end)
            if high > low:
                yield Extent(offset=low, length=high - low)
            if self._current.end > end:
                return
            self._current = next(self._parts, None)


def _zeros(parts: Iterable[Extent]) -> Iterator[Piece]:
    """Some at a time: a hole of the stream may hold millions of wanted parts."""
    remaining = iter(parts)
    while some := [Block(p.offset, p.length, None) for p in islice(remaining, _ZEROS_AT_ONCE)]:
        yield Piece(some)


def _windows(
    source: SequentialSource, pool: BufferPool
) -> Iterator[tuple[int, memoryview, int, int]]:
    """(window's offset, buffer, its length, bytes that came); what did not come is zero."""
    current = -1
    came = 0
    buffer = memoryview(b"")
    for offset, data in _cut_at_windows(source):
        window, inside = divmod(offset, WINDOW_BYTES)
        if window != current:
            if current >= 0:
                yield _window(current, buffer, source.capacity_bytes, came)
            current, came, buffer = window, 0, pool.take()
            np.frombuffer(buffer, dtype=np.uint8).fill(0)
        buffer[inside : inside + len(data)] = data
        came += len(data)
    if current >= 0:
        yield _window(current, buffer, source.capacity_bytes, came)


def _cut_at_windows(source: SequentialSource) -> Iterator[tuple[int, memoryview]]:
    """The source's blocks, checked, in pieces that lie in one window each."""
    end_of_last = 0
    for offset, data in source.blocks():
        end = offset + len(data)
        if offset < end_of_last or end > source.capacity_bytes:
            raise FormatError(
                "disk's stream goes back or leaves the disk",
                offset=offset,
                length=len(data),
                end_of_last=end_of_last,
                capacity_bytes=source.capacity_bytes,
            )
        end_of_last = end
        if end > offset:
            for part in split([Extent(offset=offset, length=end - offset)], unit=WINDOW_BYTES):
                yield part.offset, data[part.offset - offset : part.end - offset]


def _window(
    index: int, buffer: memoryview, capacity: int, came: int
) -> tuple[int, memoryview, int, int]:
    offset = index * WINDOW_BYTES
    return offset, buffer, min(WINDOW_BYTES, capacity - offset), came


def _told_apart_by_unit(offset: int, data: memoryview) -> list[Block]:
    """Runs of units with and without data; ``offset`` is a multiple of a unit."""
    used = _units_used(data)
    changes = np.flatnonzero(used[1:] != used[:-1]) + 1
    starts = [0, *changes.tolist()]
    blocks = []
    for start, stop in zip(starts, [*starts[1:], len(used)], strict=True):
        low, high = start * UNIT_BYTES, min(stop * UNIT_BYTES, len(data))
        view = data[low:high] if used[start] else None
        blocks.append(Block(offset + low, high - low, view))
    return blocks


def _units_used(data: memoryview) -> npt.NDArray[np.bool_]:
    """Which units are not all zeros; only a disk's last one may be shorter."""
    every_byte = np.frombuffer(data, dtype=np.uint8)
    full = len(data) // UNIT_BYTES
    used = np.empty(-(-len(data) // UNIT_BYTES), dtype=np.bool_)
    words = every_byte[: full * UNIT_BYTES].view(np.uint64).reshape(full, UNIT_BYTES // 8)
    used[:full] = words.any(axis=1)
    if full < len(used):
        used[full] = every_byte[full * UNIT_BYTES :].any()
    return used

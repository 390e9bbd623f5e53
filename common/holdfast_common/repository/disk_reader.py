"""A point's disk as a block source: any offset, every frame checked, read ahead in large pieces.

Reading in order is noticed and overlapped: some pieces of 4 MiB ahead are read, opened, decompressed and
checked by worker threads. Memory: `PIECES_MAX` pieces, whatever the disk's size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed, ShortRead
from holdfast_common.extents import Extent
from holdfast_common.repository.disk_map import DiskMap, Leaf, block_length
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCKS_PER_FRAME,
    BLOCKS_PER_LEAF,
    FRAME_BYTES,
    FRAMES_PER_LEAF,
)
from holdfast_common.repository.manifest import PointDisk
from holdfast_common.repository.previous_digests import block_digests

PIECE_WINDOWS: Final = 4  # of 1 MiB, read together when a disk is read in order
PIECES_AHEAD: Final = 3  # as many as a two-core proxy has workers
PIECES_MAX: Final = PIECES_AHEAD + 1  # in memory: 16 MiB
LEAVES_MAX: Final = 8

Piece = dict[int, bytes | memoryview]  # window -> its bytes; a window that is all zero is left out


@dataclass(frozen=True, slots=True)
class _WindowPlan:
    """Where the blocks of one window come from: (block, frame, place), ascending."""

    number: int
    blocks: tuple[tuple[int, bytes, int], ...]


class PointDiskSource:
    """A `BlockSource` over one disk of a point. One thread."""

    def __init__(
        self,
        disk: PointDisk,
        *,
        disk_map: DiskMap,
        frames: FrameReader,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self.disk = disk
        self._map = disk_map
        self._frames = frames
        self._pool = pool  # None: nothing is read ahead
        self._capacity = disk.header.capacity_bytes
        self._leaves: OrderedDict[int, Leaf | None] = OrderedDict()
        self._pieces: OrderedDict[tuple[int, int], Future[Piece]] = OrderedDict()
        self._next_offset = 0

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._capacity

    def allocated(self) -> Sequence[Extent]:
        """Merged ascending extents outside of which everything is zero. Raises: IntegrityError and others."""
        extents: list[Extent] = []
        start = end = -1
        for number, reference in self._map.references():
            leaf = self._map.load_leaf(number, reference)
            base = number * BLOCKS_PER_LEAF
            for block, chunk_id in enumerate(leaf.ids):
                if chunk_id is None:
                    continue
                if base + block != end:
                    if start >= 0:
                        extents.append(self._extent(start, end))
                    start = base + block
                end = base + block + 1
        if start >= 0:
            extents.append(self._extent(start, end))
        return extents

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``. Raises: ShortRead, IntegrityError, ObjectMissing, RepositoryFailed and others."""
        view = buffer.cast("B")
        if offset < 0 or offset + len(view) > self._capacity:
            raise ShortRead(
                "read beyond the disk's end",
                offset=offset,
                wanted=len(view),
                capacity=self._capacity,
            )
        in_order = offset == self._next_offset
        self._next_offset = offset + len(view)
        position = 0
        while position < len(view):
            window, start = divmod(offset + position, FRAME_BYTES)
            count = min(FRAME_BYTES - start, len(view) - position)
            try:
                data = self._window(window, in_order=in_order, end=offset + len(view))
            except (IntegrityError, FormatError, RepositoryFailed):
                # What is damaged may lie beside what was asked for: read no more than that.
                data = self._narrow_window(window, start=start, end=start + count)
            if data is None:
                view[position : position + count] = bytes(count)
            else:
                view[position : position + count] = data[start : start + count]
            position += count

    def digests(self, extent: Extent) -> tuple[bytes | None, ...]:
        """Per 64 KiB block of an extent: its digest, None where it is zero, empty where no index can say.

        ``extent`` is aligned to blocks. Raises: IntegrityError, ObjectMissing, RepositoryFailed.
        """
        assert extent.offset % BLOCK_BYTES == 0
        first = extent.offset // BLOCK_BYTES
        end = -(-extent.end // BLOCK_BYTES)
        result: list[bytes | None] = []
        while first < end:
            number, block = divmod(first, BLOCKS_PER_LEAF)
            count = min(BLOCKS_PER_LEAF - block, end - first)
            result += block_digests(self._leaf(number), block, count, self._frames.index)
            first += count
        return tuple(result)

    def close(self) -> None:
        """Forget what was read ahead. Twice is harmless."""
        for piece in self._pieces.values():
            piece.cancel()
        self._pieces.clear()

    def _extent(self, start: int, end: int) -> Extent:
        last = min(end * BLOCK_BYTES, self._capacity)
        return Extent(offset=start * BLOCK_BYTES, length=last - start * BLOCK_BYTES)

    def _window(self, number: int, *, in_order: bool, end: int) -> bytes | memoryview | None:
        if in_order or end - number * FRAME_BYTES > FRAME_BYTES:
            piece = number // PIECE_WINDOWS
            future = self._piece(piece * PIECE_WINDOWS, PIECE_WINDOWS)
            if self._pool is not None:
                self._read_ahead(piece)
        else:
            future = self._pieces.get((number // PIECE_WINDOWS * PIECE_WINDOWS, PIECE_WINDOWS)) or (
                self._piece(number, 1)
            )
        return future.result().get(number)

    def _narrow_window(self, number: int, *, start: int, end: int) -> bytes | memoryview | None:
        """A window of which only the bytes from ``start`` to ``end`` are right."""
        whole = self._plan(number)
        blocks = range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        plan = _WindowPlan(number, tuple(item for item in whole.blocks if item[0] in blocks))
        return self._read_piece([plan] if plan.blocks else []).get(number)

    def _read_ahead(self, piece: int) -> None:
        last = -(-self._capacity // (FRAME_BYTES * PIECE_WINDOWS))
        for ahead in range(piece + 1, min(piece + 1 + PIECES_AHEAD, last)):
            self._piece(ahead * PIECE_WINDOWS, PIECE_WINDOWS)

    def _piece(self, first: int, count: int) -> Future[Piece]:
        key = (first, count)
        future = self._pieces.get(key)
        if future is not None:
            self._pieces.move_to_end(key)
            return future
        plans = [
            plan for number in range(first, first + count) if (plan := self._plan(number)).blocks
        ]
        if self._pool is not None and plans:
            future = self._pool.submit(self._read_piece, plans)
        else:
            future = Future()
            future.set_result(self._read_piece(plans))
        self._pieces[key] = future
        while len(self._pieces) > PIECES_MAX:
            self._pieces.popitem(last=False)[1].cancel()
        return future

    def _plan(self, number: int) -> _WindowPlan:
        leaf = self._leaf(number // FRAMES_PER_LEAF)
        if leaf is None:
            return _WindowPlan(number, ())
        base = number % FRAMES_PER_LEAF * BLOCKS_PER_FRAME
        blocks = []
        for block in range(BLOCKS_PER_FRAME):
            chunk_id = leaf.ids[base + block]
            if chunk_id is not None:
                blocks.append((block, chunk_id, leaf.places[base + block]))
        return _WindowPlan(number, tuple(blocks))

    def _leaf(self, number: int) -> Leaf | None:
        if number not in self._leaves:
            self._leaves[number] = self._map.leaf(number)
            if len(self._leaves) > LEAVES_MAX:
                self._leaves.popitem(last=False)
        else:
            self._leaves.move_to_end(number)
        return self._leaves[number]

    def _read_piece(self, plans: list[_WindowPlan]) -> Piece:
        """In a worker: all windows of a piece."""
        wanted = list(dict.fromkeys(chunk_id for plan in plans for _, chunk_id, _ in plan.blocks))
        frames = self._frames.read(wanted) if wanted else {}
        return {plan.number: self._assembled(plan, frames) for plan in plans}

    def _assembled(
        self, plan: _WindowPlan, frames: dict[bytes, bytes | memoryview]
    ) -> bytes | memoryview:
        first = plan.blocks[0][1]
        whole = tuple((block, first, block) for block in range(BLOCKS_PER_FRAME))
        if plan.blocks == whole and len(frames[first]) == FRAME_BYTES:
            return frames[first]
        window = bytearray(FRAME_BYTES)
        for block, chunk_id, place in plan.blocks:
            length = block_length(
                plan.number * BLOCKS_PER_FRAME + block, capacity_bytes=self._capacity
            )
            data = memoryview(frames[chunk_id])[place * BLOCK_BYTES :][:length]
            if len(data) != length:
                raise IntegrityError(
                    "a frame is shorter than its disk's map says", chunk=chunk_id.hex()
                )
            window[block * BLOCK_BYTES : block * BLOCK_BYTES + length] = data
        return memoryview(window)

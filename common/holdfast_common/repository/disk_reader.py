"""A point's disk: as a block source that is read anywhere, and piece by piece in its order.

In order, some pieces of 4 MiB ahead are read, opened, decompressed, checked and given to whoever wants
them by worker threads, in buffers that are used again. Memory: `_Pieces`' buffers, whatever the disk's size.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Final

from holdfast_common.blocks.read_ahead import Block
from holdfast_common.blocks.wanted import told_apart
from holdfast_common.direct_writes import page_aligned
from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed, ShortRead
from holdfast_common.extents import Extent, split
from holdfast_common.formats.zero_bytes import fill_zero
from holdfast_common.repository.disk_map import DiskMap, Leaf
from holdfast_common.repository.disk_pieces import PIECE_BYTES, PiecePlan, PiecePlanner
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.layout import BLOCK_BYTES, BLOCKS_PER_LEAF, FRAME_BYTES
from holdfast_common.repository.manifest import PointDisk
from holdfast_common.repository.previous_digests import block_digests

PIECES_AHEAD: Final = 5  # one for each of three workers, one to be used, one to be planned: 20 MiB
WINDOWS_MAX: Final = 8  # kept for small reads: 8 MiB
LEAVES_MAX: Final = 8
_LOOK_SECONDS: Final = 0.5  # how soon one who waits hears that its job must stop
_STOP_SECONDS_MAX: Final = 30.0  # a call that does not come back in this time is left alone

Work = Callable[[PiecePlan, memoryview], None]


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
        self._pool = pool  # None: everything is done in the caller's thread
        self._capacity = disk.header.capacity_bytes
        self._planner = PiecePlanner(disk_map, frames, capacity_bytes=self._capacity)
        self._leaves: OrderedDict[int, Leaf | None] = OrderedDict()
        self._windows: OrderedDict[int, memoryview] = OrderedDict()

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

    def everything(
        self,
        *,
        check: Callable[[], None],
        work: Work | None = None,
        coming: Callable[[Sequence[Extent]], None] = lambda _: None,
    ) -> Generator[tuple[PiecePlan, memoryview]]:
        """All that the point holds, ascending, in pieces; a buffer is valid until the next step.

        ``work`` is called for each piece by the thread that filled it: several at once, in no order.
        ``coming`` is told, in the caller's thread, what many pieces will hold, before the first of them.
        Raises: IntegrityError, ObjectMissing, RepositoryFailed and others; what these functions raise.
        """
        return self._pieces(self._planner.everything(coming), check, work)

    def blocks(self, wanted: Iterable[Extent], *, check: Callable[[], None]) -> Generator[Block]:
        """The wanted parts (whole blocks of 64 KiB, ascending), zeros told apart. Raises: as `everything`."""
        with closing(self._pieces(self._planner.within(wanted), check, None)) as pieces:
            for plan, buffer in pieces:
                yield from _blocks_of(plan, buffer)

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
        if not view:
            return
        for part in split([Extent(offset=offset, length=len(view))], unit=FRAME_BYTES):
            self._read_window(part, view[part.offset - offset : part.end - offset])

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
        """Forget what was read. Twice is harmless."""
        self._windows.clear()

    def _pieces(
        self, plans: Iterator[PiecePlan], check: Callable[[], None], work: Work | None
    ) -> Generator[tuple[PiecePlan, memoryview]]:
        def done(plan: PiecePlan, buffer: memoryview) -> None:
            self._planner.fill(plan, buffer)
            if work is not None:
                work(plan, buffer)

        if self._pool is not None:
            yield from _Pieces(self._pool, done, check).of(plans)
            return
        buffer = page_aligned(PIECE_BYTES)
        for plan in plans:
            check()
            done(plan, buffer)
            yield plan, buffer

    def _read_window(self, part: Extent, view: memoryview) -> None:
        """A part of one window."""
        number = part.offset // FRAME_BYTES
        window = self._windows.get(number)
        if window is None:
            whole = self._blocks_around(Extent(offset=number * FRAME_BYTES, length=FRAME_BYTES))
            try:
                if part == whole:
                    self._fill(whole, view)
                    return
                window = memoryview(bytearray(whole.length))
                self._fill(whole, window)
            except (IntegrityError, FormatError, RepositoryFailed):
                # What is damaged may lie beside what was asked for: read no more than that.
                self._read_narrowly(part, view)
                return
            self._windows[number] = window
            if len(self._windows) > WINDOWS_MAX:
                self._windows.popitem(last=False)
        self._windows.move_to_end(number)
        start = part.offset - number * FRAME_BYTES
        view[:] = window[start : start + len(view)]

    def _read_narrowly(self, part: Extent, view: memoryview) -> None:
        around = self._blocks_around(part)
        buffer = memoryview(bytearray(around.length))
        self._fill(around, buffer)
        start = part.offset - around.offset
        view[:] = buffer[start : start + len(view)]

    def _fill(self, extent: Extent, buffer: memoryview) -> None:
        for plan in self._planner.within([extent]):
            piece = buffer[plan.offset - extent.offset :][: plan.length]
            if plan.mapped != plan.wanted:
                fill_zero(piece)
            self._planner.fill(plan, piece)

    def _blocks_around(self, part: Extent) -> Extent:
        return self._extent(part.offset // BLOCK_BYTES, -(-part.end // BLOCK_BYTES))

    def _extent(self, start: int, end: int) -> Extent:
        last = min(end * BLOCK_BYTES, self._capacity)
        return Extent(offset=start * BLOCK_BYTES, length=last - start * BLOCK_BYTES)

    def _leaf(self, number: int) -> Leaf | None:
        if number not in self._leaves:
            self._leaves[number] = self._map.leaf(number)
            if len(self._leaves) > LEAVES_MAX:
                self._leaves.popitem(last=False)
        else:
            self._leaves.move_to_end(number)
        return self._leaves[number]


class _Pieces:
    """Pieces done ahead by a pool's threads, handed on in order. One consumer."""

    def __init__(self, pool: ThreadPoolExecutor, work: Work, check: Callable[[], None]) -> None:
        self._pool = pool
        self._work = work
        self._check = check
        self._free: list[memoryview] = []
        self._unmade = PIECES_AHEAD
        self._running: deque[tuple[PiecePlan, memoryview, Future[None]]] = deque()

    def of(self, plans: Iterator[PiecePlan]) -> Iterator[tuple[PiecePlan, memoryview]]:
        """All of them."""
        try:
            for plan in plans:
                while not self._free and not self._unmade:
                    yield from self._first()
                if self._free:
                    buffer = self._free.pop()
                else:
                    buffer = page_aligned(PIECE_BYTES)
                    self._unmade -= 1
                future = self._pool.submit(self._work, plan, buffer)
                self._running.append((plan, buffer, future))
            while self._running:
                yield from self._first()
        finally:
            self._stop()

    def _first(self) -> Iterator[tuple[PiecePlan, memoryview]]:
        plan, buffer, future = self._running[0]
        while True:
            self._check()
            if wait([future], _LOOK_SECONDS).done:
                break
        self._running.popleft()
        future.result()
        yield plan, buffer
        self._free.append(buffer)

    def _stop(self) -> None:
        """Nobody uses a buffer, or what the work writes to, after this, unless a call never comes back."""
        wait([future for _, _, future in self._running if not future.cancel()], _STOP_SECONDS_MAX)


def _blocks_of(plan: PiecePlan, buffer: memoryview) -> Iterator[Block]:
    """Runs with and without data."""
    for extent, is_mapped in told_apart(plan.wanted, plan.mapped):
        data = plan.part(buffer, extent) if is_mapped else None
        yield Block(extent.offset, extent.length, data)

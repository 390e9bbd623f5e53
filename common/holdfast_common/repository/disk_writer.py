"""One disk of a new point: ranges in ascending order -> windows of 1 MiB -> workers -> the disk's map."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from holdfast_common.errors import UsageError
from holdfast_common.repository.disk_map import Leaf, block_length
from holdfast_common.repository.frame_worker import FrameWorker, Window, WindowResult
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCKS_PER_FRAME,
    BLOCKS_PER_LEAF,
    FRAME_BYTES,
    FRAMES_PER_LEAF,
)
from holdfast_common.repository.manifest import DiskHeader, DiskSummary
from holdfast_common.repository.map_editor import MapEditor
from holdfast_common.repository.worker_pool import WAIT_SECONDS, WorkerPool

PreviousDigests = Callable[[int], tuple[bytes | None, ...]]


@dataclass(frozen=True, slots=True)
class _Zeroed:
    first_block: int
    end_block: int


class DiskWriter:
    """Takes a disk's changed ranges. One thread; `finish` ends it.

    Offsets ascend over `write` and `zero` together and are multiples of 64 KiB; so are lengths, except that
    a range may end at the disk's end. What is neither written nor zeroed stays as in the previous point,
    or zero without one.
    """

    def __init__(
        self,
        header: DiskHeader,
        *,
        pool: WorkerPool,
        editor: MapEditor,
        finished: Callable[[DiskSummary], None],
        renew_lease: Callable[[], None],
        previous_digests: PreviousDigests | None = None,
    ) -> None:
        self.header = header
        self._pool = pool
        self._editor = editor
        self._finished = finished
        self._previous_digests = (
            previous_digests  # given: blocks that equal the previous point's stay
        )
        self._renew_lease = renew_lease
        self._next_offset = 0
        self._window: Window | None = None
        self._submitted: deque[int | _Zeroed] = deque()
        self._tickets = count()  # a window that zeros cut in two is submitted twice
        self._results: dict[int, WindowResult] = {}  # by ticket, one for each worker: no lock
        self._arrived = threading.Event()
        self._leaf: Leaf | None = None
        self._counts = DiskSummary(header=header, root=None, allocated_bytes=0)
        pool.add_disk()

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        """Give the bytes of ``[offset, offset + len(data))``; they are copied before this returns.

        Raises: UsageError (order, alignment), IntegrityError, RepositoryFull, RepositoryFailed.
        """
        view = memoryview(data).cast("B")
        end = offset + len(view)
        self._advance(offset, end)
        position = 0
        while position < len(view):
            window = self._window_of((offset + position) // FRAME_BYTES)
            start = (offset + position) % FRAME_BYTES
            length = min(FRAME_BYTES - start, len(view) - position)
            window.buffer[start : start + length] = view[position : position + length]
            first = start // BLOCK_BYTES
            blocks = -(-length // BLOCK_BYTES)
            window.received |= ((1 << blocks) - 1) << first
            rest = (start + length) % BLOCK_BYTES
            if rest:
                window.tail_block = (start + length) // BLOCK_BYTES
                window.tail_length = rest
                # the zero test looks at whole blocks
                padding = BLOCK_BYTES - rest
                window.buffer[start + length : start + length + padding] = bytes(padding)
            position += length

    def zero(self, offset: int, length: int) -> None:
        """Say that ``[offset, offset + length)`` became zero. Raises: as `write`."""
        self._advance(offset, offset + length)
        self._submit_window()
        self._submitted.append(_Zeroed(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)))
        self._apply_ready()

    def finish(self) -> DiskSummary:
        """Wait for all windows and write the map's last pages. Raises: as `write`."""
        self._submit_window()
        while self._submitted:
            self._apply_ready()
            if self._submitted:
                self._wait()
        self._put_leaf()
        root = self._editor.finish()
        blocks = root.blocks if root is not None else 0
        allocated = min(blocks * BLOCK_BYTES, self.header.capacity_bytes)
        summary = replace(
            self._counts, root=root, allocated_bytes=allocated, map_pages=self._editor.pages
        )
        self._pool.remove_disk()
        self._finished(summary)
        return summary

    def _advance(self, offset: int, end: int) -> None:
        capacity = self.header.capacity_bytes
        aligned = offset % BLOCK_BYTES == 0 and (end % BLOCK_BYTES == 0 or end == capacity)
        if offset < self._next_offset or end <= offset or end > capacity or not aligned:
            raise UsageError(
                "ranges of a disk ascend and are multiples of 64 KiB",
                offset=offset,
                end=end,
                after=self._next_offset,
                capacity_bytes=capacity,
            )
        self._next_offset = end

    def _window_of(self, number: int) -> Window:
        if self._window is None or self._window.number != number:
            self._submit_window()
            window = self._pool.take_window()
            window.number = number
            window.received = 0
            window.tail_block = -1
            window.previous_digests = ()
            self._window = window
        return self._window

    def _submit_window(self) -> None:
        window, self._window = self._window, None
        if window is None:
            return
        self._renew_lease()
        if self._previous_digests is not None:
            window.previous_digests = self._previous_digests(window.number)
        ticket = next(self._tickets)
        self._submitted.append(ticket)

        def task(worker: FrameWorker) -> None:
            try:
                self._results[ticket] = worker.process(window)
            finally:
                self._pool.give_back(window)
                self._arrived.set()

        self._pool.submit(task)
        self._apply_ready()

    def _wait(self) -> None:
        self._arrived.wait(WAIT_SECONDS)
        self._arrived.clear()
        self._pool.check()

    def _apply_ready(self) -> None:
        while self._submitted:
            head = self._submitted[0]
            if isinstance(head, _Zeroed):
                self._apply_zeroed(head)
            else:
                result = self._results.pop(head, None)
                if result is None:
                    return
                self._apply(result)
            self._submitted.popleft()

    def _apply(self, result: WindowResult) -> None:
        if result.zero_blocks or result.frame_blocks:
            leaf = self._leaf_of(result.number // FRAMES_PER_LEAF)
            base = result.number % FRAMES_PER_LEAF * BLOCKS_PER_FRAME
            for block in result.zero_blocks:
                leaf.set(base + block, None)
            for place, block in enumerate(result.frame_blocks):
                leaf.set(base + block, result.frame_id, place)
        counts = self._counts
        self._counts = replace(
            counts,
            received_bytes=counts.received_bytes + result.received_bytes,
            zero_bytes=counts.zero_bytes + result.zero_bytes,
            unchanged_bytes=counts.unchanged_bytes + result.unchanged_bytes,
            known_bytes=counts.known_bytes + result.known_bytes,
            new_bytes=counts.new_bytes + result.new_bytes,
            stored_bytes=counts.stored_bytes + result.stored_bytes,
        )

    def _apply_zeroed(self, zeroed: _Zeroed) -> None:
        first, end = zeroed.first_block, zeroed.end_block
        capacity = self.header.capacity_bytes
        if block_length(end - 1, capacity_bytes=capacity) < BLOCK_BYTES:
            end = -(-end // BLOCKS_PER_LEAF) * BLOCKS_PER_LEAF  # nothing comes after the disk's end
        while first < end:
            number = first // BLOCKS_PER_LEAF
            if first % BLOCKS_PER_LEAF == 0 and end - first >= BLOCKS_PER_LEAF:
                self._put_leaf()
                whole = end // BLOCKS_PER_LEAF
                self._editor.clear(number, whole)
                first = whole * BLOCKS_PER_LEAF
                continue
            leaf_end = min((number + 1) * BLOCKS_PER_LEAF, end)
            leaf = self._leaf_of(number)
            for block in range(first, leaf_end):
                leaf.set(block % BLOCKS_PER_LEAF, None)
            first = leaf_end

    def _leaf_of(self, number: int) -> Leaf:
        if self._leaf is None or self._leaf.number != number:
            self._put_leaf()
            self._leaf = self._editor.previous_leaf(number) or Leaf.empty(number)
        return self._leaf

    def _put_leaf(self) -> None:
        leaf, self._leaf = self._leaf, None
        if leaf is not None:
            self._editor.put(leaf)

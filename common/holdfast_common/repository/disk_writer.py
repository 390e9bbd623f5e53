"""One disk of a new point: ranges in ascending order -> windows of 1 MiB -> workers -> the disk's map."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

import numpy as np

from holdfast_common.errors import UsageError
from holdfast_common.repository.disk_map import Leaf, block_length
from holdfast_common.repository.frame_worker import FrameWorker, WindowResult
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCKS_PER_FRAME,
    BLOCKS_PER_LEAF,
    FRAME_BYTES,
    FRAMES_PER_LEAF,
)
from holdfast_common.repository.leaf_edit import EditedLeaf
from holdfast_common.repository.manifest import DiskHeader, DiskSummary
from holdfast_common.repository.map_editor import MapEditor
from holdfast_common.repository.window import ReadInto, Window, blocks_mask
from holdfast_common.repository.worker_pool import STOP_SECONDS_MAX, WAIT_SECONDS, WorkerPool

WINDOWS_PER_WORKER: Final = (
    3  # submitted to a worker and not applied: it never waits for the next one
)
PreviousDigests = Callable[[int], tuple[bytes | None, ...]]


@dataclass(frozen=True, slots=True)
class _Zeroed:
    first_block: int
    end_block: int


class DiskWriter:
    """Takes a disk's changed ranges. One thread; `finish` ends it.

    Offsets ascend over `write`, `read` and `zero` together and are multiples of 64 KiB; so are lengths, except that
    a range may end at the disk's end. What is none of them stays as in the previous point,
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
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """``check`` is called while this waits; what it raises ends the wait."""
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
        self._in_work = 0  # windows that are submitted and whose result was not taken
        self._results: queue.SimpleQueue[tuple[int, WindowResult | None]] = queue.SimpleQueue()
        self._ready: dict[int, WindowResult] = {}  # by ticket
        self._check = check
        self._leaf: Leaf | EditedLeaf | None = None
        self._counts = DiskSummary(header=header, root=None, allocated_bytes=0)
        pool.add_disk()

    def write(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        """Give the bytes of ``[offset, offset + len(data))``; they are copied before this returns.

        Raises: UsageError (order, alignment), IntegrityError, RepositoryFull, RepositoryFailed.
        """
        view = memoryview(data).cast("B")
        self._advance(offset, offset + len(view))
        for start, length, place in _cut(offset, len(view)):
            window = self._window_of(place)
            if window.written is None:
                window.written = self._pool.take_buffer()
            # numpy copies without the interpreter's lock
            target = np.frombuffer(window.written.data, np.uint8)
            target[start : start + length] = np.frombuffer(
                view[place - offset : place - offset + length], np.uint8
            )
            window.add(start, length)

    def read(self, offset: int, length: int, read_into: ReadInto) -> None:
        """Have the workers read ``[offset, offset + length)`` by ``read_into``, several at once.

        They may read until `settle` or `wait` returned. Raises: as `write`, and what ``read_into`` raises.
        """
        self._advance(offset, offset + length)
        for start, part, place in _cut(offset, length):
            window = self._window_of(place)
            window.reads.append((start, part))
            window.read_into = read_into
            window.add(start, part)

    def zero(self, offset: int, length: int) -> None:
        """Say that ``[offset, offset + length)`` became zero. Raises: as `write`."""
        self._advance(offset, offset + length)
        end = offset + length
        first_whole = -(-offset // FRAME_BYTES) * FRAME_BYTES
        end_whole = end if end == self.header.capacity_bytes else end // FRAME_BYTES * FRAME_BYTES
        if first_whole >= end_whole:
            self._zero_parts(offset, end)
            return
        self._zero_parts(offset, first_whole)
        self._submit_window()
        self._submitted.append(_Zeroed(first_whole // BLOCK_BYTES, -(-end_whole // BLOCK_BYTES)))
        self._apply_ready()
        self._zero_parts(end_whole, end)

    def settle(self) -> None:
        """Wait until all that was given is stored. Raises: as `write`."""
        self._submit_window()
        while self._in_work:
            self._take_result()
        self._apply_ready()

    def finish(self) -> DiskSummary:
        """Wait for all windows and write the map's last pages. Raises: as `write`."""
        self.settle()
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

    def wait(self) -> bool:
        """Whether no worker reads any more; waits for those that do, as long as a read may take.

        For who gives a disk up: whatever it was read from may be closed then.
        """
        end = time.monotonic() + STOP_SECONDS_MAX
        while self._in_work:
            try:
                self._results.get(timeout=max(end - time.monotonic(), 0))
            except queue.Empty:
                return False
            self._in_work -= 1
        return True

    def _zero_parts(self, offset: int, end: int) -> None:
        for start, length, place in _cut(offset, end - offset):
            self._window_of(place).zeroed |= blocks_mask(start, length)

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

    def _window_of(self, place: int) -> Window:
        number = place // FRAME_BYTES
        if self._window is None or self._window.number != number:
            self._submit_window()
            self._window = Window(number)
        return self._window

    def _submit_window(self) -> None:
        window, self._window = self._window, None
        if window is None:
            return
        self._renew_lease()
        if self._previous_digests is not None:
            window.previous_digests = self._previous_digests(window.number)
        while self._in_work >= WINDOWS_PER_WORKER * self._pool.workers:
            self._take_result()
        ticket = next(self._tickets)
        self._submitted.append(ticket)
        self._in_work += 1

        def task(worker: FrameWorker) -> None:
            result = None
            try:
                if not self._pool.has_failed:
                    result = worker.process(window)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread by `check`
                self._pool.fail(error)
            finally:
                if window.written is not None:
                    self._pool.give_back(window.written)
                self._results.put((ticket, result))

        self._pool.submit(task)
        while not self._results.empty():
            self._take_result()
        self._apply_ready()

    def _take_result(self) -> None:
        """Wait for one. Raises: what a worker raised, what ``check`` raises."""
        while True:
            self._check()
            try:
                ticket, result = self._results.get(timeout=WAIT_SECONDS)
                break
            except queue.Empty:
                self._pool.check()
        self._in_work -= 1
        if result is None:
            self._pool.check()
        else:
            self._ready[ticket] = result

    def _apply_ready(self) -> None:
        while self._submitted:
            head = self._submitted[0]
            if isinstance(head, _Zeroed):
                self._apply_zeroed(head)
            else:
                result = self._ready.pop(head, None)
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

    def _leaf_of(self, number: int) -> Leaf | EditedLeaf:
        if self._leaf is None or self._leaf.number != number:
            self._put_leaf()
            self._leaf = self._editor.previous_leaf(number) or Leaf.empty(number)
        return self._leaf

    def _put_leaf(self) -> None:
        leaf, self._leaf = self._leaf, None
        if leaf is not None:
            self._editor.put(leaf)


def _cut(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(offset in its window, length, offset in the disk) of the parts that lie in one window each."""
    end = offset + length
    while offset < end:
        start = offset % FRAME_BYTES
        part = min(FRAME_BYTES - start, end - offset)
        yield start, part, offset
        offset += part

"""Overlaps the work of a backup: workers read and seal, one more thread makes finished packs durable.

Without workers everything happens in the caller's thread, in order; golden repositories are made so.
A failure anywhere stops the rest and is raised in the caller's thread. How many tasks wait is up to those
who submit them; what bounds memory is the number of buffers.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from holdfast_common.errors import HoldfastError, RepositoryFailed
from holdfast_common.repository.frame_worker import FrameWorker
from holdfast_common.repository.pack_writer import CompletePack
from holdfast_common.repository.window import WindowBuffer

log = logging.getLogger(__name__)

Task = Callable[[FrameWorker], None]
WAIT_SECONDS: Final = 0.5  # how often a waiting thread looks whether another one has failed
COMPLETE_PACKS_MAX: Final = 2  # waiting for their sync; more would only hide a slow disk
STOP_SECONDS_MAX: Final = 30.0  # a worker whose read or write does not come back is left alone


class WorkerPool:
    """Runs tasks on workers. `submit` and `take_buffer` may be called by several disks' threads."""

    def __init__(
        self,
        make_worker: Callable[[Callable[[CompletePack], None]], FrameWorker],
        *,
        threads: int,
        committed: Callable[[CompletePack], None],
    ) -> None:
        """``make_worker`` is given what its pack writer calls with each complete pack."""
        self.workers = max(1, threads)
        self._workers = [make_worker(self._pack_finished) for _ in range(self.workers)]
        self._committed = committed
        self._failure: BaseException | None = None
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._packs: queue.Queue[CompletePack | None] = queue.Queue(maxsize=COMPLETE_PACKS_MAX)
        self._threads: list[threading.Thread] = []
        self._finisher: threading.Thread | None = None
        self._buffers: queue.SimpleQueue[WindowBuffer | None] = queue.SimpleQueue()
        for _ in range(2 * threads):
            self._buffers.put(None)  # made when it is first taken
        if threads:
            for worker in self._workers:
                self._start(lambda worker=worker: self._work(worker))  # type: ignore[misc]  # bound now
            self._finisher = threading.Thread(target=self._finish_packs, daemon=True)
            self._finisher.start()

    def add_disk(self) -> None:
        """One more buffer: a disk holds one while it fills it, and must not wait for another disk's."""
        self._buffers.put(None)

    def remove_disk(self) -> None:
        """Take that buffer away again, with its memory. Raises: what a worker raised."""
        self._next_buffer()

    def take_buffer(self) -> WindowBuffer:
        """A free buffer; waits for one. Raises: what a worker raised."""
        return self._next_buffer() or WindowBuffer()

    def give_back(self, buffer: WindowBuffer) -> None:
        """Free a buffer."""
        self._buffers.put(buffer)

    def submit(self, task: Task) -> None:
        """Run ``task`` on some worker; also after a failure, and when this raises: who counts tasks waits for it.

        Raises: what a worker raised.
        """
        if self._finisher is None:
            task(self._workers[0])
        else:
            self._tasks.put(task)
        self.check()

    @property
    def has_failed(self) -> bool:
        """Whether what is still to be done is in vain."""
        return self._failure is not None

    def fail(self, error: BaseException) -> None:
        """Stop all; the first error is the one that `check` raises."""
        self._failure = self._failure or error

    def check(self) -> None:
        """Raises: what any of the threads raised."""
        if self._failure is not None:
            if isinstance(self._failure, HoldfastError):
                raise self._failure
            raise RepositoryFailed("a worker of the repository failed") from self._failure

    def close(self) -> None:
        """Finish all tasks and packs, end all threads. Raises: what any of them raised."""
        if self._finisher is None:
            self._workers[0].packs.close()
            return
        self._end_threads(patience_seconds=None)
        self.check()

    def abort(self) -> None:
        """End all threads and discard open packs. Twice is harmless."""
        self.fail(RepositoryFailed("the attempt was abandoned"))
        if self._finisher is not None:
            self._end_threads(patience_seconds=STOP_SECONDS_MAX)
        for worker in self._workers:
            worker.packs.abort()

    def _next_buffer(self) -> WindowBuffer | None:
        while True:
            self.check()
            try:
                return self._buffers.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue

    def _pack_finished(self, pack: CompletePack) -> None:
        """Called by workers: have it made durable."""
        if self._finisher is None:
            self._committed(pack)
            return
        while self._failure is None:
            try:
                self._packs.put(pack, timeout=WAIT_SECONDS)
                return
            except queue.Full:
                continue
        pack.upload.abort()

    def _end_threads(self, *, patience_seconds: float | None) -> None:
        """``patience_seconds``: None: however long it takes."""
        for _ in self._threads:
            self._tasks.put(None)
        end = None if patience_seconds is None else time.monotonic() + patience_seconds
        for thread in self._threads:
            thread.join(None if end is None else max(end - time.monotonic(), 0))
        if any(thread.is_alive() for thread in self._threads):
            log.warning("a worker of the repository does not come back")
        self._threads = []
        if self._finisher is not None and self._finisher.is_alive():
            self._packs.put(None)
            self._finisher.join(None if end is None else max(end - time.monotonic(), 1.0))

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self, worker: FrameWorker) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task(worker)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread by `check`
                self.fail(error)
        if self._failure is None:
            try:
                worker.packs.close()
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread by `check`
                self.fail(error)

    def _finish_packs(self) -> None:
        while (pack := self._packs.get()) is not None:
            if self._failure is not None:
                pack.upload.abort()
                continue
            try:
                self._committed(pack)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread by `check`
                self.fail(error)

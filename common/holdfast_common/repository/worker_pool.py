"""Overlaps the work of a backup: workers seal, one more thread makes finished packs durable.

Without workers everything happens in the caller's thread, in order; golden repositories are made so.
A failure anywhere stops the rest and is raised in the caller's thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

from holdfast_common.errors import HoldfastError, RepositoryFailed
from holdfast_common.repository.frame_worker import FrameWorker, Window
from holdfast_common.repository.pack_writer import CompletePack

Task = Callable[[FrameWorker], None]
WAIT_SECONDS: Final = 1.0  # how often a waiting thread looks whether another one has failed
COMPLETE_PACKS_MAX: Final = 2  # waiting for their sync; more would only hide a slow disk


class WorkerPool:
    """Runs tasks on workers. `submit` and `take_window` may be called by several disks' threads."""

    def __init__(
        self,
        make_worker: Callable[[Callable[[CompletePack], None]], FrameWorker],
        *,
        threads: int,
        committed: Callable[[CompletePack], None],
    ) -> None:
        """``make_worker`` is given what its pack writer calls with each complete pack."""
        self._workers = [make_worker(self._pack_finished) for _ in range(max(1, threads))]
        self._committed = committed
        self._failure: BaseException | None = None
        self._tasks: queue.Queue[Task | None] = queue.Queue(maxsize=2 * len(self._workers))
        self._packs: queue.Queue[CompletePack | None] = queue.Queue(maxsize=COMPLETE_PACKS_MAX)
        self._threads: list[threading.Thread] = []
        self._finisher: threading.Thread | None = None
        self._windows: queue.Queue[Window] = queue.Queue()
        for _ in range(2 * threads):
            self._windows.put(Window.allocate())
        if threads:
            for worker in self._workers:
                self._start(lambda worker=worker: self._work(worker))  # type: ignore[misc]  # bound now
            self._finisher = threading.Thread(target=self._finish_packs, daemon=True)
            self._finisher.start()

    def add_disk(self) -> None:
        """One more window: a disk holds one while it fills it, and must not wait for another disk's."""
        self._windows.put(Window.allocate())

    def remove_disk(self) -> None:
        """Take that window away again, with its memory. Raises: what a worker raised."""
        self.take_window()

    def take_window(self) -> Window:
        """A free window; waits for one. Raises: what a worker raised."""
        while True:
            self.check()
            try:
                return self._windows.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue

    def give_back(self, window: Window) -> None:
        """Free a window."""
        self._windows.put(window)

    def submit(self, task: Task) -> None:
        """Run ``task`` on some worker. Raises: what a worker raised."""
        if self._finisher is None:
            task(self._workers[0])
            return
        while True:
            self.check()
            try:
                self._tasks.put(task, timeout=WAIT_SECONDS)
                return
            except queue.Full:
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
        self._end_threads()
        self.check()

    def abort(self) -> None:
        """End all threads and discard open packs. Twice is harmless."""
        if self._failure is None:
            self._failure = RepositoryFailed("the attempt was abandoned")
        if self._finisher is not None:
            self._end_threads()
        for worker in self._workers:
            worker.packs.abort()

    def _end_threads(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        if self._finisher is not None and self._finisher.is_alive():
            self._packs.put(None)
            self._finisher.join()

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self, worker: FrameWorker) -> None:
        while (task := self._tasks.get()) is not None:
            if self._failure is not None:
                continue  # drain, so that nobody waits for ever
            try:
                task(worker)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread by `check`
                self._failure = self._failure or error
        if self._failure is None:
            try:
                worker.packs.close()
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread by `check`
                self._failure = self._failure or error

    def _finish_packs(self) -> None:
        while (pack := self._packs.get()) is not None:
            if self._failure is not None:
                pack.upload.abort()
                continue
            try:
                self._committed(pack)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread by `check`
                self._failure = self._failure or error

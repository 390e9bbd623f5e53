"""A bounded number of threads that carry jobs out, in the order in which they came.

Of `engine`. Threads begin when they are needed and end when nothing waits. One that cannot be
started (the machine has none left) leaves its job waiting, and `begin` tries again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from holdfast_common.identity import JobId

log = logging.getLogger(__name__)


class JobThreads:
    """Thread-safe."""

    def __init__(self, *, threads_max: int, carry_out: Callable[[JobId], None]) -> None:
        """``carry_out`` raises nothing."""
        self._threads_max = threads_max
        self._carry_out = carry_out
        self._lock = threading.Lock()
        self._waiting: deque[JobId] = deque()
        self._threads: set[threading.Thread] = set()

    def add(self, job_id: JobId) -> None:
        """Have it carried out as soon as a thread is free."""
        with self._lock:
            self._waiting.append(job_id)
        self.begin()

    def take_back(self, job_id: JobId) -> bool:
        """Whether it had not begun, and now never will."""
        with self._lock:
            try:
                self._waiting.remove(job_id)
            except ValueError:
                return False
            return True

    def begin(self) -> None:
        """Start a thread if something waits for one."""
        with self._lock:
            if not self._waiting or len(self._threads) >= self._threads_max:
                return
            thread = threading.Thread(target=self._work, name="job", daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError as error:  # the machine has no thread left
                self._threads.discard(thread)
                log.warning("a job waits: no thread can be started", extra={"error": str(error)})

    def is_moving(self) -> bool:
        """Whether nothing waits that could begin."""
        with self._lock:
            return not self._waiting or len(self._threads) >= self._threads_max

    def join(self) -> None:
        """Wait until nothing is at work any more; what waits is carried out first if it can be."""
        while True:
            self.begin()
            with self._lock:
                thread = next(iter(self._threads), None)
            if thread is None:
                return
            thread.join()

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._waiting:
                        # said below the lock: whoever adds a job from now on starts a thread
                        self._threads.discard(threading.current_thread())
                        return
                    job_id = self._waiting.popleft()
                self._carry_out(job_id)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

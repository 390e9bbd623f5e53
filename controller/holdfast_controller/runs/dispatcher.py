"""Begins waiting jobs as `decide.dispatch` says, each on a thread of its own, and again whenever one ends.

Of `engine`. A thread that cannot be started (the machine has none left) leaves its job waiting, and `begin` tries again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Set

from holdfast_common.clock import Clock
from holdfast_common.identity import JobId
from holdfast_controller.decide.dispatch import Begun, DispatchQueue, Wait, WaitingJob
from holdfast_controller.decide.load_limits import GATES, LoadKey, LoadKind, LoadLimits

log = logging.getLogger(__name__)


class Dispatcher:
    """Thread-safe."""

    def __init__(
        self,
        limits: LoadLimits,
        clock: Clock,
        *,
        carry_out: Callable[[Begun], None],
        as_it_is_now: Callable[[WaitingJob], WaitingJob] = lambda job: job,
    ) -> None:
        """``carry_out`` raises nothing, nor does ``as_it_is_now``, which says what a job that is to begin weighs on now."""
        self._clock = clock
        self._carry_out = carry_out
        self._as_it_is_now = as_it_is_now
        self._lock = threading.Lock()
        self._queue = DispatchQueue(limits)
        self._queue.shut_all(LoadKind.VCENTER)  # until each was looked after
        self._jobs: dict[JobId, WaitingJob] = {}
        self._threads: set[threading.Thread] = set()
        self._stuck = False

    def add(self, *jobs: WaitingJob) -> None:
        """Have each carried out as soon as everything that it weighs on has room; of those of one call the first in order first."""
        with self._lock:
            for job in jobs:
                self._jobs[job.job_id] = job
                self._queue.add(job, self._clock.now())
        self.begin()

    def take_back(self, job_id: JobId) -> bool:
        """Whether it had not begun, and now never will."""
        with self._lock:
            taken = self._queue.take_back(job_id)
            if taken:
                del self._jobs[job_id]
            return taken

    def begin(self) -> None:
        """Begin everything that can."""
        with self._lock:
            self._stuck = False
            while (begun := self._queue.begin_next(self._clock.now())) is not None:
                if self._is_put_back(begun):
                    continue
                if not self._started(begun):
                    self._stuck = True
                    return

    def is_moving(self) -> bool:
        """Whether nothing waits that could begin."""
        with self._lock:
            return not self._stuck

    def shut(self, gate: LoadKey) -> None:
        """What waits behind it does not begin; what has begun goes on."""
        with self._lock:
            self._queue.shut(gate)

    def open(self, gate: LoadKey) -> None:
        """What waits behind it may begin."""
        with self._lock:
            self._queue.open(gate)
        self.begin()

    def shut_only(self, kind: LoadKind, gates: Iterable[LoadKey]) -> None:
        """These gates of a kind, and no other."""
        with self._lock:
            self._queue.shut_only(kind, gates)
        self.begin()

    def waits(self, job_id: JobId) -> tuple[Wait, ...]:
        """What a waiting job waited for until now; the last one it still waits for. Empty: it does not wait."""
        with self._lock:
            return self._queue.waits(job_id, self._clock.now())

    def waiting_on(self, load: LoadKey) -> list[JobId]:
        """Jobs that have not begun and will weigh on it, or pass it."""
        with self._lock:
            return self._queue.waiting_on(load)

    def waiting_only_for(self, agents: Set[str]) -> list[JobId]:
        """Waiting jobs that no other agent could carry out."""
        with self._lock:
            return self._queue.waiting_only_for(agents)

    def running_on(self, load: LoadKey) -> list[JobId]:
        """Jobs that have begun and weigh on it, or passed it."""
        with self._lock:
            return self._queue.running_on(load)

    def in_use(self, kind: LoadKind) -> set[LoadKey]:
        """Everything of a kind that a job waits for, passes or weighs on."""
        with self._lock:
            return self._queue.in_use(kind)

    def join(self) -> None:
        """Open every gate, and wait until nothing is at work any more and nothing waits that could be."""
        for kind in GATES:
            self.shut_only(kind, ())
        while True:
            self.begin()
            with self._lock:
                thread = next(iter(self._threads), None)
            if thread is None:
                return
            thread.join()

    def _is_put_back(self, begun: Begun) -> bool:
        """Whether it weighs on other things than when it was queued, and is asked again with those; the lock is held."""
        job = self._jobs[begun.job_id]
        now = self._as_it_is_now(job)
        if now == job:
            return False
        self._jobs[job.job_id] = now
        self._queue.put_back(begun, now, self._clock.now())
        return True

    def _started(self, begun: Begun) -> bool:
        """Whether there was a thread for it; the lock is held."""
        thread = threading.Thread(target=self._work, args=(begun,), name="job", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no thread left
            self._threads.discard(thread)
            self._queue.ended(begun.job_id)
            self._queue.add(self._jobs[begun.job_id], self._clock.now())
            log.warning("a job waits: no thread can be started", extra={"error": str(error)})
            return False
        return True

    def _work(self, begun: Begun) -> None:
        try:
            self._carry_out(begun)
        finally:
            with self._lock:
                self._queue.ended(begun.job_id)
                del self._jobs[begun.job_id]
            # before the thread is taken out: whoever joins must not overlook what begins now
            self.begin()
            with self._lock:
                self._threads.discard(threading.current_thread())

"""Which unfinished jobs somebody works on, or is going to; the reconciler ends those that nobody does.

Between `engine` (a thread per job) and `reconcile`. A thread can end without its job ending: the
database failed when it had to say so, or the thread itself failed. Such a job must not stand for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from holdfast_common.identity import JobId
from holdfast_common.job_result import ErrorReport
from holdfast_controller.store.jobs import JobRow


class AttendedJobs:
    """The jobs of this life of the controller. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._attended: set[JobId] = set()
        self._why: dict[JobId, ErrorReport] = {}
        self._look = threading.Event()

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Jobs that are written down in this block are attended to before anybody misses them."""
        with self._lock:
            yield

    def attend(self, job_id: JobId) -> None:
        """From here on somebody sees to it that this job ends."""
        with self._lock:
            self._attended.add(job_id)

    def leave(self, job_id: JobId, why: ErrorReport | None = None) -> None:
        """Nobody does any more; ``why`` when the job has not ended."""
        with self._lock:
            self._attended.discard(job_id)
            if why is not None:
                self._why[job_id] = why
                self._look.set()

    def unattended(self, unfinished: Callable[[], list[JobRow]]) -> list[JobRow]:
        """Those that nobody sees to. ``unfinished`` reads all that have not ended."""
        with self._lock:
            return [job for job in unfinished() if job.job_id not in self._attended]

    def why_left(self, job_id: JobId) -> ErrorReport | None:
        """What ended its thread; None: it was never begun in this life, or nobody knows."""
        with self._lock:
            return self._why.get(job_id)

    def settled(self, job_id: JobId) -> None:
        """It has ended after all."""
        with self._lock:
            self._why.pop(job_id, None)

    def look_soon(self) -> None:
        """Something of a job was left that can be looked after now."""
        self._look.set()

    def is_to_look(self) -> bool:
        """Whether something was left since this was last asked."""
        if not self._look.is_set():
            return False
        self._look.clear()
        return True

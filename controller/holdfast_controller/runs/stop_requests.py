"""Why a job is to stop that nobody cancelled: its window closed, or an operator paused everything.

Between `policy_runs` and `pausing`, which ask, and `lifecycle`, which stops the job and ends it so. Nothing of it outlives
the controller: after a restart its jobs are interrupted anyway.
"""

from __future__ import annotations

import threading

from holdfast_common.errors import Interrupted
from holdfast_common.identity import JobId


class StopRequests:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._why: dict[JobId, Interrupted] = {}

    def ask(self, job_id: JobId, why: Interrupted) -> None:
        """The first reason counts."""
        with self._lock:
            self._why.setdefault(job_id, why)

    def why(self, job_id: JobId) -> Interrupted | None:
        """None: nobody asked."""
        with self._lock:
            return self._why.get(job_id)

    def settled(self, job_id: JobId) -> None:
        """It has ended."""
        with self._lock:
            self._why.pop(job_id, None)

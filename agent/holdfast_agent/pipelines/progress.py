"""How far a job is, over all its disks."""

from __future__ import annotations

import threading

from holdfast_agent.pipelines.context import JobContext


class Progress:
    """Counts bytes and reports them. ``total_bytes``: of all disks together. Thread-safe."""

    def __init__(self, context: JobContext, *, total_bytes: int, phase: str) -> None:
        self._context = context
        self._total_bytes = total_bytes
        self._phase = phase
        self._done_bytes = 0
        self._device_key = 0
        self._lock = threading.Lock()

    def begin(self, device_key: int) -> None:
        """The next disk."""
        self._device_key = device_key
        self.add(0)

    def expect(self, length: int) -> None:
        """There is so much more to do than it seemed."""
        with self._lock:
            self._total_bytes += length

    def add(self, length: int) -> None:
        """So many bytes more, read or known to be zero."""
        with self._lock:
            self._done_bytes += length
        self._context.report(
            done_bytes=self._done_bytes,
            total_bytes=self._total_bytes,
            device_key=self._device_key,
            phase=self._phase,
        )

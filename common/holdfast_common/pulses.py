"""Which loops of a program still go round. A watchdog is told that the program lives only while all of them do.

A thread that hangs does not end, and a program whose main thread is well may do nothing any more. So each loop
that others rely on says how long it may take for a round, and beats once in each.
"""

from __future__ import annotations

import threading

from holdfast_common.clock import Clock, SystemClock


class Pulses:
    """The loops of one program, by name. Thread-safe."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._within: dict[str, float] = {}
        self._beaten_at: dict[str, float] = {}

    def expect(self, name: str, *, within_seconds: float) -> None:
        """From now on this loop is missed when it has not beaten for so long. Again: with another time."""
        with self._lock:
            self._within[name] = within_seconds
            self._beaten_at[name] = self._clock.monotonic_seconds()

    def beat(self, name: str) -> None:
        """It went round. A loop that nobody expects is not missed."""
        with self._lock:
            if name in self._within:
                self._beaten_at[name] = self._clock.monotonic_seconds()

    def end(self, name: str) -> None:
        """It came to its end, as it should."""
        with self._lock:
            self._within.pop(name, None)
            self._beaten_at.pop(name, None)

    def silent(self) -> list[str]:
        """Those that are missed, by name."""
        with self._lock:
            now = self._clock.monotonic_seconds()
            return sorted(
                name
                for name, within in self._within.items()
                if now - self._beaten_at[name] > within
            )

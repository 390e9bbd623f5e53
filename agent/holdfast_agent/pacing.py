"""How fast an attempt may read each of its disks, as the controller says it: between the session and the copying threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

from holdfast_common.clock import Clock
from holdfast_common.units import MIB

STEP_BYTES_MIN: Final = (
    MIB  # what is read at once however slow it shall be: a window of the repository
)
STEPS_PER_SECOND: Final = 4
LOOK_SECONDS: Final = 0.25  # how soon a thread that waits hears that its job must stop


class DiskPaces:
    """Bytes per second by device key; a disk without a rate goes as fast as it can. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._rates: Mapping[int, int] = {}
        self._free_at: dict[int, float] = {}  # when a disk may be read again

    def limit(self, rates: Mapping[int, int]) -> None:
        """These rates from now on, and no others."""
        with self._changed:
            self._rates = {key: rate for key, rate in rates.items() if rate > 0}
            self._free_at.clear()
            self._changed.notify_all()

    def wait(self, device_key: int, length: int, *, check: Callable[[], None]) -> int:
        """How many bytes may be read now, whole MiB or ``length``; waits for its turn.

        ``check`` is called meanwhile; what it raises ends the wait.
        """
        while True:
            check()
            if not self._rates:
                return length
            with self._changed:
                rate = self._rates.get(device_key)
                if rate is None:
                    return length
                now = self._clock.monotonic_seconds()
                wait = self._free_at.get(device_key, 0.0) - now
                if wait <= 0:
                    step = min(length, _step_bytes(rate))
                    self._free_at[device_key] = now + step / rate
                    return step
                self._changed.wait(min(wait, LOOK_SECONDS))


def _step_bytes(rate: int) -> int:
    return max(STEP_BYTES_MIN, rate // STEPS_PER_SECOND // MIB * MIB)

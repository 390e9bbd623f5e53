"""Waiting for a condition of another process: polled, bounded, and told what it was."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool],
    *,
    seconds: float = 30.0,
    every_seconds: float = 0.05,
    what: str = "",
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"within {seconds} s never: {what or condition}"
        time.sleep(every_seconds)

"""Bounded, jittered retries of what may pass by itself. Nothing else is ever retried."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from holdfast_common.errors import HoldfastError, Interrupted

Result = TypeVar("Result")


def backoff_seconds(*, first: float, maximum: float, attempts: int) -> Iterator[float]:
    """``attempts - 1`` waits, doubling from ``first`` up to ``maximum``, each within ±25 %."""
    wait = first
    for _ in range(attempts - 1):
        yield wait * random.uniform(0.75, 1.25)
        wait = min(wait * 2, maximum)


def retried(
    work: Callable[[], Result],
    *,
    stop: threading.Event,
    attempts: int = 4,
    first_seconds: float = 0.5,
    maximum_seconds: float = 10.0,
) -> Result:
    """The result of ``work``, tried again after a retryable error.

    Raises: the last error; Interrupted when ``stop`` is set while waiting.
    """
    waits = backoff_seconds(first=first_seconds, maximum=maximum_seconds, attempts=attempts)
    while True:
        try:
            return work()
        except HoldfastError as error:
            wait = next(waits, None)
            if not error.retryable or wait is None:
                raise
            if stop.wait(wait):
                raise Interrupted("stopped while waiting to try again") from error

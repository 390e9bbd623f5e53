"""The lab's only clock; every other module asks here for the time."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time of day, for properties and logs."""
    return datetime.now(UTC)  # noqa: TID251 - the lab imports nothing of holdfast_common, this is its clock


def monotonic_seconds() -> float:
    """A clock for measuring how long something takes; it never jumps."""
    return time.monotonic()

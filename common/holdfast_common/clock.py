"""The only place that reads the time. Everything that decides takes ``now`` as an argument."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall and monotonic time; tests bring their own."""

    def now(self) -> datetime:
        """The wall clock, aware, UTC."""
        ...

    def monotonic_seconds(self) -> float:
        """Seconds that never go back; the zero point means nothing."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The wall clock, aware, UTC."""
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        """Seconds since some fixed moment of this boot."""
        return time.monotonic()


def utc_text(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds: the one form in databases and messages."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_utc(text: str) -> datetime:
    """The inverse of `utc_text`. Raises: ValueError."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)

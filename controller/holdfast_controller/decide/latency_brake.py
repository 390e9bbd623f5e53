"""The brake on a datastore whose reads take long: no new stream past one threshold, slower streams past a second. Pure.

Both recover later than they took hold, so that a latency at a threshold changes nothing back and forth: a hold ends, and
rates rise again, only at four fifths of the threshold. A stream that is slowed is halved at each measurement that is still
too high, and doubled at each one that is low again, until it is free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

RELEASE_SHARE: Final = 0.8
UNMEASURED_SECONDS_MAX: Final = 120.0  # a latency that nobody measures any more brakes nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyLimits:
    """``start``, ``slow``: thresholds in milliseconds; 0: none. A slowed stream's rate stays between both others."""

    start_milliseconds: int = 0
    slow_milliseconds: int = 0
    slowed_bytes_per_second_max: int = 64 << 20
    slowed_bytes_per_second_min: int = 4 << 20

    @property
    def brakes(self) -> bool:
        """Whether there is anything to measure for."""
        return bool(self.start_milliseconds or self.slow_milliseconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Brake:
    """One datastore. ``held``: no new stream begins. ``bytes_per_second``: of each stream; None: as fast as it goes.

    ``milliseconds``: what was measured last, at ``measured_at`` of a monotonic clock; None: it never was.
    """

    held: bool = False
    bytes_per_second: int | None = None
    milliseconds: float = 0.0
    measured_at: float | None = None

    def is_known(self, now: float, *, within_seconds: float) -> bool:
        """Whether it was measured not longer ago."""
        return self.measured_at is not None and now - self.measured_at <= within_seconds


def measured(brake: Brake, milliseconds: float, limits: LatencyLimits, now: float) -> Brake:
    """The brake after a measurement."""
    return Brake(
        held=_is_past(milliseconds, limits.start_milliseconds, already=brake.held),
        bytes_per_second=_rate(brake.bytes_per_second, milliseconds, limits),
        milliseconds=milliseconds,
        measured_at=now,
    )


def unmeasured(brake: Brake, now: float) -> Brake:
    """The brake when nothing could be measured: as it was for a while, then off."""
    if brake.is_known(now, within_seconds=UNMEASURED_SECONDS_MAX):
        return brake
    return replace(brake, held=False, bytes_per_second=None)


def _is_past(milliseconds: float, threshold: int, *, already: bool) -> bool:
    if not threshold:
        return False
    return milliseconds > (threshold * RELEASE_SHARE if already else threshold)


def _rate(rate: int | None, milliseconds: float, limits: LatencyLimits) -> int | None:
    lowest, highest = limits.slowed_bytes_per_second_min, limits.slowed_bytes_per_second_max
    if _is_past(milliseconds, limits.slow_milliseconds, already=False):
        return highest if rate is None else max(lowest, rate // 2)
    if rate is None or _is_past(milliseconds, limits.slow_milliseconds, already=True):
        return rate
    return None if rate >= highest else min(highest, rate * 2)

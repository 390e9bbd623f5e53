"""Loops that stand still are missed, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from holdfast_common.pulses import Pulses


@dataclass
class SetClock:
    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic_seconds(self) -> float:
        return self.seconds


def test_a_loop_that_stands_still_is_missed_after_its_own_time() -> None:
    clock = SetClock()
    pulses = Pulses(clock)
    pulses.expect("quick", within_seconds=10)
    pulses.expect("slow", within_seconds=100)
    clock.seconds = 10
    assert pulses.silent() == []
    clock.seconds = 11
    assert pulses.silent() == ["quick"]
    pulses.beat("quick")
    assert pulses.silent() == []
    clock.seconds = 101
    assert pulses.silent() == ["quick", "slow"]


def test_a_loop_that_came_to_its_end_is_not_missed() -> None:
    clock = SetClock()
    pulses = Pulses(clock)
    pulses.expect("loop", within_seconds=10)
    pulses.end("loop")
    pulses.beat("loop")
    clock.seconds = 1000
    assert pulses.silent() == []


def test_a_loop_may_take_longer_from_now_on() -> None:
    clock = SetClock()
    pulses = Pulses(clock)
    pulses.expect("session", within_seconds=10)
    pulses.expect("session", within_seconds=1000)
    clock.seconds = 999
    assert pulses.silent() == []

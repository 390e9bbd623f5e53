"""An attempt reads its disks no faster than it is told, and hears at once that it may go faster or must stop."""

from __future__ import annotations

import threading

import pytest

from holdfast_agent.pacing import DiskPaces
from holdfast_common.clock import SystemClock
from holdfast_common.errors import Cancelled

MIB = 1 << 20


class SteppedClock(SystemClock):
    """Stands still; `check` of a waiting thread moves it on."""

    def __init__(self) -> None:
        self.moment = 100.0

    def monotonic_seconds(self) -> float:
        return self.moment

    def step(self) -> None:
        self.moment += 0.25


def read_seconds(paces: DiskPaces, clock: SteppedClock, *, key: int, length: int) -> float:
    """How long the reading of so many bytes takes."""
    began, left = clock.moment, length
    while left:
        left -= paces.wait(key, min(left, 16 * MIB), check=clock.step)
    return clock.moment - began


def test_a_disk_is_read_at_its_rate_and_another_as_fast_as_it_goes() -> None:
    clock = SteppedClock()
    paces = DiskPaces(clock)
    paces.limit({2000: 4 * MIB})
    assert read_seconds(paces, clock, key=2000, length=40 * MIB) == pytest.approx(10, abs=1)
    assert paces.wait(2001, 16 * MIB, check=clock.step) == 16 * MIB


def test_what_is_read_at_once_is_whole_mib_or_all_that_is_left() -> None:
    clock = SteppedClock()
    paces = DiskPaces(clock)
    paces.limit({2000: 10 * MIB + 7})
    assert paces.wait(2000, 16 * MIB, check=clock.step) == 2 * MIB
    assert paces.wait(2000, 64 << 10, check=clock.step) == 64 << 10
    paces.limit({2000: 1})
    assert paces.wait(2000, 16 * MIB, check=clock.step) == MIB


def test_rates_that_are_taken_back_or_nothing_slow_nobody() -> None:
    clock = SteppedClock()
    paces = DiskPaces(clock)
    paces.limit({2000: 1})
    paces.wait(2000, MIB, check=clock.step)  # the next one would wait for days
    paces.limit({})
    assert paces.wait(2000, 16 * MIB, check=clock.step) == 16 * MIB
    paces.limit({2000: 0})
    assert paces.wait(2000, 16 * MIB, check=clock.step) == 16 * MIB


def test_a_waiting_thread_hears_that_it_may_go_on_and_one_that_must_stop_hears_that() -> None:
    paces = DiskPaces(SystemClock())
    paces.limit({2000: 1, 2001: 1})
    granted: list[int] = []
    paces.wait(2000, MIB, check=lambda: None)
    thread = threading.Thread(
        target=lambda: granted.append(paces.wait(2000, 5 * MIB, check=lambda: None))
    )
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    paces.limit({2001: 1})
    thread.join(10)
    assert granted == [5 * MIB]

    paces.wait(2001, MIB, check=lambda: None)
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Cancelled("stopped")
        stop.set()

    with pytest.raises(Cancelled):
        paces.wait(2001, MIB, check=check)

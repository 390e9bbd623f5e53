"""The brake on a slow datastore: what it holds and slows, and that both recover without going back and forth."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast_controller.decide.latency_brake import (
    RELEASE_SHARE,
    UNMEASURED_SECONDS_MAX,
    Brake,
    LatencyLimits,
    measured,
    unmeasured,
)

MIB = 1 << 20
LIMITS = LatencyLimits(
    start_milliseconds=20,
    slow_milliseconds=30,
    slowed_bytes_per_second_max=64 * MIB,
    slowed_bytes_per_second_min=4 * MIB,
)


def after(*milliseconds: float, limits: LatencyLimits = LIMITS) -> Brake:
    brake = Brake()
    for number, each in enumerate(milliseconds):
        brake = measured(brake, each, limits, float(number))
    return brake


def test_a_hold_begins_past_its_threshold_and_ends_only_well_below_it() -> None:
    assert not after(20).held
    assert after(20.1).held
    assert after(21, 17).held
    assert not after(21, 16).held
    assert not after(17).held  # without a hold before, the same latency is good


def test_streams_are_halved_while_it_is_too_slow_and_doubled_until_they_are_free() -> None:
    assert after(30).bytes_per_second is None
    assert after(31).bytes_per_second == 64 * MIB
    assert after(31, 40, 35).bytes_per_second == 16 * MIB
    assert after(*[99] * 20).bytes_per_second == 4 * MIB
    assert after(31, 40, 29, 25).bytes_per_second == 32 * MIB  # between both: as it is
    assert after(31, 40, 24).bytes_per_second == 64 * MIB
    assert after(31, 40, 24, 24).bytes_per_second is None


def test_a_threshold_that_is_not_set_brakes_nothing() -> None:
    only_slow = LatencyLimits(slow_milliseconds=30)
    assert not after(1000, limits=only_slow).held
    assert after(1000, limits=only_slow).bytes_per_second is not None
    only_start = LatencyLimits(start_milliseconds=20)
    assert after(1000, limits=only_start).held
    assert after(1000, limits=only_start).bytes_per_second is None
    assert (only_slow.brakes, only_start.brakes, LatencyLimits().brakes) == (True, True, False)


def test_what_nobody_can_measure_any_more_brakes_nothing_after_a_while() -> None:
    brake = after(50)
    assert unmeasured(brake, UNMEASURED_SECONDS_MAX) == brake
    gone = unmeasured(brake, UNMEASURED_SECONDS_MAX + 1)
    assert (gone.held, gone.bytes_per_second) == (False, None)
    assert unmeasured(Brake(), 0.0) == Brake()


@given(st.lists(st.floats(min_value=0, max_value=200), max_size=60))
def test_whatever_is_measured_rates_stay_in_their_bounds_and_calm_frees_everything(
    history: list[float],
) -> None:
    brake = after(*history)
    rate = brake.bytes_per_second
    assert rate is None or 4 * MIB <= rate <= 64 * MIB
    assert not brake.held or history[-1] > 20 * RELEASE_SHARE
    calm = after(*history, *[1.0] * 6)
    assert (calm.held, calm.bytes_per_second) == (False, None)

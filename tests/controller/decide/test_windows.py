"""When a window is open: by hand for the two nights of 2026, by walking every minute for the rest."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_controller.decide.windows import (
    ALWAYS,
    DAY_MINUTES,
    WeeklyWindow,
    WindowSet,
    current_opening,
    is_open,
    longest_opening,
    may_start,
    next_opening,
    parse_windows,
    windows_text,
)
from support.clock_changes import ZONES, days_of_change, shown_minutes, utc

NIGHTS = [
    # window             asked at (UTC)      opens (UTC)         closes (UTC)        hours
    ("mon-sun 22:00-06:00", "2026-03-27 12:00", "2026-03-27 21:00", "2026-03-28 05:00", 8),
    ("mon-sun 22:00-06:00", "2026-03-28 12:00", "2026-03-28 21:00", "2026-03-29 04:00", 7),
    ("mon-sun 22:00-06:00", "2026-10-24 12:00", "2026-10-24 20:00", "2026-10-25 05:00", 9),
    ("mon-sun 22:00-02:30", "2026-03-28 12:00", "2026-03-28 21:00", "2026-03-29 01:00", 4),
    ("mon-sun 22:00-02:30", "2026-10-24 12:00", "2026-10-24 20:00", "2026-10-25 00:30", 4.5),
    ("mon-sun 02:30-04:00", "2026-03-28 12:00", "2026-03-29 01:00", "2026-03-29 02:00", 1),
    ("mon-sun 02:30-04:00", "2026-10-24 12:00", "2026-10-25 00:30", "2026-10-25 03:00", 2.5),
    # 02:10 to 02:50 does not exist on 29 March: the window opens on the 30th
    ("mon-sun 02:10-02:50", "2026-03-28 12:00", "2026-03-30 00:10", "2026-03-30 00:50", 2 / 3),
    ("sun 02:10-02:50", "2026-03-28 12:00", "2026-04-05 00:10", "2026-04-05 00:50", 2 / 3),
    # two days in a row are one opening, over the change too
    ("sat,sun 00:00-24:00", "2026-03-27 12:00", "2026-03-27 23:00", "2026-03-29 22:00", 47),
    ("sat,sun 00:00-24:00", "2026-10-23 12:00", "2026-10-23 22:00", "2026-10-25 23:00", 49),
]


@pytest.mark.parametrize(("text", "asked", "opens", "closes", "hours"), NIGHTS)
def test_in_the_two_nights_of_2026_in_berlin_each_window_is_as_the_table_says(
    text: str, asked: str, opens: str, closes: str, hours: float
) -> None:
    windows = parse_windows(text, "Europe/Berlin")
    opening = next_opening(windows, utc(asked))
    assert (opening.opens_at, opening.closes_at) == (utc(opens), utc(closes))
    assert opening.seconds == pytest.approx(hours * 3600)
    assert not is_open(windows, utc(asked))
    assert is_open(windows, utc(opens))
    assert not is_open(windows, utc(closes))


def test_a_run_may_start_only_when_it_ends_before_the_window_does() -> None:
    windows = parse_windows("mon-fri 22:00-06:00", "Europe/Berlin")
    start = utc("2026-03-27 23:00")  # Friday night, six hours to go until 05:00 UTC
    assert may_start(windows, start, duration_seconds=6 * 3600)
    assert not may_start(windows, start, duration_seconds=6 * 3600 + 1)
    assert not may_start(windows, utc("2026-03-28 21:00"), duration_seconds=1)  # Saturday


def test_no_window_is_always_open_and_so_is_one_that_covers_the_week() -> None:
    for text in ("", "mon-sun 00:00-24:00", "mon-sun 06:00-22:00; mon-sun 22:00-06:00"):
        windows = parse_windows(text, "Europe/Berlin")
        assert current_opening(windows, utc("2026-03-29 01:00")) == ALWAYS
        assert longest_opening(windows, utc("2026-03-29 01:00")).seconds is None
        assert may_start(windows, utc("2026-03-29 01:00"), duration_seconds=10**9)


def test_a_pause_that_the_clocks_skip_does_not_close_that_week() -> None:
    text = "mon-sat 00:00-24:00; sun 00:00-02:10; sun 02:50-24:00"
    windows = parse_windows(text, "Europe/Berlin")
    opening = current_opening(windows, utc("2026-04-04 12:00"))
    assert opening is not None
    assert opening.opens_at == utc("2026-03-22 01:50")
    assert opening.closes_at == utc("2026-04-05 00:10")


def test_the_longest_opening_of_the_week_is_found_and_counts_the_clock_change() -> None:
    windows = parse_windows("mon-fri 22:00-06:00; sat 20:00-05:30", "Europe/Berlin")
    usual = longest_opening(windows, utc("2026-02-02 12:00"))
    assert usual.seconds == 9.5 * 3600
    spring = longest_opening(windows, utc("2026-03-23 12:00"))
    assert spring.seconds == 8.5 * 3600
    autumn = longest_opening(windows, utc("2026-10-19 12:00"))
    assert autumn.seconds == 10.5 * 3600


WINDOWS = st.builds(
    lambda days, start, length: WeeklyWindow(
        days=tuple(sorted(days)),
        start_minute=start,
        end_minute=start + length
        if start + length <= DAY_MINUTES
        else start + length - DAY_MINUTES,
    ),
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=st.integers(0, 240) | st.integers(0, DAY_MINUTES - 1),
    length=st.integers(1, 240) | st.integers(1, DAY_MINUTES - 1),
)
WINDOW_SETS = st.builds(
    WindowSet,
    windows=st.lists(WINDOWS, max_size=4).map(tuple),
    zone_name=st.sampled_from(ZONES),
)


@given(WINDOW_SETS)
def test_the_text_of_windows_is_read_back_as_the_same_and_written_the_same(
    windows: WindowSet,
) -> None:
    text = windows_text(windows)
    assert parse_windows(text, windows.zone_name) == windows
    assert windows_text(parse_windows(text, windows.zone_name)) == text


def test_other_ways_to_write_days_become_the_one() -> None:
    windows = parse_windows(" Sat-Mon 22:00 - 06:00;tue,wed,thu 00:00-24:00 ", "UTC")
    assert windows_text(windows) == "mon,sat,sun 22:00-06:00; tue-thu 00:00-24:00"


@settings(max_examples=60, deadline=None)
@given(windows=WINDOW_SETS.filter(lambda each: each.windows), data=st.data())
def test_around_real_clock_changes_it_agrees_with_a_walk_over_every_minute(
    windows: WindowSet, data: st.DataObject
) -> None:
    """A window is open from the first showing of its begin to the first showing of its end."""
    day = data.draw(st.sampled_from(days_of_change(windows.zone_name)))
    start = day - timedelta(hours=12)
    asked = start + timedelta(minutes=data.draw(st.integers(24 * 60, 60 * 60 - 1)))
    walk = shown_minutes(windows.zone_name, start - timedelta(days=3), asked + timedelta(minutes=1))
    ends: dict[tuple[int, date], datetime] = {}
    for _, shown, again in walk:
        if again:
            continue
        for clock in shown:
            minute = clock.hour * 60 + clock.minute
            for number, window in enumerate(windows.windows):
                if clock.weekday() in window.days and minute == window.start_minute:
                    length = (window.end_minute - window.start_minute) % DAY_MINUTES or DAY_MINUTES
                    ends[number, clock.date()] = clock + timedelta(minutes=length)
            for key in [key for key, end_shown in ends.items() if clock >= end_shown]:
                del ends[key]
    assert is_open(windows, asked) == bool(ends)
    opening = next_opening(windows, asked)
    if opening.opens_at is not None and opening.closes_at is not None:
        assert opening.opens_at < opening.closes_at
        assert is_open(windows, opening.closes_at - timedelta(seconds=1))
        assert not is_open(windows, opening.closes_at)
        assert (opening.opens_at <= asked) == bool(ends)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mon", "days, a space"),
        ("mon-fri 22-6", "days, a space"),
        ("mon 22:00-06:00;", "days, a space"),
        ("mon-fry 22:00-06:00", "days of mon"),
        ("mon,,tue 22:00-06:00", "days of mon"),
        ("mon- 22:00-06:00", "days of mon"),
        ("mon 24:00-06:00", "a start"),
        ("mon 22:60-06:00", "a start"),
        ("mon 22:00-24:01", "an end"),
        ("mon 22:00-22:00", "an end that is not the start"),
    ],
)
def test_an_error_names_the_policys_field_and_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_windows(text, "UTC", field="schedule.window")
    assert caught.value.facts["field"] == "schedule.window"
    assert str(caught.value.facts["expected"]).startswith(expected)


def test_windows_in_a_zone_that_is_none_are_refused() -> None:
    with pytest.raises(UsageError):
        parse_windows("mon 22:00-06:00", "Europe/Atlantis")


@settings(max_examples=200)
@given(st.text("monfri, -:;0246", max_size=24))
def test_any_text_is_a_window_set_or_a_usage_error(text: str) -> None:
    try:
        windows = parse_windows(text, "UTC")
    except UsageError:
        return
    assert parse_windows(windows_text(windows), "UTC") == windows

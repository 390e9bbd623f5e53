"""When a calendar is due: by hand for the two nights of 2026, by walking every minute for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_controller.decide.calendar import (
    MISSED_COUNT_MAX,
    due_after,
    due_now,
    last_due,
    next_due,
    parse_calendar,
    slot_id,
)
from support.clock_changes import ZONES, days_of_change, shown_minutes, utc

# Berlin jumps from 02:00 to 03:00 on Sunday 29 March 2026 at 01:00 UTC,
# and from 03:00 back to 02:00 on Sunday 25 October 2026 at 01:00 UTC.
SPRING = ("2026-03-28 22:30", "2026-03-29 03:00")
AUTUMN = ("2026-10-24 22:30", "2026-10-25 03:00")
NIGHTS = [
    # expression    night   due (UTC)                               on Berlin's clocks
    ("30 1 * * *", SPRING, ["00:30"]),  #                           01:30
    ("30 2 * * *", SPRING, ["01:00"]),  #                           02:30 is skipped: at the jump
    ("0 3 * * *", SPRING, ["01:00"]),  #                            03:00
    (
        "0 2,3 * * *",
        SPRING,
        ["01:00"],
    ),  #                          02:00 is skipped, 03:00: one moment
    ("*/20 2 * * *", SPRING, ["01:00"]),  #                         three skipped: once
    ("0 * * * *", SPRING, ["23:00", "00:00", "01:00", "02:00"]),  # 00 01 03 04
    ("30 * * * *", SPRING, ["23:30", "00:30", "01:00", "01:30", "02:30"]),  # 00 01, jump, 03 04
    ("30 1 * * *", AUTUMN, ["23:30"]),  #                           01:30 summer time
    ("30 2 * * *", AUTUMN, ["00:30"]),  #                           02:30 the first time
    ("0 3 * * *", AUTUMN, ["02:00"]),  #                            03:00 winter time
    ("0 2,3 * * *", AUTUMN, ["00:00", "02:00"]),  #                 02:00 the first time, 03:00
    ("*/20 2 * * *", AUTUMN, ["00:00", "00:20", "00:40"]),  #       all three the first time
    (
        "0 * * * *",
        AUTUMN,
        ["23:00", "00:00", "01:00", "02:00"],
    ),  # 01 02 02 03: each hour that passes
]


@pytest.mark.parametrize(("expression", "night", "expected"), NIGHTS)
def test_in_the_two_nights_of_2026_in_berlin_each_run_is_due_as_the_table_says(
    expression: str, night: tuple[str, str], expected: list[str]
) -> None:
    calendar = parse_calendar(expression, "Europe/Berlin")
    start, end = map(utc, night)
    due = takewhile(lambda moment: moment < end, due_after(calendar, start))
    assert [moment.strftime("%H:%M") for moment in due] == expected


def test_a_daily_run_keeps_its_clock_time_on_both_sides_of_the_change() -> None:
    calendar = parse_calendar("30 22 * * mon-fri", "Europe/Berlin")
    assert list(islice(due_after(calendar, utc("2026-03-26 12:00")), 3)) == [
        utc("2026-03-26 21:30"),
        utc("2026-03-27 21:30"),
        utc("2026-03-30 20:30"),
    ]


@dataclass(frozen=True)
class Fields:
    """An expression as sets, so that the test needs no parser. None: a star."""

    minutes: frozenset[int]
    hours: frozenset[int] | None
    days: frozenset[int] | None
    weekdays: frozenset[int] | None  # as cron counts: Sunday is 0

    @property
    def text(self) -> str:
        parts = (self.minutes, self.hours, self.days, None, self.weekdays)
        return " ".join("*" if p is None else ",".join(map(str, sorted(p))) for p in parts)

    @property
    def every_hour(self) -> bool:
        return self.hours is None or len(self.hours) == 24

    def names(self, shown: datetime) -> bool:
        if shown.minute not in self.minutes or (self.hours and shown.hour not in self.hours):
            return False
        by_day = self.days is not None and shown.day in self.days
        by_weekday = self.weekdays is not None and shown.isoweekday() % 7 in self.weekdays
        return by_day or by_weekday or (self.days is None and self.weekdays is None)


FIELDS = st.builds(
    Fields,
    minutes=st.frozensets(st.integers(0, 59), min_size=1, max_size=3),
    hours=st.none() | st.frozensets(st.integers(0, 5) | st.integers(0, 23), min_size=1, max_size=4),
    days=st.none() | st.frozensets(st.integers(1, 31), min_size=1, max_size=12),
    weekdays=st.none() | st.frozensets(st.integers(0, 6), min_size=1, max_size=4),
)


@settings(max_examples=100, deadline=None)
@given(fields=FIELDS, zone=st.sampled_from(ZONES), data=st.data())
def test_around_real_clock_changes_it_agrees_with_a_walk_over_every_minute(
    fields: Fields, zone: str, data: st.DataObject
) -> None:
    start = data.draw(st.sampled_from(days_of_change(zone))) - timedelta(hours=12)
    end = start + timedelta(hours=60)
    walked = [
        moment
        for moment, shown, again in shown_minutes(zone, start, end)
        if any(map(fields.names, shown)) and (fields.every_hour or not again)
    ]
    calendar = parse_calendar(fields.text, zone)
    due = due_after(calendar, start - timedelta(microseconds=1))
    found = list(takewhile(lambda moment: moment < end, due))
    assert found == walked
    assert len({slot_id(moment) for moment in found}) == len(found)
    middle = start + timedelta(minutes=data.draw(st.integers(0, 60 * 60 - 1)))
    before = [moment for moment in walked if moment <= middle]
    if before:
        assert last_due(calendar, middle) == before[-1]
    after = [moment for moment in walked if moment > middle]
    if after:
        assert next_due(calendar, middle) == after[0]


@settings(max_examples=50, deadline=None)
@given(
    fields=FIELDS,
    zone=st.sampled_from(ZONES),
    now=st.integers(0, 21 * 365 * 24 * 60).map(
        lambda each: utc("2020-01-01") + timedelta(minutes=each)
    ),
)
def test_what_was_due_last_is_the_next_after_any_moment_before_it(
    fields: Fields, zone: str, now: datetime
) -> None:
    calendar = parse_calendar(fields.text, zone)
    last = last_due(calendar, now)
    assert last is not None
    assert last <= now < next_due(calendar, now)
    assert next_due(calendar, last - timedelta(microseconds=1)) == last
    assert next_due(calendar, last) > now


@pytest.mark.parametrize("expression", ["30 2 * * *", "30 * * * *"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Africa/Casablanca"])
def test_asked_at_any_minute_of_a_repeated_hour_it_knows_what_was_and_what_comes(
    expression: str, zone: str
) -> None:
    calendar = parse_calendar(expression, zone)
    for day in [day for day in days_of_change(zone) if day.year == 2026]:
        start, end = day - timedelta(hours=26), day + timedelta(hours=50)
        due = list(takewhile(end.__gt__, due_after(calendar, start)))
        for minute in range(0, 24 * 60, 5):
            asked = day + timedelta(minutes=minute)
            assert last_due(calendar, asked) == max(each for each in due if each <= asked)
            assert next_due(calendar, asked) == min(each for each in due if each > asked)


def test_after_a_weekend_of_silence_one_run_is_due_and_says_for_how_many_it_stands() -> None:
    calendar = parse_calendar("0 22 * * *", "UTC")
    run = due_now(calendar, last_slot=utc("2026-01-02 22:00"), now=utc("2026-01-05 07:00"))
    assert run is not None
    assert (run.slot_id, run.missed) == ("2026-01-04T22:00:00Z", 1)
    assert due_now(calendar, last_slot=run.due_at, now=utc("2026-01-05 21:59")) is None


def test_a_run_is_due_at_its_very_moment_and_stands_for_itself_alone() -> None:
    calendar = parse_calendar("0 22 * * *", "UTC")
    run = due_now(calendar, last_slot=utc("2026-01-02 22:00"), now=utc("2026-01-03 22:00"))
    assert run is not None
    assert (run.due_at, run.missed) == (utc("2026-01-03 22:00"), 0)


def test_a_clock_that_goes_back_makes_nothing_due_again() -> None:
    calendar = parse_calendar("0 * * * *", "UTC")
    assert due_now(calendar, last_slot=utc("2026-01-02 22:00"), now=utc("2026-01-02 20:30")) is None


def test_in_the_repeated_hour_a_run_that_was_made_is_not_due_at_its_second_showing() -> None:
    calendar = parse_calendar("30 2 * * *", "Europe/Berlin")
    made = utc("2026-10-25 00:30")
    assert due_now(calendar, last_slot=made, now=utc("2026-10-25 01:30")) is None


def test_what_was_missed_in_a_year_is_counted_only_so_far() -> None:
    calendar = parse_calendar("* * * * *", "UTC")
    run = due_now(calendar, last_slot=utc("2025-01-01 00:00"), now=utc("2026-01-01 00:00"))
    assert run is not None
    assert (run.due_at, run.missed) == (utc("2026-01-01 00:00"), MISSED_COUNT_MAX)


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("60 * * * *", "minute"),
        ("*/61 * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 5-3 * * *", "hour"),
        ("0 0 32 * *", "day-of-month"),
        ("0 0 31 2 *", "day-of-month"),
        ("0 0 31 4,6,9,11 *", "day-of-month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * fun", "day-of-week"),
    ],
)
def test_an_error_names_the_policys_field_and_the_part_at_fault(expression: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_calendar(expression, "UTC", field="schedule.calendar")
    assert caught.value.facts["field"] == "schedule.calendar"
    assert caught.value.facts["part"] == part
    assert caught.value.advice


def test_a_calendar_that_is_due_in_decades_only_is_an_error_and_a_leap_day_is_not() -> None:
    now = utc("2097-01-01 00:00")
    assert next_due(parse_calendar("0 0 29 2 *", "UTC"), now) == utc("2104-02-29 00:00")
    rare = parse_calendar("0 0 * 2 mon#5", "UTC")
    with pytest.raises(UsageError) as caught:
        next_due(rare, utc("2021-01-01 00:00"))
    assert caught.value.facts["part"] == "month, day-of-week"


@pytest.mark.parametrize("expression", ["", "0 22 * *", "0 0 22 * * *", "@daily", "* " * 200])
def test_what_has_not_five_fields_is_refused(expression: str) -> None:
    with pytest.raises(UsageError):
        parse_calendar(expression, "UTC")


@pytest.mark.parametrize(
    "zone", ["", "Europe/Atlantis", "Europe", "../etc/passwd", "localtime", "right/UTC", "a\0b"]
)
def test_what_is_no_zone_is_refused(zone: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_calendar("0 22 * * *", zone)
    assert caught.value.facts["field"] == "time_zone"


@settings(max_examples=200)
@given(st.lists(st.text("0123456789*/,-#LWlw²monsun", max_size=6), min_size=5, max_size=5))
def test_any_text_is_a_calendar_or_a_usage_error(parts: list[str]) -> None:
    try:
        calendar = parse_calendar(" ".join(parts), "UTC")
    except UsageError:
        return
    assert parse_calendar(calendar.expression, "UTC") == calendar

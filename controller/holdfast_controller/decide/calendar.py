"""When a policy is due: a cron expression of five fields on the clocks of a time zone. Pure.

The library cronsim says which times of the clock an expression names; it is asked only about bare clock times.
Its own way over a clock change leaves a night out (``*/20 2 * * *`` in spring) and, asked in the repeated hour, answers
with a moment that is past. Which moments the clock times are is decided here:

* a time that the clocks skip is due at the moment they jump, once, however many times were skipped;
* a time that they show twice is due at its first showing, once;
* an expression that names every hour means "each hour that passes", so it is due in both showings.

Day of month and day of week are joined as cron does it: either one suffices, unless one begins with ``*``.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from holdfast_common.errors import UsageError
from holdfast_controller.decide.local_time import moment_of, time_zone, wall_clock_bounds

# 29 February is at most 8 years away, across 2100; what is rarer is a slip of the pen.
SEARCH_YEARS: Final = 10
MISSED_COUNT_MAX: Final = 1000  # counted no further: a yearlong pause must not cost a second
TEXT_LENGTH_MAX: Final = 256

# What a reader calls the field, what cronsim does, the largest step that still means something.
_FIELDS: Final = (
    ("minute", 59),
    ("hour", 23),
    ("day-of-month", 30),
    ("month", 11),
    ("day-of-week", 6),
)
_EXPECTED: Final = {
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L for the last day or LW for the last weekday",
    "month": "1-12 or jan-dec",
    "day-of-week": "0-7 or sun-sat (0 and 7 are Sunday), 5L for the last Friday, 1#2 for the second Monday",
}
_STEP = re.compile(r"/([0-9]+)")
_FORM: Final = "minute hour day-of-month month day-of-week, for example `30 22 * * mon-fri`"
_REFERENCE: Final = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)  # only to read the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """A checked expression and its zone; made by `parse_calendar`."""

    expression: str
    zone_name: str
    every_hour: bool
    field: str

    @property
    def zone(self) -> ZoneInfo:
        """The rules of its zone."""
        return time_zone(self.zone_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DueRun:
    """The one run that is due now. ``missed``: earlier moments that it stands for too, counted up to `MISSED_COUNT_MAX`."""

    due_at: datetime
    missed: int

    @property
    def slot_id(self) -> str:
        """One text per due moment."""
        return slot_id(self.due_at)


def parse_calendar(expression: str, zone_name: str, *, field: str = "calendar") -> Calendar:
    """Read a calendar. ``field`` is what the policy calls it. Raises: UsageError, which names the part at fault.

    Whether it is due in the near years is asked of `next_due`, which needs to know the time.
    """
    time_zone(zone_name)
    if len(expression) > TEXT_LENGTH_MAX:
        raise UsageError("a calendar is too long", field=field, length=len(expression))
    parts = expression.split()
    if len(parts) != len(_FIELDS):
        raise UsageError(
            "a calendar has five fields",
            field=field,
            value=expression,
            fields=len(parts),
            advice=f"write {_FORM}",
        )
    for position in range(len(_FIELDS)):
        _check_part(parts, position, field)
    try:
        read = CronSim(" ".join(parts), _REFERENCE)
    except CronSimError as error:  # each part is well, so no month has such a day
        raise _never(field, expression, "day-of-month") from error
    return Calendar(
        expression=" ".join(parts).lower(),
        zone_name=zone_name,
        every_hour=len(read.hours) == 24,
        field=field,
    )


def due_after(calendar: Calendar, after: datetime) -> Iterator[datetime]:
    """All due moments after ``after`` (aware), in UTC, rising, without end; found as they are asked for.

    Raises: UsageError when none comes within `SEARCH_YEARS` of the one before.
    """
    start = wall_clock_bounds(after, calendar.zone)[0] - timedelta(minutes=1)
    streams = [_moments(calendar, start, second_pass=False)]
    if calendar.every_hour:
        streams.append(_moments(calendar, start, second_pass=True))
    latest = after.astimezone(UTC)
    for moment in heapq.merge(*streams):
        if moment <= latest:
            continue
        if moment - latest > _SEARCH:
            break
        yield moment
        latest = moment
    raise _never(calendar.field, calendar.expression, _dates_named(calendar))


def next_due(calendar: Calendar, after: datetime) -> datetime:
    """The first due moment after ``after``. Raises: UsageError when none comes within `SEARCH_YEARS`."""
    return next(due_after(calendar, after))


def last_due(calendar: Calendar, until: datetime) -> datetime | None:
    """The last due moment at or before ``until``; None when the `SEARCH_YEARS` before hold none."""
    start = wall_clock_bounds(until, calendar.zone)[1] + timedelta(minutes=1)
    found = []
    for second_pass in (False, True) if calendar.every_hour else (False,):
        moments = _moments(calendar, start, second_pass=second_pass, backwards=True)
        found += [next((each for each in moments if each <= until), None)]
    known = [each for each in found if each is not None and until - each <= _SEARCH]
    return max(known, default=None)


def due_now(calendar: Calendar, *, last_slot: datetime, now: datetime) -> DueRun | None:
    """The run that is due and was not made yet; None when there is none.

    ``last_slot``: the due moment of the last run, or the policy's creation when there was none. However long the
    controller was down, it is one run: the newest due moment, with the number of those it stands for.
    A clock that went back makes nothing due twice.
    """
    newest = last_due(calendar, now)
    if newest is None or newest <= last_slot:
        return None
    missed = 0
    for moment in due_after(calendar, last_slot):
        if moment >= newest or missed == MISSED_COUNT_MAX:
            break
        missed += 1
    return DueRun(due_at=newest, missed=missed)


def slot_id(due_at: datetime) -> str:
    """The name of a due moment: its UTC time to the second, so both showings of a repeated hour differ."""
    return due_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_SEARCH: Final = timedelta(days=366 * SEARCH_YEARS)


def _moments(
    calendar: Calendar, start: datetime, *, second_pass: bool, backwards: bool = False
) -> Iterator[datetime]:
    """Moments of the expression's clock times from ``start`` (naive) on; never against the order, some twice."""
    zone = calendar.zone
    for local in CronSim(calendar.expression, start, reverse=backwards):
        yield moment_of(local, zone, second_pass=second_pass)


def _check_part(parts: list[str], position: int, field: str) -> None:
    """Read one field alone, all others open, so that an error belongs to it."""
    name, step_max = _FIELDS[position]
    alone = ["*"] * len(_FIELDS)
    alone[position] = parts[position]
    if any(int(step) > step_max for step in _STEP.findall(parts[position])):
        raise _bad_part(field, name, parts[position], f"a step of at most {step_max}")
    try:
        CronSim(" ".join(alone), _REFERENCE)
    except CronSimError as error:
        raise _bad_part(field, name, parts[position], _EXPECTED[name]) from error


def _bad_part(field: str, name: str, value: str, expected: str) -> UsageError:
    return UsageError(
        f"the {name} of a calendar cannot be read",
        field=field,
        part=name,
        value=value,
        expected=expected,
        advice="lists (1,15), ranges that rise (1-5) and steps (*/15) may be used",
    )


def _dates_named(calendar: Calendar) -> str:
    """The fields that can keep an expression from ever being due."""
    names = [name for name, _ in _FIELDS]
    parts = calendar.expression.split()
    return ", ".join(names[each] for each in (2, 3, 4) if parts[each] != "*")


def _never(field: str, expression: str, part: str) -> UsageError:
    return UsageError(
        f"a calendar is never due within {SEARCH_YEARS} years",
        field=field,
        part=part,
        value=expression,
        advice="name a day that its months have",
    )

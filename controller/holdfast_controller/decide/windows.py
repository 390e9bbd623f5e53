"""When a policy's runs may start, and when running ones must stop. Pure.

The text of a window set, as a policy holds it (no windows at all: always open)::

    windows = window *( ";" window )        mon-fri 22:00-06:00; sat,sun 00:00-24:00
    window  = days SP time "-" time         the end is not part of it
    days    = day-or-range *( "," day-or-range )    mon tue wed thu fri sat sun, sat-mon too
    time    = HH ":" MM                     00:00 to 24:00, the latter only as an end

An end at or before its start is on the next day. Days are those on which a window begins.

Across a clock change a begin or end that is shown twice is its first showing; one that is skipped is the moment of
the jump. So 22:00-06:00 in Berlin lasts seven hours in March and nine in October, and a window that lies
wholly in the skipped hour does not open that night. Windows that touch or overlap are one opening.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from holdfast_common.errors import UsageError
from holdfast_controller.decide.local_time import moment_of, time_zone, wall_clock

DAY_NAMES: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
TEXT_LENGTH_MAX: Final = 1024

# A window, or the pause between two, may fall to a skipped hour: then it comes a week later. So the opening of
# now began at most two weeks ago, and the next one begins within two weeks and ends two weeks after that.
_DAYS_BACK: Final = 16
_DAYS_AHEAD: Final = 30
_WINDOW = re.compile(r"(\S+)\s+([0-9]{2}):([0-9]{2})\s*-\s*([0-9]{2}):([0-9]{2})")
_EXAMPLE: Final = "write for example `mon-fri 22:00-06:00; sat,sun 00:00-24:00`"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeeklyWindow:
    """``days``: those it begins on, 0 = Monday, rising. Minutes since midnight; an end not above the start is tomorrow's."""

    days: tuple[int, ...]
    start_minute: int
    end_minute: int

    def __post_init__(self) -> None:
        assert self.days == tuple(sorted(set(self.days))), self.days
        assert self.days, "a window without a day"
        assert 0 <= self.days[0] <= self.days[-1] < len(DAY_NAMES), self.days
        assert 0 <= self.start_minute < DAY_MINUTES, self.start_minute
        assert 0 <= self.end_minute <= DAY_MINUTES, self.end_minute
        assert self.start_minute != self.end_minute, "a window without a length"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSet:
    """Windows in the order of their text. None at all: always open."""

    windows: tuple[WeeklyWindow, ...]
    zone_name: str

    @property
    def zone(self) -> ZoneInfo:
        """The rules of its zone."""
        return time_zone(self.zone_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A time in which runs may work: ``[opens_at, closes_at)``, UTC. None: without a begin or an end in reach, so always."""

    opens_at: datetime | None
    closes_at: datetime | None

    @property
    def seconds(self) -> float | None:
        """How long it really is, clock changes counted; None without an end."""
        if self.opens_at is None or self.closes_at is None:
            return None
        return (self.closes_at - self.opens_at).total_seconds()


ALWAYS: Final = Opening(opens_at=None, closes_at=None)


def parse_windows(text: str, zone_name: str, *, field: str = "window") -> WindowSet:
    """Read a window set. ``field`` is what the policy calls it. Raises: UsageError, which says what was expected."""
    time_zone(zone_name)
    if len(text) > TEXT_LENGTH_MAX:
        raise UsageError("the windows' text is too long", field=field, length=len(text))
    if not text.strip():
        return WindowSet(windows=(), zone_name=zone_name)
    windows = tuple(_parse_window(part.strip(), field) for part in text.split(";"))
    return WindowSet(windows=windows, zone_name=zone_name)


def windows_text(window_set: WindowSet) -> str:
    """The text that `parse_windows` reads as the same set."""
    return "; ".join(
        f"{_days_text(each.days)} {_time_text(each.start_minute)}-{_time_text(each.end_minute)}"
        for each in window_set.windows
    )


def next_opening(window_set: WindowSet, moment: datetime) -> Opening:
    """The opening that ``moment`` (aware) lies in, else the first one after it."""
    moment = moment.astimezone(UTC)
    return next(each for each in _openings(window_set, moment) if _ends_after(each, moment))


def current_opening(window_set: WindowSet, moment: datetime) -> Opening | None:
    """The opening that ``moment`` lies in; None when it is closed. Its ``closes_at`` is the hard stop."""
    opening = next_opening(window_set, moment)
    if opening.opens_at is not None and opening.opens_at > moment:
        return None
    return opening


def is_open(window_set: WindowSet, moment: datetime) -> bool:
    """Whether a run may work at this moment."""
    return current_opening(window_set, moment) is not None


def may_start(window_set: WindowSet, moment: datetime, *, duration_seconds: float) -> bool:
    """Whether a run that lasts so long may start now and ends before the window closes."""
    opening = current_opening(window_set, moment)
    if opening is None:
        return False
    if opening.closes_at is None:
        return True
    return (opening.closes_at - moment).total_seconds() >= duration_seconds


def longest_opening(window_set: WindowSet, moment: datetime) -> Opening:
    """The longest of the openings that are open or begin in the week after ``moment``; the first of equal ones."""
    moment = moment.astimezone(UTC)
    first = next_opening(window_set, moment)
    longest, longest_seconds = first, first.seconds
    for each in _openings(window_set, moment):
        if longest_seconds is None or each.opens_at is None or each.seconds is None:
            break
        if each.opens_at >= moment + timedelta(days=len(DAY_NAMES)):
            break
        if _ends_after(each, moment) and each.seconds > longest_seconds:
            longest, longest_seconds = each, each.seconds
    return longest


def _ends_after(opening: Opening, moment: datetime) -> bool:
    return opening.closes_at is None or opening.closes_at > moment


def _openings(window_set: WindowSet, moment: datetime) -> Iterator[Opening]:
    """The openings around and after ``moment``, rising, none touching another; `ALWAYS` alone when it never closes."""
    if _covers_the_week(window_set.windows):
        yield ALWAYS
        return
    zone = window_set.zone
    today = wall_clock(moment, zone).date()
    days = (today + timedelta(days=each) for each in range(-_DAYS_BACK, _DAYS_AHEAD))
    pieces = sorted(
        piece
        for day in days
        for window in window_set.windows
        if day.weekday() in window.days
        for piece in _piece(window, day, zone)
    )
    opens_at, closes_at = pieces[0]
    for next_opens_at, next_closes_at in pieces[1:]:
        if next_opens_at <= closes_at:
            closes_at = max(closes_at, next_closes_at)
        else:
            yield Opening(opens_at=opens_at, closes_at=closes_at)
            opens_at, closes_at = next_opens_at, next_closes_at
    yield Opening(opens_at=opens_at, closes_at=closes_at)


def _piece(window: WeeklyWindow, day: date, zone: ZoneInfo) -> Iterator[tuple[datetime, datetime]]:
    """The window that begins on this day; none when the clocks skip all of it."""
    midnight = datetime.combine(day, time())
    end_minute = window.end_minute
    if end_minute <= window.start_minute:
        end_minute += DAY_MINUTES
    opens_at = moment_of(midnight + timedelta(minutes=window.start_minute), zone)
    closes_at = moment_of(midnight + timedelta(minutes=end_minute), zone)
    if opens_at < closes_at:
        yield opens_at, closes_at


def _covers_the_week(windows: tuple[WeeklyWindow, ...]) -> bool:
    """Whether they leave no minute of the week out; no windows leave none out."""
    if not windows:
        return True
    week_minutes = len(DAY_NAMES) * DAY_MINUTES
    covered: list[tuple[int, int]] = []
    for window in windows:
        length = (window.end_minute - window.start_minute) % DAY_MINUTES or DAY_MINUTES
        for day in window.days:
            start = day * DAY_MINUTES + window.start_minute
            covered += [
                (start, start + length),
                (start - week_minutes, start + length - week_minutes),
            ]
    reached = 0
    for start, end in sorted(covered):
        if start > reached:
            return False
        reached = max(reached, end)
    return reached >= week_minutes


def _parse_window(text: str, field: str) -> WeeklyWindow:
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise _unreadable(field, text, "days, a space, HH:MM-HH:MM")
    start = _minutes(match[2], match[3])
    end = _minutes(match[4], match[5])
    if start is None or start == DAY_MINUTES:
        raise _unreadable(field, text, "a start from 00:00 to 23:59")
    if end is None:
        raise _unreadable(field, text, "an end from 00:00 to 24:00")
    if start == end:
        raise _unreadable(field, text, "an end that is not the start; 00:00-24:00 is a whole day")
    return WeeklyWindow(days=_parse_days(match[1], field, text), start_minute=start, end_minute=end)


def _minutes(hours: str, minutes: str) -> int | None:
    total = int(hours) * 60 + int(minutes)
    return total if int(minutes) < 60 and total <= DAY_MINUTES else None


def _parse_days(days: str, field: str, text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in days.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAY_NAMES or (dash and last not in DAY_NAMES):
            raise _unreadable(field, text, "days of " + " ".join(DAY_NAMES))
        start = DAY_NAMES.index(first)
        length = (DAY_NAMES.index(last) - start) % len(DAY_NAMES) if dash else 0
        found.update((start + each) % len(DAY_NAMES) for each in range(length + 1))
    return tuple(sorted(found))


def _days_text(days: tuple[int, ...]) -> str:
    """``mon-fri``; two neighbours are listed, since a range of two reads longer."""
    runs: list[list[int]] = []
    for day in days:
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    parts = []
    for run in runs:
        names = [DAY_NAMES[each] for each in run]
        parts.append(f"{names[0]}-{names[-1]}" if len(run) > 2 else ",".join(names))
    return ",".join(parts)


def _time_text(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _unreadable(field: str, text: str, expected: str) -> UsageError:
    return UsageError(
        "a window cannot be read", field=field, value=text, expected=expected, advice=_EXAMPLE
    )

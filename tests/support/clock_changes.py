"""Real clock changes of real zones, and the walk over the minutes around them that a test can trust."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # by 30 minutes
    "Africa/Casablanca",  # back for Ramadan, forward after it
    "Asia/Kolkata",
    "UTC",
)
MINUTE = timedelta(minutes=1)


def utc(text: str) -> datetime:
    """``2026-03-29 01:00`` as an aware moment."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@cache
def days_of_change(zone_name: str) -> tuple[datetime, ...]:
    """The UTC midnights before each clock change of 2020 to 2040; New Year's days where there is none."""
    zone = ZoneInfo(zone_name)
    days = [utc("2020-01-01") + timedelta(days=each) for each in range(21 * 365 + 5)]
    found = [
        day
        for day in days
        if day.astimezone(zone).utcoffset()
        != (day + timedelta(days=1)).astimezone(zone).utcoffset()
    ]
    return tuple(found or [day for day in days if (day.month, day.day) == (1, 1)])


def shown_minutes(
    zone_name: str, start: datetime, end: datetime
) -> Iterator[tuple[datetime, list[datetime], bool]]:
    """Each UTC minute of ``[start, end)``: the clock times that belong to it, and whether it is their second showing.

    They are the one that is shown, and before it those that the clocks have just jumped over.
    """
    zone = ZoneInfo(zone_name)
    highest = (start - MINUTE).astimezone(zone).replace(tzinfo=None)
    moment = start
    while moment < end:
        shown = moment.astimezone(zone).replace(tzinfo=None)
        if shown <= highest:
            yield moment, [shown], True
        else:
            count = (shown - highest) // MINUTE
            yield moment, [highest + MINUTE * each for each in range(1, count + 1)], False
            highest = shown
        moment += MINUTE

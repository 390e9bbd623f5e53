"""What a clock on the wall shows, and which moment that is. Under `calendar` and `windows`.

A time zone's rules are read from the machine's time zone data, or from the package tzdata where it has
none. That is the one file `decide` looks at: constant data, kept by `zoneinfo` after the first
look, the same answer for the same name. Which zone is always said by the policy, never by the machine.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from holdfast_common.errors import UsageError

# Samoa once skipped a whole day; no zone ever moved its clocks further.
CLOCK_CHANGE_MAX: Final = timedelta(hours=26)
_NOT_A_PLACE: Final = ("localtime", "posixrules", "Factory")
_ZONE_ADVICE: Final = "name a zone of the IANA list, for example Europe/Berlin or UTC"


def time_zone(name: str, *, field: str = "time_zone") -> ZoneInfo:
    """The rules of an IANA zone. ``field`` is what the policy calls it. Raises: UsageError."""
    if name in _NOT_A_PLACE or name.startswith(("right/", "posix/")):
        raise UsageError("not a time zone", field=field, value=name, advice=_ZONE_ADVICE)
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # a folder's name is an OSError
        raise UsageError("not a time zone", field=field, value=name, advice=_ZONE_ADVICE) from error


def moment_of(local: datetime, zone: ZoneInfo, *, second_pass: bool = False) -> datetime:
    """The UTC moment at which the zone's clocks show ``local`` (naive).

    A time that is shown twice: its first showing, or its second with ``second_pass``. A time that is
    skipped: the moment at which the clocks jump over it.
    """
    moment = local.replace(tzinfo=zone, fold=int(second_pass)).astimezone(UTC)
    if wall_clock(moment, zone) == local:
        return moment
    return _end_of_gap(local, zone)


def wall_clock(moment: datetime, zone: ZoneInfo) -> datetime:
    """What the zone's clocks show at an aware moment, naive."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def wall_clock_bounds(moment: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The lowest and highest showing that can belong to a moment near this one, naive.

    What is due after ``moment`` is shown at or after the first; what was due by then, at or before the second.
    """
    moment = moment.astimezone(UTC)
    offsets = [
        wall_clock(near, zone) - near.replace(tzinfo=None)
        for near in (moment - CLOCK_CHANGE_MAX, moment, moment + CLOCK_CHANGE_MAX)
    ]
    bare = moment.replace(tzinfo=None)
    return bare + min(offsets), bare + max(offsets)


def _end_of_gap(local: datetime, zone: ZoneInfo) -> datetime:
    """The moment of the jump over ``local``, to the second, by halving."""
    # In a gap, fold=1 counts with the offset after the jump: that moment lies before the jump.
    before = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    after = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    offset_before = before.astimezone(zone).utcoffset()
    low, high = 0, int((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        shifted = before + timedelta(seconds=middle)
        if shifted.astimezone(zone).utcoffset() == offset_before:
            low = middle
        else:
            high = middle
    return before + timedelta(seconds=high)

"""Which restore points a rule keeps and which it drops, each with its reasons. Pure: points and the time in, decisions out.

Every part of a rule counts for itself, and a point stays that any of them wants. The newest point of an hour, day, week
(ISO 8601), month or year stands for it; only those count in which there is a point, so a VM that was off for a year
loses nothing by that. ``keep_within`` is counted back from now. An empty rule keeps everything.

A point with a fault (damaged, not readable, only part of what was asked for) never stands for anything, and is never
taken for the last good one of its VM: a good one stays in its place. It is not dropped the sooner for that, for it may be
mended: it stays as long as the rule would want it if it were good and all others with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from holdfast_common.errors import UsageError

FUTURE_TOLERANCE: Final = timedelta(minutes=5)  # between the clocks of proxies and this one
COUNT_MAX: Final = 1_000_000
EMPTY_RULE: Final = "the rule is empty"
_LAST_GOOD: Final = "the last good point of its VM"
_LAST_OF_ALL: Final = "the newest point of its VM, which has no good one"
_WITHIN = re.compile(r"([1-9]\d{0,4})([hdw])")
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """How many points of each VM stay. 0 and "": that part keeps nothing. Raises: UsageError.

    ``keep_within``: hours, days or weeks, as ``48h``, ``14d``, ``8w``. ``time_zone``: whose days and hours are counted.
    """

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_within: str = ""
    time_zone: str = "UTC"

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and not 0 <= value <= COUNT_MAX:
                raise UsageError("not a number of restore points", field=item.name, value=value)
        if self.keep_within and not _WITHIN.fullmatch(self.keep_within):
            raise UsageError(
                "not a duration of a retention rule",
                field="keep_within",
                value=self.keep_within,
                advice="write for example 48h, 14d or 8w",
            )
        self.zone()

    @property
    def is_empty(self) -> bool:
        """Whether no part of it says anything: then everything stays."""
        return not self.keep_within and not any(
            getattr(self, item.name) for item in fields(self) if item.name != "time_zone"
        )

    def within(self) -> timedelta | None:
        """``keep_within`` as a duration; None: there is none."""
        match = _WITHIN.fullmatch(self.keep_within)
        return None if match is None else int(match[1]) * _UNITS[match[2]]

    def zone(self) -> tzinfo:
        """Raises: UsageError when this machine does not know it."""
        try:
            return ZoneInfo(self.time_zone)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                "not a time zone that this machine knows",
                field="time_zone",
                value=self.time_zone,
                advice="write for example Europe/Berlin or UTC",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPoint:
    """A point as a rule sees it.

    ``fault``, ``held``, ``reader``: what is wrong with it, why it is held, and which job reads it, for people;
    empty: nothing, it is not, none does.
    """

    point_id: str
    lineage_id: str
    created_at: str  # UTC, ISO text
    fault: str = ""
    held: str = ""
    reader: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of one point. ``reasons``: everything that keeps it, or why nothing does; never empty."""

    point: KnownPoint
    kept: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Dated:
    at: datetime
    point: KnownPoint


def plan_retention(
    points: Sequence[KnownPoint], rule: RetentionRule, *, now: datetime, clock_problem: str = ""
) -> list[Decision]:
    """What becomes of each point, the newest of each VM first; the order of ``points`` means nothing.

    ``clock_problem``: why the time ``now`` is not to be believed; then nothing is dropped.
    """
    by_lineage: dict[str, list[KnownPoint]] = {}
    for point in points:
        by_lineage.setdefault(point.lineage_id, []).append(point)
    decisions: list[Decision] = []
    for _, members in sorted(by_lineage.items()):
        decisions += _of_one_vm(members, rule, now=now, clock_problem=clock_problem)
    return decisions


def _of_one_vm(
    points: Sequence[KnownPoint], rule: RetentionRule, *, now: datetime, clock_problem: str
) -> list[Decision]:
    dated, undated = [], []
    for point in points:
        at = _moment(point.created_at)
        if at is None:
            undated.append(point)
        else:
            dated.append(_Dated(at, point))
    dated.sort(key=lambda each: (each.at, each.point.point_id), reverse=True)
    if dated and dated[0].at > now + FUTURE_TOLERANCE and not clock_problem:
        clock_problem = (
            f"a point of this VM is of {dated[0].point.created_at[:19]}, which is later than now"
        )
    good = [each for each in dated if not each.point.fault]
    of_good = _wanted(good, rule, now=now)
    if_mended = _wanted(dated, rule, now=now)
    last = (good or dated)[:1]
    decisions = []
    for each in dated:
        point = each.point
        wanted, unwanted = (if_mended if point.fault else of_good)[point.point_id]
        if point.fault:
            wanted = [f"{text}, if it were whole: {point.fault}" for text in wanted]
            unwanted = [*unwanted, point.fault]
        reasons = [EMPTY_RULE] if rule.is_empty else wanted
        if clock_problem:
            reasons = [*reasons, f"nothing is dropped by a doubtful clock: {clock_problem}"]
        if each in last:
            reasons = [*reasons, _LAST_GOOD if good else _LAST_OF_ALL]
        reasons = [*reasons, *_protection(point)]
        decisions.append(
            Decision(point=point, kept=bool(reasons), reasons=tuple(reasons or unwanted))
        )
    decisions += [
        Decision(
            point=point,
            kept=True,
            reasons=("nobody can tell when it was taken", *_protection(point)),
        )
        for point in sorted(undated, key=lambda each: each.point_id)
    ]
    return decisions


def _protection(point: KnownPoint) -> list[str]:
    return [text for text in (point.held, point.reader) if text]


def _moment(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _wanted(
    newest_first: Sequence[_Dated], rule: RetentionRule, *, now: datetime
) -> Mapping[str, tuple[list[str], list[str]]]:
    """By point: what of the rule wants it, and why the rest of the rule does not."""
    told: dict[str, tuple[list[str], list[str]]] = {
        each.point.point_id: ([], []) for each in newest_first
    }
    for number, each in enumerate(newest_first, start=1):
        wanted, unwanted = told[each.point.point_id]
        if number <= rule.keep_last:
            wanted.append(f"one of the newest (last {number} of {rule.keep_last})")
        elif rule.keep_last:
            unwanted.append(f"beyond the newest {rule.keep_last}")
        within = rule.within()
        if within is not None and now - each.at <= within:
            wanted.append(f"taken within {rule.keep_within}")
        elif within is not None:
            unwanted.append(f"older than {rule.keep_within}")
    zone = rule.zone()
    for name, count, bucket in (
        ("hourly", rule.keep_hourly, _hour),
        ("daily", rule.keep_daily, _day),
        ("weekly", rule.keep_weekly, _week),
        ("monthly", rule.keep_monthly, _month),
        ("yearly", rule.keep_yearly, _year),
    ):
        if count:
            labelled = [(bucket(each.at.astimezone(zone)), each.point) for each in newest_first]
            _tell_buckets(labelled, told, name, count)
    return told


def _tell_buckets(
    newest_first: Sequence[tuple[str, KnownPoint]],
    told: Mapping[str, tuple[list[str], list[str]]],
    name: str,
    count: int,
) -> None:
    seen: set[str] = set()
    for label, point in newest_first:
        wanted, unwanted = told[point.point_id]
        if label in seen:
            unwanted.append(f"{label} has a newer one ({name})")
            continue
        seen.add(label)
        if len(seen) <= count:
            wanted.append(f"the last of {label} ({name} {len(seen)} of {count})")
        else:
            unwanted.append(f"beyond {count} {name}")


def _hour(local: datetime) -> str:
    """With its distance from UTC: when clocks are set back an hour comes twice, and both count."""
    return local.isoformat(timespec="hours")


def _day(local: datetime) -> str:
    return local.date().isoformat()


def _week(local: datetime) -> str:
    """The ISO week: the last days of December may be of the next year's first, and the first of January of the last."""
    year, week, _ = local.isocalendar()
    return f"{year:04}-W{week:02}"


def _month(local: datetime) -> str:
    return local.date().isoformat()[:7]


def _year(local: datetime) -> str:
    return local.date().isoformat()[:4]

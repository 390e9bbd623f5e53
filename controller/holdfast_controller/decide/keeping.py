"""When the controller keeps its repository by itself, and how much of it at a time. Pure.

Four tasks, each with a calendar and a window of its own: *forget* what policies keep no longer, *prune* what no point
needs, *scrub* (compare packs with their own digests), *check* (a proxy decodes and hashes a share of the data).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import takewhile
from typing import Final

from holdfast_common.errors import UsageError
from holdfast_controller.configuration import KeepingSettings
from holdfast_controller.decide.calendar import (
    Calendar,
    DueRun,
    due_after,
    due_now,
    next_due,
    parse_calendar,
)
from holdfast_controller.decide.windows import (
    Opening,
    WindowSet,
    current_opening,
    next_opening,
    parse_windows,
)


class KeepingTask(StrEnum):
    """The order is the one in which they begin when more than one is due."""

    FORGET = "forget"
    PRUNE = "prune"
    SCRUB = "scrub"
    CHECK = "check"


DELETING: Final = frozenset({KeepingTask.FORGET, KeepingTask.PRUNE})
PERCENT_STEP: Final = 0.0001  # as fine as a share of the data can be said


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTimes:
    """When a task is due, and when it may work."""

    calendar: Calendar
    windows: WindowSet

    @property
    def text(self) -> str:
        """What makes it due: another text is another calendar."""
        return f"{self.calendar.expression} {self.calendar.zone_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskHistory:
    """Since when its calendar counts, and the due moment that was made use of last; None: none was."""

    since: datetime
    last_slot: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What proofs say of the packs that are there, in bytes; times are those at which they were read and found true.

    ``unproven``: never. ``unproven_before``: how much that was when the last check ended. ``old``: proven so long ago
    that they pass their days before the next check but one.
    """

    total: int
    unproven: int
    unproven_before: int
    old: int


def keeping_times(settings: KeepingSettings, now: datetime) -> Mapping[KeepingTask, TaskTimes]:
    """Of each task that is to be done at all. Raises: UsageError naming the field."""
    found = {}
    for task in KeepingTask:
        section = getattr(settings, task.value)
        if not section.start:
            continue
        place = f"keeping.{task}"
        times = TaskTimes(
            calendar=parse_calendar(section.start, settings.time_zone, field=f"{place}.start"),
            windows=parse_windows(section.window, settings.time_zone, field=f"{place}.window"),
        )
        next_due(times.calendar, now)
        _check_meets(times, now, field=f"{place}.window")
        found[task] = times
    return found


def begins_ahead(times: TaskTimes, now: datetime, until: datetime) -> list[Opening]:
    """When a task begins from ``now`` to ``until``, and when its window closes then (None: never), if nothing holds it up."""
    found = list[Opening]()
    for due in takewhile(lambda moment: moment <= until, due_after(times.calendar, now)):
        opening = next_opening(times.windows, due)
        begins = due if opening.opens_at is None else max(due, opening.opens_at)
        if begins <= until and (not found or found[-1].opens_at != begins):  # a window opens once
            found.append(Opening(opens_at=begins, closes_at=opening.closes_at))
    return found


def due_task(times: TaskTimes, history: TaskHistory, now: datetime) -> DueRun | None:
    """None: nothing is due, or its window is shut; then it is due when the window opens, once."""
    if current_opening(times.windows, now) is None:
        return None
    return due_now(times.calendar, last_slot=_counted_from(history, now), now=now)


def goes_on_at(times: TaskTimes, history: TaskHistory, now: datetime) -> datetime | None:
    """When what the end of a window stopped is gone on with, if nothing holds it up; ``now``: at once.

    In the next window, unless the task is due by then or in it: that run goes on from where it came to. None: then.
    """
    opening = next_opening(times.windows, now)
    if opening.opens_at is None or opening.closes_at is None:
        return None  # always open: nothing ended it
    begins = max(now, opening.opens_at)
    if due_now(times.calendar, last_slot=_counted_from(history, now), now=begins) is not None:
        return None
    return begins if next_due(times.calendar, begins) >= opening.closes_at else None


def is_neglected(times: TaskTimes, history: TaskHistory, now: datetime) -> bool:
    """Whether more than one moment passed and nothing came of it, whatever the reason is."""
    due = due_now(times.calendar, last_slot=_counted_from(history, now), now=now)
    return due is not None and due.missed > 0


def next_task(times: TaskTimes, history: TaskHistory, now: datetime) -> datetime:
    """When it begins next, if nothing holds it up: now, when it is due already."""
    due = due_now(times.calendar, last_slot=_counted_from(history, now), now=now)
    moment = now if due is not None else next_due(times.calendar, now)
    opening = next_opening(times.windows, moment)
    if opening.opens_at is None:
        return moment
    return max(moment, opening.opens_at)


def runs_within(calendar: Calendar, *, days: int, now: datetime) -> int:
    """How often it is due in so many days; one at least."""
    end = now + timedelta(days=days)
    return max(1, sum(1 for _ in takewhile(lambda each: each <= end, due_after(calendar, now))))


def bytes_to_read(facts: DataFacts, *, runs: int) -> int:
    """How much a check reads, so that nothing stays unread for its days.

    An equal part for each of ``runs``, and on top of it what was written since the last one: otherwise what is new,
    which is read first, would keep what is old from its turn. What gets too old is read in any case.
    """
    part = -(-facts.total // runs) + max(0, facts.unproven - facts.unproven_before)
    due = facts.unproven + facts.old if facts.old else 0
    return min(facts.total, max(part, due))


def share_text(wanted: int, total: int) -> str:
    """As a check takes it: the share of the bytes, rounded up; of nothing, all."""
    if wanted >= total:
        return "100%"
    steps = -(-wanted * 100 * round(1 / PERCENT_STEP) // total)
    return f"{max(1, steps) * PERCENT_STEP:.4f}%"


def _counted_from(history: TaskHistory, now: datetime) -> datetime:
    """A moment that lies ahead was taken by a clock that was wrong: it holds nothing up."""
    since = min(history.since, now)
    return since if history.last_slot is None else max(since, history.last_slot)


def _check_meets(times: TaskTimes, now: datetime, *, field: str) -> None:
    """Whether it opens at all: what is due while it is shut begins then."""
    opening = next_opening(times.windows, now)
    if opening.seconds is not None and opening.seconds < MINIMUM_SECONDS:
        raise UsageError(
            "a window of keeping is shorter than anything takes",
            field=field,
            seconds=opening.seconds,
            advice="give it an hour at least",
        )


MINIMUM_SECONDS: Final = 600.0

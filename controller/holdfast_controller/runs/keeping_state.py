"""What can be said of keeping the repository at any moment: what was done last, what comes next, and what holds it up.

For the loop that does it (`keeping`), and for whoever asks: both read the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc, utc_text
from holdfast_common.errors import HoldfastError, WindowClosed
from holdfast_common.identity import RunId
from holdfast_controller.decide.begin_again import STOPPED_CODES
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.keeping import (
    DELETING,
    KeepingTask,
    TaskHistory,
    TaskTimes,
    goes_on_at,
    is_neglected,
    keeping_times,
    next_task,
)
from holdfast_controller.runs.clock_watch import clock_doubt
from holdfast_controller.runs.pausing import is_paused
from holdfast_controller.runs.policy_runs import TRIES_SECONDS
from holdfast_controller.runs.repository_jobs import KINDS
from holdfast_controller.runs.repository_verdict import repository_verdict
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.keeping import KeepingSlot

NOTHING_TO_FORGET: Final = "no policy says how many points are kept"
GONE_ON_WITH: Final = STOPPED_CODES | {WindowClosed.code}
FAILS_AFTER: Final = timedelta(seconds=TRIES_SECONDS)  # before, it may pass by itself
ACCEPT: Final = "; see that the clock is right, then `holdfast repo prune --accept-clock`"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """One task. ``last_at``, ``last_run``, ``result``: of its newest due moment; "": there was none.

    ``next_at``: when it begins next if nothing holds it up; None: never. ``held_up``: what does now; "": nothing.
    ``problem``: the same, but for what passes by itself.
    """

    task: KeepingTask
    last_at: str = ""
    last_run: str = ""
    result: str = ""
    next_at: datetime | None = None
    held_up: str = ""
    problem: str = ""
    is_well: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingTask:
    """A due moment whose run could not begin when it was tried last: since when (UTC texts), and why."""

    slot: str
    since: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingFailure:
    """``key``: the task, or ``clock``. ``run_id``: whose jobs tell of it as well; "": none does."""

    key: str
    text: str
    run_id: str = ""


def keeping_states(world: World) -> list[TaskState]:
    """Of all tasks, also of those that are switched off. Raises: StoreFailed, Locked."""
    now = world.clock.now()
    times = keeping_times(world.configuration.keeping, now)
    return [_state(world, task, times.get(task), now) for task in KeepingTask]


def held_up(world: World, task: KeepingTask) -> str:
    """Why it does not begin now although it is due, for people; empty: nothing holds it up. Windows are not asked."""
    if not world.keeper.has_repository:
        return "there is no repository"
    if is_paused(world):
        return "everything is paused"
    if problem := world.keeper.problem():
        return problem
    try:
        world.keeper.check_alone()
    except HoldfastError as error:
        return error.line()
    if task in DELETING:
        if doubt := clock_doubt(world):
            return f"{doubt}{ACCEPT}"
        if damage := repository_verdict(world).damage:
            return f"nothing is deleted while something is damaged: {damage}"
    return ""


def busy(world: World) -> str:
    """Which job on the repository has not ended, for people; tasks wait for it. Empty: none."""
    for job in world.jobs.unfinished():
        if job.kind in KINDS:
            return f"a {job.kind} has not ended: job {job.job_id}"
    return ""


def keeping_warnings(world: World) -> list[str]:
    """What somebody must know who looks at `status`: one sentence each. Raises: StoreFailed, Locked."""
    due = [
        f"keeping: {state.task} is due and does not begin: {state.problem}"
        for state in keeping_states(world)
        if state.problem
    ]
    return [*(failure.text for failure in keeping_failures(world)), *due]


def keeping_failures(world: World) -> list[KeepingFailure]:
    """What is not as it should be, by the database alone: no storage is asked. Raises: StoreFailed, Locked."""
    now = world.clock.now()
    found = []
    if doubt := clock_doubt(world):
        text = f"the clock is not believed, and nothing is deleted: {doubt}{ACCEPT}"
        found.append(KeepingFailure(key="clock", text=text))
    for task, times in keeping_times(world.configuration.keeping, now).items():
        if is_neglected(times, history_of(world, task, times, now), now):
            text = (
                f"keeping: {task} has been due for more than one of its moments, and did not begin"
            )
            found.append(KeepingFailure(key=task, text=text))
        slot = world.keeping.last(task)
        failing = failing_task(world, task)
        if failing is not None and now - parse_utc(failing.since) >= FAILS_AFTER:
            text = f"keeping: {task} of {failing.slot[:16]}Z cannot begin: {failing.why}; it is tried again"
            found.append(KeepingFailure(key=task, text=text))
            continue
        result, is_well = _result(world, slot)
        if slot is not None and not is_well:
            result += _goes_on(world, task, times, slot, now)
            text = f"keeping: {task} of {slot.slot:%Y-%m-%d %H:%M} did not end well: {result}"
            found.append(KeepingFailure(key=task, text=text, run_id=slot.run_id))
    return found


def stopped_by_of(world: World, run_id: str) -> frozenset[str]:
    """Codes of what ended jobs of a run as interrupted."""
    return frozenset(
        job.error.code
        for job in world.jobs.jobs_of_run(RunId(run_id))
        if job.state is JobState.INTERRUPTED and job.error is not None
    )


def note_failing(world: World, task: KeepingTask, failing: FailingTask | None) -> None:
    """Write down why it cannot begin; None: it did."""
    known = json.loads(world.settings.get(names.KEEPING_FAILING) or "{}")
    known.pop(task.value, None)
    if failing is not None:
        known[task.value] = asdict(failing)
    world.settings.set(names.KEEPING_FAILING, json.dumps(known))


def failing_task(world: World, task: KeepingTask) -> FailingTask | None:
    """None: it could begin, was not due since, or a later moment was made use of."""
    found = json.loads(world.settings.get(names.KEEPING_FAILING) or "{}").get(task.value)
    if found is None:
        return None
    failing = FailingTask(**found)
    slot = world.keeping.last(task)
    return None if slot is not None and slot.slot > parse_utc(failing.slot) else failing


def history_of(world: World, task: KeepingTask, times: TaskTimes, now: datetime) -> TaskHistory:
    """As `due_task` wants it. A task whose calendar was never seen, or was another one, counts from now."""
    since = now
    known = _calendars(world).get(task.value)
    if known is not None and known[0] == times.text:
        since = parse_utc(known[1])
    last = world.keeping.last(task, until=now)
    return TaskHistory(since=since, last_slot=None if last is None else last.slot)


def note_calendars(world: World, times: Mapping[KeepingTask, TaskTimes], now: datetime) -> None:
    """Since when each counts, written down: what comes due while the controller is down is made up for."""
    before = _calendars(world)
    found = {}
    for task, each in times.items():
        text, since = before.get(task.value, ("", ""))
        is_known = text == each.text and parse_utc(since) <= now
        found[task.value] = (each.text, since if is_known else utc_text(now))
    if found != before:
        world.settings.set(names.KEEPING_SINCE, json.dumps(found))


def _calendars(world: World) -> dict[str, tuple[str, str]]:
    content = world.settings.get(names.KEEPING_SINCE)
    return {task: (each[0], each[1]) for task, each in json.loads(content or "{}").items()}


def _state(world: World, task: KeepingTask, times: TaskTimes | None, now: datetime) -> TaskState:
    slot = world.keeping.last(task)
    result, is_well = _result(world, slot)
    next_at, problem, waits = None, "", ""
    if times is not None:
        next_at = next_task(times, history_of(world, task, times, now), now)
        if next_at <= now:
            problem = held_up(world, task)
            waits = "" if problem else busy(world)
            failing = failing_task(world, task)
            if failing is not None and not problem and not waits:
                problem = f"{failing.why}; it is tried again"
        elif slot is not None and not is_well:
            result += _goes_on(world, task, times, slot, now)
    return TaskState(
        task=task,
        last_at="" if slot is None else utc_text(slot.slot),
        last_run="" if slot is None else slot.run_id,
        result=result,
        next_at=next_at,
        held_up=problem or waits,
        problem=problem if world.keeper.has_repository else "",
        is_well=is_well,
    )


def _goes_on(
    world: World, task: KeepingTask, times: TaskTimes, slot: KeepingSlot, now: datetime
) -> str:
    """What becomes of what the end of its window stopped, for people."""
    if not slot.run_id or WindowClosed.code not in stopped_by_of(world, slot.run_id):
        return ""
    history = history_of(world, task, times, now)
    at = goes_on_at(times, history, now)
    if at is None:
        return f"; its next run, at {next_task(times, history, now):%Y-%m-%d %H:%M}Z, goes on from there"
    return f"; it goes on at {at:%Y-%m-%d %H:%M}Z"


def _result(world: World, slot: KeepingSlot | None) -> tuple[str, bool]:
    """How it ended, for people, and whether that is as it should be."""
    if slot is None:
        return "", True
    if not slot.run_id:
        return slot.told, slot.told in ("", NOTHING_TO_FORGET)
    for job in world.jobs.jobs_of_run(RunId(slot.run_id)):
        error = f": {job.error.text()}" if job.error is not None else ""
        return f"{job.state}{error}", job.state is JobState.DONE or not job.ended
    return "its run is not known any more", True

"""The controller keeps its repository by itself: it forgets, prunes, scrubs and checks when that is due, one after the other.

A due moment is written down together with its run, once. What the controller's end or a pause stopped is gone on with; what
the end of a window stopped is gone on with in the next one, or by the next due moment's run if that comes before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import ConfigurationError, HoldfastError, UsageError, WindowClosed
from holdfast_common.identity import RunId
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_controller.configuration import ControllerConfiguration, PruneKeeping
from holdfast_controller.decide.begin_again import FIRST_PAUSE, STOPPED_CODES
from holdfast_controller.decide.keeping import (
    DELETING,
    KeepingTask,
    TaskTimes,
    due_task,
    goes_on_at,
    keeping_times,
    runs_within,
)
from holdfast_controller.decide.windows import current_opening, next_opening
from holdfast_controller.runs.clock_watch import ClockWatch
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.keeping_state import (
    GONE_ON_WITH,
    NOTHING_TO_FORGET,
    FailingTask,
    busy,
    held_up,
    history_of,
    note_calendars,
    note_failing,
    stopped_by_of,
)
from holdfast_controller.runs.loads import keeping_gate
from holdfast_controller.runs.pausing import is_paused
from holdfast_controller.runs.policy_runs import TRIES_SECONDS, TRY_SECONDS
from holdfast_controller.runs.requests import (
    CheckRequest,
    ForgetRequest,
    PruneRequest,
    ScrubRequest,
    Started,
)
from holdfast_controller.runs.verified_data import check_subset
from holdfast_controller.runs.world import World
from holdfast_controller.store.keeping import KeepingSlot
from holdfast_controller.store.new_jobs import Also

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 15.0
PULSE: Final = "keeping"
PULSE_SECONDS_MAX: Final = (
    7200.0  # before a check every pack and proof is listed, on whatever storage
)
ACTOR: Final = "the controller"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failing:
    """A due moment whose run could not begin (or be gone on with): since when, and when it was tried last."""

    slot: datetime
    since: datetime
    tried_at: datetime

    def pauses(self, slot: datetime, now: datetime) -> bool:
        """Whether it is too early for another try: often at first, then now and then."""
        is_new = self.tried_at - self.since < timedelta(seconds=TRIES_SECONDS)
        pause = timedelta(seconds=TRY_SECONDS) if is_new else FIRST_PAUSE
        return self.slot == slot and timedelta(0) <= now - self.tried_at < pause


def check_keeping(configuration: ControllerConfiguration, now: datetime) -> None:
    """Whether it can be carried out. Raises: ConfigurationError naming the field."""
    try:
        keeping_times(configuration.keeping, now)
    except UsageError as error:
        raise ConfigurationError(
            f"the controller's configuration is wrong: {error.message}",
            advice=error.advice,
            **error.facts,
        ) from error


class Keeping:
    """A thread of its own, until the controller stops."""

    def __init__(self, world: World, engine: Engine) -> None:
        """Raises: ConfigurationError."""
        check_keeping(world.configuration, world.clock.now())
        self._world = world
        self._engine = engine
        self._clock_watch = ClockWatch(world)
        self._times = keeping_times(world.configuration.keeping, world.clock.now())
        self._failing: dict[KeepingTask, _Failing] = {}
        self._judged: set[str] = set()  # ended runs of which nothing is left to go on with

    def run(self) -> None:
        """Look, until the controller stops."""
        self._world.pulses.expect(PULSE, within_seconds=PULSE_SECONDS_MAX)
        while not self._world.stopping.wait(LOOK_SECONDS):
            self._world.pulses.beat(PULSE)
            try:
                self._clock_watch.look()
                self.look(self._world.clock.now())
            except HoldfastError as error:
                log.warning("the repository could not be kept", extra={"error": error.line()})
            except Exception:
                # A bug in one look must not end it for ever: the next one tries again.
                log.exception("the repository could not be kept")
        self._world.pulses.end(PULSE)

    def look(self, now: datetime) -> None:
        """Once. Raises: StoreFailed, Locked."""
        world = self._world
        note_calendars(world, self._times, now)
        opened = [task for task in self._times if self._keep_window(task, now)]
        if not world.keeper.has_repository or is_paused(world):
            return
        for task in opened:
            if self._go_on(task, now) or self._begin_due(task, now):
                return  # one at a time

    # -- inside -----------------------------------------------------------------------------------

    def _keep_window(self, task: KeepingTask, now: datetime) -> bool:
        """Whether it is open. What is at work when it closes is stopped, and what waits ends."""
        windows = self._times[task].windows
        gate = keeping_gate(task)
        if current_opening(windows, now) is not None:
            self._engine.dispatcher.open(gate)
            return True
        self._engine.dispatcher.shut(gate)
        opening = next_opening(windows, now).opens_at
        closed = WindowClosed(
            f"the window of keeping's {task} closed before it was done; the next one goes on from there",
            opens_again="" if opening is None else opening.isoformat(timespec="minutes"),
            advice=f"`holdfast status` tells when it goes on; [keeping.{task}] in controller.toml says how long it may work",
        )
        self._engine.stop_all(gate, closed)
        return False

    def _go_on(self, task: KeepingTask, now: datetime) -> bool:
        """Begin anew what the controller's end, a pause or its window's end stopped of the newest run; whether it did."""
        world = self._world
        slot = world.keeping.last(task)
        if slot is None or not slot.run_id or slot.run_id in self._judged:
            return False
        if not world.runs.run(RunId(slot.run_id)).finished_at:
            return False
        stopped_by = stopped_by_of(world, slot.run_id)
        if not stopped_by & GONE_ON_WITH:
            self._judged.add(slot.run_id)
            return False
        if not stopped_by & STOPPED_CODES:
            times = self._times[task]
            if goes_on_at(times, history_of(world, task, times, now), now) != now:
                return False
        if self._pauses(task, slot, now) or held_up(world, task) or busy(world):
            return False
        return self._begun(task, slot, now, also=lambda run_id: world.keeping.go_on(slot, run_id))

    def _pauses(self, task: KeepingTask, slot: KeepingSlot, now: datetime) -> bool:
        failing = self._failing.get(task)
        return failing is not None and failing.pauses(slot.slot, now)

    def _begin_due(self, task: KeepingTask, now: datetime) -> bool:
        world, times = self._world, self._times[task]
        due = due_task(times, history_of(world, task, times, now), now)
        if due is None:
            return False
        slot = KeepingSlot(task=task, slot=due.due_at, missed=due.missed)
        if task is KeepingTask.FORGET and not self._is_anything_kept():
            world.keeping.take(replace(slot, told=NOTHING_TO_FORGET))
            return False
        if self._pauses(task, slot, now):
            return False
        if held_up(world, task) or busy(world):
            return False  # it stays due; `status` tells why it does not begin

        def take(run_id: RunId) -> None:
            world.keeping.take(replace(slot, run_id=run_id))

        return self._begun(task, slot, now, also=take)

    def _is_anything_kept(self) -> bool:
        policies = self._world.policies
        if policies.unreadable():
            return True  # its run tells that it cannot be said
        return any(not stored.policy.retention.is_empty for stored in policies.policies())

    def _begun(self, task: KeepingTask, slot: KeepingSlot, now: datetime, *, also: Also) -> bool:
        begin: dict[KeepingTask, Callable[[Also], Started]] = {
            KeepingTask.FORGET: self._forget,
            KeepingTask.PRUNE: self._prune,
            KeepingTask.SCRUB: self._scrub,
            KeepingTask.CHECK: self._check,
        }
        try:
            if task in DELETING:
                self._clock_watch.look()
                if held_up(self._world, task):
                    return False
            begin[task](also)
        except HoldfastError as error:
            self._not_begun(task, slot, error, now)
            return False
        if self._failing.pop(task, None) is not None:
            note_failing(self._world, task, None)
        log.info("keeping the repository: a task begins", extra={"task": task})
        return True

    def _not_begun(
        self, task: KeepingTask, slot: KeepingSlot, error: HoldfastError, now: datetime
    ) -> None:
        """It stays due, and is tried again as long as its window is open, until its next moment; `status` tells why."""
        log.warning(
            "keeping the repository: a task cannot begin",
            extra={"task": task, "error": error.line()},
        )
        failing = self._failing.get(task)
        if failing is None or failing.slot != slot.slot:
            failing = _Failing(slot=slot.slot, since=now, tried_at=now)
        self._failing[task] = replace(failing, tried_at=now)
        why = FailingTask(slot=utc_text(slot.slot), since=utc_text(failing.since), why=error.line())
        note_failing(self._world, task, why)

    def _forget(self, also: Also) -> Started:
        wanted = ForgetRequest(actor=ACTOR, gates=(keeping_gate(KeepingTask.FORGET),))
        return self._engine.of_repository.forget(wanted, also=also)

    def _prune(self, also: Also) -> Started:
        wanted = PruneRequest(
            limits=prune_limits(self._world.configuration.keeping.prune),
            actor=ACTOR,
            gates=(keeping_gate(KeepingTask.PRUNE),),
        )
        return self._engine.start_prune(wanted, also=also)

    def _scrub(self, also: Also) -> Started:
        wanted = ScrubRequest(
            parts=self._runs(KeepingTask.SCRUB), gates=(keeping_gate(KeepingTask.SCRUB),)
        )
        return self._engine.of_repository.scrub(wanted, also=also)

    def _check(self, also: Also) -> Started:
        runs = self._runs(KeepingTask.CHECK)
        wanted = CheckRequest(
            read_data=True,
            subset=check_subset(self._world, runs=runs),
            gates=(keeping_gate(KeepingTask.CHECK),),
        )
        return self._engine.start_check(wanted, also=also)

    def _runs(self, task: KeepingTask) -> int:
        """How many runs share the whole between them."""
        times: TaskTimes = self._times[task]
        keeping = self._world.configuration.keeping
        days = (keeping.scrub if task is KeepingTask.SCRUB else keeping.check).read_days
        return runs_within(times.calendar, days=days, now=self._world.clock.now())


def prune_limits(settings: PruneKeeping) -> PruneLimits:
    """As the configuration says them."""
    defaults = PruneLimits()
    return PruneLimits(
        grace=timedelta(hours=settings.grace_hours),
        seconds_max=settings.seconds_max or defaults.seconds_max,
        moved_bytes_max=settings.moved_bytes_max or defaults.moved_bytes_max,
    )

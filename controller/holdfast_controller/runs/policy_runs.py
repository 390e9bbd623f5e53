"""Begins the runs of policies: which VMs a policy selects now, how each is backed up, and that each moment counts once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_common.identity import JobId, RunId
from holdfast_controller.decide.begin_again import FIRST_PAUSE
from holdfast_controller.decide.due_policies import (
    DuePolicy,
    PolicyHistory,
    calendar_text,
    due_policy,
    may_go_on,
)
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.left_of_run import Left, left_of_run
from holdfast_controller.runs.loads import window_gate
from holdfast_controller.runs.policy_requests import level_of_vm, policy_request, selected_vms
from holdfast_controller.runs.requests import BackupRequest, Started
from holdfast_controller.runs.world import World
from holdfast_controller.store.new_jobs import nothing_else
from holdfast_controller.store.policies import StoredPolicy
from holdfast_controller.store.policy_slots import PolicySlot

log = logging.getLogger(__name__)

# What keeps a run from beginning (a mount that is away, a vCenter that starts again) may pass. So long it is tried often.
TRIES_SECONDS: Final = 3600.0
TRY_SECONDS: Final = 60.0
CLOCK_SETTLES: Final = timedelta(hours=1)
TRY_PAUSE: Final = timedelta(seconds=TRY_SECONDS)


def history_of(world: World, stored: StoredPolicy, now: datetime) -> PolicyHistory:
    """As `due_policy` wants it. A moment that lies ahead was taken by a clock that was wrong: it holds nothing up."""
    last = world.policy_slots.last(stored.policy_id, until=now)
    return PolicyHistory(
        created_at=stored.created_at,
        changed_at=stored.changed_at,
        last_slot=None if last is None else last.slot,
        last_calendar="" if last is None else last.calendar,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeldUp:
    """Something that could not be begun when it was tried last."""

    at: datetime
    pause: timedelta = TRY_PAUSE

    def pauses(self, now: datetime) -> bool:
        """Whether it is too early for another try: each one may read whole inventories."""
        return timedelta(0) <= now - self.at < self.pause


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failing:
    """A due moment whose run could not begin: since when, its last try, and why it could not."""

    slot: datetime
    since: datetime
    tried: _HeldUp
    why: str

    def pauses(self, slot: datetime, now: datetime) -> bool:
        """Whether it is too early for another try at this moment's run."""
        return self.slot == slot and self.tried.pauses(now)


class PolicyRuns:
    """Of the scheduler's thread alone."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine
        self._judged: set[str] = set()  # ended runs of which nothing is left to go on with
        self._failing: dict[str, _Failing] = {}  # by policy
        self._held_up: dict[str, _HeldUp] = {}  # by policy: what is left of its run
        self._ahead: dict[str, datetime] = {}  # by policy: since when moments to come are used up
        self._stopped: dict[str, frozenset[JobId]] = {}  # by policy: as it was seen last

    def begin_due(self, stored: StoredPolicy, now: datetime) -> Started | None:
        """The run that is due now, begun; None: none is, or it could not begin yet, which is tried again."""
        self._forget_what_lies_ahead(stored, now)
        due = due_policy(stored.policy, history_of(self._world, stored, now), now)
        failing = self._failing.get(stored.policy_id)
        if due is None or (failing is not None and failing.pauses(due.due.due_at, now)):
            return None
        slot = PolicySlot(
            policy_id=stored.policy_id,
            slot=due.due.due_at,
            calendar=calendar_text(stored.policy),
            missed=due.due.missed,
        )
        if due.skipped:
            self._world.policy_slots.take(replace(slot, told=due.skipped))
            return None
        try:
            started = self._begin(stored, due, slot)
        except HoldfastError as error:
            self._not_begun(stored, slot, error, now)
            return None
        self._failing.pop(stored.policy_id, None)
        if started is not None:
            log.info("a policy's run began", extra={"policy": stored.policy.name})
        return started

    def go_on(self, stored: StoredPolicy, now: datetime) -> Started | None:
        """Begin anew what is left of the newest run: what was stopped from outside, and what may not fail again."""
        slot = self._world.policy_slots.last(stored.policy_id, until=now)
        if slot is None or not slot.run_id or slot.run_id in self._judged:
            return None
        held_up = self._held_up.get(stored.policy_id)
        if not may_go_on(stored.policy, slot.slot, now) or (held_up and held_up.pauses(now)):
            return None
        left = left_of_run(self._world, RunId(slot.run_id), now)
        if not left.vms:
            if left.is_all:
                self._judged.add(slot.run_id)
            return None
        if not left.is_all and self._more_are_stopping(stored, left):
            return None
        wanted = [
            (
                self._request(stored, each.job.level_asked, priority_first=each.was_stopped),
                each.known,
            )
            for each in left.vms
        ]
        try:
            return self._engine.start_backups(
                self._request(stored, ""),
                wanted,
                [f"goes on with what is left of run {slot.run_id}", *left.told],
                dry_run=False,
                also=self._goes_on(slot) if left.is_all else nothing_else,
            )
        except HoldfastError as error:
            pause = TRY_PAUSE if error.retryable else FIRST_PAUSE
            self._held_up[stored.policy_id] = _HeldUp(at=now, pause=pause)
            log.warning(
                "what is left of a policy's run is not gone on with yet",
                extra={"policy": stored.policy.name, "error": error.line()},
            )
            return None

    # -- inside -----------------------------------------------------------------------------------

    def _forget_what_lies_ahead(self, stored: StoredPolicy, now: datetime) -> None:
        """Moments to come that a clock which was ahead made use of: those nights are to have their runs.

        Only when this clock has said so for a while: it may be the one that is wrong.
        """
        newest = self._world.policy_slots.last(stored.policy_id)
        if newest is None or newest.slot - now < CLOCK_SETTLES:
            self._ahead.pop(stored.policy_id, None)
            return
        since = min(now, self._ahead.setdefault(stored.policy_id, now))
        self._ahead[stored.policy_id] = since
        if now - since >= CLOCK_SETTLES:
            self._world.policy_slots.forget_after(stored.policy_id, since)
            log.warning(
                "the clock was ahead: moments to come that a policy made use of are due again",
                extra={"policy": stored.policy.name},
            )

    def _begin(self, stored: StoredPolicy, due: DuePolicy, slot: PolicySlot) -> Started | None:
        """None: all its VMs are at work, which is written down; trying again would back them up twice."""
        policy = stored.policy
        chosen, told = selected_vms(self._world, self._engine, policy)
        if slot.missed:
            told.insert(0, f"it stands for {slot.missed} earlier moments that were missed")
        if not chosen:
            self._world.policy_slots.take(replace(slot, told="; ".join(told)))
            return None
        wanted = []
        for known in chosen:
            level, why = level_of_vm(self._world, policy, known, level=due.level, slot=slot.slot)
            if why:
                told.append(f"{known.vm.name}: {why}")
            wanted.append((self._request(stored, level), known))
        return self._engine.start_backups(
            self._request(stored, due.level),
            wanted,
            told,
            dry_run=False,
            also=self._take(slot, told),
        )

    def _take(self, slot: PolicySlot, told: list[str]) -> Callable[[RunId], None]:
        def take(run_id: RunId) -> None:
            self._world.policy_slots.take(replace(slot, run_id=run_id, told="; ".join(told)))

        return take

    def _goes_on(self, slot: PolicySlot) -> Callable[[RunId], None]:
        return lambda run_id: self._world.policy_slots.go_on(slot, run_id)

    def _more_are_stopping(self, stored: StoredPolicy, left: Left) -> bool:
        """Whether others were stopped since the last look: they are begun together, not a run for each few."""
        stopped = frozenset(each.job.job_id for each in left.vms if each.was_stopped)
        before = self._stopped.get(stored.policy_id, frozenset())
        self._stopped[stored.policy_id] = stopped
        return not stopped <= before

    def _request(
        self, stored: StoredPolicy, level: str, *, priority_first: bool = False
    ) -> BackupRequest:
        return policy_request(
            stored,
            level=level,
            priority=stored.policy.priority + int(priority_first),
            gates=(window_gate(stored.policy_id, stored.policy.name),),
        )

    def _not_begun(
        self, stored: StoredPolicy, slot: PolicySlot, error: HoldfastError, now: datetime
    ) -> None:
        """It stays due: as long as the window is open, and until the next moment, it is tried."""
        failing = self._failing.get(stored.policy_id)
        if failing is None or failing.slot != slot.slot:
            failing = _Failing(slot=slot.slot, since=now, tried=_HeldUp(at=now), why="")
        if failing.why != error.line():
            log.warning(
                "a policy's run cannot begin",
                extra={"policy": stored.policy.name, "error": error.line()},
            )
            self._world.policy_slots.cannot_begin(replace(slot, told=error.line()))
        is_new = now - failing.since < timedelta(seconds=TRIES_SECONDS)
        tried = _HeldUp(at=now, pause=TRY_PAUSE if is_new else FIRST_PAUSE)
        self._failing[stored.policy_id] = replace(failing, tried=tried, why=error.line())

"""Begins the runs of policies: which VMs a policy selects now, how each is backed up, and that each moment counts once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import HoldfastError, NothingProtected
from holdfast_common.identity import RunId
from holdfast_controller.decide.coverage import check_tags, select
from holdfast_controller.decide.due_policies import (
    DuePolicy,
    PolicyHistory,
    calendar_text,
    due_policy,
)
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.level import FULL
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.loads import window_gate
from holdfast_controller.runs.requests import BackupRequest, Started
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.policies import StoredPolicy
from holdfast_controller.store.policy_slots import PolicySlot

log = logging.getLogger(__name__)

# What keeps a run from beginning (a mount that is away, a vCenter that starts again) may pass; so long it is tried.
TRIES_SECONDS: Final = 3600.0
TRY_SECONDS: Final = 60.0
GO_ON_CODES: Final = frozenset({"interrupted", "paused"})  # of jobs that somebody else stopped


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
class _Failing:
    """A due moment whose run could not begin: since when, when it was tried last, and why it could not."""

    slot: datetime
    since: datetime
    tried_at: datetime
    why: str

    def pauses(self, slot: datetime, now: datetime) -> bool:
        """Whether it is too early for another try: each one may read whole inventories."""
        passed = now - self.tried_at
        return self.slot == slot and timedelta(0) <= passed < timedelta(seconds=TRY_SECONDS)


class PolicyRuns:
    """Of the scheduler's thread alone."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine
        self._judged: set[str] = set()  # ended runs of which nothing is left to go on with
        self._failing: dict[str, _Failing] = {}  # by policy

    def begin_due(self, stored: StoredPolicy, now: datetime) -> Started | None:
        """The run that is due now, begun; None: none is, or it could not begin yet, which is tried again."""
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

    def go_on(self, stored: StoredPolicy) -> Started | None:
        """Begin anew what of the newest run was stopped from outside: by the controller's end, or by a pause."""
        slot = self._world.policy_slots.last(stored.policy_id)
        if slot is None or not slot.run_id or slot.run_id in self._judged:
            return None
        if not self._world.runs.run(RunId(slot.run_id)).finished_at:
            return None
        stopped = [
            job for job in self._world.jobs.jobs_of_run(RunId(slot.run_id)) if _was_stopped(job)
        ]
        found, told = self._known_again(stopped)
        if not found:
            self._judged.add(slot.run_id)
            return None
        told.insert(0, f"goes on with what was stopped in run {slot.run_id}")
        requests = [
            (self._request(stored, job.level_asked, priority_first=True), known)
            for job, known in found
        ]
        try:
            return self._engine.start_backups(
                self._request(stored, ""),
                requests,
                told,
                dry_run=False,
                also=lambda run_id: self._world.policy_slots.go_on(slot, run_id),
            )
        except HoldfastError as error:
            # the policy's next run must not wait for this one
            if not error.retryable:
                self._judged.add(slot.run_id)
            log.warning(
                "what was stopped of a policy's run is not gone on with",
                extra={"policy": stored.policy.name, "error": error.line()},
            )
            return None

    # -- inside -----------------------------------------------------------------------------------

    def _begin(self, stored: StoredPolicy, due: DuePolicy, slot: PolicySlot) -> Started | None:
        """None: all its VMs are at work, which is written down; trying again would back them up twice."""
        policy = stored.policy
        chosen, told = self._selected(policy)
        if slot.missed:
            told.insert(0, f"it stands for {slot.missed} earlier moments that were missed")
        if not chosen:
            self._world.policy_slots.take(replace(slot, told="; ".join(told)))
            return None
        wanted = []
        for known in chosen:
            level, why = self._level(policy, due, known)
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

    def _selected(self, policy: Policy) -> tuple[list[KnownVm], list[str]]:
        """The VMs that it names now, without those at work, and what is to be told of its selection.

        Empty when all of them are at work. Raises: NothingProtected when there is none at all; CapabilityAbsent and
        its kin when it cannot be said.
        """
        told = self._engine.read_inventories((*policy.vms, *policy.exclude))
        inventory = self._world.vcenters.inventory
        pairs = inventory.selectable()
        vms = VmIndex(vm for _, vm in pairs)
        check_tags(policy, vms, inventory.tags.sources())
        selection = select(policy, vms)
        # a selector that names nothing holds no run up at night, but it is told
        told += [
            f"the selector {getattr(policy, field)[position]} names no VM"
            for field, position in selection.unmatched
        ]
        chosen = {
            (known.vcenter_id, known.vm.instance_uuid): known
            for known in (pairs[number][0] for number in selection.chosen)
        }
        if not chosen:
            raise NothingProtected("the policy selects no VM", policy=policy.name)
        busy = self._busy()
        for identity in [each for each in chosen if each in busy]:
            name = chosen.pop(identity).vm.name
            told.append(f"{name}: left out, it is at work in job {busy[identity]}")
        return list(chosen.values()), told

    def _busy(self) -> dict[tuple[str, str], str]:
        return {
            (job.vcenter_id, job.instance_uuid): job.job_id
            for job in self._world.jobs.unfinished()
            if job.instance_uuid
        }

    def _level(self, policy: Policy, due: DuePolicy, known: KnownVm) -> tuple[str, str]:
        """The level of one VM, and why when the policy's calendar alone does not say it."""
        if due.level == FULL:
            return FULL, ""
        vcenter = self._world.vcenters.table.vcenter(known.vcenter_id)
        lineage_id = lineage_of(
            vcenter_instance_uuid=vcenter.instance_uuid, vm_instance_uuid=known.vm.instance_uuid
        )
        read_whole = self._world.catalogue.last_full_at(lineage_id)
        last_full = parse_utc(read_whole) if read_whole else None
        if policy.full_is_due(last_full=last_full, slot=due.due.due_at):
            return FULL, f"read whole, {policy.level.full_days} days after it was last"
        return due.level, ""

    def _request(
        self, stored: StoredPolicy, level: str, *, priority_first: bool = False
    ) -> BackupRequest:
        policy = stored.policy
        return BackupRequest(
            selectors=policy.vms,
            excludes=policy.exclude,
            level=level or "incremental",
            consistency=policy.consistency,
            transport=policy.transport,
            policy=policy.name,
            when_not_reached=policy.when_not_reached,
            priority=policy.priority + int(priority_first),
            attempts_max=policy.attempts_max,
            gates=(window_gate(stored.policy_id, policy.name),),
        )

    def _known_again(
        self, jobs: Iterable[JobRow]
    ) -> tuple[list[tuple[JobRow, KnownVm]], list[str]]:
        known = {
            (each.vcenter_id, each.vm.instance_uuid): each
            for each in self._world.vcenters.inventory.vms()
        }
        busy = self._busy()
        found, told = [], []
        for job in jobs:
            identity = (job.vcenter_id, job.instance_uuid)
            if identity not in known:
                told.append(f"{job.subject}: it is in the inventory no more")
            elif identity not in busy:
                found.append((job, known[identity]))
        return found, told

    def _not_begun(
        self, stored: StoredPolicy, slot: PolicySlot, error: HoldfastError, now: datetime
    ) -> None:
        failing = self._failing.get(stored.policy_id)
        if failing is None or failing.slot != slot.slot:
            failing = _Failing(slot=slot.slot, since=now, tried_at=now, why="")
        if failing.why != error.line():
            log.warning(
                "a policy's run cannot begin",
                extra={"policy": stored.policy.name, "error": error.line()},
            )
        if now - failing.since >= timedelta(seconds=TRIES_SECONDS):
            self._world.policy_slots.take(replace(slot, told=error.line()))
            self._failing.pop(stored.policy_id, None)
        else:
            self._failing[stored.policy_id] = replace(failing, tried_at=now, why=error.line())


def _was_stopped(job: JobRow) -> bool:
    return (
        job.state is JobState.INTERRUPTED
        and job.error is not None
        and job.error.code in GO_ON_CODES
    )

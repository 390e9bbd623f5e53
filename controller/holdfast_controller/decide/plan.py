"""What would happen in the next days: the controller's own decisions, on a clock that jumps from event to event. Pure.

The same functions decide here and in the controller: `due_policy` what is due, `DispatchQueue` what begins and on which
proxy, the policies' windows when it stops. Only how long a backup takes is an estimate. What is at work now is left out,
and so is what cannot be known: failures, VMs that come and go, operators.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.identity import AgentId, JobId
from holdfast_controller.decide.calendar import next_due
from holdfast_controller.decide.dispatch import Begun, DispatchQueue, WaitingJob, Way
from holdfast_controller.decide.due_policies import (
    DuePolicy,
    PolicyHistory,
    calendar_text,
    due_policy,
    looked_at,
)
from holdfast_controller.decide.level import COMPARE, FULL, READS_WHOLE
from holdfast_controller.decide.load_limits import LoadKey, LoadKind, LoadLimits, in_order
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.windows import current_opening, next_opening

VmKey = tuple[str, str]  # vCenter and instance uuid


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVm:
    """A VM as a plan needs it. ``last_good``, ``last_full``: when its points were made; None: it has none.

    ``seconds``, ``full_seconds``: how long its backups are expected to take. ``problem``: why nothing can back it up
    now; empty: something can. ``storages``: how many lanes its disks could form.
    """

    key: VmKey
    name: str
    loads: tuple[LoadKey, ...]
    ways: tuple[Way, ...]
    seconds: float
    full_seconds: float
    last_good: datetime | None = None
    last_full: datetime | None = None
    problem: str = ""
    storages: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPolicy:
    """``vms``: those that it selects now, in the order of its selection. ``problem``: why it cannot say which; ""."""

    policy_id: str
    policy: Policy
    history: PolicyHistory
    vms: tuple[VmKey, ...]
    problem: str = ""


class Act(StrEnum):
    """What is decided."""

    DUE = "due"  # a policy's run; the VM's name is empty
    BEGIN = "begin"
    END = "end"
    STOP = "stop"  # at work when the window closed
    UNBEGUN = "unbegun"  # waited still when the window closed
    LEFT_OUT = "left out"  # its VM is at work in another job, or nothing can back it up
    NOTHING = "nothing"  # a run without a VM


MISSES: Final = frozenset({Act.STOP, Act.UNBEGUN, Act.LEFT_OUT, Act.NOTHING})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDecision:
    """One decision. ``reason``: what it waited for, or why."""

    at: datetime
    act: Act
    policy: str
    vm: str = ""
    level: str = ""
    agent_id: str = ""
    reason: str = ""

    def line(self) -> str:
        """For a file of decisions: tab between the fields."""
        at = utc_text(self.at)
        return "\t".join(
            (at, self.act, self.policy, self.vm, self.level, self.agent_id, self.reason)
        )


@dataclass(slots=True)
class _Vm:
    facts: PlannedVm
    last_good: datetime | None
    last_full: datetime | None
    job_id: JobId | None = None


@dataclass(slots=True)
class _Job:
    policy: _PolicyState
    vm: _Vm
    level: str
    begun: bool = False


@dataclass(slots=True)
class _PolicyState:
    facts: PlannedPolicy
    gate: LoadKey
    history: PolicyHistory
    jobs: set[JobId] = field(default_factory=set)


class Plan:
    """One walk through the days to come; `decisions` once."""

    def __init__(
        self,
        *,
        vms: Mapping[VmKey, PlannedVm],
        policies: Sequence[PlannedPolicy],
        limits: LoadLimits,
        now: datetime,
        until: datetime,
    ) -> None:
        self._until = until
        self._now = now
        self._queue = DispatchQueue(limits)
        self._vms = {
            key: _Vm(facts, facts.last_good, facts.last_full) for key, facts in vms.items()
        }
        self._policies = [
            _PolicyState(
                each, LoadKey(LoadKind.WINDOW, each.policy_id, each.policy.name), each.history
            )
            for each in sorted(policies, key=lambda each: looked_at(each.policy))
        ]
        self._jobs: dict[JobId, _Job] = {}
        self._events: list[tuple[datetime, int, str]] = []  # ends of jobs, then looks at policies
        self._runs = 0

    def decisions(self) -> Iterator[PlanDecision]:
        """In the order of time. What is at work at the end of the plan has no end in it."""
        for number, state in enumerate(self._policies):
            self._look_again(state, number)
        yield from self._look_at_all()
        while self._events and self._events[0][0] <= self._until:
            self._now = self._events[0][0]
            looks: set[int] = set()
            while self._events and self._events[0][0] == self._now:
                _, number, job_id = heapq.heappop(self._events)
                if job_id:
                    yield from self._end(JobId(job_id))
                else:
                    looks.add(number)
            for number in sorted(looks):
                yield from self._look(self._policies[number])
                self._look_again(self._policies[number], number)
            yield from self._begin()

    # -- policies ---------------------------------------------------------------------------------

    def _look_at_all(self) -> Iterator[PlanDecision]:
        for state in self._policies:
            yield from self._look(state)

    def _look_again(self, state: _PolicyState, number: int) -> None:
        """At the next moment at which something of the policy changes: it is due, or its window opens or closes."""
        policy = state.facts.policy
        moments = [next_due(policy.calendar, self._now)]
        opening = next_opening(policy.windows, self._now)
        moments += [
            moment
            for moment in (opening.opens_at, opening.closes_at)
            if moment is not None and moment > self._now
        ]
        heapq.heappush(self._events, (min(moments), number, ""))

    def _look(self, state: _PolicyState) -> Iterator[PlanDecision]:
        policy = state.facts.policy
        if current_opening(policy.windows, self._now) is None:
            self._queue.shut(state.gate)
            yield from self._stop(state)
        else:
            self._queue.open(state.gate)
        yield from self._begin()
        due = due_policy(policy, state.history, self._now)
        if due is None:
            return
        yield from self._run(state, due)
        yield from self._begin()
        state.history = PolicyHistory(
            created_at=state.history.created_at,
            changed_at=state.history.changed_at,
            last_slot=due.due.due_at,
            last_calendar=calendar_text(policy),
        )

    def _run(self, state: _PolicyState, due: DuePolicy) -> Iterator[PlanDecision]:
        policy = state.facts.policy
        if due.skipped:
            return
        missed = f"stands for {due.due.missed} earlier moments" if due.due.missed else ""
        yield self._decided(Act.DUE, state, level=due.level, reason=missed)
        self._runs += 1
        begun = 0
        for number, key in enumerate(state.facts.vms):
            vm = self._vms[key]
            if vm.job_id is not None:
                other = self._jobs[vm.job_id].policy.facts.policy.name
                reason = f"at work in policy {other}"
                yield self._decided(Act.LEFT_OUT, state, vm, reason=reason)
                continue
            if vm.facts.problem:
                yield self._decided(Act.LEFT_OUT, state, vm, reason=vm.facts.problem)
                continue
            level = due.level
            if level != FULL and policy.full_is_due(last_full=vm.last_full, slot=due.due.due_at):
                level = COMPARE
            self._add(state, vm, level, f"{self._runs:08}-{number:08}")
            begun += 1
        if not begun:
            reason = state.facts.problem or "no VM can be backed up"
            yield self._decided(Act.NOTHING, state, reason=reason)

    def _add(self, state: _PolicyState, vm: _Vm, level: str, name: str) -> None:
        job_id = JobId(name)
        # what has no point yet is read whole, whatever is asked
        self._jobs[job_id] = _Job(state, vm, FULL if vm.last_good is None else level)
        vm.job_id = job_id
        state.jobs.add(job_id)
        self._queue.add(
            WaitingJob(
                job_id=job_id,
                priority=state.facts.policy.priority,
                last_good="" if vm.last_good is None else utc_text(vm.last_good),
                loads=in_order((*vm.facts.loads, state.gate)),
                ways=vm.facts.ways,
                lanes=min(vm.facts.storages, state.facts.policy.lanes),
            ),
            self._now,
        )

    def _stop(self, state: _PolicyState) -> Iterator[PlanDecision]:
        for job_id in sorted(state.jobs):
            job = self._jobs.pop(job_id)
            job.vm.job_id = None
            if job.begun:
                self._queue.ended(job_id)
                yield self._decided(Act.STOP, state, job.vm, level=job.level)
            else:
                waits = self._queue.waits(job_id, self._now)
                self._queue.take_back(job_id)
                reason = f"waited for {waits[-1].load.text}" if waits else ""
                yield self._decided(Act.UNBEGUN, state, job.vm, level=job.level, reason=reason)
        state.jobs.clear()

    # -- jobs -------------------------------------------------------------------------------------

    def _begin(self) -> Iterator[PlanDecision]:
        while (begun := self._queue.begin_next(self._now)) is not None:
            job = self._jobs[begun.job_id]
            job.begun = True
            facts = job.vm.facts
            seconds = facts.full_seconds if job.level in READS_WHOLE else facts.seconds
            ends_at = self._now + timedelta(seconds=max(seconds, 1.0))
            heapq.heappush(self._events, (ends_at, -1, begun.job_id))
            yield self._decided(
                Act.BEGIN,
                job.policy,
                job.vm,
                level=job.level,
                agent_id="" if begun.way is None else begun.way.agent_id,
                reason=_waited_text(begun),
            )

    def _end(self, job_id: JobId) -> Iterator[PlanDecision]:
        job = self._jobs.pop(job_id, None)
        if job is None:
            return  # it was stopped
        self._queue.ended(job_id)
        job.policy.jobs.discard(job_id)
        job.vm.job_id = None
        job.vm.last_good = self._now
        if job.level in READS_WHOLE:
            job.vm.last_full = self._now
        yield self._decided(Act.END, job.policy, job.vm, level=job.level)

    def _decided(
        self,
        act: Act,
        state: _PolicyState,
        vm: _Vm | None = None,
        *,
        level: str = "",
        agent_id: str = "",
        reason: str = "",
    ) -> PlanDecision:
        return PlanDecision(
            at=self._now,
            act=act,
            policy=state.facts.policy.name,
            vm="" if vm is None else vm.facts.name,
            level=level,
            agent_id=AgentId(agent_id),
            reason=reason,
        )


def _waited_text(begun: Begun) -> str:
    waits = [f"waited {wait.seconds:.0f} s for {wait.load.text}" for wait in begun.waits]
    return "; ".join([*waits, begun.lanes_text] if begun.lanes_text else waits)

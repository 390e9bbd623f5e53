"""The controller's scheduler, dispatcher and database on a clock that the test moves, with backups that only take time.

Everything decides and writes as in `controller run`; in place of a VM's backup stands a piece of work that ends at its
moment, and leaves a point. What was decided is told in the lines of `holdfast plan`.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import pytest

from holdfast_common.clock import utc_text
from holdfast_common.identity import JobId, LineageId, PointId, RunId, new_ulid
from holdfast_common.job_result import JobResult, Outcome
from holdfast_controller.decide.calendar import next_due
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.job_times import WAITED
from holdfast_controller.decide.level import FULL, INCREMENTAL
from holdfast_controller.decide.plan import Act, PlanDecision
from holdfast_controller.decide.windows import next_opening
from holdfast_controller.runs import engine as engine_module
from holdfast_controller.runs.back_up_image import ImageBackup
from holdfast_controller.runs.dispatch_notes import LANES
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.loads import BACKUPS
from holdfast_controller.runs.scheduler import Scheduler
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.jobs import JobRow
from support.one_process import OneProcess
from support.repositories import FixedClock
from support.waiting import wait_until

SECONDS = 60.0


@dataclass
class _Work:
    job: JobRow
    level: str
    go_on: threading.Event


class VirtualNights:
    """``seconds``: of each VM's incremental and full backups, by name. One thread's."""

    def __init__(
        self, world: World, clock: FixedClock, seconds: Mapping[str, tuple[float, float]]
    ) -> None:
        self.world = world
        self.clock = clock
        self.engine = Engine(world)
        self.engine.reconciled()
        self.scheduler = Scheduler(world, self.engine)
        self.decisions: list[PlanDecision] = []
        self._seconds = seconds
        self._works: dict[JobId, _Work] = {}
        self._lock = threading.Lock()
        self._ends: list[tuple[datetime, JobId]] = []
        self._told: set[tuple[JobId, Act]] = set()
        self._slots: dict[str, datetime] = {}
        self._taken: dict[str, str] = {}  # the newest run of each policy

    def walk(self, until: datetime) -> None:
        """From moment to moment, as something is due, opens, closes or ends."""
        self._look()
        while (moment := self._next_moment()) <= until:
            self.clock.moment = moment
            self._end_due()
            self._look()

    def lines(self) -> list[str]:
        """Decisions in the order of time; of one moment in the order of their text."""
        return sorted(each.line() for each in self.decisions)

    def work(self, job: JobRow, level: str) -> JobResult:
        """What a job's thread does: it is at work until its end is there, or it is to stop."""
        mine = _Work(job, level, threading.Event())
        with self._lock:
            self._works[job.job_id] = mine
        while not mine.go_on.wait(0.005):
            self.world.lifecycle.check(job.job_id)
        self._leave_point(job, level)
        return JobResult(outcome=Outcome.DONE)

    # -- inside -----------------------------------------------------------------------------------

    def _look(self) -> None:
        self.scheduler.look(self.clock.now())
        self._settle()

    def _next_moment(self) -> datetime:
        now = self.clock.now()
        moments = [end for end, _ in self._ends[:1]]
        for stored in self.world.policies.policies():
            moments.append(next_due(stored.policy.calendar, now))
            opening = next_opening(stored.policy.windows, now)
            moments += [
                moment
                for moment in (opening.opens_at, opening.closes_at)
                if moment is not None and moment > now
            ]
        return min(moments)

    def _end_due(self) -> None:
        ended = []
        while self._ends and self._ends[0][0] == self.clock.now():
            _, job_id = heapq.heappop(self._ends)
            if (work := self._works.pop(job_id, None)) is not None:
                work.go_on.set()
                ended.append((job_id, work))
        for job_id, work in ended:
            wait_until(partial(self._has_left, job_id), seconds=SECONDS, what="it ends")
            self._decided(Act.END, self._policy_of(work.job), work.job.subject, level=work.level)

    def _has_left(self, job_id: JobId) -> bool:
        return self.world.jobs.job(
            job_id
        ).ended and job_id not in self.engine.dispatcher.running_on(BACKUPS)

    def _settle(self) -> None:
        """Until every job that was begun is at work, and every one that was stopped has ended."""
        dispatcher = self.engine.dispatcher

        def is_settled() -> bool:
            stops = self.world.lifecycle.stops
            with self._lock:
                at_work = set(self._works)
            running = set(dispatcher.running_on(BACKUPS))
            return running <= at_work and not any(stops.why(job_id) for job_id in running)

        wait_until(is_settled, seconds=SECONDS, every_seconds=0.005, what="all are at work")
        self._tell_unbegun()
        self._tell_runs()
        for job_id, work in sorted(self._works.items()):
            job = self.world.jobs.job(job_id)
            if job.ended:
                del self._works[job_id]
                self._decided(Act.STOP, self._policy_of(job), job.subject, level=work.level)
            elif (job_id, Act.BEGIN) not in self._told:
                self._told.add((job_id, Act.BEGIN))
                self._begun(job, work.level)

    def _begun(self, job: JobRow, level: str) -> None:
        incremental, full = self._seconds[job.subject]
        ends_at = self.clock.now() + timedelta(seconds=full if level == FULL else incremental)
        heapq.heappush(self._ends, (ends_at, job.job_id))
        waits = [
            f"waited {float(event.detail.split()[0]):.0f} s for {event.event.removeprefix(WAITED)}"
            for event in self.world.jobs.events(job.job_id)
            if event.event.startswith(WAITED)
        ]
        waits += [
            event.detail for event in self.world.jobs.events(job.job_id) if event.event == LANES
        ]
        self._decided(
            Act.BEGIN,
            self._policy_of(job),
            job.subject,
            level=level,
            agent_id=job.agent_id,
            reason="; ".join(waits),
        )

    def _tell_runs(self) -> None:
        for stored in self.world.policies.policies():
            slot = self.world.policy_slots.last(stored.policy_id)
            if slot is None or self._slots.get(stored.policy_id) == slot.slot:
                continue
            self._slots[stored.policy_id] = slot.slot
            self._taken[stored.policy_id] = slot.run_id
            name = stored.policy.name
            level = INCREMENTAL
            if slot.run_id:
                level = str(self.world.runs.run(RunId(slot.run_id)).request["level"])
            missed = f"stands for {slot.missed} earlier moments" if slot.missed else ""
            self._decided(Act.DUE, name, level=level, reason=missed)
            for text in slot.told.split("; "):
                vm, _, why = text.partition(": left out, it is ")
                if why:
                    other = self._policy_of(self.world.jobs.job(JobId(why.rsplit(" ", 1)[1])))
                    self._decided(Act.LEFT_OUT, name, vm, reason=f"at work in policy {other}")

    def _tell_unbegun(self) -> None:
        for slot in self._taken.values():
            for job in self.world.jobs.jobs_of_run(RunId(slot)):
                never = (
                    job.state is JobState.INTERRUPTED and (job.job_id, Act.BEGIN) not in self._told
                )
                if not never or (job.job_id, Act.UNBEGUN) in self._told:
                    continue
                self._told.add((job.job_id, Act.UNBEGUN))
                waits = [
                    event.event
                    for event in self.world.jobs.events(job.job_id)
                    if event.event.startswith(WAITED)
                ]
                self._decided(
                    Act.UNBEGUN,
                    self._policy_of(job),
                    job.subject,
                    level=self._level_of(job),
                    reason=waits[-1] if waits else "",
                )

    def _level_of(self, job: JobRow) -> str:
        never = self.world.catalogue.latest(LineageId(job.lineage_id)) is None
        return FULL if never else job.level_asked

    def _policy_of(self, job: JobRow) -> str:
        return str(self.world.runs.run(job.run_id).request["policy"])

    def _leave_point(self, job: JobRow, level: str) -> None:
        point_id = PointId(new_ulid())
        self.world.jobs.set_plan(
            job.job_id,
            level=level,
            level_reason="",
            transport="",
            agent_id=job.agent_id,  # type: ignore[arg-type]  # its id
        )
        self.world.catalogue.add(
            PointRow(
                point_id=point_id,
                repository_id=self.world.keeper.repository_id,
                lineage_id=job.lineage_id,  # type: ignore[arg-type]  # a lineage's id
                job_id=job.job_id,
                vcenter_id=job.vcenter_id,
                instance_uuid=job.instance_uuid,
                vm_name=job.subject,
                created_at=utc_text(self.clock.now()),
                record="",
            )
        )

    def _decided(
        self,
        act: Act,
        policy: str,
        vm: str = "",
        *,
        level: str = "",
        agent_id: str = "",
        reason: str = "",
    ) -> None:
        self.decisions.append(
            PlanDecision(
                at=self.clock.now(),
                act=act,
                policy=policy,
                vm=vm,
                level=level,
                agent_id=agent_id,
                reason=reason,
            )
        )


class _TimedBackup(ImageBackup):
    """In place of a backup: planned and queued like one, but its work takes only time."""

    nights: VirtualNights

    def __call__(self, job: JobRow) -> JobResult:
        level = FULL if self._previous() is None else job.level_asked
        return self.nights.work(job, level)


@contextmanager
def virtual_nights(
    holdfast: OneProcess,
    monkeypatch: pytest.MonkeyPatch,
    *,
    begin: datetime,
    seconds: Mapping[str, tuple[float, float]],
) -> Iterator[VirtualNights]:
    """Over a controller that is ready; its own engine does nothing meanwhile."""
    clock = FixedClock()
    clock.moment = begin
    world = replace(holdfast.world, clock=clock)
    nights = VirtualNights(world, clock, seconds)
    with monkeypatch.context() as patched:
        backup = type("TimedBackup", (_TimedBackup,), {"nights": nights})
        patched.setattr(engine_module, "ImageBackup", backup)
        try:
            yield nights
        finally:
            nights.engine.close()
            world.stopping.clear()

"""After a crash, and every few minutes: what is ours and no longer wanted is undone; nothing else is touched.

Order within a job: disks detached, leases ended, snapshots removed, helper VMs destroyed. What cannot
be undone is a debt, shown to people and tried again. A job that a dead controller left unfinished is
interrupted, unless its point turns out to be committed; so is one whose thread ended before it did.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from holdfast_common.errors import (
    Cancelled,
    HoldfastError,
    Interrupted,
    NotFound,
    StoreFailed,
)
from holdfast_common.identity import AgentId, JobId
from holdfast_common.job_result import ErrorReport, JobResult, Outcome, Warned
from holdfast_common.job_spec import Attempt
from holdfast_controller.decide.job_state import END_EVENTS, ENDED, JobEvent, JobState
from holdfast_controller.ledger import EntryState, LedgerEntry
from holdfast_controller.runs.committed_points import committed_point, look_for_late_points
from holdfast_controller.runs.finished_restores import has_restored
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.results import PARTIAL_CODES, left_behind
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.vsphere.undo import undo_entries

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # how soon it is seen that a job's thread left something
AGENT_SETTLES_SECONDS = 0.5  # for a reconnected agent to say what it is at work on
LOST_AFTER_LEASE_SECONDS = 15.0
WORKERS_MAX = 64  # threads, which mostly wait for their vCenter
PULSE = "reconciler"
PULSE_SECONDS_MAX = 300.0  # a round only looks, but each look may wait for the database
LATE_POINTS = "late points"  # the one worker that is no vCenter's: it asks agents only
UNSETTLED_RETRY_SECONDS = 10.0  # such a job keeps its VM from being backed up again
# A job that waits for another attempt ends as interrupted, although an earlier one may have committed.
_CAN_BE_DONE = frozenset(JobState) - ENDED - {JobState.PLANNED, JobState.QUEUED}
_TO_BE_CLEANED = _CAN_BE_DONE - {JobState.CLEANING}


class Orphans:
    """Takes results of attempts that an earlier controller started. Thread-safe."""

    def __init__(self) -> None:
        self._world: World | None = None
        self._ready = threading.Event()
        self._results: dict[JobId, JobResult] = {}

    def attach(self, world: World) -> None:
        """From here on results can be taken."""
        self._world = world
        self._ready.set()

    def finished(self, agent_id: AgentId, attempt: Attempt, result: JobResult) -> None:
        """Remember it for the end of its job, when it comes from the job's own agent.

        A point that it tells of is not believed: the repository is asked when the job is settled, or,
        when it has ended already, when late points are looked for.
        """
        self._ready.wait(30)
        assert self._world is not None, "attached before the listeners were started"
        try:
            job = self._world.jobs.job(attempt.job_id)
        except NotFound as error:
            log.warning("a late result was not used", extra={"error": str(error)})
            return
        if job.agent_id != agent_id:
            log.warning(
                "a late result of another agent than the job's was not used",
                extra={"job_id": job.job_id, "agent_id": agent_id},
            )
            return
        if job.ended:
            self._world.attended.look_soon()
        else:
            self._results[attempt.job_id] = result

    def result(self, job_id: JobId) -> JobResult | None:
        """What came late for this job; None: nothing so far."""
        return self._results.get(job_id)


class Reconciler:
    """Gives back what is left, with one thread for each vCenter: one that hangs delays no other's.

    The thread that calls `run` only looks where there is something to do; it asks no vCenter anything.
    """

    def __init__(self, world: World, orphans: Orphans) -> None:
        self._world = world
        self._orphans = orphans
        self._started = world.clock.monotonic_seconds()
        self._lock = threading.Lock()
        self._workers: dict[str, threading.Thread] = {}
        self._tell: Callable[[frozenset[str]], None] = lambda _: None
        # read before anybody can ask for a new job: those are none of an earlier life
        self._unsettled = {job.job_id: job for job in world.jobs.unfinished()}
        self._of_earlier_life = frozenset(self._unsettled)
        left = {entry.vcenter_id for entry in world.ledger.open_entries()}
        self._unreconciled = left | {job.vcenter_id for job in self._unsettled.values()}

    def run(self, reconciled: Callable[[frozenset[str]], None]) -> None:
        """Look after everything until the controller stops.

        ``reconciled`` is told at which vCenters (empty: jobs that concern none) the first round has not
        ended yet, at once and whenever one ends: what an earlier life left elsewhere was looked after.
        """
        with self._lock:
            self._tell = reconciled
            self._tell(frozenset(self._unreconciled))
        self._world.pulses.expect(PULSE, within_seconds=PULSE_SECONDS_MAX)
        while not self._world.stopping.is_set():
            try:
                self.begin_round()
            except Exception:
                # A bug must not end the thread that has everything given back.
                log.exception("the reconciler failed; it goes on")
            self._pause()
        self._world.pulses.end(PULSE)

    def join(self, seconds: float) -> None:
        """Wait for the workers that are left, so long at most, after the controller was told to stop."""
        deadline = self._world.clock.monotonic_seconds() + seconds
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.join(max(0.0, deadline - self._world.clock.monotonic_seconds()))

    def begin_round(self) -> list[threading.Thread]:
        """Start a worker wherever something is to be done and none is at work yet; those at work."""
        self._find_unattended()
        wanted = sorted(self._vcenters_with_work())
        with self._lock:
            self._tell(frozenset(self._unreconciled))
            free = [each for each in wanted if each not in self._workers]
            if LATE_POINTS not in self._workers:
                self._begin(LATE_POINTS, lambda: look_for_late_points(self._world))
            for vcenter_id in free[: max(0, WORKERS_MAX - len(self._workers))]:
                self._begin(vcenter_id, partial(self._vcenter_round, vcenter_id))
            return list(self._workers.values())

    def sweep(self, vcenter_id: str) -> None:
        """Undo what is open in the ledger at one vCenter although its job has ended."""
        open_entries = self._world.ledger.open_entries(vcenter_id=vcenter_id)
        self._undo(vcenter_id, [entry for entry in open_entries if self._is_over(entry)])

    def _vcenters_with_work(self) -> set[str]:
        over = {
            each.vcenter_id for each in self._world.ledger.open_entries() if self._is_over(each)
        }
        with self._lock:
            unsettled = {job.vcenter_id for job in self._unsettled.values()}
            return over | unsettled | self._unreconciled

    def _find_unattended(self) -> None:
        """Jobs of this life whose thread ended, or was never begun, before they did."""
        found = self._world.attended.unattended(self._world.jobs.unfinished)
        with self._lock:
            for job in found:
                self._unsettled.setdefault(job.job_id, job)

    def _pause(self) -> None:
        """Until the next round: sooner when a job's thread left something."""
        pause = self._world.configuration.reconcile_seconds
        with self._lock:
            if self._unsettled or self._unreconciled:
                pause = min(pause, UNSETTLED_RETRY_SECONDS)
        clock = self._world.clock
        ends_at = clock.monotonic_seconds() + pause
        while (left := ends_at - clock.monotonic_seconds()) > 0:
            self._world.pulses.beat(PULSE)
            if self._world.stopping.wait(min(left, LOOK_SECONDS)):
                return
            if self._world.attended.is_to_look():
                return

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        def carry_out() -> None:
            try:
                work()
            except Exception:
                # A bug must not keep what crashes leave behind from being given back later.
                log.exception("the reconciler failed; it goes on", extra={"vcenter": name})
            finally:
                with self._lock:
                    del self._workers[name]

        self._workers[name] = threading.Thread(
            target=carry_out, name=f"reconciler {name}", daemon=True
        )
        try:
            self._workers[name].start()
        except RuntimeError as error:  # the machine has no thread left: the next round tries again
            del self._workers[name]
            log.warning("the reconciler has no thread", extra={"error": str(error)})

    def _vcenter_round(self, vcenter_id: str) -> None:
        try:
            self._settle_left(vcenter_id)
        except Exception:
            # As above, and a job that cannot be settled must not keep other leftovers.
            log.exception("the reconciler failed; it goes on", extra={"vcenter": vcenter_id})
        if self._world.stopping.is_set():
            return
        try:
            self.sweep(vcenter_id)
        finally:
            with self._lock:
                self._unreconciled.discard(vcenter_id)
                # under the lock, so that an older answer never comes after a newer one
                self._tell(frozenset(self._unreconciled))

    def _settle_left(self, vcenter_id: str) -> None:
        """Jobs of an earlier life at one vCenter, as far as they can be settled now."""
        with self._lock:
            left = [job for job in self._unsettled.values() if job.vcenter_id == vcenter_id]
            is_first = vcenter_id in self._unreconciled
        for job in left:
            if is_first:
                self._wait_for_agent(job, self._started)
        for job in left:
            if self._world.stopping.is_set():
                return
            if self._settled(job):
                with self._lock:
                    del self._unsettled[job.job_id]

    def _settled(self, job: JobRow) -> bool:
        """Whether a job of an earlier life has ended now; what hinders it is logged."""
        try:
            now = self._world.jobs.job(job.job_id)
            if not now.ended:
                self._settle(now)
            self._world.attended.settled(job.job_id)
        except HoldfastError as error:
            log.warning(
                "an unfinished job could not be settled yet",
                extra={"job_id": job.job_id, "error": str(error)},
            )
            return False
        return True

    def _is_over(self, entry: LedgerEntry) -> bool:
        try:
            return self._world.jobs.job(entry.job_id).ended
        except NotFound:
            return True  # a database was put back: the job is not there, the entry is

    def _undo(self, vcenter_id: str, entries: list[LedgerEntry]) -> None:
        if not entries:
            return
        try:
            session = self._world.vcenters.session(vcenter_id)
            undo_entries(session, self._world.ledger, entries)
        except HoldfastError as error:
            log.warning(
                "a vCenter's leftovers could not be undone yet",
                extra={"vcenter": vcenter_id, "error": str(error)},
            )
            for entry in entries:
                if self._world.ledger.entry(entry.entry_id).state is not EntryState.GONE:
                    self._world.ledger.debt(entry.entry_id, error.line())

    def _wait_for_agent(self, job: JobRow, started: float) -> None:
        """Until the job's agent has stopped its work on it, or can no longer hold its lease."""
        if not job.agent_id:
            return
        asked = BackupRequest.again(self._world.runs.run(job.run_id).request).resume_seconds
        lease = max(asked, self._world.configuration.job_lease_seconds) + LOST_AFTER_LEASE_SECONDS
        clock = self._world.clock
        seen: float | None = None
        while clock.monotonic_seconds() < started + lease:
            if self._orphans.result(job.job_id) is not None:
                return
            connected = {agent.agent_id for agent in self._world.link.connected()}
            if job.agent_id in connected and not self._world.link.may_be_at_work(job.job_id):
                seen = seen if seen is not None else clock.monotonic_seconds()
                if clock.monotonic_seconds() - seen > AGENT_SETTLES_SECONDS:
                    return
            else:
                seen = None
            if self._world.stopping.wait(0.1):
                return

    def _settle(self, job: JobRow) -> None:
        world = self._world
        # a job writes of its own vCenter only
        self._undo(job.vcenter_id, world.ledger.open_entries(job_id=job.job_id))
        try:
            has_reached_its_aim = self._has_reached_its_aim(job)
        except HoldfastError:
            if not job.cancel_asked:
                raise
            has_reached_its_aim = False  # a point that it has all the same is looked for later on
        if has_reached_its_aim and job.state in _CAN_BE_DONE:
            self._end_as_done(job)
            return
        outcome, report = self._end_without_aim(job)
        world.jobs.set_result(job.job_id, error=report, disks=job.disks, warnings=job.warnings)
        if outcome is not Outcome.INTERRUPTED and job.state in _TO_BE_CLEANED:
            world.jobs.advance(job.job_id, JobEvent.CLEAN)
        world.jobs.advance(job.job_id, END_EVENTS[outcome])

    def _end_without_aim(self, job: JobRow) -> tuple[Outcome, ErrorReport]:
        if job.cancel_asked:
            return Outcome.CANCELLED, ErrorReport.of(Cancelled("cancelled by an operator"))
        if job.job_id in self._of_earlier_life:
            message = "the controller was stopped in the middle of the job"
            return Outcome.INTERRUPTED, ErrorReport.of(
                Interrupted(message, advice="start it again")
            )
        why = self._world.attended.why_left(job.job_id)
        return Outcome.FAILED, why or ErrorReport.of(
            StoreFailed("the job was written down, but could not be begun")
        )

    def _has_reached_its_aim(self, job: JobRow) -> bool:
        """Whether all that a job was for had happened. Raises: when it cannot be known yet."""
        if job.kind == "backup":
            return committed_point(self._world, job) is not None
        return has_restored(self._world, job.job_id)

    def _end_as_done(self, job: JobRow) -> None:
        jobs = self._world.jobs
        point = self._world.catalogue.of_job(job.job_id)
        left = left_behind(self._world.job_ledger(job))
        late = self._orphans.result(job.job_id) or JobResult(outcome=Outcome.DONE)
        warnings = (*job.warnings, *late.warnings, *left)
        if (
            point is None
        ):  # a restore: its disks had been read back, or it would not have come so far
            missed = "the controller was stopped at the very end: if the VM was to be started, it was not"
            warnings = (*warnings, Warned(code="interrupted", message=missed))
        jobs.set_result(
            job.job_id,
            error=None,
            disks=late.disks or job.disks,
            warnings=warnings,
            point_id=None if point is None else point.point_id,
        )
        if job.state is not JobState.CLEANING:
            jobs.advance(job.job_id, JobEvent.CLEAN)
        lowered = any(warned.code in PARTIAL_CODES for warned in warnings)
        jobs.advance(job.job_id, JobEvent.END_PARTIAL if lowered else JobEvent.END_DONE)

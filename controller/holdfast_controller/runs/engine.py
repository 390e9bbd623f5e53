"""Takes requests, plans them as jobs, and carries the jobs out as the dispatcher lets them begin."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial

from holdfast_common.errors import HoldfastError, Interrupted, Refused
from holdfast_common.identity import JobId
from holdfast_common.job_result import ErrorReport
from holdfast_controller.decide.dispatch import Begun, WaitingJob, Way
from holdfast_controller.decide.job_state import JobEvent, JobState
from holdfast_controller.decide.load_limits import LoadKey, LoadKind, in_order
from holdfast_controller.runs.back_up_image import ImageBackup
from holdfast_controller.runs.chosen_vms import chosen_vms
from holdfast_controller.runs.dispatch_notes import note_dispatch, note_told, note_waits
from holdfast_controller.runs.dispatcher import Dispatcher
from holdfast_controller.runs.finished_restores import unless_restored
from holdfast_controller.runs.inventory_watch import InventoryWatch
from holdfast_controller.runs.latency_watch import LatencyWatch
from holdfast_controller.runs.lifecycle import bug_report
from holdfast_controller.runs.loads import (
    RESTORES,
    backup_loads,
    stream_limits,
    vcenter_gate,
    ways_of,
)
from holdfast_controller.runs.moved_vms import WaitingVm, as_it_is_now
from holdfast_controller.runs.placing import SeenFromHere
from holdfast_controller.runs.planned_job import Planned
from holdfast_controller.runs.repository_care import RepositoryCare
from holdfast_controller.runs.repository_jobs import RepositoryJobs
from holdfast_controller.runs.requests import (
    BackupRequest,
    CheckRequest,
    PruneRequest,
    RepairRequest,
    RestoreDiskRequest,
    RestoreVmRequest,
    RetryRequest,
    Started,
)
from holdfast_controller.runs.restore_disk import RestoreDisk
from holdfast_controller.runs.restore_in_place import RestoreInPlace
from holdfast_controller.runs.restore_vm import RestoreVm
from holdfast_controller.runs.retries import jobs_to_retry, retry_of
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import Also, nothing_else, refuse_all_refused

log = logging.getLogger(__name__)

PULSE = "dispatcher"
PULSE_SECONDS_MAX = 300.0  # beyond a round of the reconciler, which looks after what waits


class Engine:
    """Runs. Thread-safe; ended once."""

    def __init__(self, world: World) -> None:
        self._world = world
        configuration = world.configuration
        self.dispatcher = Dispatcher(
            stream_limits(configuration.jobs_at_once_max, configuration.limits),
            world.clock,
            carry_out=self._carry_out,
            as_it_is_now=self._as_it_is_now,
        )
        self.latency = LatencyWatch(world, self.dispatcher)
        self.care = RepositoryCare(world, world.prunes)
        self.of_repository = RepositoryJobs(world, self.care, self._start)
        self._works: dict[JobId, Planned] = {}
        self._inventories = InventoryWatch(world)
        self._lock = threading.Lock()
        self._closed = False
        self._beaten = False

    def reconciled(self, but: Collection[str] = ()) -> None:
        """What an earlier life of this controller left was looked after, ``but`` at these vCenters.

        Jobs elsewhere may start; an empty id stands for jobs that concern no vCenter. Told again and
        again, which also begins jobs for which no thread could be started before.
        """
        if not self._closed:
            self.dispatcher.shut_only(LoadKind.VCENTER, [vcenter_gate(each) for each in but])
            self._beat()

    def start_backup(self, request: BackupRequest, *, dry_run: bool) -> Started:
        """A VM that cannot be backed up now holds up no other: its job is there, and has failed.

        Raises: NothingProtected, NotFound, NoRepository; Refused when nothing could be started.
        """
        self._check_ready()  # before a vCenter is asked
        told = self._inventories.before_selecting(
            (*request.selectors, *request.excludes), vcenter=request.vcenter
        )
        wanted = [(request, known) for known in chosen_vms(self._world, request)]
        return self.start_backups(request, wanted, told, dry_run=dry_run)

    def retry(self, asked: RetryRequest, *, dry_run: bool) -> Started:
        """Back up again the VMs of a run that ended without having done it.

        Raises: NotFound, UsageError, Refused, NoRepository.
        """
        self._check_ready()
        jobs = jobs_to_retry(self._world, asked)
        told = self._inventories.before_selecting([job.instance_uuid for job in jobs])
        retry = retry_of(self._world, asked, jobs)
        request = replace(
            retry.request, selectors=tuple(each.vm.instance_uuid for each in retry.vms)
        )
        wanted = [(request, known) for known in retry.vms]
        return self.start_backups(request, wanted, [*told, *retry.told], dry_run=dry_run)

    def read_inventories(self, selectors: Sequence[str]) -> list[str]:
        """Have them show VMs as they are now, before they are selected; what could not be read is told."""
        return self._inventories.before_selecting(selectors)

    def start_backups(
        self,
        request: BackupRequest,
        wanted: Sequence[tuple[BackupRequest, KnownVm]],
        told: Sequence[str],
        *,
        dry_run: bool,
        also: Also = nothing_else,
    ) -> Started:
        """One run of ``request``, each VM asked for in its own way; ``told``: what people must know of it.

        ``also`` writes down what must be there with the run, or not at all. Raises: Refused when nothing could be
        started; what ``also`` raises.
        """
        self._check_ready()
        plan, jobs, seen = list(told), [], SeenFromHere(self._world)
        for asked, seen_vm in wanted:
            known = replace(seen_vm, vm=asked.disks.of_vm(seen_vm.vm))
            work = ImageBackup(self._world, asked, known)
            refused: ErrorReport | None = None
            ways: tuple[Way, ...] = ()
            try:
                found = seen.ways(known, asked)
                plan += [*work.plan(found), *seen.told_of_role(known)]
                ways = ways_of(known, found)
            except Refused as error:
                refused = ErrorReport.of(error)
                plan.append(f"{known.vm.name}: NOT backed up: {error}")
            jobs.append(
                Planned(
                    job=replace(work.new_job(), refused=refused),
                    work=work,
                    loads=(*self._loads(seen, known), *asked.gates),
                    ways=ways,
                    priority=asked.priority,
                    last_good=work.last_good(),
                    attempts_max=asked.attempts_max,
                    lanes=work.lanes_wanted,
                    begins=work.begins,
                    vm=WaitingVm(
                        vcenter_id=known.vcenter_id,
                        instance_uuid=known.vm.instance_uuid,
                        request=asked,
                    ),
                )
            )
        refuse_all_refused([each.job for each in jobs])
        if dry_run:
            return Started(run_id=None, job_ids=(), plan=tuple(plan))
        started = self._start("backup", request.saved(), jobs, plan, also=also)
        assert started.run_id is not None, "it was no dry run"
        note_told(self._world, started.run_id, told)
        return started

    def start_restore_vm(self, request: RestoreVmRequest, *, dry_run: bool) -> Started:
        """Raises: NotFound, Refused, UsageError, NoRepository."""
        self._world.keeper.keys()
        kind = RestoreInPlace if request.in_place else RestoreVm
        work = kind(self._world, request)
        plan = work.plan()
        if dry_run:
            return Started(run_id=None, job_ids=(), plan=tuple(plan))
        until_restored = partial(unless_restored, self._world, work)
        planned = Planned(job=work.new_job(), work=until_restored, loads=(RESTORES,))
        return self._start("restore", {"point": request.point_id}, [planned], plan)

    def start_restore_disk(self, request: RestoreDiskRequest, *, dry_run: bool) -> Started:
        """Raises: NotFound, Refused, NoRepository."""
        self._world.keeper.keys()
        work = RestoreDisk(self._world, request)
        plan = work.plan()
        if dry_run:
            return Started(run_id=None, job_ids=(), plan=tuple(plan))
        planned = Planned(job=work.new_job(), work=work, loads=(RESTORES,))
        return self._start("restore", {"point": request.point_id}, [planned], plan)

    def start_check(self, request: CheckRequest, *, also: Also = nothing_else) -> Started:
        """Raises: NotFound, Refused, NoRepository."""
        return self.of_repository.check(request, also=also)

    def start_repair(self, request: RepairRequest) -> Started:
        """Raises: Locked when a prune or a repair has not ended, NotFound, Refused, NoRepository."""
        return self.of_repository.repair(request)

    def start_prune(self, request: PruneRequest, *, also: Also = nothing_else) -> Started:
        """Raises: Locked when a prune or a repair has not ended, NoRepository."""
        return self.of_repository.prune(request, also=also)

    def start_probes(self, planned: Planned, plan: Sequence[str]) -> Started:
        """Begin the first part of a qualification. Raises: Refused, NoRepository."""
        self._check_ready()
        return self._start("qualify", {"vm": planned.job.instance_uuid}, [planned], plan)

    def watch_inventories(self) -> None:
        """Read them every few minutes until the controller stops."""
        self._inventories.run()

    def cancel(self, job_id: JobId) -> JobRow:
        """Ask a job to stop; one that has not begun ends at once. Raises: NotFound, Refused."""
        job = self._world.jobs.ask_cancel(job_id)
        if not self._taken_back(job_id):
            return job
        try:
            self._world.jobs.advance(job_id, JobEvent.END_CANCELLED)
        except HoldfastError as error:
            self._world.attended.leave(job_id, ErrorReport.of(error))  # the reconciler ends it
            raise
        self._world.attended.leave(job_id)
        return self._world.jobs.job(job_id)

    def stop_all(self, load: LoadKey, why: Interrupted) -> None:
        """Stop whatever weighs on it or passed it: at once what waits, cleanly what is at work."""
        self.stop_waiting(load, why)
        self.stop_running(load, why)

    def stop_running(self, load: LoadKey, why: Interrupted) -> int:
        """How many are asked to give everything back and to end as interrupted."""
        found = self.dispatcher.running_on(load)
        for job_id in found:
            self._world.lifecycle.stops.ask(job_id, why)
        return len(found)

    def stop_waiting(self, load: LoadKey, why: Interrupted) -> None:
        """End what has not begun as interrupted."""
        self.end_waiting(self.dispatcher.waiting_on(load), why)

    def end_waiting(self, job_ids: Iterable[JobId], why: Interrupted) -> None:
        """End those of them that have not begun as interrupted."""
        report = ErrorReport.of(why)
        for job_id in job_ids:
            waits = self.dispatcher.waits(job_id)
            if not self._taken_back(job_id):
                continue
            note_waits(self._world, job_id, waits)
            try:
                self._world.jobs.set_result(job_id, error=report)
                self._world.jobs.advance(job_id, JobEvent.END_INTERRUPTED, report.text())
            except HoldfastError:
                self._world.attended.leave(job_id, report)  # the reconciler ends it
                continue
            self._world.attended.leave(job_id)

    def close(self) -> None:
        """Stop cleanly: running jobs give everything back and end as interrupted."""
        self._world.stopping.set()
        with self._lock:
            self._closed = True
        self._world.pulses.end(PULSE)
        self.latency.close()
        self.dispatcher.join()  # what waits ends as well

    def _beat(self) -> None:
        """Jobs that could begin have begun: the dispatcher lives."""
        pulses = self._world.pulses
        if not self._beaten:
            self._beaten = True
            rounds = self._world.configuration.reconcile_seconds
            pulses.expect(PULSE, within_seconds=rounds + PULSE_SECONDS_MAX)
        if self.dispatcher.is_moving():
            pulses.beat(PULSE)

    def _check_ready(self) -> None:
        self._world.keeper.keys()
        self._world.keeper.check_alone()
        if not self._world.settings.get(names.SHEET_CONFIRMED_AT):
            raise Refused(
                "the recovery sheet was never confirmed, and without it a lost controller loses everything",
                advice="type part of it back with `holdfast key recovery`",
            )

    def _loads(self, seen: SeenFromHere, known: KnownVm) -> tuple[LoadKey, ...]:
        return backup_loads(seen.around(known.vcenter_id), known, braked=self.latency.brakes)

    def _start(
        self,
        kind: str,
        request: dict[str, object],
        planned: Sequence[Planned],
        plan: Sequence[str],
        *,
        also: Also = nothing_else,
    ) -> Started:
        if self._world.stopping.is_set():
            raise Refused("the controller is stopping")
        attended = self._world.attended
        with attended.planning():
            jobs = [each.job for each in planned]
            run_id = self._world.jobs.create_run(kind=kind, request=request, jobs=jobs, also=also)
            rows = self._world.jobs.jobs_of_run(run_id)
            for row in rows:
                if not row.ended:
                    attended.attend(row.job_id)
        waiting = []
        for row, each in zip(rows, planned, strict=True):
            if row.ended:
                continue  # it was refused
            try:
                self._world.jobs.advance(row.job_id, JobEvent.QUEUE)
            except HoldfastError as error:
                # the others go on, and the reconciler ends this one
                attended.leave(row.job_id, ErrorReport.of(error))
                continue
            waiting.append(self._waiting(row, each))
        self._queue(waiting)
        return Started(run_id=run_id, job_ids=tuple(row.job_id for row in rows), plan=tuple(plan))

    def _waiting(self, row: JobRow, planned: Planned) -> WaitingJob:
        with self._lock:
            self._works[row.job_id] = planned
        return WaitingJob(
            job_id=row.job_id,
            priority=planned.priority,
            last_good=planned.last_good,
            loads=in_order((*planned.loads, vcenter_gate(row.vcenter_id))),
            ways=planned.ways,
            lanes=planned.lanes,
        )

    def _as_it_is_now(self, job: WaitingJob) -> WaitingJob:
        with self._lock:
            planned = self._works.get(job.job_id)
        if planned is None or planned.vm is None:
            return job
        return as_it_is_now(self._world, job, planned.vm, braked=lambda: self.latency.brakes)

    def _queue(self, jobs: Sequence[WaitingJob]) -> None:
        with self._lock:
            closed = self._closed
        if not closed:
            self.latency.expect(jobs)
            self.dispatcher.add(*jobs)
            return
        for job in jobs:
            self._works.pop(job.job_id, None)
            self._world.attended.leave(job.job_id, _STOPPING)

    def _taken_back(self, job_id: JobId) -> bool:
        """Whether a job had not begun, and now never will."""
        if not self.dispatcher.take_back(job_id):
            return False
        with self._lock:
            self._works.pop(job_id, None)
        return True

    def _carry_out(self, begun: Begun) -> None:
        """However this ends, the job is no longer attended to; the reconciler ends what has not ended."""
        world = self._world
        job_id = begun.job_id
        why: ErrorReport | None = None
        try:
            with self._lock:
                planned = self._works.pop(job_id)
            if world.jobs.job(job_id).state is JobState.QUEUED:
                note_dispatch(world, begun)
                planned.begins(begun)
                world.lifecycle.carry_out(job_id, planned.work, attempts_max=planned.attempts_max)
            if world.ledger.open_entries(job_id=job_id):
                world.attended.look_soon()
        except HoldfastError as error:
            log.exception("a job's thread ended before its job", extra={"job_id": job_id})
            why = ErrorReport.of(error)
        except BaseException as error:
            # Not even a bug, or an exit somewhere below, may leave a job that never ends.
            log.exception("a job's thread failed", extra={"job_id": job_id})
            why = bug_report(error)
        finally:
            world.attended.leave(job_id, why)


_STOPPING = ErrorReport.of(Interrupted("the controller is stopping"))

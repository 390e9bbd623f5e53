"""Takes requests, plans them as jobs, and carries the jobs out on a bounded number of threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from holdfast_common.errors import NothingProtected, Refused, UsageError
from holdfast_common.identity import JobId
from holdfast_controller.decide.job_state import JobEvent, JobState
from holdfast_controller.runs.back_up_image import ImageBackup
from holdfast_controller.runs.check_points import CheckPoints
from holdfast_controller.runs.lifecycle import JobWork
from holdfast_controller.runs.requests import (
    BackupRequest,
    CheckRequest,
    RestoreDiskRequest,
    RestoreVmRequest,
    Started,
)
from holdfast_controller.runs.restore_disk import RestoreDisk
from holdfast_controller.runs.restore_in_place import RestoreInPlace
from holdfast_controller.runs.restore_vm import RestoreVm
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store import settings as names
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow, NewJob

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Held:
    """A job that is to be begun."""

    vcenter_id: str
    job_id: JobId
    work: JobWork


class Engine:
    """Runs. Thread-safe; ended once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._threads = ThreadPoolExecutor(
            max_workers=world.configuration.jobs_at_once_max, thread_name_prefix="job"
        )
        self._lock = threading.Lock()
        self._closed = False
        self._unreconciled: frozenset[str] | None = None  # None: all vCenters, known or not
        self._held: list[_Held] = []

    def reconciled(self, but: Collection[str] = ()) -> None:
        """What an earlier life of this controller left was looked after, ``but`` at these vCenters.

        Jobs elsewhere may start; an empty id stands for jobs that concern no vCenter.
        """
        with self._lock:
            if self._closed:
                return
            self._unreconciled = frozenset(but)
            held, self._held = self._held, []
            for each in held:
                self._begin_or_hold(each)

    def start_backup(self, request: BackupRequest, *, dry_run: bool) -> Started:
        """Raises: NothingProtected, NotFound, Refused, NoRepository; nothing was started then."""
        self._check_ready()
        chosen = self._chosen(request)
        works = [ImageBackup(self._world, request, known) for known in chosen]
        plan = [line for work in works for line in work.plan()]
        if dry_run:
            return Started(run_id=None, job_ids=(), plan=tuple(plan))
        jobs = [
            NewJob(
                kind="backup",
                subject=known.vm.name,
                vcenter_id=known.vcenter_id,
                instance_uuid=known.vm.instance_uuid,
                lineage_id=lineage_of(
                    vcenter_instance_uuid=self._world.vcenters.table.vcenter(
                        known.vcenter_id
                    ).instance_uuid,
                    vm_instance_uuid=known.vm.instance_uuid,
                ),
                level_asked=request.level,
                transport=request.transport,
            )
            for known in chosen
        ]
        return self._start("backup", {"vms": list(request.selectors)}, jobs, works, plan)

    def start_restore_vm(self, request: RestoreVmRequest, *, dry_run: bool) -> Started:
        """Raises: NotFound, Refused, UsageError, NoRepository."""
        self._world.keeper.keys()
        kind = RestoreInPlace if request.in_place else RestoreVm
        work = kind(self._world, request)
        plan = work.plan()
        if dry_run:
            return Started(run_id=None, job_ids=(), plan=tuple(plan))
        return self._start("restore", {"point": request.point_id}, [work.new_job()], [work], plan)

    def start_restore_disk(self, request: RestoreDiskRequest, *, dry_run: bool) -> Started:
        """Raises: NotFound, Refused, NoRepository."""
        self._world.keeper.keys()
        work = RestoreDisk(self._world, request)
        plan = work.plan()
        if dry_run:
            return Started(run_id=None, job_ids=(), plan=tuple(plan))
        return self._start("restore", {"point": request.point_id}, [work.new_job()], [work], plan)

    def start_check(self, request: CheckRequest) -> Started:
        """Raises: NotFound, Refused, NoRepository."""
        self._world.keeper.keys()
        work = CheckPoints(self._world, request)
        return self._start("check", {}, [work.new_job()], [work], work.plan())

    def cancel(self, job_id: JobId) -> JobRow:
        """Ask a job to stop; one that has not begun ends at once. Raises: NotFound, Refused."""
        return self._world.jobs.ask_cancel(job_id)

    def close(self) -> None:
        """Stop cleanly: running jobs give everything back and end as interrupted."""
        self._world.stopping.set()
        self.reconciled()  # what is held ends as well: nothing starts any more
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _check_ready(self) -> None:
        self._world.keeper.keys()
        if not self._world.settings.get(names.SHEET_CONFIRMED_AT):
            raise Refused(
                "the recovery sheet was never confirmed, and without it a lost controller loses everything",
                advice="type part of it back with `holdfast key recovery`",
            )

    def _chosen(self, request: BackupRequest) -> list[KnownVm]:
        chosen = self._world.vcenters.inventory.select(request.selectors)
        if request.vcenter:
            chosen = [known for known in chosen if known.vcenter_name == request.vcenter]
        names_seen: dict[str, str] = {}
        for known in chosen:
            exact = known.vm.name in request.selectors
            if exact and names_seen.setdefault(known.vm.name, known.vcenter_id) != known.vcenter_id:
                raise UsageError(
                    "a VM of this name is in more than one vCenter",
                    name=known.vm.name,
                    advice="add --vcenter",
                )
        if not chosen:
            raise NothingProtected("no VM is selected", vcenter=request.vcenter)
        return chosen

    def _start(
        self,
        kind: str,
        request: dict[str, object],
        jobs: Sequence[NewJob],
        works: Sequence[JobWork],
        plan: Sequence[str],
    ) -> Started:
        if self._world.stopping.is_set():
            raise Refused("the controller is stopping")
        run_id = self._world.jobs.create_run(kind=kind, request=request, jobs=jobs)
        rows = self._world.jobs.jobs_of_run(run_id)
        for row, work in zip(rows, works, strict=True):
            self._world.jobs.advance(row.job_id, JobEvent.QUEUE)
            with self._lock:
                self._begin_or_hold(_Held(row.vcenter_id, row.job_id, work))
        return Started(run_id=run_id, job_ids=tuple(row.job_id for row in rows), plan=tuple(plan))

    def _begin_or_hold(self, job: _Held) -> None:
        """A job that has to wait takes no thread from those that have not."""
        if self._unreconciled is None or job.vcenter_id in self._unreconciled:
            self._held.append(job)
        elif not self._closed:
            self._threads.submit(self._carry_out, job.job_id, job.work)

    def _carry_out(self, job_id: JobId, work: JobWork) -> None:
        try:
            if self._world.jobs.job(job_id).state is JobState.QUEUED:
                self._world.lifecycle.carry_out(job_id, work)
        except Exception:
            # Not an error of a job: those end it. The reconciler marks it when it finds it.
            log.exception("a job's thread failed", extra={"job_id": job_id})

"""Trying jobs of an earlier run again: the VMs of those, asked for as they were."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_common.errors import Refused, UsageError
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.retries import retry_kind
from holdfast_controller.runs.requests import BackupRequest, RetryRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """``told``: what of the run is not tried again although it was meant, and why."""

    request: BackupRequest
    vms: tuple[KnownVm, ...]
    told: tuple[str, ...]


def jobs_to_retry(world: World, asked: RetryRequest) -> list[JobRow]:
    """Those of the run that are meant; a run that was paused need not have ended.

    Raises: NotFound, UsageError (no backup), Refused (it runs, or none is).
    """
    run = world.runs.run(asked.run_id)
    if run.kind != "backup":
        raise UsageError("only backups are tried again", run=run.run_id, kind=run.kind)
    if not run.finished_at and not asked.codes:
        raise Refused(
            "the run has not ended",
            run=run.run_id,
            advice=f"wait for it with `holdfast job follow {run.run_id}`",
        )
    jobs = [
        job
        for job in world.jobs.jobs_of_run(run.run_id)
        if retry_kind(job.state, began=_began(world, job)) in asked.kinds
        and (not asked.codes or (job.error is not None and job.error.code in asked.codes))
    ]
    if not jobs:
        raise Refused(
            "no job of this run ended so",
            run=run.run_id,
            kinds=", ".join(sorted(asked.kinds)),
            advice=f"see `holdfast job list --run {run.run_id}`",
        )
    return jobs


def retry_of(world: World, asked: RetryRequest, jobs: list[JobRow]) -> Retry:
    """What to ask for. A VM is the same one by its identity, whatever it is called now.

    Raises: Refused, when none of them is there any more.
    """
    known = {
        (each.vcenter_id, each.vm.instance_uuid): each for each in world.vcenters.inventory.vms()
    }
    found = {job.job_id: known.get((job.vcenter_id, job.instance_uuid)) for job in jobs}
    told = tuple(
        f"{job.subject}: NOT tried again: it is in the inventory no more"
        for job in jobs
        if found[job.job_id] is None
    )
    vms = tuple(vm for vm in found.values() if vm is not None)
    if not vms:
        raise Refused("none of these VMs is in the inventory any more", run=asked.run_id)
    request = BackupRequest.again(world.runs.run(asked.run_id).request)
    return Retry(request=request, vms=vms, told=told)


def _began(world: World, job: JobRow) -> bool:
    return any(event.event == JobState.PREFLIGHT for event in world.jobs.events(job.job_id))

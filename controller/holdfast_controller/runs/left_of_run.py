"""What is left to be done of a policy's run: VMs whose backup was stopped from outside, or failed and may not again.

Judged by each VM's newest backup, whoever began it, so nothing is done twice and a VM that is at work is only waited
for. Between `policy_runs` and the job table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast_common.clock import parse_utc
from holdfast_common.identity import RunId
from holdfast_controller.decide.begin_again import (
    ENDED_LOOKED_AT,
    FIRST_PAUSE,
    EndedBackup,
    wait_before,
)
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftVm:
    """``job``: its newest backup, which brought no point. ``was_stopped``: it did not fail. ``wait``: until it may begin."""

    job: JobRow
    known: KnownVm
    was_stopped: bool
    wait: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """``vms``: to be begun now. ``is_all``: nothing else is left, now or later. ``told``: for people."""

    vms: tuple[LeftVm, ...]
    is_all: bool
    told: tuple[str, ...] = ()


def left_of_run(world: World, run_id: RunId, now: datetime) -> Left:
    """Raises: NotFound, StoreFailed, Locked."""
    is_over = bool(world.runs.run(run_id).finished_at)
    jobs = [job for job in world.jobs.without_point(run_id) if _ended(job).is_left]
    if not jobs:
        return Left(vms=(), is_all=is_over)
    known = {
        (each.vcenter_id, each.vm.instance_uuid): each for each in world.vcenters.inventory.vms()
    }
    busy = busy_vms(world)
    left, told, waited_for = list[LeftVm](), list[str](), 0
    for job in jobs:
        identity = (job.vcenter_id, job.instance_uuid)
        if identity in busy:
            waited_for += 1
            continue
        newest = world.jobs.newest_backups(
            vcenter_id=job.vcenter_id, instance_uuid=job.instance_uuid, limit=ENDED_LOOKED_AT
        )
        wait = wait_before([_ended(each) for each in newest], now)
        if wait is None:
            continue
        if identity not in known:
            told.append(f"{job.subject}: it is in the inventory no more")
            continue
        left.append(
            LeftVm(
                job=newest[0],
                known=known[identity],
                was_stopped=_ended(newest[0]).was_stopped,
                wait=wait,
            )
        )
    vms = _begun_now(left)
    is_all = is_over and not waited_for and len(vms) == len(left)
    return Left(vms=vms, is_all=is_all, told=tuple(told))


def busy_vms(world: World) -> dict[tuple[str, str], str]:
    """VMs at work by vCenter and instance uuid, with the job."""
    return {
        (job.vcenter_id, job.instance_uuid): job.job_id
        for job in world.jobs.unfinished()
        if job.instance_uuid
    }


def _begun_now(left: list[LeftVm]) -> tuple[LeftVm, ...]:
    """What failed is begun together with what failed soon after it: not a run for each VM."""
    at_once = timedelta(0)
    is_due = any(each.wait == at_once for each in left if not each.was_stopped)
    failed_max = FIRST_PAUSE if is_due else at_once
    return tuple(
        each for each in left if each.wait <= (at_once if each.was_stopped else failed_max)
    )


def _ended(job: JobRow) -> EndedBackup:
    error = job.error
    return EndedBackup(
        state=job.state,
        finished_at=parse_utc(job.finished_at),
        code="" if error is None else error.code,
        # who was never dispatched was refused when it was planned: no proxy could do it, or it was at work
        may_pass=error is not None and (error.retryable or not job.agent_id),
    )

"""What a waiting backup weighs on when its VM was moved meanwhile: another host, other datastores. Of `engine`.

A job may wait for hours. It is asked about when it is to begin, from the inventory as it was read last; what it reads
at vSphere when it is at work comes too late for limits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from holdfast_common.errors import HoldfastError
from holdfast_controller.decide.dispatch import WaitingJob
from holdfast_controller.decide.load_limits import LoadKey, LoadKind, in_order
from holdfast_controller.runs.loads import backup_loads, places_of, vcenter_gate, ways_of
from holdfast_controller.runs.placing import SeenFromHere
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.world import World

log = logging.getLogger(__name__)

_PLACES = frozenset({LoadKind.DATASTORE, LoadKind.HOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingVm:
    """Whose backup waits, and how it was asked for."""

    vcenter_id: str
    instance_uuid: str
    request: BackupRequest


def as_it_is_now(
    world: World, job: WaitingJob, waiting: WaitingVm, *, braked: Callable[[], bool]
) -> WaitingJob:
    """The job with what it weighs on now; the same one when its VM stayed where it was, or that cannot be told."""
    try:
        known = world.vcenters.inventory.vm(waiting.vcenter_id, waiting.instance_uuid)
        if known is None:
            return job  # its work will tell what became of it
        known = replace(known, vm=waiting.request.disks.of_vm(known.vm))
        if places_of(known) == _places(job):
            return job
        seen = SeenFromHere(world)
        loads = backup_loads(seen.around(known.vcenter_id), known, braked=braked())
        found = replace(
            job,
            loads=in_order((*loads, *waiting.request.gates, vcenter_gate(known.vcenter_id))),
            ways=ways_of(known, seen.ways(known, waiting.request)),
        )
    except HoldfastError as error:
        log.warning(
            "what a waiting backup weighs on now cannot be told",
            extra={"job_id": job.job_id, "error": error.line()},
        )
        return job
    log.info("a VM was moved while its backup waited", extra={"job_id": job.job_id})
    return found


def _places(job: WaitingJob) -> frozenset[LoadKey]:
    return frozenset(load for load in job.loads if load.kind in _PLACES)

"""Whether a restore had reached its aim, whatever went wrong after that: seen from the ledger.

A new VM that was to stay, or disks that were exchanged for good, are never restored once more, nor told
as failed, because the database could not be written a moment later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast_common.errors import HoldfastError
from holdfast_common.identity import JobId
from holdfast_common.job_result import JobResult, Outcome, Warned
from holdfast_controller.ledger import EntryKind, LedgerEntry
from holdfast_controller.runs.results import judged
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.vsphere.disk_swap import is_committed

log = logging.getLogger(__name__)


def has_restored(world: World, job_id: JobId) -> bool:
    """Whether all that a restore of a VM was for had happened."""
    return any(_is_a_restored_vm(entry) for entry in world.ledger.of_job(job_id))


def unless_restored(world: World, attempt: Callable[[JobRow], JobResult], job: JobRow) -> JobResult:
    """One attempt, which is no failure when it turns out to have reached its aim.

    Raises: what ``attempt`` raises when it has not.
    """
    try:
        return attempt(job)
    except HoldfastError as error:
        if not has_restored(world, job.job_id):
            raise
        log.warning(
            "a restore did not end well after it had reached its aim",
            extra={"job_id": job.job_id, "error": error.line()},
        )
        warned = Warned(
            code="not_finished",
            message="the disks were restored and read back, but what follows was not done"
            f" (if the VM was to be started, it may not be): {error}",
        )
        result = JobResult(outcome=Outcome.PARTIAL, warnings=(warned,))
        return judged(result, world.job_ledger(job))


def _is_a_restored_vm(entry: LedgerEntry) -> bool:
    """A new VM that was to stay, or one whose disks were exchanged for good."""
    kept = entry.kind is EntryKind.NEW_VM and entry.is_kept
    return kept or (entry.kind is EntryKind.DISK_SWAP and is_committed(entry))

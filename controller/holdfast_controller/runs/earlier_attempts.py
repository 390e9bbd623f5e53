"""What earlier attempts and jobs could not give back: a job's own is given back first, others' stop it."""

from __future__ import annotations

from holdfast_common.errors import Refused
from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import LedgerEntry
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.undo import undo_entries


def give_back_earlier(world: World, session: VsphereSession, job: JobRow) -> list[LedgerEntry]:
    """Undo what this job left; no agent is at work on it between attempts. Returns what still stands.

    The reconciler leaves it alone until the job has ended, so that nobody takes away what is in use.
    """
    left = world.ledger.open_entries(job_id=job.job_id)
    return undo_entries(session, world.ledger, left) if left else []


def refuse_while_left(world: World, vcenter_id: str, vm: VmFacts) -> None:
    """Not only debts: what a crash left, or another job holds of this VM, is in the way as well. Raises: Refused."""
    left = [
        entry for entry in world.ledger.open_entries(vcenter_id=vcenter_id) if _is_of(entry, vm)
    ]
    if left:
        raise Refused(
            "something of another job could not be given back yet",
            vm=vm.name,
            kind=left[0].kind,
            since=left[0].created_at,
            advice="see `holdfast status`; it is tried again by itself",
        )


def _is_of(entry: LedgerEntry, vm: VmFacts) -> bool:
    """By identity; by its id in vSphere for what was written without one."""
    identity = entry.fact("instance_uuid")
    return identity == vm.instance_uuid if identity else entry.fact("vm") == vm.moref

"""A VM as our snapshot holds it, and an agent's work made of it. Between `back_up_image` and the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from holdfast_common.identity import JobId, LineageId
from holdfast_common.job_spec import BackUpDisks, Consistency, DiskTicket, VmIdentity
from holdfast_controller.decide.disk_choice import WantedDisks, left_out
from holdfast_controller.decide.lanes import Lane
from holdfast_controller.decide.level import LevelDecision
from holdfast_controller.decide.placement import Placement
from holdfast_controller.facts import SnapshotFacts, VmFacts
from holdfast_controller.runs.free_space_watch import FreeSpaceWatch
from holdfast_controller.runs.point_facts import PointFacts
from holdfast_controller.runs.repository_verdict import damaged_packs
from holdfast_controller.runs.source_tickets import disk_to_back_up
from holdfast_controller.runs.tracking_audits import next_audit
from holdfast_controller.runs.vm_blobs import VmBlobs
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.vsphere.changed_areas import DiskAreas
from holdfast_controller.vsphere.session import VsphereSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The VM as our snapshot holds it, what is to be read of it, and the watch over its room."""

    session: VsphereSession
    snapshot: SnapshotFacts
    snapshot_tree: str
    host_build: str
    previous: PointRow | None
    decision: LevelDecision
    areas: Mapping[int, DiskAreas]
    vm_files: VmBlobs
    space: FreeSpaceWatch
    lanes: tuple[Lane, ...]


def backup_work(
    world: World,
    job: JobRow,
    frozen: Frozen,
    tickets: Mapping[int, DiskTicket],
    *,
    placement: Placement,
    vcenter_uuid: str,
    audit_share: float | None = None,
) -> BackUpDisks:
    """All disks of the VM, each in its lane, with what is to be read of it."""
    snapshot, previous = frozen.snapshot, frozen.previous
    vm = snapshot.vm
    lane_numbers = {
        disk.device_key: number for number, lane in enumerate(frozen.lanes) for disk in lane
    }
    facts = PointFacts(
        configuration=snapshot.configuration,
        snapshot_tree=frozen.snapshot_tree,
        host_build=frozen.host_build,
        left_out=tuple(left_out(disk) for disk in snapshot.disks if disk.left_out_reason),
    )
    return BackUpDisks(
        vm=VmIdentity(
            vcenter_id=vcenter_uuid,
            instance_uuid=vm.instance_uuid,
            bios_uuid=vm.bios_uuid,
            name=vm.name,
            moref=vm.moref,
        ),
        lineage_id=LineageId(job.lineage_id),
        level_asked=job.level_asked,
        level=frozen.decision.level,
        level_reason=frozen.decision.reason,
        previous_point_id=previous.point_id if previous is not None else None,
        consistency=Consistency(
            asked=snapshot.asked, reached=snapshot.reached, evidence=snapshot.evidence
        ),
        snapshot_time=snapshot.created_at,
        group_id=job.run_id,
        transport=placement.transport,
        configuration=facts.encode(),
        blobs=frozen.vm_files.blobs,
        disks=tuple(
            disk_to_back_up(
                disk,
                frozen.areas[disk.device_key],
                tickets[disk.device_key],
                lane=lane_numbers[disk.device_key],
            )
            for disk in snapshot.protected_disks
        ),
        keys=world.keeper.writer_keys(LineageId(job.lineage_id)),
        damaged_packs=damaged_packs(world),
        audit=next_audit(world, LineageId(job.lineage_id), job.level_asked, audit_share),
    )


def wanted_part(snapshot: SnapshotFacts, wanted: WantedDisks) -> SnapshotFacts:
    """Our snapshot with the marks of disks that are not wanted; nobody is warned that those cannot be saved."""
    disks = wanted.marked(snapshot.disks)
    unwanted = {
        f"{disk.label} is not in the backup: {disk.unprotected_reason}"
        for disk in disks
        if disk.excluded_by
    }
    warnings = tuple(text for text in snapshot.warnings if text not in unwanted)
    return replace(snapshot, disks=disks, warnings=warnings)


def note_unwanted(world: World, job_id: JobId, vm: VmFacts) -> None:
    """What the backup does not have because nobody wants it: told, and no reason to warn. Raises: StoreFailed."""
    for disk in vm.disks:
        if disk.excluded_by:
            world.jobs.note(job_id, "told", f"not in the backup: {left_out(disk).text()}")

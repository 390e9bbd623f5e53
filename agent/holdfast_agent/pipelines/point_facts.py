"""What a point says of itself besides its data, for the manifest; `manifest_record` reads it out again."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_common.extents import total_length
from holdfast_common.identity import RunId
from holdfast_common.job_result import DiskResult
from holdfast_common.job_spec import BackUpDisks, DiskToBackUp
from holdfast_common.repository.manifest import (
    DiskHeader,
    Json,
    ManifestFacts,
)


def disk_header(disk: DiskToBackUp) -> DiskHeader:
    """The disk as it stands in the point."""
    return DiskHeader(
        device_key=disk.device_key,
        uuid=disk.backing_uuid,
        capacity_bytes=disk.capacity_bytes,
        sector_bytes=disk.sector_bytes,
        label=disk.label,
        storage_policy=disk.storage_policy,
        change_id=disk.change_id,
        chain=disk.chain,
        details={"adapter": disk.adapter},
    )


def manifest_facts(
    work: BackUpDisks, *, run_id: RunId, results: Sequence[DiskResult]
) -> ManifestFacts:
    """The job's facts, and what its disks' counts were."""
    counts: dict[str, Json] = {
        str(result.device_key): {
            "read_bytes": result.read_bytes,
            "changed_bytes": result.changed_bytes,
            "zero_bytes": result.zero_bytes,
            "level_reason": result.level_reason,
            "audited_bytes": result.compared_bytes,
            "untold_bytes": total_length(result.differing),
            "seen_bytes": result.seen_bytes,
        }
        for result in results
    }
    notes: dict[str, Json] = {blob.kind: blob.note for blob in work.blobs if blob.note}
    return ManifestFacts(
        run_id=run_id,
        vm={
            "vcenter_id": work.vm.vcenter_id,
            "instance_uuid": work.vm.instance_uuid,
            "bios_uuid": work.vm.bios_uuid,
            "name": work.vm.name,
            "moref": work.vm.moref,
        },
        snapshot_at=work.snapshot_time,
        transport=work.transport.value,
        level_asked=work.level_asked,
        level_done=work.level,
        level_reason=work.level_reason,
        consistency_asked=work.consistency.asked,
        consistency_reached=work.consistency.reached,
        evidence=work.consistency.evidence,
        group_id=work.group_id,
        previous_point=work.previous_point_id or "",
        details={"configuration": work.configuration, "blob_notes": notes, "disks": counts},
    )

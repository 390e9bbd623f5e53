"""What a point says of itself besides its data: into the manifest, and back out for the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_common.identity import RunId
from holdfast_common.job_result import DiskResult
from holdfast_common.job_spec import BackUpDisks, DiskToBackUp
from holdfast_common.point_record import DiskRecord, PointRecord
from holdfast_common.repository.manifest import (
    DiskHeader,
    DiskSummary,
    Json,
    Manifest,
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


def point_record(manifest: Manifest) -> PointRecord:
    """The catalogue's record, from the manifest alone: so it can be made again at any time."""
    facts = manifest.facts
    notes = _mapping(facts.details.get("blob_notes"))
    counts = _mapping(facts.details.get("disks"))
    return PointRecord(
        point_id=manifest.point_id,
        job_id=manifest.job_id,
        lineage_id=manifest.lineage_id,
        agent_id=manifest.agent_id,
        run_id=facts.run_id,
        created_at=manifest.created_at,
        snapshot_at=facts.snapshot_at,
        vcenter_id=facts.vm.get("vcenter_id", ""),
        instance_uuid=facts.vm.get("instance_uuid", ""),
        bios_uuid=facts.vm.get("bios_uuid", ""),
        vm_name=facts.vm.get("name", ""),
        moref=facts.vm.get("moref", ""),
        method=facts.method,
        transport=facts.transport,
        level_asked=facts.level_asked,
        level=facts.level_done,
        level_reason=facts.level_reason,
        consistency_asked=facts.consistency_asked,
        consistency_reached=facts.consistency_reached,
        evidence=facts.evidence,
        previous_point_id=facts.previous_point,
        group_id=facts.group_id,
        configuration=str(facts.details.get("configuration", "")),
        disks=tuple(
            _disk_record(disk, _mapping(counts.get(str(disk.header.device_key))))
            for disk in manifest.disks
        ),
        blob_kinds=tuple(blob.kind for blob in manifest.blobs),
        blob_notes={kind: str(note) for kind, note in notes.items()},
    )


def _disk_record(disk: DiskSummary, counts: dict[str, Json]) -> DiskRecord:
    header = disk.header
    return DiskRecord(
        device_key=header.device_key,
        uuid=header.uuid,
        label=header.label,
        capacity_bytes=header.capacity_bytes,
        sector_bytes=header.sector_bytes,
        change_id=header.change_id,
        adapter=str(header.details.get("adapter", "")),
        storage_policy=header.storage_policy,
        chain=header.chain,
        read_bytes=_count(counts, "read_bytes"),
        changed_bytes=_count(counts, "changed_bytes"),
        stored_bytes=disk.stored_bytes,
        zero_bytes=_count(counts, "zero_bytes"),
        allocated_bytes=disk.allocated_bytes,
        level_reason=str(counts.get("level_reason", "")),
    )


def _mapping(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _count(counts: dict[str, Json], name: str) -> int:
    value = counts.get(name, 0)
    return value if isinstance(value, int) else 0

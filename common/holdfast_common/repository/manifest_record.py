"""The catalogue's record of a point, from its manifest alone: so a catalogue can be made again at any time."""

from __future__ import annotations

from holdfast_common.point_record import DiskRecord, PointRecord
from holdfast_common.repository.manifest import DiskSummary, Json, Manifest


def point_record(manifest: Manifest) -> PointRecord:
    """What the catalogue knows of a point."""
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
        audited_bytes=_count(counts, "audited_bytes"),
        untold_bytes=_count(counts, "untold_bytes"),
        seen_bytes=_count(counts, "seen_bytes") if "seen_bytes" in counts else None,
    )


def _mapping(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _count(counts: dict[str, Json], name: str) -> int:
    value = counts.get(name, 0)
    return value if isinstance(value, int) else 0

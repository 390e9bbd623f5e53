"""Job specs. They hold secrets: messages and dataclasses are never logged. Dataclass <-> message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from holdfast_common.errors import UsageError
from holdfast_common.identity import (
    JobId,
    LineageId,
    PointId,
    RepositoryId,
    RunId,
    checked_ulid,
)
from holdfast_common.job_spec import (
    AreaSource,
    BackUpDisks,
    Blob,
    CheckNewFile,
    CheckRepository,
    Consistency,
    DiskToBackUp,
    DiskToRestore,
    FileTicket,
    JobSpec,
    ListPoints,
    RepairRepository,
    RestoreDisks,
    TrackingAudit,
    TransportKind,
    VerifyDisks,
    VmIdentity,
    Work,
)
from holdfast_common.logs import Secret
from holdfast_common.wire import job_pb2
from holdfast_common.wire_codec.tickets import ticket_from_message, ticket_to_message

_AREAS = {
    AreaSource.EVERYTHING: job_pb2.AREA_SOURCE_EVERYTHING,
    AreaSource.ALLOCATED: job_pb2.AREA_SOURCE_ALLOCATED,
    AreaSource.CHANGED: job_pb2.AREA_SOURCE_CHANGED,
}


_AREAS_BACK = {number: kind for kind, number in _AREAS.items()}


def job_spec_to_message(spec: JobSpec) -> job_pb2.JobSpec:
    """The message of a spec. It holds secrets: do not log it."""
    message = job_pb2.JobSpec(run_id=spec.run_id, repository_id=spec.repository_id)
    match spec.work:
        case BackUpDisks() as work:
            message.back_up_disks.CopyFrom(_back_up_disks_to_message(work))
        case RestoreDisks() as work:
            message.restore_disks.point_id = work.point_id
            message.restore_disks.lineage_id = work.lineage_id
            message.restore_disks.disks.extend(_disks_to_restore_to_messages(work.disks))
            message.restore_disks.keys.encoded = work.keys.reveal()
            message.restore_disks.blob_kinds.extend(work.blob_kinds)
        case VerifyDisks() as work:
            message.verify_disks.point_id = work.point_id
            message.verify_disks.lineage_id = work.lineage_id
            message.verify_disks.disks.extend(_disks_to_restore_to_messages(work.disks))
            message.verify_disks.keys.encoded = work.keys.reveal()
        case CheckRepository() as work:
            message.check_repository.read_data = work.read_data
            message.check_repository.point_ids.extend(work.point_ids)
            message.check_repository.keys.extend(_reader_keys(work.keys))
            message.check_repository.expected_point_ids.extend(work.expected_point_ids)
            message.check_repository.subset = work.subset
            message.check_repository.SetInParent()
        case RepairRepository() as work:
            message.repair_repository.keys.extend(_reader_keys(work.keys))
            message.repair_repository.expected_point_ids.extend(work.expected_point_ids)
            message.repair_repository.source_folder = work.source_folder
            message.repair_repository.dry_run = work.dry_run
            message.repair_repository.other_keys.extend(_reader_keys(work.other_keys))
            if work.content_keys is not None:
                message.repair_repository.content_keys.encoded = work.content_keys.reveal()
        case ListPoints() as work:
            message.list_points.keys.extend(_reader_keys(work.keys))
            message.list_points.job_id = work.job_id or ""
            message.list_points.SetInParent()
        case CheckNewFile() as work:
            message.check_new_file.ticket.CopyFrom(ticket_to_message(work.ticket))
    return message


def job_spec_from_message(message: job_pb2.JobSpec) -> JobSpec:
    """Raises: UsageError when the work is of no known kind or a field cannot be right."""
    return JobSpec(
        run_id=RunId(checked_ulid(message.run_id)),
        repository_id=RepositoryId(message.repository_id),
        work=_work_from_message(message),
    )


def spec_digest(message: job_pb2.JobSpec) -> bytes:
    """SHA-256 of the deterministic encoding; equal digests mean the same job."""
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


def _work_from_message(message: job_pb2.JobSpec) -> Work:
    match message.WhichOneof("work"):
        case "back_up_disks":
            return _back_up_disks_from_message(message.back_up_disks)
        case "restore_disks":
            return RestoreDisks(
                point_id=PointId(message.restore_disks.point_id),
                lineage_id=LineageId(message.restore_disks.lineage_id),
                disks=_disks_to_restore_from_messages(message.restore_disks.disks),
                keys=Secret(message.restore_disks.keys.encoded),
                blob_kinds=tuple(message.restore_disks.blob_kinds),
            )
        case "verify_disks":
            return VerifyDisks(
                point_id=PointId(message.verify_disks.point_id),
                lineage_id=LineageId(message.verify_disks.lineage_id),
                disks=_disks_to_restore_from_messages(message.verify_disks.disks),
                keys=Secret(message.verify_disks.keys.encoded),
            )
        case "check_repository":
            return CheckRepository(
                read_data=message.check_repository.read_data,
                point_ids=tuple(PointId(text) for text in message.check_repository.point_ids),
                keys=tuple(Secret(key.encoded) for key in message.check_repository.keys),
                expected_point_ids=tuple(
                    PointId(text) for text in message.check_repository.expected_point_ids
                ),
                subset=message.check_repository.subset,
            )
        case "repair_repository":
            repair = message.repair_repository
            return RepairRepository(
                keys=tuple(Secret(key.encoded) for key in repair.keys),
                expected_point_ids=tuple(PointId(text) for text in repair.expected_point_ids),
                source_folder=repair.source_folder,
                dry_run=repair.dry_run,
                other_keys=tuple(Secret(key.encoded) for key in repair.other_keys),
                content_keys=Secret(repair.content_keys.encoded)
                if repair.HasField("content_keys")
                else None,
            )
        case "list_points":
            job_id = message.list_points.job_id
            return ListPoints(
                keys=tuple(Secret(key.encoded) for key in message.list_points.keys),
                job_id=JobId(checked_ulid(job_id)) if job_id else None,
            )
        case "check_new_file":
            ticket = ticket_from_message(message.check_new_file.ticket)
            if not isinstance(ticket, FileTicket):
                raise UsageError("only a file can be looked for")
            return CheckNewFile(ticket=ticket)
        case _:
            raise UsageError("a job of no known kind; the agent may be older than the controller")


def _disk_to_back_up_to_message(disk: DiskToBackUp) -> job_pb2.DiskToBackUp:
    return job_pb2.DiskToBackUp(
        device_key=disk.device_key,
        backing_uuid=disk.backing_uuid,
        label=disk.label,
        capacity_bytes=disk.capacity_bytes,
        sector_bytes=disk.sector_bytes,
        storage_policy=disk.storage_policy,
        chain=disk.chain,
        change_id=disk.change_id,
        adapter=disk.adapter,
        areas=_AREAS[disk.areas],
        areas_reason=disk.areas_reason,
        ticket=ticket_to_message(disk.ticket),
        lane=disk.lane,
    )


def _disk_to_back_up_from_message(message: job_pb2.DiskToBackUp) -> DiskToBackUp:
    areas = _AREAS_BACK.get(message.areas)
    if areas is None:
        raise UsageError("unknown source of areas", number=message.areas)
    return DiskToBackUp(
        device_key=message.device_key,
        backing_uuid=message.backing_uuid,
        label=message.label,
        capacity_bytes=message.capacity_bytes,
        sector_bytes=message.sector_bytes,
        storage_policy=message.storage_policy,
        chain=tuple(message.chain),
        change_id=message.change_id,
        adapter=message.adapter,
        areas=areas,
        areas_reason=message.areas_reason,
        ticket=ticket_from_message(message.ticket),
        lane=message.lane,
    )


def _back_up_disks_to_message(work: BackUpDisks) -> job_pb2.BackUpDisks:
    return job_pb2.BackUpDisks(
        vm=job_pb2.Identity(
            vcenter_id=work.vm.vcenter_id,
            instance_uuid=work.vm.instance_uuid,
            bios_uuid=work.vm.bios_uuid,
            name=work.vm.name,
            moref=work.vm.moref,
        ),
        lineage_id=work.lineage_id,
        level_asked=work.level_asked,
        level=work.level,
        level_reason=work.level_reason,
        previous_point_id=work.previous_point_id or "",
        consistency=job_pb2.Consistency(
            asked=work.consistency.asked,
            reached=work.consistency.reached,
            evidence=work.consistency.evidence,
        ),
        snapshot_time=work.snapshot_time,
        group_id=work.group_id,
        transport=work.transport.value,
        configuration=work.configuration,
        blobs=[job_pb2.Blob(kind=blob.kind, data=blob.data, note=blob.note) for blob in work.blobs],
        disks=[_disk_to_back_up_to_message(disk) for disk in work.disks],
        keys=job_pb2.WriterKeys(encoded=work.keys.reveal()),
        compression_level=work.compression_level,
        damaged_packs=work.damaged_packs,
        audit_millionths=work.audit.share_millionths,
        audit_turn=work.audit.turn,
    )


def _back_up_disks_from_message(message: job_pb2.BackUpDisks) -> BackUpDisks:
    return BackUpDisks(
        vm=VmIdentity(
            vcenter_id=message.vm.vcenter_id,
            instance_uuid=message.vm.instance_uuid,
            bios_uuid=message.vm.bios_uuid,
            name=message.vm.name,
            moref=message.vm.moref,
        ),
        lineage_id=LineageId(message.lineage_id),
        level_asked=message.level_asked,
        level=message.level,
        level_reason=message.level_reason,
        previous_point_id=PointId(message.previous_point_id) if message.previous_point_id else None,
        consistency=Consistency(
            asked=message.consistency.asked,
            reached=message.consistency.reached,
            evidence=message.consistency.evidence,
        ),
        snapshot_time=message.snapshot_time,
        group_id=message.group_id,
        transport=_transport(message.transport),
        configuration=message.configuration,
        blobs=tuple(Blob(kind=blob.kind, data=blob.data, note=blob.note) for blob in message.blobs),
        disks=tuple(_disk_to_back_up_from_message(disk) for disk in message.disks),
        keys=Secret(message.keys.encoded),
        compression_level=message.compression_level,
        damaged_packs=tuple(message.damaged_packs),
        audit=TrackingAudit(
            share_millionths=min(message.audit_millionths, 1_000_000), turn=message.audit_turn
        ),
    )


def _transport(text: str) -> TransportKind:
    try:
        return TransportKind(text)
    except ValueError as error:
        raise UsageError("unknown transport", transport=text) from error


def _disks_to_restore_to_messages(
    disks: Iterable[DiskToRestore],
) -> list[job_pb2.DiskToRestore]:
    return [
        job_pb2.DiskToRestore(
            device_key=disk.device_key,
            backing_uuid=disk.backing_uuid,
            adapter_type=disk.adapter_type,
            ticket=ticket_to_message(disk.ticket),
        )
        for disk in disks
    ]


def _disks_to_restore_from_messages(
    messages: Iterable[job_pb2.DiskToRestore],
) -> tuple[DiskToRestore, ...]:
    return tuple(
        DiskToRestore(
            device_key=message.device_key,
            backing_uuid=message.backing_uuid,
            adapter_type=message.adapter_type,
            ticket=ticket_from_message(message.ticket),
        )
        for message in messages
    )


def _reader_keys(keys: Iterable[Secret]) -> list[job_pb2.ReaderKeys]:
    return [job_pb2.ReaderKeys(encoded=key.reveal()) for key in keys]

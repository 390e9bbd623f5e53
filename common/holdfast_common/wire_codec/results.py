"""Job results. Dataclass <-> message."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from holdfast_common.errors import UsageError
from holdfast_common.identity import (
    JobId,
    LineageId,
    PointId,
)
from holdfast_common.job_result import (
    DamageFound,
    DiskResult,
    JobResult,
    Outcome,
    PointFound,
    Warned,
)
from holdfast_common.job_spec import Blob
from holdfast_common.wire import job_pb2
from holdfast_common.wire_codec.values import (
    error_from_message,
    error_to_message,
    extent_messages,
    extents_of,
)


def disk_result_to_message(disk: DiskResult) -> job_pb2.DiskResult:
    """A disk result's message."""
    return job_pb2.DiskResult(
        device_key=disk.device_key,
        transport=disk.transport,
        read_bytes=disk.read_bytes,
        changed_bytes=disk.changed_bytes,
        stored_bytes=disk.stored_bytes,
        zero_bytes=disk.zero_bytes,
        written_bytes=disk.written_bytes,
        compared_bytes=disk.compared_bytes,
        differing=extent_messages(disk.differing),
        duration_seconds=disk.duration_seconds,
        level_reason=disk.level_reason,
    )


def disk_result_from_message(message: job_pb2.DiskResult) -> DiskResult:
    """The inverse of `disk_result_to_message`."""
    return DiskResult(
        device_key=message.device_key,
        transport=message.transport,
        read_bytes=message.read_bytes,
        changed_bytes=message.changed_bytes,
        stored_bytes=message.stored_bytes,
        zero_bytes=message.zero_bytes,
        written_bytes=message.written_bytes,
        compared_bytes=message.compared_bytes,
        differing=extents_of(message.differing),
        duration_seconds=message.duration_seconds,
        level_reason=message.level_reason,
    )


def job_result_to_message(result: JobResult) -> job_pb2.JobResult:
    """A result's message."""
    message = job_pb2.JobResult(
        outcome=result.outcome.value,
        warnings=[
            job_pb2.Warning(code=warned.code, message=warned.message) for warned in result.warnings
        ],
        disks=[disk_result_to_message(disk) for disk in result.disks],
        point_id=result.point_id or "",
        record=result.record,
        blobs=[
            job_pb2.Blob(kind=blob.kind, data=blob.data, note=blob.note) for blob in result.blobs
        ],
        points=[
            job_pb2.PointFound(
                point_id=point.point_id,
                job_id=point.job_id,
                lineage_id=point.lineage_id,
                record=point.record,
            )
            for point in result.points
        ],
        damages=[
            job_pb2.DamageFound(
                object_name=damage.object_name,
                problem=damage.problem,
                point_id=damage.point_id,
                device_key=damage.device_key,
                lost=extent_messages(damage.lost),
            )
            for damage in result.damages
        ],
        objects_checked=result.objects_checked,
        started_at=result.started_at,
        finished_at=result.finished_at,
    )
    if result.error is not None:
        message.error.CopyFrom(error_to_message(result.error))
    return message


def job_result_from_message(message: job_pb2.JobResult) -> JobResult:
    """Raises: UsageError when the outcome is unknown."""
    try:
        outcome = Outcome(message.outcome)
    except ValueError as error:
        raise UsageError("unknown outcome of a job", outcome=message.outcome) from error
    return JobResult(
        outcome=outcome,
        error=error_from_message(message.error) if message.HasField("error") else None,
        warnings=tuple(Warned(code=w.code, message=w.message) for w in message.warnings),
        disks=tuple(disk_result_from_message(disk) for disk in message.disks),
        point_id=PointId(message.point_id) if message.point_id else None,
        record=message.record,
        blobs=tuple(Blob(kind=blob.kind, data=blob.data, note=blob.note) for blob in message.blobs),
        points=tuple(
            PointFound(
                point_id=PointId(point.point_id),
                job_id=JobId(point.job_id),
                lineage_id=LineageId(point.lineage_id),
                record=point.record,
            )
            for point in message.points
        ),
        damages=tuple(
            DamageFound(
                object_name=damage.object_name,
                problem=damage.problem,
                point_id=damage.point_id,
                device_key=damage.device_key,
                lost=extents_of(damage.lost),
            )
            for damage in message.damages
        ),
        objects_checked=message.objects_checked,
        started_at=message.started_at,
        finished_at=message.finished_at,
    )


def encoded_result(result: JobResult) -> bytes:
    """A result as bytes, for an agent's ledger."""
    return job_result_to_message(result).SerializeToString()


def decoded_result(encoded: bytes) -> JobResult:
    """The inverse of `encoded_result`. Raises: UsageError."""
    try:
        return job_result_from_message(job_pb2.JobResult.FromString(encoded))
    except DecodeError as error:
        raise UsageError("not a job's result", length=len(encoded)) from error

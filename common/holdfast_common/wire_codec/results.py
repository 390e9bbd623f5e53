"""Job results. Dataclass <-> message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

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

PIECE_RANGES_MAX: Final = 8192  # 180 KiB: messages stay below 1 MiB


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


def damage_to_message(damage: DamageFound) -> job_pb2.DamageFound:
    """A damage's message."""
    return job_pb2.DamageFound(
        object_name=damage.object_name,
        problem=damage.problem,
        point_id=damage.point_id,
        device_key=damage.device_key,
        lost=extent_messages(damage.lost),
        ranges_left_out=damage.ranges_left_out,
        bytes_left_out=damage.bytes_left_out,
    )


def damage_pieces(damage: job_pb2.DamageFound) -> Iterator[job_pb2.DamageFound]:
    """The same in messages of bounded length, to be sent after each other; what is left out stands in the last."""
    lost = damage.lost
    if len(lost) <= PIECE_RANGES_MAX:
        yield damage
        return
    head = job_pb2.DamageFound(
        object_name=damage.object_name,
        problem=damage.problem,
        point_id=damage.point_id,
        device_key=damage.device_key,
    )
    for start in range(0, len(lost), PIECE_RANGES_MAX):
        piece = job_pb2.DamageFound()
        piece.CopyFrom(head)
        piece.lost.extend(lost[start : start + PIECE_RANGES_MAX])
        if start + PIECE_RANGES_MAX >= len(lost):
            piece.ranges_left_out = damage.ranges_left_out
            piece.bytes_left_out = damage.bytes_left_out
        yield piece


def _joined(messages: Iterable[job_pb2.DamageFound]) -> Iterator[DamageFound]:
    """The inverse of `damage_pieces`, of many. Only full pieces go on in the next one."""
    pieces: list[job_pb2.DamageFound] = []
    for message in messages:
        if pieces and not (
            len(pieces[-1].lost) >= PIECE_RANGES_MAX and _whose(pieces[-1]) == _whose(message)
        ):
            yield _damage(pieces)
            pieces = []
        pieces.append(message)
    if pieces:
        yield _damage(pieces)


def _whose(message: job_pb2.DamageFound) -> tuple[str, str, str, int]:
    return (message.object_name, message.problem, message.point_id, message.device_key)


def _damage(pieces: Sequence[job_pb2.DamageFound]) -> DamageFound:
    first = pieces[0]
    return DamageFound(
        object_name=first.object_name,
        problem=first.problem,
        point_id=first.point_id,
        device_key=first.device_key,
        lost=tuple(extent for piece in pieces for extent in extents_of(piece.lost)),
        ranges_left_out=sum(piece.ranges_left_out for piece in pieces),
        bytes_left_out=sum(piece.bytes_left_out for piece in pieces),
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
        damages=[damage_to_message(damage) for damage in result.damages],
        objects_left_out=result.objects_left_out,
        losses_left_out=result.losses_left_out,
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
        damages=tuple(_joined(message.damages)),
        objects_left_out=message.objects_left_out,
        losses_left_out=message.losses_left_out,
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

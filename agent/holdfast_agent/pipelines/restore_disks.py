"""Disks of a restore point are written to new disks or files; zeros are never sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.progress import Progress
from holdfast_agent.pipelines.repository_access import OpenedPoint, opened_point, point_disk
from holdfast_agent.transport_table import new_disk
from holdfast_common.blocks.sink import BlockSink, NewDisk, UnorderedSink, UnorderedWrites
from holdfast_common.clock import SystemClock
from holdfast_common.errors import UsageError
from holdfast_common.extents import Extent
from holdfast_common.formats.vmdk_descriptor_text import new_disk_uuid
from holdfast_common.job_result import DiskResult, JobResult, Outcome
from holdfast_common.job_spec import Blob, DiskToRestore, JobSpec, RestoreDisks
from holdfast_common.repository.disk_pieces import PiecePlan
from holdfast_common.repository.disk_reader import PointDiskSource


def restore_disks(spec: JobSpec, context: JobContext) -> JobResult:
    """Write every disk of the job, one after the other. Reading back is a job of its own.

    Each becomes a new disk with a uuid of its own: not the point's, which the original may still have.

    Raises: errors of ours; a disk that was not finished does not count as one.
    """
    work = spec.work
    assert isinstance(work, RestoreDisks)
    check_disks_named(work.disks)
    with opened_point(
        context,
        spec.repository_id,
        keys=work.keys,
        lineage_id=work.lineage_id,
        point_id=work.point_id,
    ) as opened:
        total = sum(point_disk(opened.point, disk).summary.allocated_bytes for disk in work.disks)
        progress = Progress(context, total_bytes=total, phase="transfer")
        results = [_restore_disk(disk, opened, context, progress) for disk in work.disks]
        blobs = _blobs(work, opened)
    return JobResult(
        outcome=Outcome.DONE, disks=tuple(results), point_id=work.point_id, blobs=blobs
    )


def _blobs(work: RestoreDisks, opened: OpenedPoint) -> tuple[Blob, ...]:
    """The blobs that the job asked for, as far as the point has them; small, they fit one message."""
    held = {blob.kind for blob in opened.point.manifest.blobs}
    return tuple(
        Blob(kind=kind, data=opened.reader.blob(opened.point, kind))
        for kind in work.blob_kinds
        if kind in held
    )


def check_disks_named(disks: Sequence[DiskToRestore]) -> None:
    """Raises: UsageError, when a job names no disk, or one twice."""
    if not disks or len({disk.device_key for disk in disks}) != len(disks):
        raise UsageError("the job names no disk, or one disk twice", count=len(disks))


def _restore_disk(
    disk: DiskToRestore, opened: OpenedPoint, context: JobContext, progress: Progress
) -> DiskResult:
    clock = SystemClock()
    started = clock.monotonic_seconds()
    progress.begin(disk.device_key)
    header = point_disk(opened.point, disk).header
    with (
        closing(opened.reader.open_disk(opened.point, disk.device_key)) as source,
        new_disk(
            disk.ticket,
            context.configuration,
            disk=NewDisk(
                capacity_bytes=header.capacity_bytes,
                adapter_type=disk.adapter_type,
                disk_uuid=new_disk_uuid(),
            ),
            check=context.check,
        ) as sink,
    ):
        written_bytes = _copy(source, sink, context, progress)
        sink.finish()
    return DiskResult(
        device_key=disk.device_key,
        transport=disk.ticket.kind.value,
        read_bytes=written_bytes,
        zero_bytes=header.capacity_bytes - written_bytes,
        written_bytes=written_bytes,
        duration_seconds=clock.monotonic_seconds() - started,
    )


def _copy(source: PointDiskSource, sink: BlockSink, context: JobContext, progress: Progress) -> int:
    """In the disk's order; where the target allows it, by several threads at once."""
    written_bytes = 0
    unordered = sink.unordered() if isinstance(sink, UnorderedSink) else None
    if unordered is None:
        everything = source.everything(check=context.check)
    else:
        everything = source.everything(
            check=context.check, work=_writes_into(unordered), coming=_reserves_in(unordered)
        )
    with closing(everything) as pieces:
        for plan, buffer in pieces:
            for extent in plan.mapped:
                if unordered is None:
                    sink.write(extent.offset, plan.part(buffer, extent))
                written_bytes += extent.length
                progress.add(extent.length)
    return written_bytes


def _writes_into(target: UnorderedWrites) -> Callable[[PiecePlan, memoryview], None]:
    def write(plan: PiecePlan, buffer: memoryview) -> None:
        for extent in plan.mapped:
            target.write(extent.offset, plan.part(buffer, extent))

    return write


def _reserves_in(target: UnorderedWrites) -> Callable[[Sequence[Extent]], None]:
    """Many at once: each time a file system reserves, it waits for the writes that are under way."""

    def reserve(extents: Sequence[Extent]) -> None:
        for extent in extents:
            target.reserve(extent.offset, extent.length)

    return reserve

"""Restored disks are read back by a fresh open and compared with their restore point, byte by byte."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.progress import Progress
from holdfast_agent.pipelines.repository_access import OpenedPoint, opened_point, point_disk
from holdfast_agent.pipelines.restore_disks import check_disks_named
from holdfast_agent.transport_table import Access, OpenedDisk, opened_disk, set_aside
from holdfast_common.blocks.stream import UNIT_BYTES, whole
from holdfast_common.blocks.verify import compare
from holdfast_common.blocks.wanted import CompactExtents, ascending
from holdfast_common.clock import SystemClock
from holdfast_common.errors import FormatError, HoldfastError, IntegrityError
from holdfast_common.extents import Extent, merged
from holdfast_common.job_result import DiskResult, ErrorReport, JobResult, Outcome
from holdfast_common.job_spec import DiskToRestore, JobSpec, VerifyDisks
from holdfast_common.repository.disk_reader import PointDiskSource

log = logging.getLogger(__name__)


def verify_disks(spec: JobSpec, context: JobContext) -> JobResult:
    """Compare every disk of the job; all of them, also when the first one differs.

    A file that differs is renamed: it ends in ``.bad``.

    A difference is the result's error (`IntegrityError`), with the ranges in the disks' results.
    Raises: errors of ours, when a disk cannot be compared.
    """
    work = spec.work
    assert isinstance(work, VerifyDisks)
    check_disks_named(work.disks)
    with opened_point(
        context,
        spec.repository_id,
        keys=work.keys,
        lineage_id=work.lineage_id,
        point_id=work.point_id,
    ) as opened:
        total = sum(point_disk(opened.point, disk).summary.allocated_bytes for disk in work.disks)
        progress = Progress(context, total_bytes=total, phase="verify")
        results = [_verify_disk(disk, opened, context, progress) for disk in work.disks]
    error = _difference(results)
    return JobResult(
        outcome=Outcome.DONE if error is None else Outcome.FAILED,
        error=None if error is None else ErrorReport.of(error),
        disks=tuple(results),
        point_id=work.point_id,
    )


def _verify_disk(
    disk: DiskToRestore, opened: OpenedPoint, context: JobContext, progress: Progress
) -> DiskResult:
    clock = SystemClock()
    started = clock.monotonic_seconds()
    progress.begin(disk.device_key)
    capacity = point_disk(opened.point, disk).header.capacity_bytes
    with (
        closing(opened.reader.open_disk(opened.point, disk.device_key)) as expected,
        _opened_again(disk, context, capacity_bytes=capacity) as (
            actual,
            allocated,
        ),
    ):
        parts = _parts(expected, actual, allocated)
        with (
            closing(expected.blocks(parts, check=context.check)) as one,
            actual.stream(parts, check=context.check) as other,
        ):
            found = compare(one, other, progressed=progress.add)
    if found.differing:
        _set_aside(disk, context)
    if found.damage:
        log.warning("a restored disk cannot be decoded", extra={"damage": found.damage})
    return DiskResult(
        device_key=disk.device_key,
        transport=disk.ticket.kind.value,
        read_bytes=other.read_bytes,
        compared_bytes=found.compared_bytes,
        differing=found.differing,
        duration_seconds=clock.monotonic_seconds() - started,
    )


@contextmanager
def _opened_again(
    disk: DiskToRestore, context: JobContext, *, capacity_bytes: int
) -> Iterator[tuple[OpenedDisk, Sequence[Extent] | None]]:
    """The disk, and what of it is allocated.

    Raises: IntegrityError, when what was written is no disk of this size any more.
    """
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(
                opened_disk(
                    disk.ticket,
                    context.configuration,
                    capacity_bytes=capacity_bytes,
                    check=context.check,
                )
            )
            allocated = opened.allocated()
        except FormatError as error:
            _set_aside(disk, context)
            raise IntegrityError(
                "a restored disk cannot be opened again",
                advice="do not use this disk; restore it again",
                device_key=disk.device_key,
                offset=0,
                length=capacity_bytes,
                cause=str(error),
            ) from error
        yield opened, allocated


def _set_aside(disk: DiskToRestore, context: JobContext) -> None:
    """A file that failed keeps no name under which somebody would use it."""
    try:
        path = set_aside(disk.ticket, context.configuration)
    except HoldfastError as error:  # the disk's own failure tells more
        context.warn("not_set_aside", f"a disk that differs still has its name: {error.line()}")
        return
    if path:
        context.warn("set_aside", f"the file that differs from its restore point is now {path}")


def _parts(
    expected: PointDiskSource, actual: OpenedDisk, allocated: Sequence[Extent] | None
) -> CompactExtents:
    """What is compared: all that the point holds, and all that the other disk may hold besides.

    Where a device cannot tell what it holds, what the point says is zero is left out.
    """
    capacity = expected.capacity_bytes
    if actual.access is Access.SEQUENTIAL:
        parts: Iterable[Extent] = whole(capacity)
    else:
        parts = merged([*expected.allocated(), *(allocated or ())])
    return CompactExtents(ascending(parts, unit=UNIT_BYTES, capacity_bytes=capacity))


def _difference(results: Sequence[DiskResult]) -> IntegrityError | None:
    """The error that names the first disk and range that differ; None: all are equal."""
    for result in results:
        if result.differing:
            first = result.differing[0]
            return IntegrityError(
                "a disk differs from its restore point",
                advice="do not use this disk; restore it again, and check the repository",
                device_key=result.device_key,
                offset=first.offset,
                length=first.length,
                ranges=len(result.differing),
                disks=sum(1 for each in results if each.differing),
            )
    return None

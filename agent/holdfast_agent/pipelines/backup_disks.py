"""A VM's disks and configuration become one restore point.

`back_up_disks` is the function to read first: ticket -> source -> repository -> commit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from holdfast_agent.pipelines.context import Grant, JobContext
from holdfast_agent.pipelines.disk_copy import WantedParts, copy_disk
from holdfast_agent.pipelines.lanes import in_lanes
from holdfast_agent.pipelines.point_facts import disk_header, manifest_facts
from holdfast_agent.pipelines.progress import Progress
from holdfast_agent.pipelines.repository_access import (
    WORKERS,
    check_lineage,
    opened_store,
    same_disk,
)
from holdfast_agent.pipelines.tracking_audit import (
    TRACKING_LIED,
    Audited,
    audit_sample,
    audit_tracking,
    lie_text,
)
from holdfast_agent.transport_table import OPENERS, Access, OpenedDisk, RandomDisk, opened_disk
from holdfast_common.blocks.stream import UNIT_BYTES, whole
from holdfast_common.blocks.wanted import CompactExtents, ascending
from holdfast_common.clock import SystemClock
from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    NotFound,
    NothingProtected,
    PreviousLost,
)
from holdfast_common.identity import PointId
from holdfast_common.job_result import DiskResult, JobResult, Outcome
from holdfast_common.job_spec import AreaSource, BackUpDisks, DiskToBackUp, JobSpec, TrackingAudit
from holdfast_common.repository.about_renewal import renew_description
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.key_sets import ReaderKeys, WriterKeys
from holdfast_common.repository.manifest import DiskSummary, PointDisk
from holdfast_common.repository.manifest_record import point_record
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import Point, find_job_point, list_points
from holdfast_common.repository.reserve import keep_reserve_quietly
from holdfast_common.repository.writer import PointWriter

log = logging.getLogger(__name__)

DIFFERING_MAX = 100  # of an audit, in a result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One disk, what is read of it, and what it builds on (None: on nothing).

    ``only_changes``: outside of the areas it is as it was; otherwise it is zero there.
    """

    disk: DiskToBackUp
    areas: CompactExtents
    previous: PointDisk | None
    only_changes: bool


def back_up_disks(spec: JobSpec, context: JobContext) -> JobResult:
    """Read every disk of the job into one point, and publish it once the controller grants it.

    Raises: errors of ours; whatever fails, no half point becomes visible.
    """
    work = spec.work
    assert isinstance(work, BackUpDisks)
    if not work.disks:
        raise NothingProtected("the job names no disk", vm=work.vm.name)
    keys = WriterKeys.from_bytes(work.keys.reveal())
    check_lineage(keys.reader, work.lineage_id)
    with opened_store(context, spec.repository_id) as store:
        _sweep(store)
        renew_description(store)
        keep_reserve_quietly(store)
        previous = _usable_previous(store, keys.reader, work, context)
        plans = [_plan(disk, previous, context) for disk in work.disks]
        total = sum(_reach_bytes(plan) for plan in plans)
        progress = Progress(context, total_bytes=total, phase="transfer")
        with (
            PointWriter(
                store,
                keys,
                signing_key=context.signing_key,
                agent_id=context.agent_id,
                job_id=context.attempt.job_id,
                attempt=context.attempt.number,
                clock=SystemClock(),
                workers=WORKERS,
                compression_level=work.compression_level,
                damaged_packs=work.damaged_packs,
                listing=context.repositories.listing(spec.repository_id, store.root),
                cache=context.repositories.cache,
            ) as writer,
            _kept_for_the_next_attempt(writer),
        ):
            results = in_lanes(
                [(plan.disk.lane, plan) for plan in plans],
                lambda plan, lane: _back_up_disk(plan, work.audit, writer, lane, progress),
                context,
            )
            for blob in work.blobs:
                writer.add_blob(blob.kind, blob.data)
            facts = manifest_facts(work, run_id=spec.run_id, results=results)
            prepared = writer.prepare(facts, order=[disk.device_key for disk in work.disks])
            context.check()
            grant = context.request_commit(prepared.manifest_digest)
            point_id = writer.publish(prepared, _grant_bytes(grant))
    return JobResult(
        outcome=Outcome.DONE,
        disks=tuple(results),
        point_id=point_id,
        record=point_record(prepared.manifest).encode(),
    )


def _sweep(store: DirectoryStore) -> None:
    """What killed writers left half written, once no writer can be at it any more."""
    try:
        removed = store.sweep_temporary(now=SystemClock().now())
    except HoldfastError as error:  # the backup itself may well succeed
        log.warning("temporary files could not be removed", extra={"error": error.line()})
        return
    if removed:
        log.info("temporary files of earlier writers removed", extra={"count": removed})


@contextmanager
def _kept_for_the_next_attempt(writer: PointWriter) -> Iterator[None]:
    """When the end may pass by itself, what was stored is kept: the next attempt finds it."""
    try:
        yield
    except HoldfastError as error:
        if error.retryable:
            with suppress(HoldfastError):  # the first error tells more
                writer.suspend()
        raise


def _back_up_disk(
    plan: _Plan,
    audit: TrackingAudit,
    writer: PointWriter,
    context: JobContext,
    progress: Progress,
) -> DiskResult:
    disk = plan.disk
    clock = SystemClock()
    started = clock.monotonic_seconds()
    progress.begin(disk.device_key)
    with opened_disk(
        disk.ticket, context.configuration, capacity_bytes=disk.capacity_bytes, check=context.check
    ) as source:
        audited = _audited(plan, audit, source, writer, context, progress=progress)
        if audited.differing:
            context.warn(TRACKING_LIED, f"{disk.label}: {lie_text(audited.differing)}")
            before, plan = plan, _read_whole(plan, audited)
            progress.expect(_reach_bytes(plan) - _reach_bytes(before))
        target = writer.begin_disk(
            disk_header(disk),
            previous=plan.previous,
            compare=plan.previous is not None and not plan.only_changes,
            check=context.check,
        )
        wanted = WantedParts(
            areas=plan.areas,
            capacity_bytes=disk.capacity_bytes,
            only_changes=plan.only_changes,
            tell_zeros=plan.previous is not None,
        )
        copied = copy_disk(
            source,
            target,
            wanted,
            progress=progress,
            check=context.check,
            pace=lambda length: context.pace(disk.device_key, length),
        )
        summary = target.finish()
    return DiskResult(
        device_key=disk.device_key,
        transport=disk.ticket.kind.value,
        read_bytes=copied.read_bytes,
        changed_bytes=_changed_bytes(plan, summary),
        stored_bytes=summary.stored_bytes,
        zero_bytes=copied.zero_bytes,
        compared_bytes=audited.compared_bytes,
        differing=audited.differing[:DIFFERING_MAX],
        duration_seconds=clock.monotonic_seconds() - started,
        level_reason=plan.disk.areas_reason,
        seen_bytes=min(
            plan.areas.total_bytes + (audited.compared_bytes if plan.only_changes else 0),
            disk.capacity_bytes,
        ),
    )


def _audited(
    plan: _Plan,
    audit: TrackingAudit,
    source: OpenedDisk,
    writer: PointWriter,
    context: JobContext,
    *,
    progress: Progress,
) -> Audited:
    """What change tracking calls unchanged, looked at in part; nothing where everything is read anyway."""
    if not plan.only_changes or plan.previous is None or not isinstance(source, RandomDisk):
        return Audited()
    sample = audit_sample(
        audit,
        disk_uuid=plan.disk.backing_uuid,
        capacity_bytes=plan.disk.capacity_bytes,
        changed=plan.areas,
    )

    unchanged_bytes = plan.disk.capacity_bytes - plan.areas.total_bytes
    expected_bytes = audit.bytes_of(unchanged_bytes)  # a random sample comes to it roughly
    progress.expect(expected_bytes)
    looked_at = 0

    def check(length: int) -> None:
        nonlocal looked_at
        context.pace(plan.disk.device_key, length)
        writer.renew_lease()
        looked_at += length
        progress.add(length)

    previous = writer.previous_blocks(plan.previous)
    audited = audit_tracking(source, previous, sample, check=check)
    progress.expect(looked_at - expected_bytes)
    return audited


def _read_whole(plan: _Plan, audited: Audited) -> _Plan:
    """Nothing that change tracking said of this disk is believed: all of it is compared."""
    return replace(
        plan,
        disk=replace(plan.disk, areas_reason=lie_text(audited.differing)),
        areas=CompactExtents(whole(plan.disk.capacity_bytes)),
        only_changes=False,
    )


def _plan(disk: DiskToBackUp, previous_point: Point | None, context: JobContext) -> _Plan:
    """Raises: PreviousLost, when only changes are to be read and there is nothing to build on."""
    capacity = disk.capacity_bytes
    previous = None
    if previous_point is not None:
        previous = same_disk(
            previous_point.disks, device_key=disk.device_key, uuid=disk.backing_uuid
        )
    if previous is not None and previous.header.capacity_bytes != capacity:
        previous = None
    if disk.areas is AreaSource.CHANGED and previous is None:
        raise PreviousLost(
            "changes of a disk were asked for, but the previous point has no such disk",
            device_key=disk.device_key,
            disk_uuid=disk.backing_uuid,
        )
    in_parts = OPENERS[disk.ticket.kind].access is Access.RANDOM
    areas = (
        context.fetch_extents(disk.device_key)
        if in_parts and disk.areas is not AreaSource.EVERYTHING
        else whole(capacity)  # what only comes whole is compared with the previous point
    )
    return _Plan(
        disk=disk,
        areas=CompactExtents(ascending(areas, unit=UNIT_BYTES, capacity_bytes=capacity)),
        previous=previous,
        only_changes=in_parts and disk.areas is AreaSource.CHANGED,
    )


def _reach_bytes(plan: _Plan) -> int:
    """Bytes that are read or known to be zero: what progress counts."""
    return plan.areas.total_bytes if plan.only_changes else plan.disk.capacity_bytes


def _changed_bytes(plan: _Plan, summary: DiskSummary) -> int:
    if plan.only_changes:
        return plan.areas.total_bytes
    return summary.known_bytes + summary.new_bytes  # what differs, or is there for the first time


def _usable_previous(
    store: ObjectStore, keys: ReaderKeys, work: BackUpDisks, context: JobContext
) -> Point | None:
    """The previous point; None where nothing is lost without it: then everything is read anyway.

    Raises: PreviousLost, when it cannot be used and only changes are to be read; RepositoryFailed.
    """
    try:
        return _previous_point(store, keys, work.previous_point_id)
    except (NotFound, IntegrityError, FormatError) as error:
        problem = error
    if any(disk.areas is AreaSource.CHANGED for disk in work.disks):
        raise PreviousLost(
            "the previous point cannot be used", point=work.previous_point_id, reason=str(problem)
        ) from problem
    context.warn(
        PreviousLost.code,
        f"the previous point cannot be used, so nothing was compared with it: {problem}",
    )
    return None


def _previous_point(store: ObjectStore, keys: ReaderKeys, point_id: PointId | None) -> Point | None:
    """Raises: NotFound, IntegrityError, FormatError."""
    if point_id is None:
        return None
    point = find_job_point(store, keys, point_id)  # a point has its job's id, unless it is a copy
    if point is not None and point.point_id == point_id:
        return point
    for point in list_points(store, keys).points:
        if point.point_id == point_id:
            return point
    raise NotFound("the previous point is not in the repository", point=point_id)


def _grant_bytes(grant: Grant) -> bytes:
    return grant.controller_epoch.to_bytes(8, "little") + grant.signature

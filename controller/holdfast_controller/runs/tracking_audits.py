"""What becomes of an audit of change tracking: doubt, suspects, and tracking begun anew.

Doubt stands until a backup was made with tracking switched off; the next one switches it on again. Until
then every backup reads everything and compares it, so what it makes is right whatever tracking says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from holdfast_common.identity import LineageId
from holdfast_common.job_spec import NO_AUDIT, TrackingAudit
from holdfast_common.point_record import PointRecord
from holdfast_controller.decide.confidence import point_confidence
from holdfast_controller.decide.level import audit_share_of, is_by_changes
from holdfast_controller.decide.suspects import PointReading, suspect_points
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.jobs import JobRow

log = logging.getLogger(__name__)

_ALL = 1_000_000


def next_audit(
    world: World, lineage_id: LineageId, level_asked: str, audit_share: float | None = None
) -> TrackingAudit:
    """The audit that goes with the next backup of a VM; ``audit_share`` None: as the controller is configured."""
    configured = world.configuration.audit_share if audit_share is None else audit_share
    share = round(audit_share_of(level_asked, configured) * _ALL)
    if not share:
        return NO_AUDIT
    return TrackingAudit(share_millionths=share, turn=world.catalogue.audit_turn(lineage_id))


def note_audit(world: World, job: JobRow, record: PointRecord) -> None:
    """Draw the consequences of what a point says of its audit, before the point is recorded; twice is harmless."""
    lineage_id = LineageId(record.lineage_id)
    lied = [disk for disk in record.disks if disk.untold_bytes]
    if lied:
        names = ", ".join(disk.label or str(disk.device_key) for disk in lied)
        reason = (
            f"the backup of {record.snapshot_at[:19]} found changes of {names}"
            " that change tracking had not told"
        )
        earlier = [
            point
            for point in world.catalogue.of_lineage(lineage_id)
            if point.point_id != record.point_id
        ]
        suspects = suspect_points(_readings(earlier), [disk.device_key for disk in lied])
        world.catalogue.doubt_tracking(lineage_id, reason, suspects=suspects)
        world.jobs.note(job.job_id, "change tracking lied", f"{reason}; points: {len(suspects)}")
        log.error(
            "change tracking lied",
            extra={"job_id": job.job_id, "vm": record.vm_name, "suspects": len(suspects)},
        )
    elif not any(disk.change_id for disk in record.disks):
        world.catalogue.trust_tracking_again(lineage_id)


def was_audited(record: PointRecord) -> bool:
    """Whether a turn of the audit has passed; it may have had nothing to read on a small disk."""
    return any(is_by_changes(disk.level_reason) or disk.untold_bytes for disk in record.disks)


def doubts_of(world: World, point: PointRow) -> list[str]:
    """What whoever restores a point should know of it."""
    reason = world.catalogue.suspects().get(point.point_id, "")
    if not reason:
        return []
    return [
        f"{point.vm_name} of {point.created_at} is in doubt: {reason}: it may lack some of them"
    ]


def confidence_of(world: World, point: PointRow) -> float | None:
    """How sure it is that a point lacks nothing that tracking kept back, 0 to 1; None: not known. Raises: FormatError.

    1: each of its disks was read whole for it.
    """
    if point.point_id in world.catalogue.suspects():
        return 0.0
    evidence = world.catalogue.evidence(point.point_id)
    return None if evidence is None else point_confidence(evidence)


def _readings(points: Sequence[PointRow]) -> list[PointReading]:
    records = [point.decoded() for point in points]
    return [
        PointReading(
            point_id=record.point_id,
            by_hint=frozenset(
                disk.device_key
                for disk in record.disks
                if is_by_changes(disk.level_reason)
                or (disk.seen_bytes is not None and disk.seen_bytes < disk.capacity_bytes)
            ),
        )
        for record in records
    ]

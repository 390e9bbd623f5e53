"""A point of the repository as the catalogue knows it, from its manifest alone."""

from __future__ import annotations

from holdfast_common.identity import JobId, LineageId, RepositoryId
from holdfast_common.repository.manifest_record import point_record
from holdfast_common.repository.points import Point
from holdfast_controller.store.catalogue import PointRow


def point_row(point: Point, repository_id: RepositoryId) -> PointRow:
    """The row of a point that the catalogue lacks. Raises: FormatError."""
    record = point_record(point.manifest)
    return PointRow(
        point_id=point.point_id,
        repository_id=repository_id,
        lineage_id=LineageId(record.lineage_id),
        job_id=JobId(record.job_id),
        vcenter_id=record.vcenter_id,
        instance_uuid=record.instance_uuid,
        vm_name=record.vm_name,
        created_at=record.snapshot_at or record.created_at,
        record=record.encode().decode(),
    )

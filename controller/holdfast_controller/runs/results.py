"""What an agent committed, written down: the point into the catalogue, with its job, in one transaction."""

from __future__ import annotations

from holdfast_common.errors import FormatError
from holdfast_common.identity import JobId, LineageId, PointId
from holdfast_common.job_result import JobResult
from holdfast_common.point_record import PointRecord
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.jobs import JobRow


def record_point(world: World, job_id: JobId, result: JobResult) -> None:
    """Durable on return; the point's change ids are the base of the next run from here on.

    Raises: FormatError when the agent's record is not of this job; IntegrityError when it names another
    job's point.
    """
    record = PointRecord.decode(result.record)
    if record.point_id != result.point_id:
        raise FormatError("an agent's record is not of its point", job=job_id)
    add_to_catalogue(world, world.jobs.job(job_id), record)
    world.jobs.set_result(
        job_id,
        error=None,
        disks=result.disks,
        warnings=result.warnings,
        point_id=PointId(record.point_id),
    )


def add_to_catalogue(world: World, job: JobRow, record: PointRecord) -> None:
    """Remember a point of this job that is in the repository; twice is harmless.

    Raises: FormatError when the record is of another job, VM or agent; IntegrityError when the point is
    another job's.
    """
    claimed = (record.job_id, record.lineage_id, record.agent_id)
    if claimed != (job.job_id, job.lineage_id, job.agent_id):
        raise FormatError(
            "an agent's record is not of its job",
            job=job.job_id,
            found=record.job_id,
            lineage=record.lineage_id,
            agent=record.agent_id,
        )
    world.catalogue.add(
        PointRow(
            point_id=PointId(record.point_id),
            repository_id=world.keeper.repository_id,
            lineage_id=LineageId(record.lineage_id),
            job_id=JobId(record.job_id),
            vcenter_id=record.vcenter_id,
            instance_uuid=record.instance_uuid,
            vm_name=record.vm_name,
            created_at=record.snapshot_at or record.created_at,
            record=record.encode().decode(),
        )
    )

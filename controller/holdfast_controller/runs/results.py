"""What an agent committed, written down; and what makes less of a job's end than done."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.identity import JobId, LineageId, PointId
from holdfast_common.job_result import JobResult, Outcome, Warned
from holdfast_common.point_record import PointRecord
from holdfast_controller.ledger import JobLedger
from holdfast_controller.runs.tracking_audits import note_audit, was_audited
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.jobs import JobRow

# A job that ends with one of these has skipped or left something: it is partial, and so is its run.
NOT_PROTECTED: Final = "not_protected"
LOWER_CONSISTENCY: Final = "consistency"
LEFT_BEHIND: Final = "left_behind"
PARTIAL_CODES: Final = frozenset({NOT_PROTECTED, LOWER_CONSISTENCY, LEFT_BEHIND})


def judged(result: JobResult, ledger: JobLedger) -> JobResult:
    """A result with what its job could not give back; partial when that, or anything else, makes it less."""
    warnings = tuple(dict.fromkeys((*result.warnings, *left_behind(ledger))))
    partial = any(warned.code in PARTIAL_CODES for warned in warnings)
    lowered = partial and result.outcome is Outcome.DONE
    return replace(
        result, warnings=warnings, outcome=Outcome.PARTIAL if lowered else result.outcome
    )


def left_behind(ledger: JobLedger) -> list[Warned]:
    """What a job could not give back: part of its result, beside the debt that `status` shows."""
    return [
        Warned(
            code=LEFT_BEHIND,
            message=f"a {entry.kind} of this job could not be given back yet: {entry.last_error}",
        )
        for entry in ledger.open_entries()
    ]


def record_point(world: World, job_id: JobId, result: JobResult) -> None:
    """Durable on return; the point's change ids are the base of the next run from here on.

    Raises: FormatError when the agent's record is not of this job; IntegrityError when it names another
    job's point.
    """
    record = PointRecord.decode(result.record)
    job = world.jobs.job(job_id)
    if (record.point_id, record.agent_id) != (result.point_id, job.agent_id):
        raise FormatError(
            "an agent's record is not of its point", job=job_id, agent=record.agent_id
        )
    add_to_catalogue(world, job, record)
    world.jobs.set_result(
        job_id,
        error=None,
        disks=result.disks,
        warnings=result.warnings,
        point_id=PointId(record.point_id),
    )


def add_to_catalogue(world: World, job: JobRow, record: PointRecord) -> None:
    """Remember a point of this job that is in the repository; twice is harmless.

    Raises: FormatError when the record is of another job or VM; IntegrityError when the point is another
    job's.
    """
    if (record.job_id, record.lineage_id) != (job.job_id, job.lineage_id):
        raise FormatError(
            "an agent's record is not of its job",
            job=job.job_id,
            found=record.job_id,
            lineage=record.lineage_id,
        )
    note_audit(world, job, record)  # before the point: afterwards nobody would look again
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
    if was_audited(record):
        world.catalogue.end_audit_turn(LineageId(record.lineage_id))

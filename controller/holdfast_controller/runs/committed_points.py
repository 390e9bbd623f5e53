"""Whether a backup's point is in the repository although nobody told so: looked for, then written down.

An agent can die between the manifest and its result. The manifest's name holds the job's id, so after
any such end it is looked for before another attempt begins, and until it can be looked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_common.identity import AgentId, LineageId
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import ListPoints
from holdfast_common.point_record import PointRecord
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.runs.agent_work import raise_unless_done, read_with_agent
from holdfast_controller.runs.repository_proxies import proxy_with_repository
from holdfast_controller.runs.results import add_to_catalogue
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.jobs import JobRow

log = logging.getLogger(__name__)

FOUND: Final = "found"  # events of a job: its restore point was looked for
NOT_FOUND: Final = "not committed"


def committed_point(world: World, job: JobRow) -> PointRow | None:
    """The point of a backup job, if it has one: from the catalogue, otherwise from the repository.

    Call it when no agent can be at work on the job. Raises: when it cannot be looked for now.
    """
    known = world.catalogue.of_job(job.job_id)
    if known is not None or not _may_be_committed(world, job):
        return known
    agent = proxy_with_repository(world)
    result = raise_unless_done(
        read_with_agent(
            world,
            job,
            agent_id=AgentId(agent.agent_id),
            work=ListPoints(
                keys=(world.keeper.reader_keys(LineageId(job.lineage_id)),), job_id=job.job_id
            ),
            stopped=world.stopping.is_set,  # the job may have been cancelled: its point counts
        )
    )
    for found in result.points:
        if found.job_id == job.job_id:
            # as it stands now: its agent was chosen after the caller read it
            now = world.jobs.job(job.job_id)
            add_to_catalogue(world, now, PointRecord.decode(found.record))
            world.jobs.note(job.job_id, FOUND, "its restore point was committed")
            return world.catalogue.of_job(job.job_id)
    world.jobs.note(job.job_id, NOT_FOUND, "its restore point is not in the repository")
    return None


def unless_committed(
    world: World, job: JobRow, attempt: Callable[[JobRow], JobResult]
) -> JobResult:
    """One attempt of a backup, which is done when an earlier one turns out to have been, or itself.

    Raises: what ``attempt`` raises when nothing was committed, or it cannot be looked for now.
    """
    point = committed_point(world, job)
    if point is None:
        try:
            result = attempt(job)
        except HoldfastError:
            point = _point_after_failure(world, job)
            if point is None:
                raise
        else:
            if result.outcome not in (Outcome.DONE, Outcome.PARTIAL):
                point = _point_after_failure(world, job)
            if point is None:
                return result
    return JobResult(outcome=Outcome.DONE, point_id=point.point_id)


def look_for_late_points(world: World) -> None:
    """For jobs that ended before anybody could look. What hinders it is logged; it is tried again."""
    for job in world.jobs.ended_in_doubt(settled_by=(FOUND, NOT_FOUND)):
        try:
            point = committed_point(world, job)
        except HoldfastError as error:
            log.info(
                "a point cannot be looked for yet",
                extra={"job_id": job.job_id, "error": str(error)},
            )
            return
        if point is not None:
            world.jobs.set_result(
                job.job_id,
                error=job.error,
                disks=job.disks,
                warnings=job.warnings,
                point_id=point.point_id,
            )


def _point_after_failure(world: World, job: JobRow) -> PointRow | None:
    try:
        return committed_point(world, job)
    except HoldfastError as error:
        log.warning(
            "whether a point was committed cannot be told yet",
            extra={"job_id": job.job_id, "error": str(error)},
        )
        return None


def _may_be_committed(world: World, job: JobRow) -> bool:
    """Whether leave to publish was given since the point was last looked for in vain."""
    story = [event.event for event in world.jobs.events(job.job_id)]
    last_looked = max((n for n, event in enumerate(story) if event == NOT_FOUND), default=-1)
    return JobState.COMMITTING in story[last_looked + 1 :]

"""Giving one piece of a job to its agent, with the answers that such a piece needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from holdfast_common.errors import HoldfastError, WrongKey
from holdfast_common.identity import AgentId, JobId, RunId, new_ulid
from holdfast_common.job_result import JobResult, Outcome, ProgressReport
from holdfast_common.job_spec import Attempt, DiskTicket, JobSpec, Work
from holdfast_controller.runs.attempt import AttemptAnswers, run_attempt
from holdfast_controller.runs.other_repository import OtherRepositoryKeys
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow

QUESTION_SECONDS: Final = 30.0  # somebody waits at a terminal


def next_attempt(world: World, job: JobRow) -> Attempt:
    """An attempt that no agent ever saw: a restore and its read-back are two of one job."""
    return Attempt(job_id=job.job_id, number=world.jobs.next_agent_attempt(job.job_id))


def progress_to_table(world: World, job: JobRow) -> Callable[[ProgressReport], None]:
    """Keeps the latest progress of a job."""

    def progressed(progress: ProgressReport) -> None:
        world.jobs.set_progress(
            job.job_id, done_bytes=progress.done_bytes, total_bytes=progress.total_bytes
        )

    return progressed


def read_with_agent(
    world: World,
    job: JobRow,
    *,
    agent_id: AgentId,
    work: Work,
    renew_ticket: Callable[[int], DiskTicket] | None = None,
    stopped: Callable[[], bool] | None = None,
    other: OtherRepositoryKeys | None = None,
) -> JobResult:
    """A restore, read-back, check or listing: it may open old data, and commits nothing.

    ``stopped`` None: it is cancelled with its job. ``other``: keys of another repository that it reads too.
    Raises: the agent's error when it did not end as done; LeaseExpired, Refused, TimedOut.
    """
    attempt = next_attempt(world, job)

    def open_keys(headers: Sequence[bytes]) -> list[bytes]:
        try:
            return world.keeper.open_segment_keys(attempt, headers)
        except WrongKey:
            if other is None:
                raise
            return other.open_segment_keys(attempt, headers)

    spec = JobSpec(run_id=job.run_id, repository_id=world.keeper.repository_id, work=work)
    answers = AttemptAnswers(
        on_result=lambda _: None,  # nothing of it outlives this run: a restart does it again
        on_progress=progress_to_table(world, job),
        open_keys=open_keys,
        renew_ticket=renew_ticket,
    )
    return run_attempt(
        world.link,
        agent_id=agent_id,
        attempt=attempt,
        spec=spec,
        answers=answers,
        stopped=stopped or (lambda: world.lifecycle.stopped(job.job_id)),
    )


def ask_agent(world: World, *, agent_id: AgentId, work: Work) -> JobResult:
    """A question that belongs to no job, answered at once. Raises: as above, and the agent's error."""
    limit = world.clock.monotonic_seconds() + QUESTION_SECONDS
    result = run_attempt(
        world.link,
        agent_id=agent_id,
        attempt=Attempt(job_id=JobId(new_ulid()), number=1),
        spec=JobSpec(run_id=RunId(new_ulid()), repository_id=world.keeper.repository_id, work=work),
        answers=AttemptAnswers(on_result=lambda _: None, on_progress=lambda _: None),
        stopped=lambda: world.stopping.is_set() or world.clock.monotonic_seconds() > limit,
    )
    return raise_unless_done(result)


def raise_unless_done(result: JobResult) -> JobResult:
    """The result itself when it is done. Raises: its error otherwise."""
    if result.outcome is Outcome.DONE:
        return result
    if result.error is not None:
        raise result.error.to_error()
    raise HoldfastError(f"the agent's work ended as {result.outcome}")

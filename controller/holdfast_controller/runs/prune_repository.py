"""A prune as a job: one round, by the controller itself, beside backups and on a thread of its own.

It may be cancelled, or the controller stopped, at any time: the next one goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import Locked, StoreFailed, TimedOut
from holdfast_common.job_result import JobResult, Outcome, Warned
from holdfast_common.repository.hang_watch import while_it_answers
from holdfast_common.repository.prune_progress import MOVING, PruneProgress
from holdfast_common.repository.prune_report import PruneReport
from holdfast_common.units import size_text
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.repository_care import PruneWatch, RepositoryCare
from holdfast_controller.runs.repository_verdict import ONE_AT_A_TIME, REPOSITORY
from holdfast_controller.runs.requests import PruneRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5  # how soon it is seen that the job is to stop
TOLD_MAX: Final = 50  # index objects by name, in one round's lines and warnings
REFUSED_ADVICE: Final = (
    "packs that may be named only there are kept: run `holdfast check`, then `holdfast repo repair`"
)
NOTE_SECONDS: Final = 60.0  # how often a step that is not counted in bytes is told


class PruneRepository:
    """The work of one such job."""

    def __init__(self, world: World, care: RepositoryCare, request: PruneRequest) -> None:
        self._world = world
        self._care = care
        self._request = request

    def plan(self) -> list[str]:
        """For people."""
        limits = self._request.limits
        what = "look what a prune would delete" if limits.dry_run else "prune the repository"
        return [f"{what}, with a grace time of {limits.grace}"]

    def new_job(self) -> NewJob:
        """The job's row: never beside a repair or another prune."""
        return NewJob(kind="prune", subject=REPOSITORY, excluded_by=ONE_AT_A_TIME)

    def __call__(self, job: JobRow) -> JobResult:
        """One round; told in the job's steps and in the table of rounds."""
        world = self._world
        watch = _JobWatch(world, job)
        with world.lifecycle.cleaning(job.job_id):
            world.jobs.advance(job.job_id, JobEvent.TRANSFER)
            report = while_it_answers(
                partial(
                    self._care.prune,
                    self._request.limits,
                    actor=self._request.actor,
                    watch=PruneWatch(job_id=job.job_id, check=watch.check, tell=watch.tell),
                    told=partial(prune_lines, dry_run=self._request.limits.dry_run),
                ),
                gave_up=watch.give_up,
            )
        return JobResult(outcome=Outcome.DONE, warnings=_warnings(report))


@dataclass(slots=True)
class _JobWatch:
    """Between a round and its job: may it go on, and how far is it? One thread."""

    world: World
    job: JobRow
    step: str = ""
    looked_at: float = field(default=-LOOK_SECONDS)
    told_at: float = 0.0
    given_up: TimedOut | None = None

    def give_up(self, error: TimedOut) -> None:
        """The repository hangs: should it ever answer again, this round ends."""
        self.given_up = error

    def check(self) -> None:
        """Raises: Interrupted, Cancelled, TimedOut (it was given up)."""
        if self.given_up is not None:
            raise self.given_up
        now = self.world.clock.monotonic_seconds()
        if now - self.looked_at >= LOOK_SECONDS:
            self.looked_at = now
            with _though_the_database_fails(self.job):
                self.world.lifecycle.check(self.job.job_id)

    def tell(self, progress: PruneProgress) -> None:
        """Keep it where followers look; not at every object."""
        now = self.world.clock.monotonic_seconds()
        is_new = progress.step != self.step
        in_bytes = progress.step == MOVING
        pause = LOOK_SECONDS if in_bytes else NOTE_SECONDS
        if not is_new and now - self.told_at < pause:
            return
        self.step, self.told_at = progress.step, now
        with _though_the_database_fails(self.job):
            if is_new or not in_bytes:
                self.world.jobs.note(self.job.job_id, progress.step, _text(progress))
            if in_bytes:
                self.world.jobs.set_progress(
                    self.job.job_id, done_bytes=progress.done, total_bytes=progress.total
                )


@contextmanager
def _though_the_database_fails(job: JobRow) -> Iterator[None]:
    """Hours of work do not end because nobody can be told of them just now."""
    try:
        yield
    except (Locked, StoreFailed) as error:
        log.warning(
            "a prune's progress could not be told",
            extra={"job_id": job.job_id, "error": error.line()},
        )


def prune_lines(report: PruneReport, *, dry_run: bool) -> list[str]:
    """What a round did, or would do, for people."""
    verb = "would be" if dry_run else "were"
    lines = [
        f"{report.deleted} objects {verb} deleted, {size_text(report.deleted_bytes)}",
        f"{report.doomed} objects {verb} found dead, {size_text(report.doomed_bytes)}:"
        " they go after the grace time",
        f"{report.repacked} packs {verb} repacked, {size_text(report.moved_bytes)} moved",
    ]
    if report.kept_for_later:
        lines.append(f"{report.kept_for_later} packs wait for a later round")
    if report.refused_indexes:
        lines += _refused_lines(report)
        lines.append(REFUSED_ADVICE)
    if report.waiting is not None and report.waiting.until is not None:
        lines.append(f"waiting for the grace time, until {utc_text(report.waiting.until)[:19]}Z")
    if report.waiting is not None and report.waiting.writers:
        jobs = ", ".join(
            writer.record.job_id if writer.record is not None else "an unreadable lease"
            for writer in report.waiting.writers
        )
        lines.append(f"waiting for writers at work: {jobs}")
    if report.out_of_time:
        lines.append("the time was over: the next round goes on from here")
    if report.was_full:
        lines.append("the repository was full: nothing was repacked; prune again")
    if dry_run:
        lines.append("nothing was changed: this was a dry run")
    return lines


def _refused_lines(report: PruneReport) -> list[str]:
    more = len(report.refused_indexes) - TOLD_MAX
    return [
        *(f"{name} is missing or cannot be used" for name in report.refused_indexes[:TOLD_MAX]),
        *([f"and {more} more index objects"] if more > 0 else []),
    ]


def _warnings(report: PruneReport) -> tuple[Warned, ...]:
    found = [
        Warned(code="index", message=f"{line}; {REFUSED_ADVICE}") for line in _refused_lines(report)
    ]
    if report.missing_chunks:
        message = (
            f"{report.missing_chunks} chunks that points need are missing: run `holdfast check`"
        )
        found.append(Warned(code="missing", message=message))
    return tuple(found)


def _text(progress: PruneProgress) -> str:
    if not progress.total:
        return ""
    if progress.step == MOVING:
        return size_text(progress.total)
    return f"{progress.done} of {progress.total}"

"""The life of one job around its work: states, attempts, errors, cancelling. The work itself is a function.

    with lifecycle.cleaning(job):      # innermost: says `cleaning` before anything is given back
        ...

Every transition is durable before its effect. The work raises or returns a result; here that becomes
an end, or another attempt when it may pass by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from holdfast_common.errors import Cancelled, HoldfastError, Interrupted, Locked, StoreFailed
from holdfast_common.identity import JobId
from holdfast_common.job_result import ErrorReport, JobResult, Outcome
from holdfast_common.retry import backoff_seconds, retried
from holdfast_controller.decide.job_state import END_EVENTS, JobEvent, JobState
from holdfast_controller.runs.stop_requests import StopRequests
from holdfast_controller.store.jobs import JobRow, JobTable

log = logging.getLogger(__name__)

JobWork = Callable[[JobRow], JobResult]
Written = TypeVar("Written")

STORE_TRIES: Final = 10  # about a minute of pauses; a busy database waits by itself besides
STORE_RETRY_SECONDS: Final = 0.5
STORE_RETRY_SECONDS_MAX: Final = 10.0


class Lifecycle:
    """Carries jobs out, one thread each. Thread-safe."""

    def __init__(
        self,
        *,
        jobs: JobTable,
        stopping: threading.Event,
        attempts_max: int,
        retry_seconds: float = 5.0,
        store_tries: int = STORE_TRIES,
        stops: StopRequests | None = None,
    ) -> None:
        self.stops = stops or StopRequests()
        self._jobs = jobs
        self._stopping = stopping
        self._attempts_max = attempts_max
        self._retry_seconds = retry_seconds
        self._store_tries = store_tries

    def carry_out(self, job_id: JobId, work: JobWork, *, attempts_max: int = 0) -> JobResult:
        """From queued to an end; never raises an error of a job. Returns how it ended.

        ``attempts_max`` 0: as it is configured. Raises: when not even after some time it can be written down how
        it ended.
        """
        try:
            return self._carry_out(job_id, work, attempts_max or self._attempts_max)
        finally:
            self.stops.settled(job_id)

    def _carry_out(self, job_id: JobId, work: JobWork, attempts_max: int) -> JobResult:
        waits = backoff_seconds(first=self._retry_seconds, maximum=60.0, attempts=attempts_max)
        while True:
            result = self._as_asked(job_id, self._one_attempt(job_id, work))
            job = self._durably(partial(self._keep, job_id, result))
            if job.ended:
                return result
            wait = next(waits, None)
            may_try = job.attempt < attempts_max and self._may_try_again(job, result)
            if may_try and wait is not None:
                self._durably(partial(self._queue_again, job_id, result))
                if not self._stopping.wait(wait):
                    continue
                result = JobResult(
                    outcome=Outcome.INTERRUPTED,
                    error=ErrorReport.of(Interrupted("the controller is stopping")),
                )
            self._durably(partial(self._end, job_id, result.outcome))
            log.info(
                "job ended",
                extra={"job_id": job_id, "outcome": result.outcome, "subject": job.subject},
            )
            return result

    def stopped(self, job_id: JobId) -> bool:
        """Whether the job is to stop: an operator asked, or the controller ends."""
        if self._stopping.is_set() or self.stops.why(job_id) is not None:
            return True
        return self._jobs.job(job_id).cancel_asked

    def check(self, job_id: JobId) -> None:
        """Raises: Interrupted or Cancelled when the job is to stop."""
        if self._stopping.is_set():
            raise Interrupted("the controller is stopping")
        why = self.stops.why(job_id)
        if why is not None:
            raise why
        if self._jobs.job(job_id).cancel_asked:
            raise Cancelled("cancelled by an operator")

    @contextmanager
    def cleaning(self, job_id: JobId) -> Iterator[None]:
        """On every way out the job is `cleaning` before what stands outside of this is given back.

        Stand it inside of everything that is given back; more than once in a job is fine.
        """
        try:
            yield
        finally:
            try:
                self._clean(job_id)
            except (Locked, StoreFailed) as error:
                # it only tells people; what is to be given back is given back all the same
                log.warning(
                    "a job cleans up, which could not be written down",
                    extra={"job_id": job_id, "error": error.line()},
                )

    def _durably(self, write: Callable[[], Written]) -> Written:
        """Tried for some minutes: without it a job would not end. ``write`` may come twice."""
        return retried(
            write,
            stop=self._stopping,
            attempts=self._store_tries,
            first_seconds=STORE_RETRY_SECONDS,
            maximum_seconds=STORE_RETRY_SECONDS_MAX,
        )

    def _keep(self, job_id: JobId, result: JobResult) -> JobRow:
        """What an attempt brought; the job as it is then, which is cleaning or has not begun."""
        job = self._jobs.job(job_id)
        self._jobs.set_result(
            job_id,
            error=result.error,
            disks=result.disks or job.disks,
            warnings=result.warnings or job.warnings,
            point_id=result.point_id,
        )
        if not job.ended and job.state is not JobState.QUEUED:
            self._clean(job_id)
        return self._jobs.job(job_id)

    def _clean(self, job_id: JobId) -> None:
        if self._jobs.job(job_id).state is not JobState.CLEANING:
            self._jobs.advance(job_id, JobEvent.CLEAN)

    def _queue_again(self, job_id: JobId, result: JobResult) -> None:
        if self._jobs.job(job_id).state is not JobState.QUEUED:
            self._jobs.note(job_id, "trying again", result.error.text() if result.error else "")
            self._jobs.advance(job_id, JobEvent.TRY_AGAIN)

    def _end(self, job_id: JobId, outcome: Outcome) -> None:
        if not self._jobs.job(job_id).ended:
            self._jobs.advance(job_id, END_EVENTS[outcome])

    def _one_attempt(self, job_id: JobId, work: JobWork) -> JobResult:
        try:
            self.check(job_id)
            self._jobs.advance(job_id, JobEvent.START)
            return work(self._jobs.job(job_id))
        except Cancelled as error:
            return JobResult(outcome=Outcome.CANCELLED, error=ErrorReport.of(error))
        except HoldfastError as error:
            interrupted = isinstance(error, Interrupted)
            return JobResult(
                outcome=Outcome.INTERRUPTED if interrupted else Outcome.FAILED,
                error=ErrorReport.of(error),
            )
        except Exception as error:
            log.exception("a job failed by a bug", extra={"job_id": job_id})
            return JobResult(outcome=Outcome.FAILED, error=bug_report(error))

    def _may_try_again(self, job: JobRow, result: JobResult) -> bool:
        return (
            result.error is not None
            and result.error.retryable
            and result.outcome in (Outcome.FAILED, Outcome.INTERRUPTED)
            and job.state is not JobState.QUEUED
            and not job.cancel_asked
            and not self._stopping.is_set()
        )

    def _as_asked(self, job_id: JobId, result: JobResult) -> JobResult:
        """What ended because it was asked to says why. What was done before it could stop is done."""
        why = self.stops.why(job_id)
        if why is None and result.outcome is Outcome.CANCELLED and self._stopping.is_set():
            # the agent was told to stop, and does not know that no operator said so
            cancelled = self._durably(partial(self._jobs.job, job_id)).cancel_asked
            why = None if cancelled else Interrupted("the controller is stopping")
        if why is None or result.outcome in (Outcome.DONE, Outcome.PARTIAL):
            return result
        return replace(result, outcome=Outcome.INTERRUPTED, error=ErrorReport.of(why))


def bug_report(error: BaseException) -> ErrorReport:
    """An error that is none of ours, as a job's error."""
    return ErrorReport(
        code="failed",
        message=f"a bug in Holdfast: {type(error).__name__}: {error}",
        advice="see the controller's log, and report it",
    )

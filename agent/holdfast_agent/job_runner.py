"""Owns the jobs of this agent: their threads, their end, their results.

Between the session (which calls it on its thread, and never waits for a job) and the pipelines.
A result is durable in the ledger before anybody is told of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.ledger import AgentLedger
from holdfast_agent.pipelines.context import Grant, JobContext
from holdfast_agent.running_attempt import (
    AttemptState,
    CommitAsked,
    ResultReady,
    RunningAttempt,
    StateChanged,
    Surroundings,
)
from holdfast_common.clock import utc_text
from holdfast_common.errors import (
    Cancelled,
    CapabilityAbsent,
    ConfigurationError,
    HoldfastError,
    Interrupted,
    LeaseExpired,
    Locked,
    Refused,
    UsageError,
)
from holdfast_common.identity import JobId
from holdfast_common.job_result import ErrorReport, JobResult, Outcome
from holdfast_common.job_spec import Attempt, JobSpec, Work
from holdfast_common.repository.forgetting import give_back_freed_memory
from holdfast_common.repository.hang_watch import while_it_answers
from holdfast_common.wire_codec.results import decoded_result, encoded_result

log = logging.getLogger(__name__)

Pipeline = Callable[[JobSpec, JobContext], JobResult]
PipelineTable = Mapping[type[Work], Pipeline]

ATTEMPTS_MAX: Final = 16  # of all jobs together; the controller's own limits are lower
REMEMBERED_MAX: Final = 10_000  # jobs whose last attempt is known, so that a late StartJob is
CLOSING_SECONDS_MAX: Final = 3600.0  # a replaced attempt stops at a block boundary, then closes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The highest attempt of a job that was accepted here. ``digest`` None: by an earlier process."""

    number: int
    digest: bytes | None
    state: AttemptState

    def is_the_same(self, attempt: Attempt, digest: bytes) -> bool:
        """Whether this was asked for before, as far as that is known."""
        return self.number == attempt.number and self.digest in {digest, None}


class JobRunner:
    """Thread-safe. ``pipelines`` is called at the first job, so that nothing is imported before."""

    def __init__(
        self,
        *,
        surroundings: Surroundings,
        configuration: Callable[[], AgentConfiguration],
        ledger: AgentLedger,
        pipelines: Callable[[], PipelineTable],
    ) -> None:
        """Attempts of an earlier process of this agent become results: interrupted."""
        self._surroundings = surroundings
        self._configuration = configuration
        self._ledger = ledger
        self._pipelines = pipelines
        self._lock = threading.Lock()
        self._running: dict[Attempt, RunningAttempt] = {}
        self._known: OrderedDict[JobId, _Known] = OrderedDict()
        self._unacknowledged: dict[Attempt, JobResult] = {}
        self._stopping = False
        self._recover()

    def start(
        self, attempt: Attempt, spec: JobSpec, digest: bytes, *, lease_ends_at: float
    ) -> StateChanged:
        """Accept an attempt, or say what became of it; the answer to StartJob.

        The same again gets its present state; a higher number stops the lower one first.
        """
        with self._lock:
            known = self._known.get(attempt.job_id)
            if known is not None and known.is_the_same(attempt, digest):
                return self._state_again(attempt, known)
            refusal = self._refusal(attempt, digest, known)
            if refusal is None:
                refusal = self._accepted_durably(attempt)
            if refusal is not None:
                return StateChanged(
                    attempt=attempt, state=AttemptState.REFUSED, error=ErrorReport.of(refusal)
                )
            earlier = [
                job for job in self._running.values() if job.attempt.job_id == attempt.job_id
            ]
            running = RunningAttempt(
                attempt=attempt,
                spec=spec,
                configuration=self._configuration(),
                surroundings=self._surroundings,
                lease_ends_at=lease_ends_at,
            )
            self._running[attempt] = running
            self._remember(attempt, digest, AttemptState.ACCEPTED)
        for job in earlier:
            job.stop(Interrupted("a later attempt of this job began"))
        thread = threading.Thread(
            target=self._run, args=(running, earlier), name=f"job-{attempt.job_id}", daemon=True
        )
        thread.start()
        return StateChanged(attempt=attempt, state=AttemptState.ACCEPTED)

    def cancel(self, attempt: Attempt) -> None:
        """Stop it at a block boundary; a result follows. An unknown attempt is left alone."""
        self._tell(attempt, lambda job: job.stop(Cancelled("the job was cancelled")))

    def limit(self, attempt: Attempt, rates: Mapping[int, int]) -> None:
        """Read these disks no faster than that (bytes per second by device key), and all others as fast as it goes."""
        self._tell(attempt, lambda job: job.limit(rates))

    def abort(self, attempt: Attempt) -> None:
        """The controller gave the attempt up while it could not be heard."""
        error = LeaseExpired("the controller gave this attempt up")
        self._tell(attempt, lambda job: job.stop(error))

    def abort_all(self, error: HoldfastError) -> None:
        """Stop everything: this agent was revoked, or ends."""
        for job in self._all_running():
            job.stop(error)

    def renew_leases(self, ends_at: Mapping[Attempt, float]) -> None:
        """Leases from one heartbeat's answer; an attempt that it does not name keeps its old one."""
        for attempt, moment in ends_at.items():
            self._tell(attempt, lambda job, until=moment: job.renew_lease(until))  # type: ignore[misc]  # mypy does not infer lambdas with defaults

    def commit_granted(self, attempt: Attempt, manifest_digest: bytes, grant: Grant) -> None:
        """The controller's leave to publish."""
        self._tell(attempt, lambda job: job.commit_granted(manifest_digest, grant))

    def commit_refused(self, attempt: Attempt, error: ErrorReport) -> None:
        """The controller's refusal."""
        self._tell(attempt, lambda job: job.commit_refused(error))

    def acknowledged(self, attempt: Attempt) -> None:
        """The controller has the result."""
        with self._lock:
            if attempt in self._running:
                return  # not ended: the acknowledgement is of something else
            self._unacknowledged.pop(attempt, None)
        self._ledger.acknowledged(attempt)

    def running(self) -> list[tuple[Attempt, AttemptState]]:
        """For the hello: what is at work."""
        return [(job.attempt, job.state) for job in self._all_running()]

    def results(self) -> list[ResultReady]:
        """For every welcome: what was not acknowledged."""
        with self._lock:
            return [
                ResultReady(attempt=attempt, result=result)
                for attempt, result in self._unacknowledged.items()
            ]

    def pending_commits(self) -> list[CommitAsked]:
        """For every welcome: what waits for the controller's leave."""
        pending = []
        for job in self._all_running():
            digest = job.pending_commit()
            if digest is not None:
                pending.append(CommitAsked(attempt=job.attempt, manifest_digest=digest))
        return pending

    def stop(self) -> None:
        """Accept nothing more, and interrupt what is at work."""
        with self._lock:
            self._stopping = True
        self.abort_all(Interrupted("the agent was stopped"))

    def wait_ended(self, timeout_seconds: float) -> bool:
        """Whether all jobs have ended within this time."""
        ends_at = time.monotonic() + timeout_seconds
        return all(
            job.ended.wait(max(0.0, ends_at - time.monotonic())) for job in self._all_running()
        )

    def _recover(self) -> None:
        error = Interrupted("the agent ended while the job was at work")
        lost = JobResult(
            outcome=Outcome.INTERRUPTED,
            error=ErrorReport.of(error),
            finished_at=utc_text(self._surroundings.clock.now()),
        )
        for attempt in self._ledger.unfinished():
            self._ledger.write_result(attempt, encoded_result(lost))
            log.warning("job was interrupted", extra={"job_id": attempt.job_id})
        for attempt, encoded in self._ledger.results():
            try:
                self._unacknowledged[attempt] = decoded_result(encoded)
            except UsageError:
                log.exception("a result is damaged", extra={"job_id": attempt.job_id})
                self._unacknowledged[attempt] = lost
            self._remember(attempt, None, AttemptState.FINISHED)

    def _state_again(self, attempt: Attempt, known: _Known) -> StateChanged:
        running = self._running.get(attempt)
        result = self._unacknowledged.get(attempt)
        if running is None and result is not None:
            self._surroundings.post(ResultReady(attempt=attempt, result=result))
        return StateChanged(attempt=attempt, state=running.state if running else known.state)

    def _refusal(
        self, attempt: Attempt, digest: bytes, known: _Known | None
    ) -> HoldfastError | None:
        if self._stopping:
            return Refused("the agent is stopping")
        if known is not None and known.number > attempt.number:
            return Refused("a later attempt of this job is known here", known=known.number)
        if known is not None and known.number == attempt.number:
            return Refused("this attempt was asked for before, with another job")
        if len(self._running) >= ATTEMPTS_MAX:
            return Locked("the agent has as many jobs as it takes", jobs=len(self._running))
        return None

    def _accepted_durably(self, attempt: Attempt) -> HoldfastError | None:
        try:
            self._ledger.accepted(attempt)
        except ConfigurationError as error:
            return error
        return None

    def _run(self, job: RunningAttempt, earlier: list[RunningAttempt]) -> None:
        """The job's thread."""
        started_at = utc_text(self._surroundings.clock.now())
        try:
            result = self._carried_out(job, earlier)
        except HoldfastError as error:
            result = JobResult(outcome=_outcome(error), error=ErrorReport.of(error))
        except Exception as error:
            log.exception("a bug ended a job", extra={"job_id": job.attempt.job_id})
            bug = HoldfastError(
                f"a bug in the agent: {type(error).__name__}: {error}",
                advice="see the agent's log, and report it",
            )
            result = JobResult(outcome=Outcome.FAILED, error=ErrorReport.of(bug))
        give_back_freed_memory()  # what the job read must not stay for who takes this proxy over later
        warned = tuple(found for found in job.warnings() if found not in result.warnings)
        self._end(
            job,
            replace(
                result,
                warnings=(*result.warnings, *warned),
                started_at=started_at,
                finished_at=utc_text(self._surroundings.clock.now()),
            ),
        )

    def _carried_out(self, job: RunningAttempt, earlier: list[RunningAttempt]) -> JobResult:
        for other in earlier:
            if not other.ended.wait(CLOSING_SECONDS_MAX):
                raise Locked("an earlier attempt of this job does not end", job=job.attempt.job_id)
        job.check()
        pipeline = self._pipelines().get(type(job.spec.work))
        if pipeline is None:
            kind = type(job.spec.work).__name__
            raise CapabilityAbsent("this agent cannot do such a job", work=kind)
        job.state = AttemptState.RUNNING
        self._surroundings.post(StateChanged(attempt=job.attempt, state=AttemptState.RUNNING))
        return while_it_answers(lambda: pipeline(job.spec, job), gave_up=job.stop)

    def _end(self, job: RunningAttempt, result: JobResult) -> None:
        try:
            self._ledger.write_result(job.attempt, encoded_result(result))
        except ConfigurationError:
            # It is sent all the same: after a crash the attempt counts as interrupted, which the
            # controller knows better by then.
            log.exception("a result is not durable", extra={"job_id": job.attempt.job_id})
        with self._lock:
            self._unacknowledged[job.attempt] = result
            del self._running[job.attempt]
            known = self._known.get(job.attempt.job_id)
            if known is not None and known.number == job.attempt.number:
                self._remember(job.attempt, known.digest, AttemptState.FINISHED)
        job.state = AttemptState.FINISHED
        job.ended.set()
        error = result.error
        log.log(
            logging.INFO if error is None else logging.WARNING,
            "job ended",
            extra={
                "job_id": job.attempt.job_id,
                "attempt": job.attempt.number,
                "outcome": result.outcome,
                "error_code": error.code if error else "",
                "error": error.text() if error else "",
            },
        )
        self._surroundings.post(ResultReady(attempt=job.attempt, result=result))

    def _remember(self, attempt: Attempt, digest: bytes | None, state: AttemptState) -> None:
        self._known.pop(attempt.job_id, None)
        self._known[attempt.job_id] = _Known(number=attempt.number, digest=digest, state=state)
        while len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)

    def _tell(self, attempt: Attempt, what: Callable[[RunningAttempt], None]) -> None:
        with self._lock:
            job = self._running.get(attempt)
        if job is not None:
            what(job)

    def _all_running(self) -> list[RunningAttempt]:
        with self._lock:
            return list(self._running.values())


def _outcome(error: HoldfastError) -> Outcome:
    if isinstance(error, Cancelled):
        return Outcome.CANCELLED
    return Outcome.INTERRUPTED if isinstance(error, Interrupted | LeaseExpired) else Outcome.FAILED

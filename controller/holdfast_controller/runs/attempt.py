"""One attempt of an agent, as its run sees it: answers questions, waits for the end.

Between `runs` (a thread per job, which waits here) and `service` (which calls from executor threads).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from holdfast_common.errors import Cancelled, HoldfastError, LeaseExpired, NotFound, Refused
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId
from holdfast_common.job_result import ErrorReport, JobResult, Outcome, ProgressReport
from holdfast_common.job_spec import Attempt, DiskTicket, JobSpec
from holdfast_controller.runs.agent_link import AgentLink, SignedGrant
from holdfast_controller.runs.lifecycle import bug_report

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptAnswers:
    """What the run answers while its agent works. Every function is called on an executor thread.

    ``extents`` by device key; ``open_keys`` None: this kind of job gets no segment keys;
    ``grant_commit`` returns when the grant is durable; ``on_result`` when the result is. ``lease_seconds``: how long
    the agent may be away and go on; 0: as the controller is configured.
    """

    on_result: Callable[[JobResult], None]
    on_progress: Callable[[ProgressReport], None]
    extents: Mapping[int, Sequence[Extent]] = field(default_factory=dict)
    open_keys: Callable[[Sequence[bytes]], list[bytes]] | None = None
    renew_ticket: Callable[[int], DiskTicket] | None = None
    grant_commit: Callable[[bytes], SignedGrant] | None = None
    lease_seconds: float = 0.0


class AttemptInProgress:
    """An `AttemptHandler` whose end can be waited for."""

    def __init__(self, answers: AttemptAnswers) -> None:
        self._answers = answers
        self._ended = threading.Event()
        self._result: JobResult | None = None

    def extents(self, device_key: int) -> Iterable[Extent]:
        """Areas to read, ascending. Raises: NotFound."""
        found = self._answers.extents.get(device_key)
        if found is None:
            raise NotFound("this job has no such disk", device_key=device_key)
        return found

    def segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        """Opened and audited. Raises: Refused when this kind of job may not read old data."""
        if self._answers.open_keys is None:
            raise Refused("this job may not open old data")
        return self._answers.open_keys(headers)

    def renewed_ticket(self, device_key: int) -> DiskTicket:
        """A fresh ticket. Raises: NotFound."""
        if self._answers.renew_ticket is None:
            raise NotFound("this job's tickets are not renewed", device_key=device_key)
        return self._answers.renew_ticket(device_key)

    def grant_commit(self, manifest_digest: bytes) -> SignedGrant:
        """Returns when `committing` is durable. Raises: whatever forbids it."""
        if self._answers.grant_commit is None:
            raise Refused("this job commits nothing")
        return self._answers.grant_commit(manifest_digest)

    def progressed(self, progress: ProgressReport) -> None:
        """The latest progress."""
        self._answers.on_progress(progress)

    def finished(self, result: JobResult) -> None:
        """Durable first, then the waiting run goes on.

        Raises: what may pass by itself; the agent keeps the result and sends it again. What would be so
        for ever is the attempt's end instead: else its job would wait for ever.
        """
        try:
            self._answers.on_result(result)
        except HoldfastError as error:
            if error.retryable:
                raise
            log.exception("a result cannot be kept")
            result = replace(result, outcome=Outcome.FAILED, error=ErrorReport.of(error))
        except Exception as error:
            # A bug here would come back with each repetition, and whoever waits would wait for ever.
            log.exception("a result cannot be kept because of a bug")
            result = replace(result, outcome=Outcome.FAILED, error=bug_report(error))
        self._result = result
        self._ended.set()

    def lost(self) -> None:
        """The agent can commit nothing any more."""
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended."""
        return self._ended.wait(seconds)

    @property
    def result(self) -> JobResult | None:
        """None while it runs, and when the agent was lost."""
        return self._result


def run_attempt(
    link: AgentLink,
    *,
    agent_id: AgentId,
    attempt: Attempt,
    spec: JobSpec,
    answers: AttemptAnswers,
    stopped: Callable[[], bool],
) -> JobResult:
    """Send a job to an agent and wait for its end; cancels it when ``stopped`` says so.

    Raises: LeaseExpired when the agent was lost; Refused when it was revoked; Refused or TimedOut when it
    did not start.
    """
    handler = AttemptInProgress(answers)
    if stopped():
        raise Cancelled("cancelled before the agent started")
    link.start(agent_id, attempt, spec, handler, lease_seconds=answers.lease_seconds)
    bug = _waited_for(link, attempt, handler, stopped)
    if bug is not None:
        raise bug
    if handler.result is None and link.is_revoked(agent_id):
        raise Refused(
            "the agent was revoked in the middle of the job; it can commit nothing any more",
            agent=agent_id,
            attempt=attempt.number,
            advice="start the job again: another agent does it, or this one after it enrolled anew",
        )
    if handler.result is None:
        raise LeaseExpired(
            "the agent was lost in the middle of the job; it can commit nothing any more",
            agent=agent_id,
            attempt=attempt.number,
        )
    return handler.result


def _waited_for(
    link: AgentLink, attempt: Attempt, handler: AttemptInProgress, stopped: Callable[[], bool]
) -> BaseException | None:
    """Until the attempt has ended, whatever happens here: until then the agent reads and writes.

    Returns what is to be raised then.
    """
    cancelled = False
    failure: BaseException | None = None
    while True:
        try:
            if handler.wait(POLL_SECONDS):
                return failure
            if not cancelled and (failure is not None or stopped()):
                link.cancel(attempt)
                cancelled = True
        except HoldfastError as error:
            # asked again: the database or the agents' sessions may be there in a moment
            log.warning("a job waits for its agent", extra={"error": error.line()})
        except BaseException as error:
            log.exception("a job stops its agent because of a bug")
            failure = failure or error

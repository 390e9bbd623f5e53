"""One attempt at work: the `JobContext` that its pipeline asks, and what the session tells it.

Between the job runner and the pipeline. The job's own threads ask; the session's thread tells.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.pacing import DiskPaces
from holdfast_agent.pipelines.context import Grant
from holdfast_agent.repository_memory import RepositoryMemory
from holdfast_common.clock import Clock
from holdfast_common.errors import HoldfastError, LeaseExpired, NoRepository, TimedOut
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, RepositoryId
from holdfast_common.job_result import ErrorReport, JobResult, ProgressReport, Warned
from holdfast_common.job_spec import Attempt, DiskTicket, JobSpec

log = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 1.0
COMMIT_SECONDS_MAX: Final = 600.0  # the controller writes one row; its repository may be slow
LEASE_WAIT_SECONDS: Final = 20.0  # 15 s after a lease's end the controller gives the attempt up


class AttemptState(StrEnum):
    """Where an attempt stands on this agent. Committing: the controller's leave has arrived."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    COMMITTING = "committing"
    FINISHED = "finished"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """For the controller: an attempt stands here now; ``error`` says why it was refused."""

    attempt: Attempt
    state: AttemptState
    error: ErrorReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressMade:
    """For the controller: may be lost."""

    attempt: Attempt
    report: ProgressReport


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitAsked:
    """For the controller: may this manifest be published?"""

    attempt: Attempt
    manifest_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultReady:
    """For the controller: an attempt has ended; the result is durable here."""

    attempt: Attempt
    result: JobResult


Posted = StateChanged | ProgressMade | CommitAsked | ResultReady


class ControllerCalls(Protocol):
    """Calls beside the session, for any thread. All raise LeaseExpired, ControllerUnreachable."""

    def fetch_extents(self, attempt: Attempt, device_key: int) -> Iterable[Extent]:
        """The areas to read of one disk, ascending."""
        ...

    def open_segment_keys(self, attempt: Attempt, headers: Sequence[bytes]) -> list[bytes]:
        """Keys of pack segments, in the order asked. Raises: Refused."""
        ...

    def renew_ticket(self, attempt: Attempt, device_key: int) -> DiskTicket:
        """A fresh ticket for one disk."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every attempt of this agent shares. ``post`` never blocks for long."""

    agent_id: AgentId
    signing_key: Ed25519PrivateKey
    calls: ControllerCalls
    post: Callable[[Posted], None]
    clock: Clock
    repositories: RepositoryMemory = field(default_factory=RepositoryMemory)
    lease_wait_seconds: float = LEASE_WAIT_SECONDS


class RunningAttempt:
    """A `JobContext`. Its lease is a moment of the agent's monotonic clock."""

    def __init__(
        self,
        *,
        attempt: Attempt,
        spec: JobSpec,
        configuration: AgentConfiguration,
        surroundings: Surroundings,
        lease_ends_at: float,
    ) -> None:
        self._attempt = attempt
        self.spec = spec
        self.state = AttemptState.ACCEPTED
        self.ended = threading.Event()
        self._configuration = configuration
        self._surroundings = surroundings
        self._lease_ends_at = lease_ends_at
        self._changed = threading.Condition()
        self._stop: ErrorReport | None = None
        self._commit_digest: bytes | None = None
        self._grant: Grant | None = None
        self._refusal: ErrorReport | None = None
        self._warnings: list[Warned] = []
        self._progress_sequence = 0
        self._progress_due_at = 0.0
        self._paces = DiskPaces(surroundings.clock)

    # What the pipeline asks.

    @property
    def repositories(self) -> RepositoryMemory:
        """What this agent keeps of repositories between jobs."""
        return self._surroundings.repositories

    @property
    def attempt(self) -> Attempt:
        """Which try of which job this is."""
        return self._attempt

    @property
    def agent_id(self) -> AgentId:
        """This agent."""
        return self._surroundings.agent_id

    @property
    def configuration(self) -> AgentConfiguration:
        """What the administrator allowed when the job began."""
        return self._configuration

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """Signs what this agent writes into a repository."""
        return self._surroundings.signing_key

    def repository_path(self, repository_id: RepositoryId) -> Path:
        """Where this agent reaches a repository. Raises: NoRepository."""
        path = self._configuration.repositories.get(repository_id)
        if path is None:
            raise NoRepository(
                "this agent does not know the repository",
                repository=repository_id,
                advice="name its folder with `holdfast-agent configure --repository ID=PATH`",
            )
        return Path(path)

    def check(self) -> None:
        """Call at every block boundary; waits while the lease is over and may come back.

        Raises: Cancelled, LeaseExpired, Interrupted.
        """
        now = self._surroundings.clock.monotonic_seconds()
        if self._stop is None and now < self._lease_ends_at:
            return
        with self._changed:
            self._wait_for_lease()

    def pace(self, device_key: int, length: int) -> int:
        """How many bytes of a disk may be read now, at most ``length``. Raises: as `check`."""
        return self._paces.wait(device_key, length, check=self.check)

    def report(self, *, done_bytes: int, total_bytes: int, device_key: int, phase: str) -> None:
        """Progress; at most one a second is sent."""
        now = self._surroundings.clock.monotonic_seconds()
        if now < self._progress_due_at:
            return
        self._progress_due_at = now + PROGRESS_SECONDS
        self._progress_sequence += 1
        report = ProgressReport(
            sequence=self._progress_sequence,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            device_key=device_key,
            phase=phase,
        )
        self._surroundings.post(ProgressMade(attempt=self._attempt, report=report))

    def warn(self, code: str, message: str) -> None:
        """Something the result must tell."""
        with self._changed:
            self._warnings.append(Warned(code=code, message=message))

    def fetch_extents(self, device_key: int) -> Iterable[Extent]:
        """The areas to read of one disk, ascending. Raises: LeaseExpired, ControllerUnreachable."""
        self.check()
        return self._surroundings.calls.fetch_extents(self._attempt, device_key)

    def open_segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        """Raises: Refused, LeaseExpired, ControllerUnreachable."""
        self.check()
        return self._surroundings.calls.open_segment_keys(self._attempt, headers)

    def renew_ticket(self, device_key: int) -> DiskTicket:
        """Raises: LeaseExpired, ControllerUnreachable."""
        self.check()
        return self._surroundings.calls.renew_ticket(self._attempt, device_key)

    def request_commit(self, manifest_digest: bytes) -> Grant:
        """Block until the controller grants, over reconnects. Raises: Refused, LeaseExpired, Cancelled."""
        self.check()
        clock = self._surroundings.clock
        ends_at = clock.monotonic_seconds() + COMMIT_SECONDS_MAX
        with self._changed:
            self._commit_digest = manifest_digest
            self._grant = self._refusal = None
        self._surroundings.post(CommitAsked(attempt=self._attempt, manifest_digest=manifest_digest))
        with self._changed:
            try:
                while self._grant is None and self._refusal is None:
                    self._wait_for_lease()
                    left = ends_at - clock.monotonic_seconds()
                    if left <= 0:
                        raise TimedOut("the controller did not answer a request to commit")
                    until_lease_ends = self._lease_ends_at - clock.monotonic_seconds()
                    self._changed.wait(max(0.01, min(left, until_lease_ends)))
                if self._refusal is not None:
                    raise self._refusal.to_error()
                self._wait_for_lease()  # a grant is worth nothing without the lease
                assert self._grant is not None, "the loop above ends with one of both"
                self.state = AttemptState.COMMITTING
                return self._grant
            finally:
                self._commit_digest = None

    # What the session tells.

    def stop(self, error: HoldfastError) -> None:
        """Make every `check` raise this; the first reason counts."""
        with self._changed:
            if self._stop is None:
                self._stop = ErrorReport.of(error)
            self._changed.notify_all()

    def limit(self, rates: Mapping[int, int]) -> None:
        """Read these disks no faster than that from now on (bytes per second by device key)."""
        self._paces.limit(rates)

    def renew_lease(self, ends_at: float) -> None:
        """The lease is good until this moment of the monotonic clock, be it earlier than before."""
        with self._changed:
            self._lease_ends_at = ends_at
            self._changed.notify_all()

    def commit_granted(self, manifest_digest: bytes, grant: Grant) -> None:
        """The controller's leave; one for another manifest is ignored."""
        with self._changed:
            if self._commit_digest == manifest_digest:
                self._grant = grant
                self._changed.notify_all()

    def commit_refused(self, error: ErrorReport) -> None:
        """The controller's refusal."""
        with self._changed:
            if self._commit_digest is not None and self._grant is None:
                self._refusal = error
                self._changed.notify_all()

    def pending_commit(self) -> bytes | None:
        """The digest of a manifest that waits for an answer; asked again after a reconnect."""
        with self._changed:
            return self._commit_digest if self._grant is None else None

    def warnings(self) -> tuple[Warned, ...]:
        """What the pipeline warned of so far."""
        with self._changed:
            return tuple(self._warnings)

    def _wait_for_lease(self) -> None:
        """Return with a live lease, or raise. The condition is held."""
        clock = self._surroundings.clock
        while True:
            if self._stop is not None:
                raise self._stop.to_error()
            now = clock.monotonic_seconds()
            if now < self._lease_ends_at:
                return
            gives_up_at = self._lease_ends_at + self._surroundings.lease_wait_seconds
            if now >= gives_up_at:
                expired = LeaseExpired(
                    "the controller was not heard of in time, so the attempt ended",
                    advice="it is tried again once agent and controller reach each other",
                )
                self._stop = ErrorReport.of(expired)
                raise expired
            log.warning("job paused: lease over", extra={"job_id": self._attempt.job_id})
            self._changed.wait(gives_up_at - now)

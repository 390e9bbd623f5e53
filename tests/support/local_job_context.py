"""A `JobContext` without a controller: the repository's keys are here, and every commit is granted."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.pipelines.context import Grant
from holdfast_agent.repository_memory import RepositoryMemory
from holdfast_common.clock import SystemClock
from holdfast_common.errors import HoldfastError, NoRepository, NotFound
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, JobId, LineageId, RepositoryId, new_ulid
from holdfast_common.job_spec import Attempt, DiskTicket
from holdfast_common.logs import Secret
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.key_sets import SegmentKeyRequest
from holdfast_common.repository.keys import RepositoryKeys, create_repository

CONTROLLER_EPOCH = 1


@dataclass
class LocalRepository:
    """A new repository in a folder, its root keys, and an agent that may write to it."""

    folder: Path
    keys: RepositoryKeys
    signing_key: Ed25519PrivateKey
    agent_id: AgentId

    @property
    def repository_id(self) -> RepositoryId:
        return RepositoryId(self.keys.repository_id)

    def writer_keys(self, lineage_id: LineageId) -> Secret:
        return Secret(self.keys.writer_keys(lineage_id).to_bytes())

    def reader_keys(self, lineage_id: LineageId) -> Secret:
        return Secret(self.keys.reader_keys(lineage_id).to_bytes())


def local_repository(folder: Path) -> LocalRepository:
    """Make a repository."""
    signing_key = Ed25519PrivateKey.generate()
    agent_id = AgentId(new_ulid())
    with DirectoryStore.create(folder) as store:
        keys, _sheet = create_repository(store, recipients=[], clock=SystemClock())
        keys.authorise_writer(
            store,
            signing_key.public_key().public_bytes_raw(),
            agent_id=agent_id,
            clock=SystemClock(),
        )
    return LocalRepository(folder=folder, keys=keys, signing_key=signing_key, agent_id=agent_id)


@dataclass
class LocalJobContext:
    """One attempt. ``commit_error`` refuses the commit; ``stop_with`` ends the job at the next check.

    ``stop_at_check``: the number of the check, from 0, at which the job is stopped.
    """

    repository: LocalRepository
    configuration: AgentConfiguration
    extents: Mapping[int, Sequence[Extent]] = field(default_factory=dict)
    attempt: Attempt = field(default_factory=lambda: Attempt(job_id=JobId(new_ulid()), number=1))
    commit_error: HoldfastError | None = None
    stop_with: HoldfastError | None = None
    stop_at_check: int = 0
    checks: int = 0
    repositories: RepositoryMemory = field(default_factory=RepositoryMemory)
    granted: list[bytes] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    reports: list[tuple[int, int, int, str]] = field(default_factory=list)
    paced: list[tuple[int, int]] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def agent_id(self) -> AgentId:
        return self.repository.agent_id

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        return self.repository.signing_key

    def repository_path(self, repository_id: RepositoryId) -> Path:
        if repository_id != self.repository.repository_id:
            raise NoRepository("this agent does not know the repository")
        return self.repository.folder

    def check(self) -> None:
        with self._lock:
            number, self.checks = self.checks, self.checks + 1
        if self.stop_with is not None and number >= self.stop_at_check:
            raise self.stop_with

    def pace(self, device_key: int, length: int) -> int:
        self.paced.append((device_key, length))
        self.check()
        return length

    def report(self, *, done_bytes: int, total_bytes: int, device_key: int, phase: str) -> None:
        self.reports.append((done_bytes, total_bytes, device_key, phase))

    def warn(self, code: str, message: str) -> None:
        self.warnings.append((code, message))

    def fetch_extents(self, device_key: int) -> Iterable[Extent]:
        self.fetched.append(device_key)
        return iter(self.extents[device_key])

    def open_segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        requests = [SegmentKeyRequest.from_bytes(header) for header in headers]
        return self.repository.keys.open_segment_keys(requests)

    def renew_ticket(self, device_key: int) -> DiskTicket:
        raise NotFound("there is no controller that could renew a ticket")

    def request_commit(self, manifest_digest: bytes) -> Grant:
        if self.commit_error is not None:
            raise self.commit_error
        self.granted.append(manifest_digest)
        grant = self.repository.keys.commit_grant(
            job_id=self.attempt.job_id,
            attempt=self.attempt.number,
            manifest_digest=manifest_digest,
            controller_epoch=CONTROLLER_EPOCH,
        )
        return Grant(controller_epoch=CONTROLLER_EPOCH, signature=grant[8:])

"""What a pipeline may ask of the world around its job. The job runner provides it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.repository_memory import RepositoryMemory
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, RepositoryId
from holdfast_common.job_spec import Attempt, DiskTicket


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The controller's leave to publish one manifest; stands in the manifest's envelope."""

    controller_epoch: int
    signature: bytes


class JobContext(Protocol):
    """One attempt's surroundings. All methods may be called from the job's own threads only."""

    @property
    def attempt(self) -> Attempt:
        """Which try of which job this is."""
        ...

    @property
    def agent_id(self) -> AgentId:
        """This agent."""
        ...

    @property
    def configuration(self) -> AgentConfiguration:
        """What the administrator allows this agent to reach."""
        ...

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """Signs what this agent writes into a repository."""
        ...

    @property
    def repositories(self) -> RepositoryMemory:
        """What this agent keeps of repositories between jobs."""
        ...

    def repository_path(self, repository_id: RepositoryId) -> Path:
        """Where this agent reaches a repository. Raises: NoRepository."""
        ...

    def check(self) -> None:
        """Call at every block boundary. Raises: Cancelled, LeaseExpired, Interrupted."""
        ...

    def pace(self, device_key: int, length: int) -> int:
        """How many bytes of a disk may be read now, whole MiB or ``length``; waits while it shall go slower.

        Raises: as `check`.
        """
        ...

    def report(self, *, done_bytes: int, total_bytes: int, device_key: int, phase: str) -> None:
        """Progress; cheap, may be called for every block."""
        ...

    def warn(self, code: str, message: str) -> None:
        """Something the result must tell."""
        ...

    def fetch_extents(self, device_key: int) -> Iterable[Extent]:
        """The areas to read of one disk, ascending. Raises: LeaseExpired, ControllerUnreachable."""
        ...

    def open_segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        """Keys of pack segments, opened by the controller; restore, verify and check jobs only.

        Raises: Refused, LeaseExpired, ControllerUnreachable.
        """
        ...

    def renew_ticket(self, device_key: int) -> DiskTicket:
        """A fresh ticket for one disk. Raises: LeaseExpired, ControllerUnreachable."""
        ...

    def request_commit(self, manifest_digest: bytes) -> Grant:
        """Block until the controller grants. Raises: Refused, LeaseExpired, Cancelled."""
        ...

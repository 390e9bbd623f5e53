"""What a run needs of an agent, whoever carries it: the border between `runs` and `service`.

`service` implements `AgentLink` over the agents' sessions; tests bring their own. A handler's
methods are called on executor threads, never on the event loop, one at a time per attempt; except for
`AttemptHandler.lost`, which must come through when there are no threads left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, DatastoreId, JobId, RepositoryId
from holdfast_common.job_result import JobResult, ProgressReport
from holdfast_common.job_spec import Attempt, DiskTicket, JobSpec, TransportKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedAgent:
    """An agent with a live session, and what it can reach."""

    agent_id: AgentId
    role: str
    host_name: str
    version: str
    transports: tuple[TransportKind, ...]
    datastores: tuple[DatastoreId, ...]
    writable_datastores: tuple[DatastoreId, ...]
    repositories: tuple[RepositoryId, ...]
    restore_folders: tuple[str, ...]
    vm_bios_uuid: str
    repair_folders: tuple[
        str, ...
    ] = ()  # where copies of repositories lie that it may read, or above them
    mac_addresses: tuple[str, ...] = ()
    can_be_slowed: bool = True  # older agents read as fast as they can
    clock_ahead_seconds: float = 0.0  # of the controller's, when it connected


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedGrant:
    """Leave to publish one manifest; the signature is the repository authority's, over job, attempt and digest."""

    controller_epoch: int
    signature: bytes


class AttemptHandler(Protocol):
    """What the controller answers for one attempt, and what it does with the result."""

    def extents(self, device_key: int) -> Iterable[Extent]:
        """Areas to read, ascending. Raises: NotFound."""
        ...

    def segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        """Opened and audited; only for restore, verify and check. Raises: Refused."""
        ...

    def renewed_ticket(self, device_key: int) -> DiskTicket:
        """A fresh ticket. Raises: NotFound."""
        ...

    def grant_commit(self, manifest_digest: bytes) -> SignedGrant:
        """Returns when `committing` is durable; the same digest may be asked again.

        Raises: any error of ours, which becomes a CommitRefusal.
        """
        ...

    def progressed(self, progress: ProgressReport) -> None:
        """The latest progress."""
        ...

    def finished(self, result: JobResult) -> None:
        """Returns when the result is durable; then, and only then, it is acknowledged."""
        ...

    def lost(self) -> None:
        """The attempt's lease ended (plus 15 s): it can commit nothing any more. Called once at most.

        On the event loop, at any time: only note it, wait for nothing, raise nothing.
        """
        ...


class OrphanResults(Protocol):
    """Takes results of attempts that no handler waits for, e.g. after the controller's restart."""

    def finished(self, agent_id: AgentId, attempt: Attempt, result: JobResult) -> None:
        """Returns when nothing of the result is needed any more. ``agent_id``: who sent it."""
        ...


class AgentLink(Protocol):
    """All agents, from the side of the runs. Thread-safe."""

    def connected(self) -> list[ConnectedAgent]:
        """Agents with a live session now."""
        ...

    def start(
        self,
        agent_id: AgentId,
        attempt: Attempt,
        spec: JobSpec,
        handler: AttemptHandler,
        *,
        lease_seconds: float = 0.0,
    ) -> None:
        """Send StartJob and route everything about the attempt to ``handler`` until it ends.

        ``lease_seconds``: how long the agent may be away and go on; at least as the controller is configured.
        Raises: Refused (the agent refused it), ControllerUnreachable never; TimedOut when no
        agent of that id is connected or it does not answer within 30 s.
        """
        ...

    def cancel(self, attempt: Attempt) -> None:
        """Ask the agent to stop; harmless when it has ended."""
        ...

    def limit(self, attempt: Attempt, rates: Mapping[int, int]) -> bool:
        """Have the agent read these disks no faster than that (bytes per second by device key), and all others freely.

        Said again after its reconnects. False: it cannot, or the attempt is not at work.
        """
        ...

    def is_revoked(self, agent_id: AgentId) -> bool:
        """Whether the agent was shut out while this controller runs."""
        ...

    def may_be_at_work(self, job_id: JobId) -> bool:
        """Whether a connected agent may still be at work on an attempt that nobody here waits for.

        That is one that it was told to abort, or may still end its commit of.
        """
        ...

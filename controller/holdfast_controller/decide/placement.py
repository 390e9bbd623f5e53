"""Which agent reads or writes a VM's disks, and by which transport: LAN-free first, then hot-add, then network.

Pure: facts in, a choice with its reason out, or a refusal that names every reason why not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import AgentId, DatastoreId, RepositoryId
from holdfast_common.job_spec import TransportKind

PREFERENCE = (TransportKind.DIRECT, TransportKind.HOTADD, TransportKind.NFC)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """A connected proxy. ``vm_instance_uuid``: its own VM in this vCenter, None when it is none."""

    agent_id: AgentId
    host_name: str
    transports: tuple[TransportKind, ...]
    datastores: tuple[DatastoreId, ...]
    writable_datastores: tuple[DatastoreId, ...]
    repositories: tuple[RepositoryId, ...]
    vm_instance_uuid: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlace:
    """Where one disk's files lie, and how it is connected (``ide`` disks cannot be hot-added)."""

    datastores: tuple[DatastoreId, ...]
    bus: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The choice, and the reason that the record keeps."""

    agent_id: AgentId
    transport: TransportKind
    reason: str


def place(
    *,
    agents: Sequence[AgentFacts],
    disks: Sequence[DiskPlace],
    vm_instance_uuid: str,
    repository_id: RepositoryId,
    wanted_transport: str = "",
    wanted_agent: str = "",
    writing: bool = False,
) -> Placement:
    """The best agent and transport for all disks of one VM.

    Raises: Refused with the reason per transport and agent; UsageError for an unknown transport.
    """
    transports = _wanted(wanted_transport)
    candidates = [
        agent
        for agent in agents
        if not wanted_agent or wanted_agent in (agent.agent_id, agent.host_name)
    ]
    if not candidates:
        problem = "no proxy agent is connected" if not agents else "no such agent is connected"
        raise Refused(problem, agent=wanted_agent, advice="see `holdfast agent list`")
    refusals: list[str] = []
    for transport in transports:
        for agent in candidates:
            problem = _problem(
                agent, transport, disks, vm_instance_uuid, repository_id, writing=writing
            )
            if not problem:
                return Placement(
                    agent_id=agent.agent_id,
                    transport=transport,
                    reason=_reason(transport, wanted_transport, refusals),
                )
            refusals.append(f"{transport} on {agent.host_name}: {problem}")
    raise Refused(
        "no agent can reach all disks: " + "; ".join(refusals),
        advice="run `holdfast doctor`, or map the datastore on a proxy",
    )


def _wanted(text: str) -> tuple[TransportKind, ...]:
    if not text:
        return PREFERENCE
    try:
        kind = TransportKind(text)
    except ValueError:
        kind = TransportKind.FILE
    if kind not in PREFERENCE:
        raise UsageError("unknown transport", transport=text, advice="choose direct, hotadd or nfc")
    return (kind,)


def _problem(
    agent: AgentFacts,
    transport: TransportKind,
    disks: Sequence[DiskPlace],
    vm_instance_uuid: str,
    repository_id: RepositoryId,
    *,
    writing: bool,
) -> str:
    if repository_id not in agent.repositories:
        return "it does not reach the repository"
    if transport not in agent.transports:
        return "it does not offer this transport"
    if transport is TransportKind.DIRECT:
        reached = agent.writable_datastores if writing else agent.datastores
        for disk in disks:
            for datastore in disk.datastores:
                if datastore not in reached:
                    kind = (
                        "is not writable for it"
                        if datastore in agent.datastores
                        else "is not mapped on it"
                    )
                    return f"datastore {datastore} {kind}"
    if transport is TransportKind.HOTADD:
        if agent.vm_instance_uuid is None:
            return "its own VM is not in this vCenter"
        if agent.vm_instance_uuid == vm_instance_uuid:
            return "a proxy's disks are never attached to itself"
        if any(disk.bus == "ide" for disk in disks):
            return "IDE disks cannot be hot-added"
    return ""


def _reason(transport: TransportKind, wanted: str, refusals: Sequence[str]) -> str:
    if wanted:
        return f"{transport} was asked for"
    if not refusals:
        return f"{transport} is the best and every disk can be reached by it"
    return f"{transport}, because " + "; ".join(refusals)

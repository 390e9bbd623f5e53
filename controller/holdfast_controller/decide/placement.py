"""Which agent reads or writes a VM's disks, and by which transport: LAN-free first, then hot-add, then network.

Pure: facts in, a choice with its reason out, or a refusal that names every reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import AgentId, DatastoreId, RepositoryId
from holdfast_common.job_spec import TransportKind
from holdfast_controller.facts import DatastoreFacts, HostFacts, VmFacts

PREFERENCE = (TransportKind.DIRECT, TransportKind.HOTADD, TransportKind.NFC)
NFS_3 = "NFS"  # vSphere's name of it; version 4.1 is NFS41 and has other locks
UPDATE_2, UPDATE_2B_BUILD = (8, 0, 2), 23305546  # ESXi 8.0 U2b


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """A connected proxy. ``vm_instance_uuid``: its own VM in this vCenter, None when it is none.

    ``vm_host_moref``: the host on which that VM was seen last; empty when it is not known.
    """

    agent_id: AgentId
    host_name: str
    transports: tuple[TransportKind, ...]
    datastores: tuple[DatastoreId, ...]
    writable_datastores: tuple[DatastoreId, ...]
    repositories: tuple[RepositoryId, ...]
    vm_instance_uuid: str | None
    vm_host_moref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlace:
    """Where one disk's files lie, and how it is connected (``ide`` disks cannot be hot-added).

    ``hot_add_host``: the one host whose proxies may hot-add it; empty when any may.
    """

    datastores: tuple[DatastoreId, ...]
    bus: str
    hot_add_host: str = ""


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


def disk_places(
    vm: VmFacts, datastores: Iterable[DatastoreFacts], hosts: Iterable[HostFacts]
) -> list[DiskPlace]:
    """The places of a VM's protected disks, as its vCenter was seen last."""
    nfs3 = {store.moref for store in datastores if store.kind.upper() == NFS_3}
    host = next((each for each in hosts if each.moref == vm.host_moref), None)
    # Detaching from a proxy on another host then keeps the NFS locks and stuns the VM for half a minute.
    stuns = vm.power_state == "poweredOn" and not (host is not None and _releases_nfs_locks(host))
    return [
        DiskPlace(
            datastores=tuple(dict.fromkeys(link.datastore_id for link in disk.chain)),
            bus=disk.adapter,
            hot_add_host=vm.host_moref
            if stuns and any(link.datastore_moref in nfs3 for link in disk.chain)
            else "",
        )
        for disk in vm.protected_disks
    ]


def _releases_nfs_locks(host: HostFacts) -> bool:
    """Whether a host is 8.0 Update 2b or newer."""
    numbers = tuple(int(part) for part in host.version.split(".") if part.isdigit())
    build = int(host.build) if host.build.isdigit() else 0
    return numbers > UPDATE_2 or (numbers == UPDATE_2 and build >= UPDATE_2B_BUILD)


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
        if any(disk.hot_add_host not in ("", agent.vm_host_moref) for disk in disks):
            return "a disk lies on NFS 3 and the VM runs on another host than the proxy"
    return ""


def _reason(transport: TransportKind, wanted: str, refusals: Sequence[str]) -> str:
    if wanted:
        return f"{transport} was asked for"
    if not refusals:
        return f"{transport} is the best and every disk can be reached by it"
    return f"{transport}, because " + "; ".join(refusals)

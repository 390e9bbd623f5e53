"""Which agent reads or writes a VM's disks, and by which transport: LAN-free first, then hot-add, then network.

Pure: facts in, a choice with its reason out, or a refusal that names every reason why not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast_common.errors import NoProxy, UsageError
from holdfast_common.identity import AgentId, DatastoreId, RepositoryId
from holdfast_common.job_spec import TransportKind
from holdfast_controller.decide.hot_add import (
    DatastoreSeen,
    ProxyVm,
    problem_of_disk,
    problems_of_proxy,
    unseen_datastores,
)
from holdfast_controller.facts import DatastoreFacts, HostFacts, VmFacts

PREFERENCE = (TransportKind.DIRECT, TransportKind.HOTADD, TransportKind.NFC)
NFS_3 = "NFS"  # vSphere's name of it; version 4.1 is NFS41 and has other locks
BY_ITSELF = "no other proxy can, so the VM's own proxy reads it over the network"
ITS_OWN = "it runs in this very VM, whose disks it does not open itself"
UPDATE_2, UPDATE_2B_BUILD = (8, 0, 2), 23305546  # ESXi 8.0 U2b


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """A connected proxy. ``vm``: its own VM in this vCenter; None when it is none, or not known which."""

    agent_id: AgentId
    host_name: str
    transports: tuple[TransportKind, ...]
    datastores: tuple[DatastoreId, ...]
    writable_datastores: tuple[DatastoreId, ...]
    repositories: tuple[RepositoryId, ...]
    vm: ProxyVm | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlace:
    """Where one disk's files lie, by the ids of datastores and as vSphere's hosts name them.

    ``hot_add_problem``: why no proxy may have it attached; empty when some may. ``hot_add_host``: the
    one host whose proxies may; empty when any may.
    """

    datastores: tuple[DatastoreId, ...]
    seen: tuple[DatastoreSeen, ...] = ()
    hot_add_problem: str = ""
    hot_add_host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The choice, and the reason that the record keeps.

    ``proxy_instance_uuid``: the agent's own VM, kept because the agent may be away a moment later;
    empty when it is none.
    """

    agent_id: AgentId
    host_name: str
    transport: TransportKind
    reason: str
    proxy_instance_uuid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedReach:
    """What is to be reached. ``vm_instance_uuid`` empty: disks of nobody's yet."""

    disks: Sequence[DiskPlace]
    repository_id: RepositoryId
    vm_instance_uuid: str = ""
    datacenter_moref: str = ""
    writing: bool = False


def place(
    *,
    agents: Sequence[AgentFacts],
    reach: WantedReach,
    wanted_transport: str = "",
    wanted_agent: str = "",
) -> Placement:
    """The best agent and transport for all disks of one VM.

    Raises: NoProxy with the reason per transport and agent; UsageError for an unknown transport.
    """
    return placements(
        agents=agents, reach=reach, wanted_transport=wanted_transport, wanted_agent=wanted_agent
    )[0]


def placements(
    *,
    agents: Sequence[AgentFacts],
    reach: WantedReach,
    wanted_transport: str = "",
    wanted_agent: str = "",
) -> list[Placement]:
    """Every agent that can do it by the best transport that any can, in the order of ``agents``; never empty.

    A lesser transport is no way out when the better one is busy: a change of it is never silent.
    Raises: as `place`.
    """
    transports = _wanted(wanted_transport)
    candidates = [
        agent
        for agent in agents
        if not wanted_agent or wanted_agent in (agent.agent_id, agent.host_name)
    ]
    if not agents:
        raise NoProxy(
            "no proxy agent is connected",
            advice="start `holdfast-agent run` on a proxy; see `holdfast agent list`",
        )
    if not candidates:
        raise NoProxy(
            "no such agent is connected", agent=wanted_agent, advice="see `holdfast agent list`"
        )
    refusals: list[str] = []
    for transport in transports:
        found: list[Placement] = []
        itself: list[AgentFacts] = []  # whose own VM it is: asked last
        for agent in candidates:
            problem = _problem(agent, transport, reach)
            if problem:
                refusals.append(f"{transport} on {agent.host_name}: {problem}")
                continue
            if _is_itself(agent, reach):
                itself.append(agent)
                continue
            # those that were asked before it could not: why it is this one
            reason = _reason(transport, wanted_transport, refusals)
            found.append(_placement(agent, transport, reason))
        if not found:
            reason = f"{_reason(transport, wanted_transport, refusals)}; {BY_ITSELF}"
            found = [_placement(agent, transport, reason) for agent in itself]
        if found:
            return found
    raise NoProxy(
        "no agent can reach all disks: " + "; ".join(refusals),
        advice="run `holdfast doctor`, or map the datastore on a proxy",
    )


def _placement(agent: AgentFacts, transport: TransportKind, reason: str) -> Placement:
    return Placement(
        agent_id=agent.agent_id,
        host_name=agent.host_name,
        transport=transport,
        reason=reason,
        proxy_instance_uuid=agent.vm.instance_uuid if agent.vm else "",
    )


def _is_itself(agent: AgentFacts, reach: WantedReach) -> bool:
    """Whether the disks are those of the VM that the agent runs in."""
    return bool(reach.vm_instance_uuid) and (
        agent.vm is not None and agent.vm.instance_uuid == reach.vm_instance_uuid
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
            seen=tuple(
                DatastoreSeen(moref=link.datastore_moref, name=link.datastore_name)
                for link in disk.chain
            ),
            hot_add_problem=_labelled(disk.label, problem_of_disk(disk)),
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


def _labelled(label: str, problem: str) -> str:
    return f"{label}: {problem}" if problem else ""


def _problem(agent: AgentFacts, transport: TransportKind, reach: WantedReach) -> str:
    """Why this agent cannot do it by this transport; empty when it can."""
    if reach.repository_id not in agent.repositories:
        return "it does not reach the repository"
    if transport not in agent.transports:
        return "it does not offer this transport"
    if transport is TransportKind.DIRECT:
        return ITS_OWN if _is_itself(agent, reach) else _direct_problem(agent, reach)
    if transport is TransportKind.HOTADD:
        return _hot_add_problem(agent.vm, reach)
    return ""


def _direct_problem(agent: AgentFacts, reach: WantedReach) -> str:
    reached = agent.writable_datastores if reach.writing else agent.datastores
    for disk in reach.disks:
        for datastore in disk.datastores:
            if datastore not in reached:
                mapped = datastore in agent.datastores
                kind = "is not writable for it" if mapped else "is not mapped on it"
                return f"datastore {datastore} {kind}"
    return ""


def _hot_add_problem(proxy: ProxyVm | None, reach: WantedReach) -> str:
    """All that would be refused when the disks are attached, so that it is known before a snapshot is taken."""
    if proxy is None:
        return "its own VM is not in this vCenter"
    problems = problems_of_proxy(
        proxy,
        vm_instance_uuid=reach.vm_instance_uuid,
        datacenter_moref=reach.datacenter_moref,
    )
    problems += [disk.hot_add_problem for disk in reach.disks if disk.hot_add_problem]
    problems += unseen_datastores(proxy, [store for disk in reach.disks for store in disk.seen])
    if any(disk.hot_add_host not in ("", proxy.host_moref) for disk in reach.disks):
        problems.append("a disk lies on NFS 3 and the VM runs on another host than the proxy")
    return ", ".join(problems)


def _reason(transport: TransportKind, wanted: str, refusals: Sequence[str]) -> str:
    if wanted:
        return f"{transport} was asked for"
    if not refusals:
        return f"{transport} is the best and every disk can be reached by it"
    return f"{transport}, because " + "; ".join(refusals)

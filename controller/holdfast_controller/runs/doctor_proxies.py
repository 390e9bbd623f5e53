"""What `doctor` looks at in agents: session, version, clock, certificate, own VM, and what storage proxies see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib.metadata import version
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import HoldfastError
from holdfast_common.job_spec import TransportKind
from holdfast_controller.decide.hot_add import DatastoreSeen, unseen_datastores
from holdfast_controller.decide.placement import AgentFacts
from holdfast_controller.facts import DatastoreFacts
from holdfast_controller.runs.agent_link import ConnectedAgent
from holdfast_controller.runs.check_lines import FAILED, OK, WARNING, Check, CheckLine, named
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.agents import AgentRow
from holdfast_controller.store.inventory import KnownVm

CERTIFICATE_LEFT_MIN: Final = timedelta(days=7)
CLOCK_DIFFERENCE_SECONDS_MAX: Final = 120.0


def agent_lines(world: World) -> Iterator[CheckLine]:
    """Every agent that is not revoked."""
    connected = {agent.agent_id: agent for agent in world.link.connected()}
    joined = world.agents.all()
    rows = [row for row in joined if not row.revoked_at]
    if not rows:
        yield CheckLine(
            check=Check.AGENTS,
            name="agents",
            state=FAILED,
            detail="all that had joined are revoked" if joined else "none has joined",
            advice="make a token with `holdfast agent token`, then enrol a proxy with it",
        )
    for row in rows:
        agent = connected.get(row.agent_id)
        name = f"agent {row.host_name}"
        if agent is None:
            yield CheckLine(
                check=Check.AGENT_CONNECTED,
                name=name,
                state=FAILED,
                detail=f"not connected; last seen {row.last_seen_at or 'never'}",
                advice="start `holdfast-agent run` there, and check that it reaches the controller",
            )
            continue
        yield CheckLine(check=Check.AGENT_CONNECTED, name=name, state=OK, detail="connected")
        yield from _one_agent(world, row, agent)


def _one_agent(world: World, row: AgentRow, agent: ConnectedAgent) -> Iterator[CheckLine]:
    name = f"agent {row.host_name}"
    ours = version("holdfast-controller")
    if agent.version and agent.version != ours:
        yield CheckLine(
            check=Check.AGENT_VERSION,
            name=f"{name}: version",
            state=WARNING,
            detail=f"it is {agent.version}, the controller is {ours}",
            advice="install the same version of Holdfast on controller and agents",
        )
    apart = abs(agent.clock_ahead_seconds)
    if apart > CLOCK_DIFFERENCE_SECONDS_MAX:
        way = "ahead of" if agent.clock_ahead_seconds > 0 else "behind"
        yield CheckLine(
            check=Check.AGENT_CLOCK,
            name=f"{name}: clock",
            state=WARNING,
            detail=f"{apart:.0f} s {way} the controller's when it connected",
            advice="set both clocks by NTP",
        )
    left = parse_utc(row.certificate_ends_at) - world.clock.now()
    if left < CERTIFICATE_LEFT_MIN:
        yield CheckLine(
            check=Check.AGENT_CERTIFICATE,
            name=f"{name}: certificate",
            state=WARNING,
            detail=f"ends {row.certificate_ends_at}",
            advice="it renews itself while connected; see the agent's log",
        )


def reach_lines(world: World) -> Iterator[CheckLine]:
    """What of repository and storage the connected proxies reach."""
    proxies = world.proxies()
    repository_id = world.settings.get(names.REPOSITORY_ID)
    if not proxies:
        return  # told already, agent by agent
    if not any(repository_id in proxy.repositories for proxy in proxies):
        yield CheckLine(
            check=Check.REPOSITORY_PROXIES,
            name="repository: proxies",
            state=FAILED,
            detail="no connected proxy reaches the repository",
            advice=f"holdfast-agent configure --repository {repository_id}=FOLDER",
        )
    found: dict[str, AgentFacts] = {}  # proxies whose own VM is in some vCenter
    vcenters = world.vcenters.table.all()
    for row in vcenters:
        try:
            stores = world.vcenters.inventory.surroundings(row.vcenter_id).datastores
        except HoldfastError:
            continue
        vms = world.vcenters.inventory.vms(row.vcenter_id)
        present = world.proxies(row.vcenter_id)
        found |= {each.agent_id: each for each in present if each.vm is not None}
        yield from _storage(stores, vms, present)
    for proxy in proxies:
        offers = TransportKind.HOTADD in proxy.transports
        if vcenters and offers and proxy.agent_id not in found:
            yield CheckLine(
                check=Check.AGENT_VM,
                name=f"agent {proxy.host_name}: its VM",
                state=WARNING,
                detail="it offers hotadd, but no VM has its uuid, or several have and cannot be told apart",
                advice="holdfast-agent configure --vm-bios-uuid with the uuid from `holdfast inventory show`",
            )


def _storage(
    stores: Sequence[DatastoreFacts], vms: Sequence[KnownVm], proxies: Sequence[AgentFacts]
) -> Iterator[CheckLine]:
    """Datastores that hold disks of VMs, and that proxies reach over the network only."""
    mapped = {datastore for proxy in proxies for datastore in proxy.datastores}
    own = {proxy.vm.instance_uuid for proxy in proxies if proxy.vm is not None}
    used = {
        link.datastore_moref
        for known in vms
        if known.vm.instance_uuid not in own
        for disk in known.vm.protected_disks
        for link in disk.chain
    }
    attaching = [
        proxy for proxy in proxies if TransportKind.HOTADD in proxy.transports and proxy.vm
    ]
    for store in stores:
        is_nfs = store.kind.upper().startswith("NFS")
        if is_nfs and store.datastore_id not in mapped:
            yield CheckLine(
                check=Check.DATASTORE_MOUNTED,
                name=f"datastore {store.name}",
                state=WARNING,
                detail="no proxy has it mounted, so its disks go over the network",
                advice=f"holdfast-agent configure --datastore {store.datastore_id}=FOLDER",
            )
        if is_nfs or store.moref not in used or not attaching:
            continue
        seen = DatastoreSeen(moref=store.moref, name=store.name)
        blind = [
            proxy.host_name
            for proxy in attaching
            if proxy.vm and unseen_datastores(proxy.vm, [seen])
        ]
        if len(blind) == len(attaching):
            yield CheckLine(
                check=Check.DATASTORE_ATTACHED,
                name=f"datastore {store.name}",
                state=WARNING,
                detail=f"the hosts of the proxies ({named(blind)}) do not see it, so its disks go over the network",
                advice="run a proxy on a host that has this datastore",
            )

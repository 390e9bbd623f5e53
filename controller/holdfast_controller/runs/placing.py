"""Agent and transport for a job: by the proxies as they were seen last for a plan, as they are now for an attempt.

Asked before a snapshot is taken or a disk is attached, so that nothing is begun that would be refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from holdfast_common.errors import TimedOut
from holdfast_controller.decide.machine_roles import MachineRole, OwnVms, RoleFound
from holdfast_controller.decide.placement import (
    AgentFacts,
    Placement,
    WantedReach,
    disk_places,
    placements,
)
from holdfast_controller.facts import VmFacts
from holdfast_controller.runs.own_machines import own_machines
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import KnownVm, Surroundings
from holdfast_controller.vsphere.proxy_vms import proxy_now
from holdfast_controller.vsphere.session import VsphereSession


class SeenFromHere:
    """The proxies and what VMs live in, as they were seen last: looked up once for all VMs of a run. One thread's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._proxies: dict[str, list[AgentFacts]] = {}
        self._surroundings: dict[str, Surroundings] = {}
        self._own: OwnVms | None = None

    def ways(self, known: KnownVm, request: BackupRequest) -> list[Placement]:
        """All who could read the VM's disks equally well, and how; vSphere is not asked. Raises: Refused, UsageError."""
        vcenter_id = known.vcenter_id
        if vcenter_id not in self._proxies:
            self._proxies[vcenter_id] = self._world.proxies(vcenter_id)
        return _placed(
            self._world, known.vm, request, self.around(vcenter_id), self._proxies[vcenter_id]
        )

    def told_of_role(self, known: KnownVm) -> list[str]:
        """That the backup itself stands on the VM, and how it is handled; of most VMs nothing."""
        return [f"{known.vm.name}: {role.text}" for role in self._roles(known)]

    def is_proxy(self, known: KnownVm) -> bool:
        """Whether a proxy runs in it: it holds nothing that is worth a backup."""
        return any(each.role is MachineRole.PROXY for each in self._roles(known))

    def _roles(self, known: KnownVm) -> tuple[RoleFound, ...]:
        if self._own is None:
            self._own = OwnVms(own_machines(self._world))
        return self._own.roles(known.vm)

    def around(self, vcenter_id: str) -> Surroundings:
        """Raises: NotFound when the vCenter was never read."""
        if vcenter_id not in self._surroundings:
            self._surroundings[vcenter_id] = self._world.vcenters.inventory.surroundings(vcenter_id)
        return self._surroundings[vcenter_id]


def place_now(
    world: World,
    session: VsphereSession,
    vm: VmFacts,
    request: BackupRequest,
    *,
    vcenter_id: str,
    dispatched_to: str = "",
) -> Placement:
    """Who reads the VM's disks, and how: of those that can equally well the one that it was dispatched to.

    Raises: Refused, UsageError, VsphereFailed and its kin.
    """
    around = world.vcenters.inventory.surroundings(vcenter_id)
    found = _placed(world, vm, request, around, present_proxies(world, session, vcenter_id))
    return next((each for each in found if each.agent_id == dispatched_to), found[0])


def present_proxies(world: World, session: VsphereSession, vcenter_id: str) -> list[AgentFacts]:
    """Like `World.proxies`, with each proxy's VM as vSphere shows it now. Raises: VsphereFailed."""
    hosts = world.vcenters.inventory.surroundings(vcenter_id).hosts
    return [
        agent if agent.vm is None else replace(agent, vm=proxy_now(session, agent.vm, hosts))
        for agent in world.proxies(vcenter_id)
    ]


def check_connected(world: World, placement: Placement) -> None:
    """Raises: TimedOut when the chosen agent went away since it was chosen; another attempt chooses anew."""
    if all(agent.agent_id != placement.agent_id for agent in world.link.connected()):
        raise TimedOut(
            "the agent went away before it could begin",
            agent=placement.host_name,
            advice="see `holdfast agent list`, and the agent's log on that host",
        )


def _placed(
    world: World,
    vm: VmFacts,
    request: BackupRequest,
    around: Surroundings,
    proxies: Sequence[AgentFacts],
) -> list[Placement]:
    return placements(
        agents=proxies,
        reach=WantedReach(
            disks=disk_places(vm, around.datastores, around.hosts),
            repository_id=world.keeper.repository_id,
            vm_instance_uuid=vm.instance_uuid,
            datacenter_moref=vm.datacenter_moref,
        ),
        wanted_transport=request.transport,
        wanted_agent=request.agent,
    )

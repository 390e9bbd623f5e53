"""The hosts that the backup stands on, as far as they tell: this one, the proxies, the vCenters."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from typing import Final

from holdfast_common import own_host
from holdfast_controller.decide.machine_roles import (
    HostIdentity,
    OwnMachines,
    RoleFound,
    unquiesced_reason,
)
from holdfast_controller.decide.policy import WhenNotReached
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.world import World
from holdfast_controller.vsphere.snapshot import ConsistencyWish

ADDRESSES_KEPT_SECONDS: Final = 300.0
LOOK_UP_SECONDS_MAX: Final = 5.0  # a name server that hangs holds up nothing

_looked_up: dict[str, tuple[float, tuple[str, ...]]] = {}
_guard = threading.Lock()


def own_machines(world: World) -> OwnMachines:
    """Who they are now. Asks a name server for the vCenters' addresses, for a few seconds at most."""
    agents = [agent for agent in world.link.connected() if agent.role == "proxy"]
    known = {row.agent_id: row for row in world.agents.all() if not row.revoked_at}
    away = [
        row
        for row in known.values()
        if row.role == "proxy" and all(row.agent_id != each.agent_id for each in agents)
    ]
    return OwnMachines(
        controller=HostIdentity(
            name="controller",
            uuid=world.configuration.own_vm_uuid or own_host.bios_uuid(),
            mac_addresses=own_host.mac_addresses(),
        ),
        proxies=(
            *(
                HostIdentity(
                    name=agent.host_name,
                    uuid=agent.vm_bios_uuid,
                    mac_addresses=agent.mac_addresses,
                )
                for agent in agents
            ),
            *(
                HostIdentity(
                    name=row.host_name,
                    uuid=row.capabilities.vm_bios_uuid,
                    mac_addresses=row.capabilities.mac_addresses,
                )
                for row in away
            ),
        ),
        vcenters=tuple(
            HostIdentity(
                name=row.name,
                addresses=addresses_of(row.host, now=world.clock.monotonic_seconds()),
                host_names=(row.host,),
            )
            for row in world.vcenters.table.all()
            if row.is_vcenter
        ),
    )


def consistency_wish(request: BackupRequest, roles: Iterable[RoleFound]) -> ConsistencyWish:
    """What is asked of the snapshot of a VM that may be one of ours."""
    return ConsistencyWish(
        asked=request.consistency,
        lower_allowed=request.when_not_reached is WhenNotReached.LOWER,
        unquiesced=unquiesced_reason(roles),
    )


def addresses_of(host: str, *, now: float) -> tuple[str, ...]:
    """A host's addresses; empty when nobody tells them in time. Kept for some minutes."""
    with _guard:
        kept = _looked_up.get(host)
    if kept is not None and 0 <= now - kept[0] < ADDRESSES_KEPT_SECONDS:
        return kept[1]
    found: list[str] = []

    def look_up() -> None:
        try:
            found.extend(str(each[4][0]) for each in socket.getaddrinfo(host, None))
        except OSError:
            return

    thread = threading.Thread(target=look_up, name="look up a vCenter", daemon=True)
    thread.start()
    thread.join(LOOK_UP_SECONDS_MAX)
    addresses = tuple(dict.fromkeys(found))
    with _guard:
        _looked_up[host] = (now, addresses)
    return addresses

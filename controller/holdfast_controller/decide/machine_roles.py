"""Which VMs the backup itself stands on: the controller's own, proxies, and the vCenters. Pure.

Freezing one of the first or the last would freeze who is to thaw it; a proxy that reads its own disks waits for itself.
A VM is recognised by what it cannot share with another (MAC addresses, BIOS uuid), a vCenter also by the addresses and
the name that its guest tells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Final

from holdfast_controller.facts import VmFacts


class MachineRole(StrEnum):
    """What the backup needs the VM for."""

    CONTROLLER = "controller"
    VCENTER = "vcenter"
    PROXY = "proxy"


UUID_DIGITS: Final = 32
UNQUIESCED: Final = frozenset({MachineRole.CONTROLLER, MachineRole.VCENTER})


@dataclass(frozen=True, slots=True, kw_only=True)
class HostIdentity:
    """What a host knows of itself: of a VM it is what vSphere shows of it too. Empty: not told.

    ``name``: for people. ``uuid``: as its BIOS tells it, or vSphere; ``addresses``, ``host_names``: of a vCenter.
    """

    name: str
    uuid: str = ""
    mac_addresses: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnMachines:
    """All hosts that the backup stands on."""

    controller: HostIdentity
    proxies: tuple[HostIdentity, ...]
    vcenters: tuple[HostIdentity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFound:
    """A VM is one of ours. ``name``: which proxy or vCenter; ``evidence``: by what it was recognised."""

    role: MachineRole
    name: str
    evidence: str

    @property
    def what(self) -> str:
        """Who it is."""
        if self.role is MachineRole.CONTROLLER:
            return "the VM that this controller runs in"
        return f"the VM of {self.role} {self.name}"

    @property
    def text(self) -> str:
        """Who it is, how we know, and what is done about it."""
        return f"it is {self.what} ({self.evidence}): {HANDLED[self.role]}"


HANDLED: Final = {
    MachineRole.CONTROLLER: "its snapshots are made without quiescing, which would freeze who is to thaw it",
    MachineRole.VCENTER: "its snapshots are made without quiescing, which would freeze who is to thaw it",
    MachineRole.PROXY: "its disks are never attached to itself, nor read by itself while another way is left",
}


class OwnVms:
    """Recognises the VMs of hosts that the backup stands on; made once for many VMs."""

    def __init__(self, own: OwnMachines) -> None:
        self._known: dict[str, list[RoleFound]] = {}
        self._add(own.controller, MachineRole.CONTROLLER)
        for vcenter in own.vcenters:
            self._add(vcenter, MachineRole.VCENTER)
        for proxy in own.proxies:
            self._add(proxy, MachineRole.PROXY)

    def roles(self, vm: VmFacts) -> tuple[RoleFound, ...]:
        """What the backup needs this VM for, each once; empty for all but a few."""
        marks = [f"mac {each.lower()}" for each in vm.mac_addresses]
        marks += [f"uuid {_hex_digits(each)}" for each in (vm.bios_uuid, vm.instance_uuid)]
        marks += [f"address {_address(each)}" for each in vm.guest_addresses]
        marks += [f"name {_host_name(vm.guest_host_name)}"]
        found: dict[tuple[MachineRole, str], RoleFound] = {}
        for mark in marks:
            for role in self._known.get(mark, ()):
                found.setdefault((role.role, role.name), role)
        return tuple(found.values())

    def _add(self, host: HostIdentity, role: MachineRole) -> None:
        def known(mark: str, evidence: str) -> None:
            place = self._known.setdefault(mark, [])
            place.append(RoleFound(role=role, name=host.name, evidence=evidence))

        for mac in host.mac_addresses:
            known(f"mac {mac.lower()}", f"its MAC address {mac.lower()}")
        digits = _hex_digits(host.uuid)
        if len(digits) == UUID_DIGITS:
            for each in {digits, _swapped(digits)}:
                known(f"uuid {each}", f"its uuid {host.uuid}")
        for address in filter(None, map(_address, host.addresses)):
            known(f"address {address}", f"its address {address}")
        for name in filter(None, map(_host_name, host.host_names)):
            known(f"name {name}", f"its name {name}")


def unquiesced_reason(roles: Iterable[RoleFound]) -> str:
    """Why a VM of these roles is not quiesced; empty when it may be."""
    return "; ".join(role.text for role in roles if role.role in UNQUIESCED)


def _address(text: str) -> str:
    """As it is compared; empty for one that many hosts have."""
    try:
        found = ip_address(text)
    except ValueError:
        return ""
    return "" if found.is_link_local or found.is_unspecified else str(found)


def _host_name(text: str) -> str:
    """As it is compared; a short one, or an address, proves nothing."""
    name = text.lower().rstrip(".")
    return "" if "." not in name or _address(name) else name


def _hex_digits(text: str) -> str:
    return "".join(each for each in text.lower() if each in "0123456789abcdef")


def _swapped(digits: str) -> str:
    """The first three groups (4, 2 and 2 bytes) with their bytes the other way round."""
    pairs = [digits[at : at + 2] for at in range(0, 32, 2)]
    return "".join([*pairs[3::-1], *pairs[5:3:-1], *pairs[7:5:-1], *pairs[8:]])

"""Whether a proxy may have a disk attached: asked when it is chosen, and once more before it is attached. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast_controller.facts import DiskFacts, HostFacts, VmFacts

IDE = "IDE disks cannot be hot-added"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreSeen:
    """A datastore as hosts name it; an empty moref is one that vSphere did not tell."""

    moref: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyVm:
    """The VM that a proxy runs in. ``host_datastore_morefs`` empty: what its host sees is not known."""

    moref: str
    instance_uuid: str
    power_state: str
    connection_state: str
    host_moref: str = ""
    datacenter_moref: str = ""
    host_datastore_morefs: tuple[str, ...] = ()

    @classmethod
    def of(cls, vm: VmFacts, hosts: Iterable[HostFacts]) -> ProxyVm:
        """From what was seen of it and of the hosts."""
        host = next((each for each in hosts if each.moref == vm.host_moref), None)
        return cls(
            moref=vm.moref,
            instance_uuid=vm.instance_uuid,
            power_state=vm.power_state,
            connection_state=vm.connection_state,
            host_moref=vm.host_moref,
            datacenter_moref=vm.datacenter_moref,
            host_datastore_morefs=host.datastore_morefs if host is not None else (),
        )


def problems_of_proxy(proxy: ProxyVm, *, vm_instance_uuid: str, datacenter_moref: str) -> list[str]:
    """What forbids attaching disks of that VM to this proxy; a datacenter that is not known forbids nothing."""
    problems = []
    if proxy.power_state != "poweredOn" or proxy.connection_state != "connected":
        problems.append(f"the proxy is {proxy.power_state}, {proxy.connection_state}")
    if vm_instance_uuid and vm_instance_uuid == proxy.instance_uuid:
        problems.append("a proxy's disks are never attached to itself")
    known = datacenter_moref and proxy.datacenter_moref
    if known and datacenter_moref != proxy.datacenter_moref:
        problems.append("the proxy is in another datacenter than the VM")
    return problems


def problem_of_disk(disk: DiskFacts) -> str:
    """What forbids attaching this disk to any proxy; empty when nothing does."""
    if disk.adapter == "ide":
        return IDE
    if disk.tip is None:
        return "its backing has no file to attach"
    if disk.raw_mapping:
        return "raw device mappings are not attached to proxies"
    if not disk.backing_uuid:
        return "it has no uuid, by which the proxy would know it"
    return ""


def unseen_datastores(proxy: ProxyVm, datastores: Iterable[DatastoreSeen]) -> list[str]:
    """The datastores that the proxy's host does not see."""
    if not proxy.host_datastore_morefs:
        return []
    unseen = {
        store.name
        for store in datastores
        if store.moref and store.moref not in proxy.host_datastore_morefs
    }
    return [f"the proxy's host does not see datastore {name}" for name in sorted(unseen)]

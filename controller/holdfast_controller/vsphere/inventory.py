"""The whole inventory of a vCenter or host in one call: VMs with their disks, hosts, datastores, places."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pyVmomi import vim

from holdfast_common.clock import utc_text
from holdfast_common.errors import SourceGone, VsphereFailed
from holdfast_common.identity import DatastoreId
from holdfast_controller.facts import (
    DatastoreFacts,
    HostFacts,
    Inventory,
    PlaceFacts,
    ServerFacts,
    SnapshotNode,
    VmFacts,
)
from holdfast_controller.vsphere import pinning, properties
from holdfast_controller.vsphere.devices import DatastoreNames, disk_facts, mac_addresses
from holdfast_controller.vsphere.entity_names import plain_name
from holdfast_controller.vsphere.foreign import Foreign, Reference, moref_of, reference
from holdfast_controller.vsphere.places import places_of
from holdfast_controller.vsphere.properties import ObjectProperties
from holdfast_controller.vsphere.session import VsphereSession

CONFIGURATION_VERSION: Final = "config.changeVersion"
VM_PATHS: Final = (
    "name",
    "parent",
    "parentVApp",
    "resourcePool",
    "snapshot",
    "datastore",
    "runtime.host",
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.faultToleranceState",
    "capability.changeTrackingSupported",
    "guest.toolsRunningStatus",
    "guest.toolsVersionStatus2",
    "guest.hostName",
    "guest.ipAddress",
    "guest.net",
    "config.instanceUuid",
    "config.uuid",
    "config.template",
    "config.version",
    "config.guestId",
    "config.guestFullName",
    "config.firmware",
    "config.changeTrackingEnabled",
    CONFIGURATION_VERSION,
    "config.keyId",
    "config.files.vmPathName",
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.hardware.device",
)
HOST_PATHS: Final = (
    "name",
    "parent",
    "datastore",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "config.product.version",
    "config.product.build",
    "config.certificate",
    "hardware.systemInfo.uuid",
)
DATASTORE_PATHS: Final = (
    "name",
    "parent",
    "summary.url",
    "summary.type",
    "summary.capacity",
    "summary.freeSpace",
    "summary.accessible",
)
PLACE_PATHS: Final = ("name", "parent")
EVERYTHING: Final[Mapping[type, Sequence[str]]] = {
    vim.VirtualMachine: VM_PATHS,
    vim.HostSystem: HOST_PATHS,
    vim.Datastore: DATASTORE_PATHS,
    vim.Folder: PLACE_PATHS,
    vim.Datacenter: (*PLACE_PATHS, "vmFolder"),
    vim.ComputeResource: (*PLACE_PATHS, "resourcePool"),
    vim.ResourcePool: PLACE_PATHS,
}
SURROUNDINGS: Final = {
    kind: paths for kind, paths in EVERYTHING.items() if kind is not vim.VirtualMachine
}


def read_inventory(session: VsphereSession) -> Inventory:
    """Everything that the account may see. Raises: VsphereUnavailable, VsphereFailed."""
    found = properties.read_everything(session, EVERYTHING)
    surroundings = Surroundings.of(found, session.content())
    vms = [surroundings.vm(each) for each in _of_kind(found, vim.VirtualMachine)]
    session.seen_vms.replace((vm.instance_uuid, vm.moref) for vm in vms)
    return Inventory(
        server=_server(session, surroundings.hosts.values()),
        taken_at=utc_text(session.clock.now()),
        vms=tuple(sorted(vms, key=lambda vm: (vm.name, vm.moref))),
        hosts=tuple(surroundings.hosts.values()),
        datastores=tuple(surroundings.names.by_moref.values()),
        places=tuple(surroundings.places.values()),
    )


def read_surroundings(session: VsphereSession) -> Surroundings:
    """Hosts, datastores and places as they are now: all that a VM's facts refer to."""
    return Surroundings.of(properties.read_everything(session, SURROUNDINGS), session.content())


def read_vm(
    session: VsphereSession, moref: str, surroundings: Surroundings | None = None
) -> VmFacts:
    """One VM as it is now; ``surroundings`` None: its own are read too. Raises: SourceGone."""
    if surroundings is None:
        return read_vm_around(session, moref)[0]
    machine = reference(vim.VirtualMachine, moref)
    values = properties.read_one(session, machine, VM_PATHS)
    return surroundings.vm(ObjectProperties(machine, values))


def read_vm_around(session: VsphereSession, moref: str) -> tuple[VmFacts, Surroundings]:
    """One VM as it is now, with its own host, datastores and places, and no others: two calls.

    Raises: SourceGone.
    """
    machine = reference(vim.VirtualMachine, moref)
    for attempt in range(properties.READS_OF_A_CHANGING_INVENTORY):
        values = properties.read_one(session, machine, VM_PATHS)
        roots = [values.get(name) for name in ("runtime.host", "parent", "parentVApp")]
        roots += values.get("datastore") or []
        try:
            around = _surroundings_of(session, [each for each in roots if each is not None])
        except SourceGone:
            # the VM left its host or datastore between the two calls
            if attempt == properties.READS_OF_A_CHANGING_INVENTORY - 1:
                raise
        else:
            return around.vm(ObjectProperties(machine, values)), around
    raise AssertionError("the loop returns or raises")


def read_datastore(session: VsphereSession, moref: str) -> Surroundings:
    """One datastore with its places. Raises: SourceGone."""
    return _surroundings_of(session, [reference(vim.Datastore, moref)])


def _surroundings_of(session: VsphereSession, roots: Sequence[Reference]) -> Surroundings:
    found = properties.read_upwards(session, roots, SURROUNDINGS)
    return Surroundings.of(found, session.content())


def find_vm(session: VsphereSession, *, instance_uuid: str) -> VmFacts:
    """The VM with this identity, wherever it is now. Raises: SourceGone, VsphereFailed."""
    return read_vm(session, find_moref(session, instance_uuid=instance_uuid))


def find_moref(session: VsphereSession, *, instance_uuid: str) -> str:
    """The id of the VM with this identity: looked for where it was last, then everywhere.

    Raises: SourceGone, VsphereFailed.
    """
    if not instance_uuid:
        raise SourceGone("a VM without an identity cannot be looked for")
    last = session.seen_vms.moref(instance_uuid)
    if last and _has_identity(session, last, instance_uuid):
        return last
    wanted: dict[type, Sequence[str]] = {vim.VirtualMachine: ("config.instanceUuid",)}
    morefs = [
        each.moref
        for each in properties.read_everything(session, wanted)
        if each.values.get("config.instanceUuid") == instance_uuid
    ]
    if not morefs:
        raise SourceGone("the VM is no longer in the inventory", instance_uuid=instance_uuid)
    if len(morefs) > 1:
        raise VsphereFailed("two VMs have one instance uuid", instance_uuid=instance_uuid)
    session.seen_vms.add(instance_uuid, morefs[0])
    return morefs[0]


def _has_identity(session: VsphereSession, moref: str, instance_uuid: str) -> bool:
    machine = reference(vim.VirtualMachine, moref)
    try:
        values = properties.read_one(session, machine, ["config.instanceUuid"])
    except SourceGone:
        return False
    return values.get("config.instanceUuid") == instance_uuid


def read_server(session: VsphereSession) -> ServerFacts:
    """What we are connected to. Raises: VsphereFailed when it has no identity."""
    if session.is_vcenter:
        return _server(session, ())
    found = properties.read_everything(session, {vim.HostSystem: HOST_PATHS})
    return _server(session, [_host(each) for each in found])


def snapshot_nodes(snapshot_info: Foreign) -> tuple[SnapshotNode, ...]:
    """A VM's snapshot tree, parents first; empty for None (there is no snapshot)."""
    nodes: list[SnapshotNode] = []
    pending = [("", each) for each in (snapshot_info.rootSnapshotList if snapshot_info else [])]
    while pending:
        parent, tree = pending.pop(0)
        moref = moref_of(tree.snapshot)
        nodes.append(
            SnapshotNode(
                moref=moref,
                parent_moref=parent,
                name=str(tree.name),
                description=str(tree.description or ""),
                created_at=utc_text(tree.createTime) if tree.createTime else "",
                quiesced=bool(tree.quiesced),
            )
        )
        pending += [(moref, child) for child in tree.childSnapshotList or []]
    return tuple(nodes)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All that a VM's facts refer to."""

    names: DatastoreNames
    hosts: Mapping[str, HostFacts]
    places: Mapping[str, PlaceFacts]
    datacenters: Mapping[str, str]

    @classmethod
    def of(cls, found: Sequence[ObjectProperties], content: Foreign) -> Surroundings:
        """From everything that was read; ``content`` names the root folder."""
        places, datacenters = places_of(found, moref_of(content.rootFolder))
        return cls(
            names=DatastoreNames(_datastores(found, datacenters)),
            hosts={each.moref: _host(each) for each in _of_kind(found, vim.HostSystem)},
            places=places,
            datacenters=datacenters,
        )

    def vm(self, found: ObjectProperties) -> VmFacts:
        """The facts of a VM from its properties."""
        values = found.values
        host = self.hosts.get(moref_of(values.get("runtime.host")))
        folder = moref_of(values.get("parent"))
        place = self.places.get(folder) or self.places.get(moref_of(values.get("parentVApp")))
        devices = values.get("config.hardware.device") or []
        vmx = str(values.get("config.files.vmPathName") or "")
        version = str(values.get("config.version") or "")
        datastores = [moref_of(each) for each in values.get("datastore") or []]
        snapshot = values.get("snapshot")
        return VmFacts(
            moref=found.moref,
            name=plain_name(str(values.get("name") or "")),
            instance_uuid=str(values.get("config.instanceUuid") or ""),
            bios_uuid=str(values.get("config.uuid") or ""),
            place=place.path if place else "",
            folder_moref=folder,
            host_moref=host.moref if host else "",
            host_name=host.name if host else "",
            pool_moref=moref_of(values.get("resourcePool")),
            datacenter_moref=self._datacenter(folder, host),
            datastore_names=tuple(
                sorted(self.names.by_moref[m].name for m in datastores if m in self.names.by_moref)
            ),
            power_state=str(values.get("runtime.powerState") or ""),
            connection_state=str(values.get("runtime.connectionState") or ""),
            template=bool(values.get("config.template")),
            hardware_version=_hardware_version(version),
            guest_id=str(values.get("config.guestId") or ""),
            guest_name=str(values.get("config.guestFullName") or ""),
            firmware=str(values.get("config.firmware") or ""),
            tools_running=str(values.get("guest.toolsRunningStatus") or ""),
            tools_version_status=str(values.get("guest.toolsVersionStatus2") or ""),
            change_tracking_supported=bool(values.get("capability.changeTrackingSupported")),
            change_tracking_enabled=bool(values.get("config.changeTrackingEnabled")),
            consolidation_needed=bool(values.get("runtime.consolidationNeeded")),
            encrypted=values.get("config.keyId") is not None,
            has_vtpm=any(isinstance(each, vim.vm.device.VirtualTPM) for each in devices),
            fault_tolerant=str(values.get("runtime.faultToleranceState") or "notConfigured")
            != "notConfigured",
            memory_mb=int(values.get("config.hardware.memoryMB") or 0),
            cpu_count=int(values.get("config.hardware.numCPU") or 0),
            vmx=self.names.link_among(vmx, datastores) if vmx.startswith("[") else None,
            snapshots=snapshot_nodes(snapshot),
            current_snapshot_moref=moref_of(snapshot.currentSnapshot) if snapshot else "",
            disks=disk_facts(devices, self.names),
            configuration_version=str(values.get(CONFIGURATION_VERSION) or ""),
            mac_addresses=mac_addresses(devices),
            guest_addresses=_guest_addresses(values),
            guest_host_name=str(values.get("guest.hostName") or ""),
        )

    def _datacenter(self, folder: str, host: HostFacts | None) -> str:
        if folder in self.datacenters:
            return self.datacenters[folder]
        return self.datacenters.get(host.compute_moref, "") if host else ""


def _of_kind(found: Iterable[ObjectProperties], kind: type) -> list[ObjectProperties]:
    return [each for each in found if isinstance(each.reference, kind)]


def _guest_addresses(values: Mapping[str, Foreign]) -> tuple[str, ...]:
    """All that the guest has, the first one first."""
    found = [str(values.get("guest.ipAddress") or "")]
    for card in values.get("guest.net") or []:
        found += [str(each) for each in card.ipAddress or []]
    return tuple(dict.fromkeys(each for each in found if each))


def _hardware_version(text: str) -> int:
    number = text.removeprefix("vmx-")
    return int(number) if number.isdigit() else 0


def _server(session: VsphereSession, hosts: Iterable[HostFacts]) -> ServerFacts:
    about = session.content().about
    identity = str(about.instanceUuid or "")
    if not session.is_vcenter or not identity:
        # a single host has no instance: its hardware is its identity
        identity = next((each.hardware_uuid for each in hosts if each.hardware_uuid), identity)
    if not identity:
        raise VsphereFailed("the server tells no identity of its own", host=session.address.host)
    return ServerFacts(
        instance_uuid=identity,
        product=str(about.name),
        version=str(about.version),
        build=str(about.build),
        is_vcenter=session.is_vcenter,
    )


def _host(found: ObjectProperties) -> HostFacts:
    values = found.values
    return HostFacts(
        moref=found.moref,
        name=str(values.get("name") or ""),
        connection_state=str(values.get("runtime.connectionState") or ""),
        in_maintenance=bool(values.get("runtime.inMaintenanceMode")),
        version=str(values.get("config.product.version") or ""),
        build=str(values.get("config.product.build") or ""),
        compute_moref=moref_of(values.get("parent")),
        hardware_uuid=str(values.get("hardware.systemInfo.uuid") or ""),
        certificate_sha256=_certificate_sha256(values.get("config.certificate")),
        datastore_morefs=tuple(moref_of(each) for each in values.get("datastore") or []),
    )


def _certificate_sha256(numbers: Sequence[int] | None) -> str:
    """The digest of ``config.certificate``: PEM, as signed bytes. Empty when it cannot be read."""
    if not numbers:
        return ""
    pem = bytes(number & 0xFF for number in numbers).decode("ascii", "replace")
    try:
        return pinning.described(ssl.PEM_cert_to_DER_cert(pem.strip())).sha256
    except (ValueError, VsphereFailed):
        return ""


def _datastores(
    found: Sequence[ObjectProperties], datacenters: Mapping[str, str]
) -> list[DatastoreFacts]:
    return [
        DatastoreFacts(
            moref=each.moref,
            datastore_id=DatastoreId(str(each.values.get("summary.url") or "")),
            name=str(each.values.get("name") or ""),
            kind=str(each.values.get("summary.type") or ""),
            capacity_bytes=int(each.values.get("summary.capacity") or 0),
            free_bytes=int(each.values.get("summary.freeSpace") or 0),
            accessible=bool(each.values.get("summary.accessible")),
            datacenter_moref=datacenters.get(moref_of(each.values.get("parent")), ""),
        )
        for each in _of_kind(found, vim.Datastore)
    ]

"""What the product reads of a vCenter that is only a model: facts, properties, configurations. Of `virtual_vsphere`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final

from pyVmomi import vim

from holdfast_common.clock import utc_text
from holdfast_common.identity import DatastoreId
from holdfast_controller.facts import (
    ChainLink,
    DatastoreFacts,
    DiskFacts,
    HostFacts,
    Inventory,
    ServerFacts,
    SnapshotNode,
    VmFacts,
)
from simulation.virtual_disks import BLOCK_BYTES, VirtualDisk, VirtualFile
from simulation.virtual_time import BEGIN
from simulation.virtual_vms import VirtualSnapshot, VirtualVm

INSTANCE: Final = "vcenter-instance"
HOST: Final = "host-1"
DATASTORE: Final = DatastoreFacts(
    moref="datastore-1",
    datastore_id=DatastoreId("ds:///vmfs/volumes/one/"),
    name="one",
    kind="VMFS",
    capacity_bytes=1 << 40,
    free_bytes=1 << 39,
    accessible=True,
    datacenter_moref="datacenter-1",
)
HOST_FACTS: Final = HostFacts(
    moref=HOST,
    name="esx1",
    connection_state="connected",
    in_maintenance=False,
    version="8.0.2",
    build="23305546",
    compute_moref="cluster-1",
    hardware_uuid="hardware",
    certificate_sha256="",
    datastore_morefs=(DATASTORE.moref,),
)
_PLAIN: Final = VmFacts(
    moref="",
    name="",
    instance_uuid="",
    bios_uuid="",
    place="dc1",
    folder_moref="group-1",
    host_moref=HOST,
    host_name="esx1",
    pool_moref="pool-1",
    datacenter_moref="datacenter-1",
    datastore_names=("one",),
    power_state="poweredOn",
    connection_state="connected",
    template=False,
    hardware_version=20,
    guest_id="debian12_64Guest",
    guest_name="Debian",
    firmware="efi",
    tools_running="guestToolsRunning",
    tools_version_status="guestToolsCurrent",
    change_tracking_supported=True,
    change_tracking_enabled=False,
    consolidation_needed=False,
    encrypted=False,
    has_vtpm=False,
    fault_tolerant=False,
    memory_mb=1024,
    cpu_count=1,
    vmx=None,
    snapshots=(),
    current_snapshot_moref="",
    disks=(),
)


def vm_facts(vm: VirtualVm) -> VmFacts:
    """As the product reads it."""
    moref = "" if vm.current is None else vm.current.moref
    return replace(
        _PLAIN,
        moref=vm.moref,
        name=vm.name,
        instance_uuid=vm.instance_uuid,
        bios_uuid=f"bios-{vm.moref}",
        change_tracking_enabled=vm.tracking,
        consolidation_needed=vm.consolidation_needed,
        snapshots=tuple(_node(each) for each in vm.snapshots),
        current_snapshot_moref=moref,
        disks=tuple(_disk(each, each.tip, each.change_id) for each in vm.disks),
        configuration_version=str(vm.version),
    )


def inventory_of(vms: Iterable[VirtualVm], *, seconds: float) -> Inventory:
    """Everything, ``seconds`` after the beginning."""
    return Inventory(
        server=ServerFacts(
            instance_uuid=INSTANCE,
            product="model",
            version="8.0.2",
            build="1",
            is_vcenter=True,
        ),
        taken_at=utc_text(BEGIN + timedelta(seconds=seconds)),
        vms=tuple(vm_facts(vm) for vm in vms),
        hosts=(HOST_FACTS,),
        datastores=(DATASTORE,),
        places=(),
    )


def property_of(vm: VirtualVm, path: str) -> Any:
    """One property, as pyVmomi has it."""
    values: dict[str, Callable[[], Any]] = {
        "name": lambda: vm.name,
        "snapshot": lambda: _tree(vm),
        "config.instanceUuid": lambda: vm.instance_uuid,
        "config.changeVersion": lambda: str(vm.version),
        "config.changeTrackingEnabled": lambda: vm.tracking,
        "config.hardware.device": lambda: list(vm.devices),
        "recentTask": lambda: [vim.Task(each.moref, None) for each in vm.running()],
        "runtime.powerState": lambda: "poweredOn",
        "runtime.connectionState": lambda: "connected",
        "runtime.host": lambda: vim.HostSystem(HOST, None),
    }
    return values[path]()


def _tree(vm: VirtualVm) -> Any:
    if not vm.snapshots:
        return None

    def tree(found: VirtualSnapshot) -> Any:
        return SimpleNamespace(
            snapshot=vim.vm.Snapshot(found.moref, None),
            name=found.name,
            description=found.description,
            createTime=found.created_at,
            quiesced=found.quiesced,
            childSnapshotList=[tree(each) for each in vm.snapshots if each.parent is found],
        )

    return SimpleNamespace(
        rootSnapshotList=[tree(each) for each in vm.snapshots if each.parent is None],
        currentSnapshot=vim.vm.Snapshot(vm.current.moref, None) if vm.current else None,
    )


def config_of(found: VirtualSnapshot) -> Any:
    """The VM as a snapshot has it."""
    disks = [_disk(each.disk, each.file, each.change_id, count=each.count) for each in found.disks]
    return SimpleNamespace(hardware=SimpleNamespace(device=disks))


def _node(found: VirtualSnapshot) -> SnapshotNode:
    return SnapshotNode(
        moref=found.moref,
        parent_moref="" if found.parent is None else found.parent.moref,
        name=found.name,
        description=found.description,
        created_at=utc_text(found.created_at),
        quiesced=found.quiesced,
    )


def _disk(disk: VirtualDisk, tip: VirtualFile, change_id: str, *, count: int = 0) -> DiskFacts:
    return DiskFacts(
        device_key=disk.key,
        backing_uuid=disk.uuid,
        label=f"Hard disk {disk.key - 1999}",
        capacity_bytes=(count or disk.count) * BLOCK_BYTES,
        sector_bytes=512,
        chain=tuple(
            ChainLink(
                datastore_id=DATASTORE.datastore_id,
                datastore_moref=DATASTORE.moref,
                datastore_name=DATASTORE.name,
                path=link.path,
            )
            for link in tip.links()
        ),
        change_id=change_id,
        mode="persistent",
        sharing="sharingNone",
        thin=True,
        raw_mapping="",
        encrypted=False,
        controller_key=1000,
        bus_number=0,
        unit_number=disk.key - 2000,
        adapter="pvscsi",
        bus_sharing="noSharing",
        unprotected_reason="",
    )

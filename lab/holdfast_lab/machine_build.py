"""Making a VM from a plan: folder, files, devices, disks with content, snapshots, power."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pyVmomi import vim

from holdfast_lab.datastores import Datastore
from holdfast_lab.device_slots import fill_network_card
from holdfast_lab.device_table import DiskDevice, disk_key, scsi_controller
from holdfast_lab.disk_backings import storage_kind
from holdfast_lab.faults import LabError
from holdfast_lab.guest import change_files, known_files, make_ext4, write_random_blocks
from holdfast_lab.hosts import Host, Network, ResourcePool
from holdfast_lab.inventory import Datacenter, Folder
from holdfast_lab.inventory_plan import DiskPlan, MachinePlan
from holdfast_lab.lab import Lab
from holdfast_lab.lab_object import file_stem
from holdfast_lab.machine import Machine, MachineSettings
from holdfast_lab.power import power_on
from holdfast_lab.snapshots import take_snapshot
from holdfast_lab.storage.disk import Provisioning
from holdfast_lab.storage.errors import StorageError
from holdfast_lab.wire_types import WireObject

BLOCK_BYTES = 64 * 1024
NVRAM_BYTES = {"bios": 8684, "efi": 270_336}


def build_machine(lab: Lab, plan: MachinePlan) -> Machine:
    """Make a VM as planned, its disks filled, its snapshots made, running if wanted."""
    with lab.lock:
        home = lab.datastore(plan.datastore)
        machine = new_machine(
            lab,
            name=plan.name,
            folder=folder_named(lab, plan.folder),
            home=home,
            vmx=home.root / file_stem(plan.name) / f"{file_stem(plan.name)}.vmx",
            host=lab.by_name(Host, plan.host) if plan.host else lab.hosts()[0],
            settings=MachineSettings(
                firmware=plan.firmware,
                memory_mib=plan.memory_mib,
                cpu_count=plan.cpu_count,
                change_tracking=plan.change_tracking,
            ),
        )
        machine.tools.installed = plan.tools
        controller = scsi_controller(0)
        machine.devices.plain[controller.key] = controller
        card = network_card(lab, lab.every(Network)[0])
        machine.devices.plain[card.key] = card
    add_disks(machine, controller, plan.disks)
    with lab.lock:
        machine.config_changed()
    fill_disks(machine, plan)
    if plan.power == "on":
        power_on(machine)
    for number, name in enumerate(plan.user_snapshots):
        take_snapshot(
            machine, name=name, description="made by the user", memory=False, quiesce=False
        )
        change_disks(machine, plan, seed=number + 1)
    return machine


def fill_disks(machine: Machine, plan: MachinePlan) -> None:
    """Write the planned content as the guest. Raises: LabError."""
    try:
        for device, wanted in zip(machine.disks(), plan.disks, strict=True):
            if wanted.content == "ext4":
                make_ext4(device.disk, known_files(wanted.seed))
            elif wanted.content == "random":
                _write_blocks(device, wanted, seed=wanted.seed)
    except StorageError as error:
        raise LabError(f"{machine.name} cannot be filled: {error}") from error


def change_disks(machine: Machine, plan: MachinePlan, *, seed: int) -> None:
    """The guest goes on writing after a snapshot, so that its redo logs hold something."""
    for device, wanted in zip(machine.disks(), plan.disks, strict=True):
        if wanted.content == "ext4":
            change_files(device.disk, {f"after-{seed}": f"after snapshot {seed}\n".encode()})
        elif wanted.content == "random":
            write_random_blocks(device.disk, seed=wanted.seed * 1000 + seed, count=2)


def _write_blocks(device: DiskDevice, wanted: DiskPlan, *, seed: int) -> None:
    size = wanted.size_bytes // 4 if wanted.content_bytes is None else wanted.content_bytes
    write_random_blocks(
        device.disk, seed=seed, count=max(1, size // BLOCK_BYTES), block_bytes=BLOCK_BYTES
    )


def new_machine(
    lab: Lab,
    *,
    name: str,
    folder: Folder,
    home: Datastore,
    vmx: Path,
    host: Host,
    resource_pool: ResourcePool | None = None,
    settings: MachineSettings | None = None,
) -> Machine:
    """A VM with its folder, .vmx and .nvram, without disks. Needs the lock. Raises: SoapFault."""
    folder.check_name_is_free(name)
    vmx.parent.mkdir(parents=True, exist_ok=True)
    machine = Machine(
        lab,
        lab.new_id("vm"),
        name=name,
        folder=folder,
        home=home,
        vmx=vmx,
        host=host,
        resource_pool=resource_pool or root_pool(lab, host),
        settings=settings,
    )
    if not machine.nvram.exists():
        machine.nvram.write_bytes(new_nvram(machine.settings.firmware))
    lab.add(machine)
    folder.attach_child(machine)
    machine.config_changed()
    return machine


def new_nvram(firmware: str) -> bytes:
    """The content of a fresh .nvram file: a magic and random settings."""
    return b"MRVN" + os.urandom(NVRAM_BYTES.get(firmware, 8684) - 4)


def root_pool(lab: Lab, host: Host) -> ResourcePool:
    """The root pool of the host's compute resource."""
    from holdfast_lab.hosts import ComputeResource

    for each in lab.every(ComputeResource):
        if host in each.hosts and each.pool is not None:
            return each.pool
    raise LabError(f"host {host.name} belongs to nothing")


def folder_named(lab: Lab, path: str) -> Folder:
    """The VM folder at a path below the datacenter's; missing ones are made. Needs the lock."""
    folder = lab.every(Datacenter)[0].vm_folder
    for name in [each for each in path.split("/") if each]:
        below = next(
            (each for each in folder.entities if isinstance(each, Folder) and each.name == name),
            None,
        )
        if below is None:
            below = Folder(
                lab, lab.new_id("group-v"), name=name, parent=folder, types=list(folder.types)
            )
            lab.add(below)
            folder.attach_child(below)
        folder = below
    return folder


def network_card(lab: Lab, network: Network) -> WireObject:
    """A vmxnet3 card on a network, with an address of its own. Needs the lock."""
    card = vim.vm.device.VirtualVmxnet3(
        key=4000,
        controllerKey=100,
        unitNumber=7,
        addressType="generated",
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(
            deviceName=network.name, network=network.ref, useAutoDetect=False
        ),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=True, status="ok"
        ),
        deviceInfo=vim.Description(label="Network adapter 1", summary=network.name),
    )
    fill_network_card(card, lab.mac_taken)
    return card


def add_disks(machine: Machine, controller: WireObject, plans: Sequence[DiskPlan]) -> None:
    """Make the planned disks in the controller's next units. Without the lock."""
    lab = machine.lab
    for number, plan in enumerate(plans):
        with lab.lock:
            datastore = lab.datastore(plan.datastore) if plan.datastore else machine.home
            directory = (
                machine.directory
                if datastore is machine.home
                else datastore.root / file_stem(machine.name)
            )
            used = machine.devices.units_in_use(int(controller.key))
        directory.mkdir(parents=True, exist_ok=True)
        unit = min(set(range(16)) - used)
        disk = lab.disks.create(
            directory,
            file_stem(machine.name) if number == 0 else f"{file_stem(machine.name)}_{number}",
            plan.size_bytes,
            kind=storage_kind(datastore),
            provisioning=Provisioning(plan.provisioning),
        )
        if machine.change_tracking:
            disk.enable_tracking()
        with lab.lock:
            key = disk_key(controller, unit)
            machine.devices.disks[key] = DiskDevice(
                key=key,
                controller_key=int(controller.key),
                unit_number=unit,
                disk=disk,
                mode=plan.mode,
            )

"""Moving a VM: its disks to other datastores (storage migration), itself to another host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyVmomi import vim

from holdfast_lab.datastores import Datastore
from holdfast_lab.device_table import DiskDevice
from holdfast_lab.disk_backings import storage_kind
from holdfast_lab.faults import SoapFault, invalid_argument
from holdfast_lab.hosts import Host, ResourcePool
from holdfast_lab.lab import Lab
from holdfast_lab.machine import Machine
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.power import check_no_transfer
from holdfast_lab.storage.errors import FileExists, LinkBusy


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskMove:
    """One disk and the datastore it goes to."""

    device: DiskDevice
    datastore: Datastore


@soap_method("RelocateVM_Task")
def relocate_task(call: Call) -> vim.Task:
    lab = call.lab
    machine = lab.get(call.this, Machine)
    spec = call.arguments.required("spec", vim.vm.RelocateSpec)
    check_no_transfer(machine)
    home = lab.get(spec.datastore, Datastore) if spec.datastore is not None else None
    by_key = {each.diskId: lab.get(each.datastore, Datastore) for each in spec.disk}
    unknown = set(by_key) - set(machine.devices.disks)
    if unknown:
        raise invalid_argument("spec.disk", f"there is no disk {min(unknown)}")
    moves = [
        DiskMove(device=device, datastore=target)
        for device in machine.disks()
        if (target := by_key.get(device.key, home)) is not None
        and target is not lab.datastore_of(device.descriptor)
    ]
    host = lab.get(spec.host, Host) if spec.host is not None else None
    pool = lab.get(spec.pool, ResourcePool) if spec.pool is not None else None

    def body(_task: object) -> None:
        for move in moves:
            move_disk(machine, move)
        with lab.lock:
            if home is not None and home is not machine.home:
                move_home(machine, home)
            machine.host = host or machine.host
            machine.resource_pool = pool or machine.resource_pool
        stun(machine)

    return lab.tasks.start(machine, "VirtualMachine.relocate", body, session=call.session)


@soap_method("MigrateVM_Task")
def migrate_task(call: Call) -> vim.Task:
    lab = call.lab
    machine = lab.get(call.this, Machine)
    check_no_transfer(machine)
    host = lab.get(call.arguments.required("host", vim.HostSystem), Host)

    def body(_task: object) -> None:
        with lab.lock:
            machine.host = host
        stun(machine)

    return lab.tasks.start(machine, "VirtualMachine.migrate", body, session=call.session)


def stun(machine: Machine) -> None:
    """The moment of a migration in which the guest stands still. Without the lock."""
    if machine.powered_on:
        for device in machine.disks():
            device.disk.stun()
    with machine.lab.lock:
        machine.config_changed()


def move_disk(machine: Machine, move: DiskMove) -> None:
    """Move one disk with all its links. Without ``Lab.lock``. Raises: SoapFault."""
    lab = machine.lab
    disk = move.device.disk
    with lab.lock:
        before = lab.datastore_path(move.device.descriptor)
        move.datastore.check_space(sum(path.stat().st_blocks * 512 for path in disk.files()))
        directory = free_directory(machine, move.datastore)
        directory.mkdir(parents=True, exist_ok=True)
    try:
        disk.move(directory, datastore_kind=storage_kind(move.datastore))
    except LinkBusy as error:
        raise SoapFault(vim.fault.FileLocked(file=before), str(error)) from error
    except FileExists as error:
        raise SoapFault(vim.fault.FileAlreadyExists(file=before), str(error)) from error
    lab.disks.moved(disk)
    with lab.lock:
        machine.disk_files_changed()
        after = lab.datastore_path(move.device.descriptor)
    lab.calls.event("disk_moved", vm=machine.name, before=before, after=after)


def free_directory(machine: Machine, datastore: Datastore) -> Path:
    """The folder for the VM's disks on another datastore. Needs the lock."""
    if datastore is machine.home:
        return machine.directory
    return datastore.root / machine.directory.name


def move_home(machine: Machine, home: Datastore) -> None:
    """Move .vmx and .nvram to another datastore. Needs the lock."""
    vmx = home.root / machine.directory.name / machine.vmx.name
    vmx.parent.mkdir(parents=True, exist_ok=True)
    old_vmx, old_nvram = machine.vmx, machine.nvram
    machine.vmx, machine.home = vmx, home
    machine.nvram.write_bytes(old_nvram.read_bytes())
    machine.config_changed()
    for old in (old_vmx, old_nvram):
        old.unlink(missing_ok=True)


def move_disks_of(machine: Machine, datastore: Datastore) -> None:
    """Move every disk of a VM now, without a task: what misbehaviour and the control API do."""
    lab: Lab = machine.lab
    with lab.lock:
        moves = [
            DiskMove(device=device, datastore=datastore)
            for device in machine.disks()
            if device.link is None and lab.datastore_of(device.descriptor) is not datastore
        ]
    for move in moves:
        move_disk(machine, move)
    stun(machine)

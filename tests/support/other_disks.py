"""Somebody puts another disk into the place of a VM's own, as any client of vSphere can."""

from __future__ import annotations

from pyVmomi import vim

from holdfast_controller.facts import DiskFacts, VmFacts
from holdfast_controller.vsphere import properties
from holdfast_controller.vsphere.foreign import Foreign, reference
from holdfast_controller.vsphere.session import VsphereSession

Device = vim.vm.device


def exchanged_for(session: VsphereSession, vm: VmFacts, disk: DiskFacts, file: str) -> None:
    """A new empty disk with this file is where ``disk`` was; the old one's file stays."""
    machine = reference(vim.VirtualMachine, vm.moref)
    values = properties.read_one(session, machine, ["config.hardware.device"])
    (old,) = [each for each in values["config.hardware.device"] if each.key == disk.device_key]
    _change(session, machine, Device.VirtualDeviceSpec(operation="remove", device=old))
    new = Device.VirtualDisk(
        key=-1,
        controllerKey=disk.controller_key,
        unitNumber=disk.unit_number,
        capacityInKB=disk.capacity_bytes // 1024,
        capacityInBytes=disk.capacity_bytes,
        backing=Device.VirtualDisk.FlatVer2BackingInfo(
            fileName=file, diskMode="persistent", thinProvisioned=True
        ),
    )
    added = Device.VirtualDeviceSpec(operation="add", fileOperation="create", device=new)
    _change(session, machine, added)


def _change(session: VsphereSession, machine: Foreign, change: Foreign) -> None:
    spec = vim.vm.ConfigSpec(deviceChange=[change])
    task = session.call(machine, "ReconfigVM_Task", spec=spec)
    session.wait_for_task(task, what="somebody's change")

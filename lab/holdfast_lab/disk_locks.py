"""Which files the running VMs have open, and whether somebody else may open one.

A running VM has its disk's tip open for writing and the links below it for reading; a proxy with a
nonpersistent disk has the whole chain open for reading. Transfers are in ``lab.file_locks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

from holdfast_lab.device_table import DiskDevice
from holdfast_lab.faults import SoapFault
from holdfast_lab.file_locks import FileBusy, HeldFiles
from holdfast_lab.storage.disk import LabDisk

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.machine import Machine

NONPERSISTENT = ("independent_nonpersistent", "nonpersistent")


@dataclass(frozen=True, slots=True)
class Use:
    """A running VM's hold on one link."""

    machine: Machine
    writes: bool


def uses_of(lab: Lab, disk: LabDisk, descriptor: Path) -> list[Use]:
    """Which running VMs have this link open. Needs ``Lab.lock``."""
    found = []
    for machine in lab.machines():
        if not machine.powered_on:
            continue
        for device in machine.devices.disks.values():
            if device.disk is not disk:
                continue
            opened = device.descriptor
            if descriptor == opened:
                found.append(Use(machine, device.mode not in NONPERSISTENT))
            elif descriptor in device.chain():
                found.append(Use(machine, writes=False))
    return found


def check_can_open(lab: Lab, machine: Machine, device: DiskDevice) -> None:
    """May this VM open the disk while others run? Needs ``Lab.lock``. Raises: SoapFault."""
    chain = device.chain()
    writes = device.mode not in NONPERSISTENT
    for link in chain:
        wants_to_write = writes and link == device.descriptor
        for use in uses_of(lab, device.disk, link):
            if use.machine is not machine and (use.writes or wants_to_write):
                raise locked(lab, link, f"it is in use by {use.machine.name}")
        for hold in lab.file_locks.holds(link):
            if hold.exclusive or wants_to_write:
                raise locked(lab, link, f"it is in use by {hold.holder}")


def check_power_on(lab: Lab, machine: Machine) -> None:
    """May this VM open all of its disks? Needs ``Lab.lock``. Raises: SoapFault."""
    for device in machine.devices.disks.values():
        if not device.descriptor.exists():
            name = lab.datastore_path(device.descriptor)
            raise SoapFault(vim.fault.FileNotFound(file=name), f"File {name} was not found")
        check_can_open(lab, machine, device)


def take_for_transfer(
    lab: Lab, disk: LabDisk, descriptor: Path, *, holder: str, kind: str, writes: bool
) -> HeldFiles:
    """Claim a link's chain for a transfer. Needs ``Lab.lock``.

    The running tip does not open, a link under a snapshot does. Raises: SoapFault (FileLocked).
    """
    for use in uses_of(lab, disk, descriptor):
        if use.writes or writes:
            raise locked(lab, descriptor, f"it is in use by {use.machine.name}")
    chain = (descriptor,) if writes else disk.chain_of(descriptor)
    files = [file for link in chain for file in disk.files(link)]
    try:
        return lab.file_locks.take(files, holder=holder, kind=kind, exclusive=writes)
    except FileBusy as busy:
        raise locked(lab, busy.path, f"it is in use by {busy.holder}") from busy


def locked(lab: Lab, file: Path, why: str) -> SoapFault:
    """The fault for a file that somebody else has open."""
    name = lab.datastore_path(file)
    return SoapFault(vim.fault.FileLocked(file=name), f"Unable to access file {name}: {why}")

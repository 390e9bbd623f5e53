"""Reverting a VM to one of its snapshots: settings, devices and frozen disks as they were then."""

from __future__ import annotations

from collections.abc import Callable

from pyVmomi import vim

from holdfast_lab.device_table import DeviceTable
from holdfast_lab.faults import SoapFault
from holdfast_lab.machine import POWERED_OFF, Machine, MachineSnapshot
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.storage.errors import ChainError, LinkBusy


@soap_method("RevertToSnapshot_Task")
def revert_to_snapshot(call: Call) -> vim.Task:
    """Put the VM back to what it was at a snapshot."""
    snapshot = call.lab.get(call.this, MachineSnapshot)
    return _start_revert(call, snapshot.machine, lambda: snapshot)


@soap_method("RevertToCurrentSnapshot_Task")
def revert_to_current_snapshot(call: Call) -> vim.Task:
    """Put the VM back to what it was at its current snapshot."""
    machine = call.lab.get(call.this, Machine)

    def current() -> MachineSnapshot:
        if machine.current_snapshot is None:
            raise SoapFault(vim.fault.NotFound(), "The virtual machine has no current snapshot.")
        return machine.current_snapshot

    return _start_revert(call, machine, current)


def _start_revert(call: Call, machine: Machine, chosen: Callable[[], MachineSnapshot]) -> vim.Task:
    suppress = call.arguments.flag("suppressPowerOn", default=False)

    def body(_task: object) -> None:
        with call.lab.lock:
            snapshot = chosen()
        revert(snapshot, suppress_power_on=suppress)

    return call.lab.tasks.start(
        machine, "VirtualMachine.Snapshot.revert", body, session=call.session
    )


def revert(snapshot: MachineSnapshot, *, suppress_power_on: bool = False) -> None:
    """Put settings, devices and frozen disks back. Without ``Lab.lock``. Raises: SoapFault."""
    machine = snapshot.machine
    lab = machine.lab
    with lab.lock:
        moments = [
            (device.disk, device.frozen_at)
            for device in snapshot.devices.disks.values()
            if device.frozen_at is not None
        ]
    try:
        for disk, moment in moments:
            disk.revert(disk.frozen_descriptor(moment))
    except LinkBusy as error:
        raise SoapFault(vim.fault.FileLocked(file=""), str(error)) from error
    except ChainError as error:
        raise SoapFault(vim.fault.SnapshotFault(), str(error)) from error
    lab.host_devices.withdraw_all(machine.moid)
    with lab.lock:
        machine.settings = snapshot.settings.copied()
        machine.devices = _thawed(snapshot.devices)
        machine.current_snapshot = snapshot
        if not snapshot.with_memory or suppress_power_on:
            machine.power_state = POWERED_OFF
        else:
            machine.power_state = snapshot.power_state
        if not machine.powered_on:
            machine.booted, machine.tools.running = None, False
        machine.disk_files_changed()


def _thawed(frozen: DeviceTable) -> DeviceTable:
    """The table of a snapshot as a VM's own: its disks run on their tips again."""
    table = frozen.copied()
    for device in table.disks.values():
        device.frozen_at = None
    return table

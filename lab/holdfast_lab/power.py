"""Power: on, off, reset, suspend, and asking the guest to shut down."""

from __future__ import annotations

from pyVmomi import vim

from holdfast_lab.device_table import DiskDevice
from holdfast_lab.disk_locks import check_power_on
from holdfast_lab.faults import SoapFault
from holdfast_lab.lab_clock import utc_now
from holdfast_lab.machine import POWERED_OFF, POWERED_ON, SUSPENDED, Machine
from holdfast_lab.method_registry import Call, soap_method


@soap_method("PowerOnVM_Task")
def power_on_task(call: Call) -> vim.Task:
    machine = call.lab.get(call.this, Machine)
    check_no_transfer(machine)
    return call.lab.tasks.start(
        machine, "VirtualMachine.powerOn", lambda _task: power_on(machine), session=call.session
    )


@soap_method("PowerOffVM_Task")
def power_off_task(call: Call) -> vim.Task:
    machine = call.lab.get(call.this, Machine)
    check_no_transfer(machine)
    return call.lab.tasks.start(
        machine, "VirtualMachine.powerOff", lambda _task: power_off(machine), session=call.session
    )


@soap_method("ResetVM_Task")
def reset_task(call: Call) -> vim.Task:
    machine = call.lab.get(call.this, Machine)
    check_no_transfer(machine)
    return call.lab.tasks.start(
        machine, "VirtualMachine.reset", lambda _task: reset(machine), session=call.session
    )


@soap_method("SuspendVM_Task")
def suspend_task(call: Call) -> vim.Task:
    machine = call.lab.get(call.this, Machine)
    check_no_transfer(machine)
    return call.lab.tasks.start(
        machine, "VirtualMachine.suspend", lambda _task: suspend(machine), session=call.session
    )


@soap_method("ShutdownGuest")
def shutdown_guest(call: Call) -> None:
    machine = call.lab.get(call.this, Machine)
    check_tools(machine)
    call.lab.tasks.start(
        machine,
        "VirtualMachine.shutdownGuest",
        lambda _task: power_off(machine),
        session=call.session,
    )


@soap_method("RebootGuest")
def reboot_guest(call: Call) -> None:
    machine = call.lab.get(call.this, Machine)
    check_tools(machine)
    call.lab.tasks.start(
        machine,
        "VirtualMachine.rebootGuest",
        lambda _task: reset(machine),
        session=call.session,
    )


def check_tools(machine: Machine) -> None:
    """Raises: SoapFault (InvalidPowerState, ToolsUnavailable)."""
    check_state(machine, POWERED_ON)
    if not (machine.tools.installed and machine.tools.running):
        raise SoapFault(
            vim.fault.ToolsUnavailable(),
            "Cannot complete operation because VMware Tools is not running in this virtual"
            " machine.",
        )


def check_state(machine: Machine, *allowed: str) -> None:
    """Raises: SoapFault (InvalidPowerState) when the VM is in none of these states."""
    if machine.power_state not in allowed:
        raise SoapFault(
            vim.fault.InvalidPowerState(
                requestedState=allowed[0], existingState=machine.power_state
            ),
            "The attempted operation cannot be performed in the current state"
            f" ({machine.power_state}).",
        )


def check_no_transfer(machine: Machine) -> None:
    """Raises: SoapFault (InvalidState) while a transfer lease holds the VM."""
    if machine.transfer_lease is not None:
        raise SoapFault(
            vim.fault.InvalidState(),
            "The operation is not allowed in the current state: the virtual machine is being"
            " exported or imported.",
        )


def own_disks(machine: Machine) -> list[DiskDevice]:
    """The disks whose tip is the VM's; what a proxy has attached of others is not touched."""
    return [each for each in machine.disks() if each.link is None]


def power_on(machine: Machine) -> None:
    """Start the guest. Without ``Lab.lock``. Raises: SoapFault."""
    lab = machine.lab
    with lab.lock:
        check_state(machine, POWERED_OFF, SUSPENDED)
        check_no_transfer(machine)
        if machine.settings.template:
            raise SoapFault(vim.fault.InvalidState(), "A template cannot be powered on.")
        check_power_on(lab, machine)
        machine.power_state = POWERED_ON
    for device in own_disks(machine):
        device.disk.power_on()
    lab.host_devices.present_foreign(machine)
    with lab.lock:
        machine.booted = utc_now()
        machine.tools.running = machine.tools.installed
        lab.touch(machine)
    lab.calls.event("power", vm=machine.name, state=POWERED_ON)


def power_off(machine: Machine, *, cleanly: bool = True) -> None:
    """Stop the guest; ``cleanly`` False is a host that died. Without ``Lab.lock``."""
    lab = machine.lab
    with lab.lock:
        check_state(machine, POWERED_ON, SUSPENDED)
        machine.power_state = POWERED_OFF
        machine.tools.running = False
        machine.booted = None
        lab.touch(machine)
    lab.host_devices.withdraw_all(machine.moid)
    for device in own_disks(machine):
        if cleanly:
            device.disk.stun()
        else:
            device.disk.unclean_stop()
    with lab.lock:
        machine.config_changed()
    lab.calls.event("power", vm=machine.name, state=POWERED_OFF, cleanly=cleanly)


def reset(machine: Machine) -> None:
    """Restart the guest without a power cycle: change ids stay. Raises: SoapFault."""
    with machine.lab.lock:
        check_state(machine, POWERED_ON)
        machine.booted = utc_now()
        machine.lab.touch(machine)


def suspend(machine: Machine) -> None:
    """Stop the guest with its memory kept. Raises: SoapFault."""
    lab = machine.lab
    with lab.lock:
        check_state(machine, POWERED_ON)
        machine.power_state = SUSPENDED
        machine.tools.running = False
        lab.touch(machine)
    for device in own_disks(machine):
        device.disk.stun()
    lab.calls.event("power", vm=machine.name, state=SUSPENDED)

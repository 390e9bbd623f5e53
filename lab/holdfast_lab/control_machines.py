"""Commands about VMs: list, make, remove, power, snapshots of the user's own, moves."""

from __future__ import annotations

from pyVmomi import vim

from holdfast_lab.control import Control, control_command
from holdfast_lab.device_table import DiskDevice
from holdfast_lab.faults import LabError
from holdfast_lab.host_devices import slot_name
from holdfast_lab.hosts import Host
from holdfast_lab.inventory import inventory_path
from holdfast_lab.inventory_plan import machine_from
from holdfast_lab.machine import Machine, MachineSnapshot
from holdfast_lab.machine_build import build_machine, folder_named, root_pool
from holdfast_lab.machine_life import destroy_machine, register_machine, take_off_inventory
from holdfast_lab.power import power_off, power_on, reset, suspend
from holdfast_lab.reconfigure import reconfigure
from holdfast_lab.relocation import move_disks_of
from holdfast_lab.snapshot_revert import revert
from holdfast_lab.snapshots import discard_snapshots, take_snapshot


def machine_of(control: Control, name: str = "vm") -> Machine:
    """The VM that an argument names, by name, id or instance uuid. Raises: LabError."""
    wanted = control.arguments.text(name)
    with control.lab.lock:
        for each in control.lab.machines():
            if wanted in (each.moid, each.instance_uuid):
                return each
        return control.lab.machine(wanted)


def disk_of(control: Control, machine: Machine) -> DiskDevice:
    """The disk that an argument numbers, from 0 in the order of keys. Raises: LabError."""
    ordinal = control.arguments.number("disk", 0)
    with control.lab.lock:
        disks = machine.disks()
    if not 0 <= ordinal < len(disks):
        raise LabError(f"{machine.name} has {len(disks)} disks")
    return disks[ordinal]


def describe_disk(machine: Machine, device: DiskDevice) -> dict[str, object]:
    """A disk as plain values. Needs the lock."""
    lab = machine.lab
    return {
        "key": device.key,
        "slot": slot_name(machine.devices, device),
        "uuid": device.disk.uuid,
        "capacity_bytes": device.disk.capacity_bytes,
        "file": lab.datastore_path(device.descriptor),
        "path": str(device.descriptor),
        "chain": [lab.datastore_path(each) for each in device.chain()],
        "datastore": lab.datastore_of(device.descriptor).name,
        "mode": device.mode,
        "sequence": device.disk.sequence,
        "change_id": device.disk.change_id(device.descriptor),
        "consolidation_needed": device.disk.consolidation_needed,
    }


def describe_machine(machine: Machine) -> dict[str, object]:
    """A VM as plain values. Needs the lock."""
    lab = machine.lab
    return {
        "name": machine.name,
        "id": machine.moid,
        "path": inventory_path(machine),
        "instance_uuid": machine.instance_uuid,
        "bios_uuid": machine.bios_uuid,
        "power": machine.power_state,
        "host": machine.host.name,
        "vmx": machine.vmx_path,
        "directory": str(machine.directory),
        "firmware": machine.settings.firmware,
        "tools": machine.tools.installed,
        "change_tracking": machine.change_tracking,
        "consolidation_needed": machine.consolidation_needed,
        "busy": machine.moid in lab.tasks.busy,
        "transfer_lease": machine.transfer_lease.moid if machine.transfer_lease else None,
        "snapshots": [describe_snapshot(each) for each in machine.snapshots()],
        "disks": [describe_disk(machine, each) for each in machine.disks()],
        "network_cards": [
            {
                "key": int(card.key),
                "mac": str(card.macAddress),
                "network": str(getattr(card.backing, "deviceName", "")),
                "start_connected": bool(card.connectable and card.connectable.startConnected),
            }
            for card in machine.devices.network_cards()
        ],
    }


def describe_snapshot(snapshot: MachineSnapshot) -> dict[str, object]:
    """A snapshot as plain values."""
    return {
        "id": snapshot.moid,
        "name": snapshot.name,
        "description": snapshot.description,
        "quiesced": snapshot.quiesced,
        "parent": snapshot.parent.moid if snapshot.parent else None,
        "current": snapshot.machine.current_snapshot is snapshot,
    }


@control_command("vm-list")
def list_machines(control: Control) -> object:
    """Every VM."""
    with control.lab.lock:
        return [describe_machine(each) for each in control.lab.machines()]


@control_command("vm-show")
def show_machine(control: Control) -> object:
    """One VM."""
    machine = machine_of(control)
    with control.lab.lock:
        return describe_machine(machine)


@control_command("vm-add")
def add_machine(control: Control) -> object:
    """Make a VM from a plan (``machine``: the same values as in an inventory file)."""
    given = control.arguments.values.get("machine")
    if not isinstance(given, dict):
        raise LabError("machine is required: the values of a VM in an inventory file")
    machine = build_machine(control.lab, machine_from(given))
    with control.lab.lock:
        return describe_machine(machine)


@control_command("vm-remove")
def remove_machine(control: Control) -> object:
    """Delete a VM with its disks; it is powered off first."""
    machine = machine_of(control)
    if machine.powered_on:
        power_off(machine)
    destroy_machine(machine)
    return None


@control_command("vm-unregister")
def unregister_machine(control: Control) -> object:
    """Forget a VM; its files stay. Gives the path of its .vmx."""
    machine = machine_of(control)
    with control.lab.lock:
        path = machine.vmx_path
        take_off_inventory(machine)
    return path


@control_command("vm-register")
def register(control: Control) -> object:
    """Take the files of a VM into the inventory."""
    lab = control.lab
    with lab.lock:
        host = lab.hosts()[0]
        folder = folder_named(lab, "")
        pool = root_pool(lab, host)
    machine = register_machine(
        folder,
        control.arguments.text("path"),
        name=control.arguments.optional("name", str) or "",
        pool=pool,
        host=host,
        as_template=False,
    )
    with lab.lock:
        return describe_machine(machine)


@control_command("vm-power")
def power(control: Control) -> object:
    """``to``: on, off, crash (an unclean stop), reset, suspend."""
    machine = machine_of(control)
    state = control.arguments.text("to")
    if state == "on":
        power_on(machine)
    elif state in ("off", "crash"):
        power_off(machine, cleanly=state == "off")
    elif state == "reset":
        reset(machine)
    elif state == "suspend":
        suspend(machine)
    else:
        raise LabError(f"unknown power state {state}")
    return machine.power_state


@control_command("vm-tools")
def set_tools(control: Control) -> object:
    """VMware Tools: ``installed``, ``running``, ``quiesce_fault`` (application, filesystem, none)."""
    machine = machine_of(control)
    with control.lab.lock:
        tools = machine.tools
        tools.installed = control.arguments.flag("installed", default=tools.installed)
        tools.running = control.arguments.flag("running", default=tools.running)
        fault = control.arguments.optional("quiesce_fault", str)
        if fault is not None:
            tools.quiesce_fault = None if fault == "none" else fault
        control.lab.touch(machine)
    return None


@control_command("vm-tracking")
def set_tracking(control: Control) -> object:
    """Switch change tracking ``enabled``, or ``damage`` the tracking file of each disk."""
    machine = machine_of(control)
    if control.arguments.flag("damage"):
        for device in machine.disks():
            device.disk.damage_tracking()
        return None
    enabled = control.arguments.flag("enabled", default=True)
    reconfigure(machine, vim.vm.ConfigSpec(changeTrackingEnabled=enabled))
    return None


@control_command("vm-hardware")
def set_hardware(control: Control) -> object:
    """Let a VM be of another hardware ``version``, as vmx-04; no client could set it back to an older one."""
    machine = machine_of(control)
    with control.lab.lock:
        machine.settings.hardware_version = control.arguments.text("version")
        control.lab.touch(machine)
    return None


@control_command("vm-host")
def set_host(control: Control) -> object:
    """Move a VM to another host."""
    machine = machine_of(control)
    with control.lab.lock:
        machine.host = control.lab.by_name(Host, control.arguments.text("host"))
        control.lab.touch(machine)
    return None


@control_command("snapshots")
def list_snapshots(control: Control) -> object:
    """The snapshots of a VM, parents first."""
    machine = machine_of(control)
    with control.lab.lock:
        return [describe_snapshot(each) for each in machine.snapshots()]


def snapshot_of(control: Control, machine: Machine) -> MachineSnapshot:
    """The snapshot that an argument names. Raises: LabError."""
    wanted = control.arguments.text("name")
    with control.lab.lock:
        for each in machine.snapshots():
            if wanted in (each.name, each.moid):
                return each
    raise LabError(f"{machine.name} has no snapshot {wanted!r}")


@control_command("user-snapshot")
def user_snapshot(control: Control) -> object:
    """``action`` create, remove or revert: what the user does with snapshots of their own."""
    machine = machine_of(control)
    action = control.arguments.optional("action", str) or "create"
    if action == "create":
        made = take_snapshot(
            machine,
            name=control.arguments.text("name"),
            description="made by the user",
            memory=control.arguments.flag("memory"),
            quiesce=False,
        )
        with control.lab.lock:
            return describe_snapshot(made)
    snapshot = snapshot_of(control, machine)
    if action == "remove":
        discard_snapshots(machine, [snapshot])
    elif action == "revert":
        revert(snapshot)
    else:
        raise LabError(f"unknown action {action}")
    return None


@control_command("storage-move")
def storage_move(control: Control) -> object:
    """Move all disks of a VM to another datastore."""
    machine = machine_of(control)
    with control.lab.lock:
        datastore = control.lab.datastore(control.arguments.text("datastore"))
    move_disks_of(machine, datastore)
    with control.lab.lock:
        return [describe_disk(machine, each) for each in machine.disks()]


@control_command("attached")
def attached(control: Control) -> object:
    """Disks that are presented to running VMs."""
    return [
        {
            "vm": each.machine_name,
            "slot": each.slot,
            "file": control.lab.datastore_path(each.device.descriptor),
            "uuid": each.device.disk.uuid,
            "mode": each.device.mode,
            "writable": each.writable,
            "folder": str(each.folder),
        }
        for each in control.lab.host_devices.attached()
    ]

"""Snapshots of a VM: made, removed, reverted to; disks consolidated.

A snapshot freezes every disk that it can and keeps copies of the VM's settings and devices. All
disks of a VM are frozen at one moment: their locks are held together, so no guest write falls
between two of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import ExitStack

from pyVmomi import vim

from holdfast_lab.device_table import DiskDevice
from holdfast_lab.faults import SoapFault, invalid_argument
from holdfast_lab.machine import Machine, MachineSnapshot
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.snapshot_files import remove_snapshot_files, save_snapshot_files
from holdfast_lab.storage.disk import Frozen, LabDisk
from holdfast_lab.storage.errors import LinkBusy

LEVELS_MAX = 32
NAME_CHARACTERS_MAX = 80
VSS_BYTES = 4096  # what VSS writes at the end of each disk; less would do


@soap_method("CreateSnapshot_Task")
def create_snapshot(call: Call) -> vim.Task:
    """Make a snapshot; ``quiesce`` without Tools is ignored silently."""
    return _start_create(call, quiesce=call.arguments.flag("quiesce", default=False))


@soap_method("CreateSnapshotEx_Task")
def create_snapshot_with_quiesce_spec(call: Call) -> vim.Task:
    """The same, with a specification of how to quiesce; its presence asks for it."""
    spec = call.arguments.optional("quiesceSpec", vim.vm.GuestQuiesceSpec)
    return _start_create(call, quiesce=spec is not None)


def _start_create(call: Call, *, quiesce: bool) -> vim.Task:
    machine = call.lab.get(call.this, Machine)
    name = call.arguments.text("name")
    if not name or len(name) > NAME_CHARACTERS_MAX:
        raise SoapFault(vim.fault.InvalidName(name=name, entity=machine.ref), "Invalid name.")
    description = call.arguments.text("description")
    memory = call.arguments.flag("memory", default=False)
    return call.lab.tasks.start(
        machine,
        "VirtualMachine.createSnapshot",
        lambda _task: (
            take_snapshot(
                machine, name=name, description=description, memory=memory, quiesce=quiesce
            ).ref
        ),
        session=call.session,
    )


def take_snapshot(
    machine: Machine, *, name: str, description: str = "", memory: bool, quiesce: bool
) -> MachineSnapshot:
    """Freeze the VM's disks and add a snapshot to its tree. Without ``Lab.lock``.

    Raises: SoapFault; every disk is as it was then.
    """
    lab = machine.lab
    with lab.lock:
        _check_can_snapshot(machine, memory=memory)
        quiesced = _quiesce(machine) if quiesce else False
        disks = [device for device in machine.disks() if device.freezes]
        parent = machine.current_snapshot
    frozen = _freeze_together(disks)
    with lab.lock:
        machine.snapshot_count += 1
        snapshot = MachineSnapshot(
            lab,
            lab.new_id("snapshot"),
            machine=machine,
            number=machine.snapshot_count,
            name=name,
            description=description,
            quiesced=quiesced,
            with_memory=memory and machine.powered_on,
            parent=parent,
            settings=machine.settings.copied(),
            devices=machine.devices.frozen({key: each.sequence for key, each in frozen.items()}),
        )
        siblings = parent.children if parent else machine.root_snapshots
        siblings.append(snapshot)
        machine.current_snapshot = snapshot
        lab.add(snapshot)
        save_snapshot_files(snapshot)
        machine.disk_files_changed()
        lab.calls.event(
            "snapshot",
            vm=machine.name,
            snapshot=snapshot.moid,
            name=name,
            frozen=", ".join(each.descriptor.name for each in frozen.values()),
        )
    if quiesced and machine.tools.vss:
        _let_vss_finish(snapshot)
    return snapshot


def _let_vss_finish(snapshot: MachineSnapshot) -> None:
    """VSS writes into the snapshot, which clients see already, until the task ends."""
    machine = snapshot.machine
    rule = machine.lab.misbehaviour.due(
        "hold_task", description="VirtualMachine.createSnapshot", vm=machine.name, when="during"
    )
    if rule is not None:
        machine.lab.misbehaviour.hold(rule)
    devices = [each for each in snapshot.devices.disks.values() if each.frozen_at is not None]
    for device in devices:
        device.disk.guest_write(
            device.disk.capacity_bytes - VSS_BYTES, secrets.token_bytes(VSS_BYTES)
        )
    frozen = _freeze_together(devices)
    for device in devices:
        before = device.descriptor
        with machine.lab.lock:
            device.frozen_at = frozen[device.key].sequence
        device.disk.release(before)
    _disks_changed(machine)


def _check_can_snapshot(machine: Machine, *, memory: bool) -> None:
    depth = 0
    level = machine.current_snapshot
    while level is not None:
        depth, level = depth + 1, level.parent
    if depth >= LEVELS_MAX:
        raise SoapFault(
            vim.fault.TooManySnapshotLevels(), f"Snapshot hierarchy is too deep ({depth} levels)."
        )
    for controller in machine.devices.controllers():
        if str(getattr(controller, "sharedBus", "noSharing")) != "noSharing":
            raise SoapFault(
                vim.fault.SnapshotFault(),
                "The virtual machine is configured with bus sharing: snapshots are not supported.",
            )
    independent = any(each.mode.startswith("independent") for each in machine.disks())
    if memory and machine.powered_on and independent:
        raise SoapFault(
            vim.fault.MemorySnapshotOnIndependentDisk(),
            "A memory snapshot of a VM with an independent disk is not possible.",
        )
    for device in machine.disks():
        if device.freezes and device.link is not None:
            raise SoapFault(
                vim.fault.SnapshotFault(),
                f"The disk {device.descriptor.name} belongs to another virtual machine.",
            )


def _quiesce(machine: Machine) -> bool:
    """Was the guest quiesced? Without running Tools nothing happens. Raises: SoapFault."""
    if not (machine.powered_on and machine.tools.installed and machine.tools.running):
        return False
    if machine.tools.quiesce_fault is not None:
        fault = (
            vim.fault.ApplicationQuiesceFault()
            if machine.tools.quiesce_fault == "application"
            else vim.fault.FilesystemQuiesceFault()
        )
        raise SoapFault(fault, "An error occurred while quiescing the virtual machine.")
    return True


def _freeze_together(devices: Iterable[DiskDevice]) -> dict[int, Frozen]:
    """Freeze all the disks at one moment, or none of them."""
    frozen: dict[int, Frozen] = {}
    with ExitStack() as locks:
        for device in devices:
            locks.enter_context(device.disk.lock)
        try:
            for device in devices:
                frozen[device.key] = device.disk.freeze()
        except BaseException:
            for device in devices:
                if device.key in frozen:
                    device.disk.release(frozen[device.key].descriptor)
            raise
    return frozen


# removing ---------------------------------------------------------------------------------


@soap_method("RemoveSnapshot_Task")
def remove_snapshot(call: Call) -> vim.Task:
    """Remove a snapshot, with its children when asked; its disks are merged."""
    snapshot = call.lab.get(call.this, MachineSnapshot)
    with_children = call.arguments.flag("removeChildren", default=False)
    consolidate = call.arguments.flag("consolidate", default=True)

    def body(_task: object) -> None:
        with call.lab.lock:
            doomed = [snapshot, *(_below(snapshot) if with_children else ())]
        discard_snapshots(snapshot.machine, doomed, consolidate=consolidate)

    return call.lab.tasks.start(
        snapshot.machine, "VirtualMachine.Snapshot.remove", body, session=call.session
    )


@soap_method("RemoveAllSnapshots_Task")
def remove_all_snapshots(call: Call) -> vim.Task:
    """Remove every snapshot of a VM."""
    machine = call.lab.get(call.this, Machine)
    consolidate = call.arguments.flag("consolidate", default=True)

    def body(_task: object) -> None:
        with call.lab.lock:
            doomed = machine.snapshots()
        discard_snapshots(machine, doomed, consolidate=consolidate)

    return call.lab.tasks.start(
        machine, "VirtualMachine.removeAllSnapshots", body, session=call.session
    )


def discard_snapshots(
    machine: Machine, doomed: list[MachineSnapshot], *, consolidate: bool = True
) -> None:
    """Take snapshots out of the tree, then merge their disks. Without ``Lab.lock``.

    The tree is changed first, as in vSphere: when a disk cannot be merged because somebody reads
    it, the snapshot is gone, the task has succeeded, and ``consolidationNeeded`` is true.

    Raises: SoapFault (NoDiskSpace) when a merge finds no room; consolidation is needed then too.
    """
    lab = machine.lab
    leaves = False
    released: list[tuple[LabDisk, int]] = []
    with lab.lock:
        for snapshot in reversed(doomed):  # children before parents
            if lab.misbehaviour.due("leave_consolidation", vm=machine.name, snapshot=snapshot.name):
                leaves = True
            released += [
                (device.disk, device.frozen_at)
                for device in snapshot.devices.disks.values()
                if device.frozen_at is not None
            ]
            _take_out_of_tree(machine, snapshot)
        lab.touch(machine)
    try:
        for disk, moment in released:
            disk.release(disk.frozen_descriptor(moment), consolidate=False)
        if consolidate and not leaves:
            _merge_what_can_be(disk for disk, _moment in released)
    finally:
        _disks_changed(machine)


def _take_out_of_tree(machine: Machine, snapshot: MachineSnapshot) -> None:
    siblings = snapshot.parent.children if snapshot.parent else machine.root_snapshots
    at = siblings.index(snapshot)
    for child in snapshot.children:
        child.parent = snapshot.parent
    siblings[at : at + 1] = snapshot.children
    if machine.current_snapshot is snapshot:
        machine.current_snapshot = snapshot.parent
    machine.lab.remove(snapshot)
    remove_snapshot_files(snapshot)


def _merge_what_can_be(disks: Iterable[LabDisk]) -> None:
    """Merge links that nobody needs; those that somebody reads stay for later."""
    for disk in dict.fromkeys(disks):
        try:
            disk.consolidate()
        except LinkBusy:
            continue
        disk.stun()


@soap_method("ConsolidateVMDisks_Task")
def consolidate_disks(call: Call) -> vim.Task:
    """Merge all links that no snapshot needs. Raises: SoapFault (FileLocked) when one is read."""
    machine = call.lab.get(call.this, Machine)

    def body(_task: object) -> None:
        try:
            for device in machine.disks():
                if device.link is None and device.disk.consolidation_needed:
                    try:
                        device.disk.consolidate()
                    except LinkBusy as error:
                        file = call.lab.datastore_path(device.disk.tip_descriptor)
                        raise SoapFault(
                            vim.fault.FileLocked(file=file),
                            f"Unable to access file {file} since it is locked: {error}",
                        ) from error
                    device.disk.stun()
        finally:
            _disks_changed(machine)

    return call.lab.tasks.start(
        machine, "VirtualMachine.consolidateDisks", body, session=call.session
    )


def _disks_changed(machine: Machine) -> None:
    with machine.lab.lock:
        machine.disk_files_changed()


@soap_method("RenameSnapshot")
def rename_snapshot(call: Call) -> None:
    """Change a snapshot's name or description."""
    snapshot = call.lab.get(call.this, MachineSnapshot)
    name = call.arguments.optional("name", str)
    description = call.arguments.optional("description", str)
    if name is not None:
        if not name or len(name) > NAME_CHARACTERS_MAX:
            raise invalid_argument("name")
        snapshot.name = str(name)
    if description is not None:
        snapshot.description = str(description)
    save_snapshot_files(snapshot)
    call.lab.touch(snapshot, snapshot.machine)


def _below(snapshot: MachineSnapshot) -> list[MachineSnapshot]:
    found: list[MachineSnapshot] = []
    waiting = list(snapshot.children)
    while waiting:
        each = waiting.pop(0)
        found.append(each)
        waiting += each.children
    return found

"""``deviceChange`` of Reconfigure and CreateVM: disks, controllers, network cards and the rest.

All changes of one call are checked on a copy of the VM's device table first; then files are made,
attached or deleted; then the VM gets the new table. When a step fails, what was made is undone, so
that the call has its whole effect or none (a file destroyed stays destroyed).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from holdfast_lab.device_slots import SlotChooser, fill_network_card, wrong_device
from holdfast_lab.device_table import Device, DeviceTable, DiskDevice, disk_key
from holdfast_lab.disk_backings import (
    KIB,
    NewDisk,
    check_mode,
    datastore_of,
    destroy_files,
    find_existing,
    link_of,
    make_disk,
    open_existing,
    plan_new_disk,
)
from holdfast_lab.disk_locks import NONPERSISTENT, check_can_open
from holdfast_lab.faults import SoapFault
from holdfast_lab.host_devices import flip_if_told, slot_name, writable_flat_file
from holdfast_lab.storage.disk import LabDisk
from holdfast_lab.storage.errors import ChainError, LinkBusy, OutOfRange
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.machine import Machine

Step = Callable[[ExitStack], None]  # the stack holds what undoes the step
DEVICE_ADD, DEVICE_REMOVE, DEVICE_EDIT = "add", "remove", "edit"
DISKS_OF_A_COLD_BUS = (Device.VirtualIDEController,)


def change_devices(machine: Machine, changes: Sequence[WireObject]) -> None:
    """Carry out all ``VirtualDeviceSpec`` of one call on a VM; from a task, without ``Lab.lock``.

    Raises: SoapFault; nothing of the VM has changed then.
    """
    if not changes:
        return
    lab = machine.lab
    with lab.lock:
        change = DeviceChange(machine)
        for index, spec in enumerate(changes):
            change.plan(index, spec)
    with ExitStack() as undo:
        for step in change.steps:
            step(undo)
        with lab.lock:
            machine.devices = change.table
            machine.config_changed()
        undo.pop_all()
    for late in change.after:
        late()


class DeviceChange:
    """The plan for one call. ``plan`` needs ``Lab.lock``; the steps run without it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.lab = machine.lab
        self.table = machine.devices.copied()
        self.slots = SlotChooser(self.table)
        self.steps: list[Step] = []
        self.after: list[Callable[[], None]] = []
        self._new_names: set[Path] = set()

    def plan(self, index: int, spec: WireObject) -> None:
        """Check one change and queue what it takes. Raises: SoapFault."""
        device = spec.device
        if device is None:
            raise wrong_device(index, "no device is given")
        is_disk = isinstance(device, Device.VirtualDisk)
        if spec.operation == DEVICE_ADD:
            if is_disk:
                self._add_disk(index, spec)
            else:
                self._add_plain(index, device)
        elif spec.operation == DEVICE_REMOVE:
            self._remove(index, spec)
        elif spec.operation == DEVICE_EDIT:
            if is_disk:
                self._edit_disk(index, spec)
            else:
                self._edit_plain(index, device)
        else:
            raise wrong_device(index, f"operation {spec.operation}")

    # adding -------------------------------------------------------------------

    def _add_disk(self, index: int, spec: WireObject) -> None:
        wanted = spec.device
        if wanted.backing is None:
            raise wrong_device(index, "the disk has no backing", vim.fault.InvalidDeviceBacking)
        mode = check_mode(index, wanted.backing)
        controller, unit = self.slots.disk_slot(index, wanted.controllerKey, wanted.unitNumber)
        self._check_hot_plug(index, controller)
        key = disk_key(controller, unit)
        while key in self.table.disks or key in self.table.plain:
            key += 1000
        slot = _Slot(
            key=key,
            controller_key=int(controller.key),
            unit_number=unit,
            mode=mode,
            sharing=getattr(wanted.backing, "sharing", None) or "sharingNone",
            raw_mapping=getattr(wanted.backing, "compatibilityMode", None),
        )
        if spec.fileOperation in ("create", "replace"):
            new = plan_new_disk(
                self.machine, wanted, index=index, controller=controller, taken=self._new_names
            )
            self.steps.append(lambda undo: self._create_disk(slot, new, undo))
        elif spec.fileOperation is None:
            existing = find_existing(self.lab, index, wanted.backing)
            self.steps.append(lambda undo: self._attach_disk(index, slot, existing, undo))
        else:
            raise wrong_device(
                index, "a device to be added is not destroyed", vim.fault.InvalidDeviceOperation
            )
        # The slot is taken at once, for the changes that follow in the same call.
        self.table.disks[key] = slot.reserved()
        self.slots.note(wanted.key, key)

    def _create_disk(self, slot: _Slot, new: NewDisk, undo: ExitStack) -> None:
        disk = make_disk(self.lab, new)
        undo.callback(self._delete_made, disk)
        if self.machine.settings.change_tracking:
            disk.enable_tracking()
        self._plug_in(slot.holding(disk, None), undo)

    def _attach_disk(self, index: int, slot: _Slot, existing: Path, undo: ExitStack) -> None:
        disk = open_existing(self.lab, existing)
        with self.lab.lock:
            device = slot.holding(disk, link_of(self.lab, disk, existing, besides=self.machine))
            if self.machine.powered_on:
                check_can_open(self.lab, self.machine, device)
        writable = writable_flat_file(device) is not None
        if self.machine.powered_on and not writable and device.mode not in NONPERSISTENT:
            raise wrong_device(
                index,
                "a redo log, or a link below one, can be hot-added nonpersistent only",
                vim.fault.InvalidDeviceBacking,
            )
        if device.link is None and self.machine.settings.change_tracking and device.freezes:
            disk.enable_tracking()
        self._plug_in(device, undo)
        if writable:
            facts = {
                "vm": self.machine.name,
                "disk": disk.base_name,
                "datastore": datastore_of(self.lab, disk.directory).name,
                "direction": "attach",
            }
            self.after.append(lambda: flip_if_told(self.lab, device, facts))

    def _plug_in(self, device: DiskDevice, undo: ExitStack) -> None:
        """Put the disk into its reserved slot; a running VM sees it at once."""
        self.table.disks[device.key] = device
        if self.machine.powered_on:
            self._present(device, slot_name(self.table, device))
            undo.callback(self.lab.host_devices.withdraw, self.machine.moid, device.key)

    def _present(self, device: DiskDevice, slot: str) -> None:
        self.lab.host_devices.present(
            machine_id=self.machine.moid,
            machine_name=self.machine.name,
            slot=slot,
            device=device,
        )

    def _delete_made(self, disk: LabDisk) -> None:
        disk.delete()
        self.lab.disks.forget(disk)

    def _add_plain(self, index: int, wanted: WireObject) -> None:
        if isinstance(wanted, Device.VirtualIDEController):
            raise wrong_device(index, "both IDE controllers are there already")
        if isinstance(wanted, Device.VirtualController):
            self.slots.add_controller(index, wanted)
        elif isinstance(wanted, Device.VirtualEthernetCard):
            self.slots.add_network_card(index, wanted, self._mac_taken)
        else:
            self.slots.add_other(index, wanted)

    # removing -----------------------------------------------------------------

    def _remove(self, index: int, spec: WireObject) -> None:
        key = self.slots.real_key(int(spec.device.key))
        if spec.fileOperation not in (None, "destroy"):
            raise wrong_device(index, "a device to be removed", vim.fault.InvalidDeviceOperation)
        if key in self.table.disks:
            device = self.table.disks.pop(key)
            self._check_hot_plug(index, self.table.plain[device.controller_key])
            self.steps.append(lambda undo: self._unplug(device, undo))
            if spec.fileOperation is not None:
                self.after.append(lambda: destroy_files(self.lab, device))
            return
        if key not in self.table.plain:
            raise wrong_device(index, f"there is no device {key}", vim.fault.DeviceNotFound)
        if any(each.controller_key == key for each in self.table.disks.values()):
            raise wrong_device(index, f"controller {key} has disks")
        del self.table.plain[key]

    def _unplug(self, device: DiskDevice, undo: ExitStack) -> None:
        """Take the disk away from the guest, and give it back when a later step fails."""
        shown = self.lab.host_devices.withdraw(self.machine.moid, device.key)
        if shown is not None:
            undo.callback(self._present, device, shown.slot)

    # editing ------------------------------------------------------------------

    def _edit_disk(self, index: int, spec: WireObject) -> None:
        wanted = spec.device
        device = self.table.disks.get(self.slots.real_key(int(wanted.key)))
        if device is None:
            raise wrong_device(index, f"there is no disk {wanted.key}", vim.fault.DeviceNotFound)
        if spec.fileOperation is not None:
            raise wrong_device(index, "a file operation", vim.fault.InvalidDeviceOperation)
        self._edit_slot(index, device, wanted)
        backing = wanted.backing
        if backing is not None:
            self._edit_backing(index, device, backing)
        capacity = wanted.capacityInBytes or (wanted.capacityInKB or 0) * KIB
        present = device.disk.capacity_bytes
        if capacity and capacity < present:
            raise wrong_device(index, "a disk cannot shrink", vim.fault.InvalidDeviceOperation)
        if capacity > present:
            self.steps.append(lambda _undo: self._extend(index, device, capacity))

    def _edit_slot(self, index: int, device: DiskDevice, wanted: WireObject) -> None:
        controller_key = self.slots.real_key(int(wanted.controllerKey or device.controller_key))
        unit = wanted.unitNumber if wanted.unitNumber is not None else device.unit_number
        if (controller_key, unit) == (device.controller_key, device.unit_number):
            return
        self._check_power_off()
        self.table.disks.pop(device.key)
        controller, device.unit_number = self.slots.disk_slot(index, controller_key, unit)
        device.controller_key = int(controller.key)
        self.table.disks[device.key] = device

    def _edit_backing(self, index: int, device: DiskDevice, backing: WireObject) -> None:
        mode = getattr(backing, "diskMode", None) or device.mode
        if mode != device.mode:
            self._check_power_off()
            if self.machine.root_snapshots:
                raise wrong_device(
                    index, "the mode with snapshots", vim.fault.InvalidDeviceOperation
                )
            device.mode = check_mode(index, backing)
        device.sharing = getattr(backing, "sharing", None) or device.sharing
        name = getattr(backing, "fileName", None)
        if name and self.lab.resolve(name)[1] != device.descriptor:
            self._check_power_off()
            if self.machine.root_snapshots:
                raise wrong_device(
                    index, "the file with snapshots", vim.fault.InvalidDeviceOperation
                )
            existing = find_existing(self.lab, index, backing)
            self.steps.append(lambda _undo: self._exchange(device, existing))

    def _exchange(self, device: DiskDevice, existing: Path) -> None:
        disk = open_existing(self.lab, existing)
        with self.lab.lock:
            device.link = link_of(self.lab, disk, existing, besides=self.machine)
            device.disk = disk
        if self.machine.settings.change_tracking and device.freezes and device.link is None:
            disk.enable_tracking()

    def _extend(self, index: int, device: DiskDevice, capacity: int) -> None:
        datastore_of(self.lab, device.descriptor).check_space(0)
        try:
            device.disk.extend(capacity)
        except (ChainError, LinkBusy) as error:
            raise wrong_device(index, str(error), vim.fault.InvalidDeviceOperation) from error
        except OutOfRange as error:
            raise wrong_device(index, str(error)) from error

    def _edit_plain(self, index: int, wanted: WireObject) -> None:
        key = self.slots.real_key(int(wanted.key))
        present = self.table.plain.get(key)
        if present is None:
            raise wrong_device(index, f"there is no device {key}", vim.fault.DeviceNotFound)
        merged = copy.deepcopy(present)
        for prop in wanted._GetPropertyList():
            value = getattr(wanted, prop.name)
            if value is not None and value != [] and hasattr(merged, prop.name):
                setattr(merged, prop.name, copy.deepcopy(value))
        merged.key = key
        if isinstance(merged, Device.VirtualEthernetCard):
            fill_network_card(merged, self._mac_taken)
        self.table.plain[key] = merged

    # rules --------------------------------------------------------------------

    def _check_hot_plug(self, index: int, controller: WireObject) -> None:
        if self.machine.powered_on and isinstance(controller, DISKS_OF_A_COLD_BUS):
            raise wrong_device(
                index, "an IDE disk of a running VM", vim.fault.DeviceHotPlugNotSupported
            )

    def _mac_taken(self, mac: str) -> bool:
        return any(
            card.macAddress == mac
            for machine in self.lab.machines()
            for card in (*machine.devices.network_cards(), *self.table.network_cards())
        )

    def _check_power_off(self) -> None:
        if self.machine.powered_on:
            raise SoapFault(
                vim.fault.InvalidPowerState(requestedState="poweredOff", existingState="poweredOn"),
                "The attempted operation cannot be performed in the current state (Powered on).",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """A place for a disk that is not there yet."""

    key: int
    controller_key: int
    unit_number: int
    mode: str
    sharing: str
    raw_mapping: str | None

    def holding(self, disk: LabDisk, link: Path | None) -> DiskDevice:
        """The device with this disk in the slot."""
        return DiskDevice(
            key=self.key,
            controller_key=self.controller_key,
            unit_number=self.unit_number,
            disk=disk,
            link=link,
            mode=self.mode,
            sharing=self.sharing,
            raw_mapping=self.raw_mapping,
        )

    def reserved(self) -> DiskDevice:
        """A device without a disk, to keep the slot; replaced before anybody else sees it."""
        nothing: Any = None
        return self.holding(nothing, None)


def new_machine_devices(machine: Machine, changes: Sequence[WireObject]) -> None:
    """The devices of a VM that is being created. Without ``Lab.lock``. Raises: SoapFault."""
    machine.devices = DeviceTable.of_a_new_machine()
    change_devices(machine, changes)

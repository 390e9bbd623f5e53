"""What a proxy VM sees of the disks attached to it: a folder for each slot.

``<state>/devices/<vm>/scsi<bus>:<unit>/disk`` is the disk's raw content, ``uuid`` its uuid. A flat
disk that the VM may write is the flat file itself under a second name, so what the proxy writes is
in the datastore at once. Anything else (a frozen chain, a disk attached nonpersistent) is a sparse
copy, made when it is attached; what is written to it is lost at detach, as with a real redo log.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast_lab.device_table import Device, DeviceTable, DiskDevice
from holdfast_lab.storage.descriptor import CreateType, load
from holdfast_lab.storage.disk_values import Hold

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.machine import Machine

SLOT_NAMES = (
    (Device.VirtualSCSIController, "scsi"),
    (Device.VirtualAHCIController, "sata"),
    (Device.VirtualNVMEController, "nvme"),
    (Device.VirtualIDEController, "ide"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """One disk that a running VM has open. ``writable``: writes reach the datastore."""

    machine_id: str
    machine_name: str
    slot: str
    device: DiskDevice
    folder: Path
    writable: bool
    hold: Hold


class HostDevices:
    """The disks presented to all VMs. Any thread; the slow copy is made outside of ``Lab.lock``."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.root = lab.state / "devices"
        self.root.mkdir(parents=True, exist_ok=True)
        self.presented: dict[tuple[str, int], Presented] = {}

    def present(
        self, *, machine_id: str, machine_name: str, slot: str, device: DiskDevice
    ) -> Presented:
        """Show a disk to a VM; its chain is held until it is withdrawn."""
        hold = device.disk.hold(device.descriptor, f"attached to {machine_name}")
        folder = self.root / machine_name / slot
        fresh = folder.with_name(f".{slot}.new")
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            flat = writable_flat_file(device)
            if flat is None:
                device.disk.materialise(fresh / "disk", device.descriptor)
            else:
                _second_name(flat, fresh / "disk")
            (fresh / "uuid").write_text(f"{device.disk.uuid}\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)  # the device appears whole
        except BaseException:
            device.disk.let_go(hold)
            raise
        shown = Presented(
            machine_id=machine_id,
            machine_name=machine_name,
            slot=slot,
            device=device,
            folder=folder,
            writable=flat is not None,
            hold=hold,
        )
        with self.lab.lock:
            self.presented[machine_id, device.key] = shown
        self.lab.calls.event("attach", **_facts(shown))
        return shown

    def present_foreign(self, machine: Machine) -> None:
        """The VM starts: show the disks that are not its own, as when they were hot-added."""
        with self.lab.lock:
            chosen = [
                (slot_name(machine.devices, device), device)
                for device in machine.disks()
                if device.link is not None or device.mode == "independent_nonpersistent"
            ]
        for slot, device in chosen:
            self.present(
                machine_id=machine.moid, machine_name=machine.name, slot=slot, device=device
            )

    def withdraw(self, machine_id: str, device_key: int) -> Presented | None:
        """Take a disk away from a VM; None when it was not presented."""
        with self.lab.lock:
            shown = self.presented.pop((machine_id, device_key), None)
        if shown is None:
            return None
        gone = shown.folder.with_name(f".{shown.slot}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        if shown.folder.exists():
            shown.folder.rename(gone)  # the device vanishes whole
            shutil.rmtree(gone, ignore_errors=True)
        shown.device.disk.let_go(shown.hold)
        if shown.writable:
            written_behind_the_disk(self.lab, shown, direction="detach")
        self.lab.calls.event("detach", **_facts(shown))
        return shown

    def withdraw_all(self, machine_id: str) -> None:
        """The VM was powered off or is gone."""
        with self.lab.lock:
            keys = [key for owner, key in self.presented if owner == machine_id]
        for key in keys:
            self.withdraw(machine_id, key)

    def attached(self) -> list[Presented]:
        """Everything presented now, for the control API."""
        with self.lab.lock:
            return list(self.presented.values())


def slot_name(table: DeviceTable, device: DiskDevice) -> str:
    """The slot's folder name, such as ``scsi0:1``."""
    controller = table.plain[device.controller_key]
    prefix = next(name for kind, name in SLOT_NAMES if isinstance(controller, kind))
    return f"{prefix}{controller.busNumber}:{device.unit_number}"


def writable_flat_file(device: DiskDevice) -> Path | None:
    """The flat file that writes go to; None when the disk is a chain or not to be kept."""
    if device.mode in {"independent_nonpersistent", "nonpersistent"}:
        return None
    if device.disk.children_of(device.descriptor):
        return None
    found = load(device.descriptor)
    if found.create_type is not CreateType.FLAT:
        return None
    return device.descriptor.with_name(found.extent_name)


def written_behind_the_disk(lab: Lab, shown: Presented, *, direction: str) -> None:
    """A proxy may have written to the file: flip a byte if told so, then start the truth anew."""
    disk = shown.device.disk
    facts = {
        "vm": shown.machine_name,
        "disk": disk.base_name,
        "datastore": lab.datastore_path(disk.directory).partition("]")[0].removeprefix("["),
        "direction": direction,
    }
    disk.content_replaced()
    flip_if_told(lab, shown.device, facts)


def flip_if_told(lab: Lab, device: DiskDevice, facts: dict[str, str]) -> None:
    """The misbehaviour ``flip_byte``: change a stored byte after its write was acknowledged."""
    reader = device.disk.reader_at(device.descriptor)
    try:
        holds_data = next(iter(reader.allocated()), None) is not None
    finally:
        reader.close()
    if not holds_data:
        return
    rule = lab.misbehaviour.due("flip_byte", **facts)
    if rule is not None:
        wanted = rule.number("offset", -1)
        offset = device.disk.flip_byte(None if wanted < 0 else wanted)
        lab.calls.event("flipped", offset=offset, **facts)


def _second_name(flat: Path, name: Path) -> None:
    try:
        os.link(flat, name)
    except OSError:
        name.symlink_to(flat)  # another file system, or one without hard links


def _facts(shown: Presented) -> dict[str, str | bool]:
    return {
        "vm": shown.machine_name,
        "slot": shown.slot,
        "disk": shown.device.descriptor.name,
        "folder": shown.device.descriptor.parent.name,
        "uuid": shown.device.disk.uuid or "",
        "mode": shown.device.mode,
        "writable": shown.writable,
    }

"""VirtualDiskManager: whole virtual disks made, copied, moved, grown and deleted without a VM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

from holdfast_lab.datastore_files import exists_already
from holdfast_lab.disk_backings import (
    CAPACITY_BYTES_MAX,
    KIB,
    NewDisk,
    make_disk,
    open_existing,
    storage_kind,
)
from holdfast_lab.disk_locks import locked, uses_of
from holdfast_lab.faults import SoapFault, file_not_found, invalid_argument
from holdfast_lab.lab_object import ManagedEntity
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.storage.descriptor import descriptor_uuid, load, new_disk_uuid
from holdfast_lab.storage.disk import LabDisk, Provisioning
from holdfast_lab.storage.errors import ChainError, DescriptorError, LinkBusy, OutOfRange

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab

Manager = vim.VirtualDiskManager
PROVISIONING = {
    "thin": Provisioning.THIN,
    "preallocated": Provisioning.THICK_LAZY,
    "eagerZeroedThick": Provisioning.THICK_EAGER,
    "thick": Provisioning.THICK_LAZY,
}


@soap_method("CreateVirtualDisk_Task")
def create_disk(call: Call) -> vim.Task:
    """Make an empty disk."""
    name = call.arguments.text("name")
    spec = call.arguments.required("spec", Manager.VirtualDiskSpec)
    datastore, local = call.lab.resolve(name)
    capacity = (getattr(spec, "capacityKb", None) or 0) * KIB
    kind = PROVISIONING.get(str(spec.diskType))
    if kind is None or not local.name.endswith(".vmdk") or not 0 < capacity <= CAPACITY_BYTES_MAX:
        raise invalid_argument("spec")
    new = NewDisk(
        datastore=datastore,
        directory=local.parent,
        base_name=local.stem,
        capacity_bytes=capacity,
        provisioning=kind,
        adapter="ide" if spec.adapterType == "ide" else "lsilogic",
        uuid=None,
    )

    def body(_task: object) -> str:
        if not local.parent.is_dir():
            raise file_not_found(name)
        if kind is not Provisioning.THIN:
            datastore.check_space(capacity)
        make_disk(call.lab, new)
        return name

    return _start(call, datastore, "createVirtualDisk", body)


@soap_method("DeleteVirtualDisk_Task")
def delete_disk(call: Call) -> vim.Task:
    """Delete a disk with all its files. Raises: SoapFault (FileLocked, FileNotFound)."""
    name = call.arguments.text("name")
    datastore, local = call.lab.resolve(name)

    def body(_task: object) -> None:
        disk = _unused(call.lab, name, local)
        try:
            disk.delete()
        except LinkBusy as error:
            raise locked(call.lab, local, str(error)) from error
        call.lab.disks.forget(disk)

    return _start(call, datastore, "deleteVirtualDisk", body)


@soap_method("MoveVirtualDisk_Task")
def move_disk(call: Call) -> vim.Task:
    """Move or rename a disk that nobody uses."""
    name, target_name = call.arguments.text("sourceName"), call.arguments.text("destName")
    _, source = call.lab.resolve(name)
    datastore, target = call.lab.resolve(target_name)

    def body(_task: object) -> str:
        _check_target(target, target_name, force=call.arguments.flag("force", default=False))
        disk = _unused(call.lab, name, source)
        before = disk.tip_descriptor
        try:
            disk.move(target.parent, base_name=target.stem, datastore_kind=storage_kind(datastore))
        except LinkBusy as error:
            raise locked(call.lab, source, str(error)) from error
        call.lab.disks.moved(disk)
        _leave_behind(call.lab, disk, before)
        return target_name

    return _start(call, datastore, "moveVirtualDisk", body)


@soap_method("CopyVirtualDisk_Task")
def copy_disk(call: Call) -> vim.Task:
    """Copy a disk as seen from the named link into a new flat one; the copy has its own uuid."""
    name, target_name = call.arguments.text("sourceName"), call.arguments.text("destName")
    spec = call.arguments.optional("destSpec", Manager.VirtualDiskSpec)
    _, source = call.lab.resolve(name)
    datastore, target = call.lab.resolve(target_name)
    kind = PROVISIONING.get(str(spec.diskType)) if spec is not None else None

    def body(_task: object) -> str:
        _check_target(target, target_name, force=call.arguments.flag("force", default=False))
        disk = open_existing(call.lab, _existing(name, source))
        with call.lab.lock:
            if any(use.writes for use in uses_of(call.lab, disk, source)):
                raise locked(call.lab, source, "a running VM has it open")
        datastore.check_space(0)
        call.lab.disks.clone(
            disk,
            target.parent,
            target.stem,
            descriptor=source,
            kind=storage_kind(datastore),
            provisioning=kind,
            uuid=new_disk_uuid(),
        )
        return target_name

    return _start(call, datastore, "copyVirtualDisk", body)


@soap_method("ExtendVirtualDisk_Task")
def extend_disk(call: Call) -> vim.Task:
    """Make a disk larger."""
    name = call.arguments.text("name")
    capacity = call.arguments.number("newCapacityKb") * KIB
    datastore, local = call.lab.resolve(name)

    def body(_task: object) -> None:
        disk = _unused(call.lab, name, local)
        if call.arguments.flag("eagerZero", default=False):
            datastore.check_space(capacity - disk.capacity_bytes)
        try:
            disk.extend(capacity)
        except OutOfRange as error:
            raise invalid_argument("newCapacityKb", str(error)) from error
        except (ChainError, LinkBusy) as error:
            raise locked(call.lab, local, str(error)) from error

    return _start(call, datastore, "extendVirtualDisk", body)


@soap_method("QueryVirtualDiskUuid")
def query_uuid(call: Call) -> str:
    """The uuid in a disk's descriptor, spelled as there."""
    name = call.arguments.text("name")
    _, local = call.lab.resolve(name)
    try:
        descriptor = load(_existing(name, local))
        parents = 0
        while descriptor.uuid is None and descriptor.parent_name is not None and parents < 64:
            local = local.with_name(Path(descriptor.parent_name).name)
            descriptor, parents = load(local), parents + 1
    except (DescriptorError, OSError) as error:
        raise SoapFault(vim.fault.FileFault(file=name), str(error)) from error
    return descriptor_uuid(descriptor.uuid) if descriptor.uuid else ""


def _leave_behind(lab: Lab, disk: LabDisk, before: Path) -> None:
    """A VM that had the moved disk still names the old place, where nothing is any more."""
    with lab.lock:
        for machine in lab.machines():
            for device in machine.devices.disks.values():
                if device.disk is disk and device.link is None:
                    device.link = before
                    lab.touch(machine)


def _existing(name: str, local: Path) -> Path:
    if not local.is_file():
        raise file_not_found(name)
    return local


def _check_target(target: Path, name: str, *, force: bool) -> None:
    if not target.name.endswith(".vmdk"):
        raise invalid_argument("destName")
    if not target.parent.is_dir():
        raise file_not_found(name)
    if target.exists():
        if not force:
            raise exists_already(name)
        raise invalid_argument("force", "the lab does not overwrite disks")


def _unused(lab: Lab, name: str, local: Path) -> LabDisk:
    """The disk, if no running VM has it open. Raises: SoapFault (FileLocked, FileNotFound)."""
    disk = open_existing(lab, _existing(name, local))
    with lab.lock:
        for link in disk.all_links:
            if uses_of(lab, disk, link):
                raise locked(lab, link, "a running VM has it open")
            if lab.file_locks.holds(link):
                raise locked(lab, link, "it is being transferred")
    return disk


def _start(
    call: Call, entity: ManagedEntity, what: str, body: Callable[[object], object]
) -> vim.Task:
    return call.lab.tasks.start(
        entity, f"VirtualDiskManager.{what}", body, session=call.session, exclusive=False
    )

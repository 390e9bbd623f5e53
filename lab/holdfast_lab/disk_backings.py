"""The files behind a disk that is added to a VM: which file, made how, opened by whom."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

from holdfast_lab.device_slots import wrong_device
from holdfast_lab.device_table import Device, DiskDevice
from holdfast_lab.disk_locks import locked, uses_of
from holdfast_lab.faults import LabError, SoapFault, file_not_found
from holdfast_lab.lab_object import file_stem
from holdfast_lab.storage.descriptor import canonical_uuid
from holdfast_lab.storage.disk import DatastoreKind, LabDisk, Provisioning
from holdfast_lab.storage.errors import DescriptorError, FileExists, FileMissing, StorageError
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.datastores import Datastore
    from holdfast_lab.lab import Lab
    from holdfast_lab.machine import Machine

DISK_MODES = frozenset({"persistent", "independent_persistent", "independent_nonpersistent"})
CAPACITY_BYTES_MAX = 62 << 40
KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """A disk to be made."""

    datastore: Datastore
    directory: Path
    base_name: str
    capacity_bytes: int
    provisioning: Provisioning
    adapter: str
    uuid: str | None


def storage_kind(datastore: Datastore) -> DatastoreKind:
    """Which redo logs the datastore's disks have."""
    if datastore.kind_name == "NFS":
        return DatastoreKind.NFS
    return DatastoreKind.VMFS if datastore.vmfs_version >= 6 else DatastoreKind.VMFS5


def datastore_of(lab: Lab, path: Path) -> Datastore:
    """The datastore that holds a local file. Raises: LabError."""
    with lab.lock:
        for datastore in lab.datastores():
            if path.is_relative_to(datastore.root):
                return datastore
    raise LabError(f"{path} lies on no datastore")


def check_mode(index: int, backing: WireObject) -> str:
    """The disk's mode. Raises: SoapFault for one that ESXi does not know."""
    mode = getattr(backing, "diskMode", None) or "persistent"
    if mode not in DISK_MODES:
        raise wrong_device(
            index, f"disk mode {mode} is not supported", vim.fault.InvalidDeviceBacking
        )
    return str(mode)


def plan_new_disk(
    machine: Machine, wanted: WireObject, *, index: int, controller: WireObject, taken: set[Path]
) -> NewDisk:
    """What ``fileOperation=create`` asks for; ``taken`` are names of this call, added to.

    Needs ``Lab.lock``. Raises: SoapFault.
    """
    backing = wanted.backing
    capacity = wanted.capacityInBytes or (wanted.capacityInKB or 0) * KIB
    if not 0 < capacity <= CAPACITY_BYTES_MAX or capacity % 512:
        raise wrong_device(index, f"capacity of {capacity} bytes")
    datastore, descriptor = _new_descriptor(machine.lab, machine, backing, taken)
    taken.add(descriptor)
    provisioning = _provisioning(backing, datastore)
    if provisioning is not Provisioning.THIN:
        datastore.check_space(capacity)
    try:
        uuid = canonical_uuid(backing.uuid) if getattr(backing, "uuid", None) else None
    except DescriptorError as error:
        raise wrong_device(index, str(error), vim.fault.InvalidDeviceBacking) from error
    return NewDisk(
        datastore=datastore,
        directory=descriptor.parent,
        base_name=descriptor.stem,
        capacity_bytes=capacity,
        provisioning=provisioning,
        adapter="ide" if isinstance(controller, Device.VirtualIDEController) else "lsilogic",
        uuid=uuid,
    )


def make_disk(lab: Lab, new: NewDisk) -> LabDisk:
    """Make the files. Without ``Lab.lock``. Raises: SoapFault (FileAlreadyExists, NoDiskSpace)."""
    new.datastore.check_space(0)
    new.directory.mkdir(parents=True, exist_ok=True)
    try:
        return lab.disks.create(
            new.directory,
            new.base_name,
            new.capacity_bytes,
            kind=storage_kind(new.datastore),
            provisioning=new.provisioning,
            adapter=new.adapter,
            uuid=new.uuid,
        )
    except FileExists as error:
        name = new.datastore.path_of(new.directory / f"{new.base_name}.vmdk")
        raise SoapFault(
            vim.fault.FileAlreadyExists(file=name), f"File {name} already exists"
        ) from error


def find_existing(lab: Lab, index: int, backing: WireObject) -> Path:
    """The descriptor that a disk to be attached names. Needs ``Lab.lock``. Raises: SoapFault."""
    name = getattr(backing, "fileName", None)
    if not name:
        raise wrong_device(index, "the disk names no file", vim.fault.InvalidDeviceBacking)
    _datastore, local = lab.resolve(name)
    if not local.name.endswith(".vmdk") or local.name.endswith("-flat.vmdk"):
        raise wrong_device(index, f"{name} is no disk", vim.fault.InvalidDeviceBacking)
    if not local.is_file():
        raise file_not_found(name)
    return local


def open_existing(lab: Lab, descriptor: Path) -> LabDisk:
    """Take over the files of a disk to be attached. Without ``Lab.lock``. Raises: SoapFault."""
    with lab.lock:
        name = lab.datastore_path(descriptor)
        datastore = datastore_of(lab, descriptor)
    try:
        return lab.disks.open(descriptor, kind=storage_kind(datastore))
    except FileMissing as error:
        raise file_not_found(name) from error
    except (DescriptorError, StorageError) as error:
        raise SoapFault(
            vim.fault.InvalidDiskFormat(),
            f"Unsupported or invalid disk type. Failed to open disk '{name}': {error}",
        ) from error


def link_of(lab: Lab, disk: LabDisk, descriptor: Path, *, besides: Machine) -> Path | None:
    """What the new device keeps: None to follow the disk's tip, otherwise exactly this link.

    A VM follows the tip of a disk that it alone has. Needs ``Lab.lock``.
    """
    shared = any(
        device.disk is disk and device.descriptor in disk.all_links
        for machine in lab.machines()
        if machine is not besides
        for device in machine.devices.disks.values()
    )
    return descriptor if shared or descriptor.name != disk.tip_descriptor.name else None


def destroy_files(lab: Lab, device: DiskDevice) -> None:
    """``fileOperation=destroy``: the files of the device's backing are gone, whoever needs them.

    Without ``Lab.lock``. Raises: SoapFault (FileLocked) while a running VM has them open.
    """
    disk = device.disk
    doomed = [device.link] if device.link is not None else list(disk.all_links)
    doomed = [link for link in doomed if link in disk.all_links]  # somebody may have moved it
    with lab.lock:
        for link in doomed:
            users = uses_of(lab, disk, link)
            if users or lab.file_locks.holds(link):
                raise locked(lab, link, "it is in use")
        for link in doomed:
            for file in disk.files(link):
                file.unlink(missing_ok=True)
        if not doomed:
            return
        if disk.directory not in (each.root for each in lab.datastores()):
            with suppress(OSError):
                disk.directory.rmdir()  # nothing else was in it
    lab.disks.forget(disk)


def _provisioning(backing: WireObject, datastore: Datastore) -> Provisioning:
    if getattr(backing, "thinProvisioned", None):
        return Provisioning.THIN
    if getattr(backing, "eagerlyScrub", None):
        return Provisioning.THICK_EAGER
    return Provisioning.THIN if datastore.kind_name == "NFS" else Provisioning.THICK_LAZY


def _new_descriptor(
    lab: Lab, machine: Machine, backing: WireObject, names_taken: set[Path]
) -> tuple[Datastore, Path]:
    """The file that the client names, or the next free name beside the VM's other files."""
    name = getattr(backing, "fileName", None) or ""
    if not name and getattr(backing, "datastore", None) is not None:
        name = f"[{lab.find(backing.datastore).name}]"  # type: ignore[attr-defined] # a datastore
    if name:
        datastore, local = lab.resolve(name)
        if local.name.endswith(".vmdk"):
            if local.exists():
                raise SoapFault(
                    vim.fault.FileAlreadyExists(file=name), f"File {name} already exists"
                )
            return datastore, local
        home = (
            machine.directory
            if datastore is machine.home
            else datastore.root / file_stem(machine.name)
        )
        directory = home if local == datastore.root else local
    else:
        datastore, directory = machine.home, machine.directory
    return datastore, _free_name(directory, file_stem(machine.name), names_taken)


def _free_name(directory: Path, stem: str, names_taken: set[Path]) -> Path:
    number = 0
    while True:
        name = directory / (f"{stem}_{number}.vmdk" if number else f"{stem}.vmdk")
        if name not in names_taken and not name.exists():
            return name
        number += 1

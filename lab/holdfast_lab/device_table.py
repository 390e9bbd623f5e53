"""The virtual hardware of one VM.

Controllers, network cards and the rest are kept as clients see them, disks as the lab knows them.

``DeviceTable.wire`` builds what ``config.hardware.device`` shows. A snapshot keeps a copy of the
table in which every frozen disk names its frozen link.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyVmomi import vim

from holdfast_lab.storage.disk import DatastoreKind, LabDisk, Provisioning
from holdfast_lab.storage.errors import FileMissing
from holdfast_lab.wire_types import WireObject

Device = vim.vm.device
KIB = 1024
SCSI_UNIT_OF_THE_CONTROLLER = 7
# first key, units, and disks' first key of each bus a disk can sit on
SCSI_KEY, IDE_KEY, AHCI_KEY, NVME_KEY = 1000, 200, 15000, 31000
NIC_KEY, CDROM_KEY = 4000, 3000


@dataclass(slots=True, kw_only=True)
class DiskDevice:
    """A disk in a VM. ``link`` None: the disk's tip, whatever that is; otherwise that link as is.

    In a snapshot's table ``frozen_at`` names the moment instead: links are renamed by merges.
    """

    key: int
    controller_key: int
    unit_number: int
    disk: LabDisk
    link: Path | None = None
    frozen_at: int | None = None
    mode: str = "persistent"
    sharing: str = "sharingNone"
    raw_mapping: str | None = None  # "physicalMode" or "virtualMode" for a raw device mapping
    profile_id: str | None = None

    @property
    def descriptor(self) -> Path:
        """The descriptor that this device opens."""
        if self.frozen_at is not None:
            return self.disk.frozen_descriptor(self.frozen_at)
        return self.link or self.disk.tip_descriptor

    def chain(self) -> tuple[Path, ...]:
        """The links that it opens, base first; only its own when the files went away.

        A powered-off VM keeps the name of a disk that somebody moved, merged or deleted.
        """
        try:
            return self.disk.chain_of(self.descriptor)
        except FileMissing:
            return (self.descriptor,)

    def files(self) -> tuple[Path, ...]:
        """All files that it opens; none when they went away."""
        return tuple(file for _link, files in self.files_of_links() for file in files)

    def files_of_links(self) -> list[tuple[Path, tuple[Path, ...]]]:
        """Its links, base first, each with its files, all of one moment; none when they went away.

        Merging takes the disk's lock only, so the lock is held from the first look to the last.
        """
        with self.disk.lock:
            try:
                return [(link, self.disk.files(link)) for link in self.chain()]
            except FileMissing:
                return []

    def change_id(self) -> str | None:
        """The change id of the link that it opens; None while unset or when it went away."""
        try:
            return self.disk.change_id(self.descriptor)
        except FileMissing:
            return None

    @property
    def freezes(self) -> bool:
        """Does a snapshot of the VM freeze this disk?"""
        return not self.mode.startswith("independent") and self.raw_mapping != "physicalMode"


@dataclass(slots=True)
class DeviceTable:
    """Everything in ``hardware.device``. ``plain`` holds wire objects by key, disks excepted."""

    plain: dict[int, WireObject] = field(default_factory=dict)
    disks: dict[int, DiskDevice] = field(default_factory=dict)

    @classmethod
    def of_a_new_machine(cls) -> DeviceTable:
        """What every VM has without asking: buses, keyboard, pointer, video, VMCI."""
        table = cls()
        for device in _default_devices():
            table.plain[device.key] = device
        return table

    def copied(self) -> DeviceTable:
        """An independent copy; the disks' files are the same."""
        return DeviceTable(
            plain={key: copy.deepcopy(device) for key, device in self.plain.items()},
            disks={key: replace(device) for key, device in self.disks.items()},
        )

    def frozen(self, moments: Mapping[int, int]) -> DeviceTable:
        """A copy in which the disks with these keys stand for what was frozen at a moment."""
        table = self.copied()
        for key, sequence in moments.items():
            table.disks[key].frozen_at = sequence
        return table

    def controllers(self) -> list[WireObject]:
        """The controllers that disks can sit on, by key."""
        kinds = (
            Device.VirtualSCSIController,
            Device.VirtualIDEController,
            Device.VirtualAHCIController,
            Device.VirtualNVMEController,
        )
        found = [device for device in self.plain.values() if isinstance(device, kinds)]
        return sorted(found, key=lambda device: int(device.key))

    def network_cards(self) -> list[WireObject]:
        """The VM's network cards, by key."""
        kind = Device.VirtualEthernetCard
        return [self.plain[key] for key in sorted(self.plain) if isinstance(self.plain[key], kind)]

    def disk_at(self, controller_key: int, unit_number: int) -> DiskDevice | None:
        """The disk in a slot."""
        for device in self.disks.values():
            if (device.controller_key, device.unit_number) == (controller_key, unit_number):
                return device
        return None

    def units_in_use(self, controller_key: int) -> set[int]:
        """The taken unit numbers of a controller, its own included."""
        used = {
            device.unit_number
            for device in self.disks.values()
            if device.controller_key == controller_key
        }
        used |= {
            int(device.unitNumber)
            for device in self.plain.values()
            if device.controllerKey == controller_key and device.unitNumber is not None
        }
        if isinstance(self.plain.get(controller_key), Device.VirtualSCSIController):
            used.add(SCSI_UNIT_OF_THE_CONTROLLER)
        return used

    def wire(
        self, name_of: Callable[[Path], str], datastore_of: Callable[[Path], WireObject]
    ) -> list[WireObject]:
        """``hardware.device``: ``name_of`` gives a file's datastore path, the other its datastore."""
        devices = {key: copy.deepcopy(device) for key, device in self.plain.items()}
        for key, device in self.disks.items():
            devices[key] = _wire_disk(device, name_of, datastore_of)
        for controller in self.controllers():
            owned = [
                key for key, device in devices.items() if device.controllerKey == controller.key
            ]
            devices[controller.key].device = sorted(owned)
        return [devices[key] for key in sorted(devices)]


def disk_key(controller: WireObject, unit_number: int) -> int:
    """The key that ESXi gives to a disk in this slot."""
    bus = int(controller.busNumber)
    if isinstance(controller, Device.VirtualSCSIController):
        return 2000 + 16 * bus + unit_number
    if isinstance(controller, Device.VirtualAHCIController):
        return 16000 + 30 * bus + unit_number
    if isinstance(controller, Device.VirtualNVMEController):
        return 32000 + 15 * bus + unit_number
    return CDROM_KEY + 2 * bus + unit_number


def scsi_controller(bus: int, kind: str = "pvscsi", sharing: str = "noSharing") -> WireObject:
    """A SCSI controller: ``kind`` is pvscsi, lsilogic, lsisas or buslogic."""
    kinds: dict[str, Any] = {
        "pvscsi": Device.ParaVirtualSCSIController,
        "lsilogic": Device.VirtualLsiLogicController,
        "lsisas": Device.VirtualLsiLogicSASController,
        "buslogic": Device.VirtualBusLogicController,
    }
    return kinds[kind](
        key=SCSI_KEY + bus,
        busNumber=bus,
        controllerKey=100,
        unitNumber=3 + bus,
        sharedBus=sharing,
        hotAddRemove=True,
        scsiCtlrUnitNumber=SCSI_UNIT_OF_THE_CONTROLLER,
        deviceInfo=_label(f"SCSI controller {bus}", kind),
    )


def _default_devices() -> list[WireObject]:
    return [
        Device.VirtualIDEController(key=200, busNumber=0, deviceInfo=_label("IDE 0", "IDE 0")),
        Device.VirtualIDEController(key=201, busNumber=1, deviceInfo=_label("IDE 1", "IDE 1")),
        Device.VirtualPS2Controller(key=300, busNumber=0, deviceInfo=_label("PS2 controller 0")),
        Device.VirtualPCIController(key=100, busNumber=0, deviceInfo=_label("PCI controller 0")),
        Device.VirtualSIOController(key=400, busNumber=0, deviceInfo=_label("SIO controller 0")),
        Device.VirtualKeyboard(
            key=600, controllerKey=300, unitNumber=0, deviceInfo=_label("Keyboard")
        ),
        Device.VirtualPointingDevice(
            key=700,
            controllerKey=300,
            unitNumber=1,
            backing=Device.VirtualPointingDevice.DeviceBackingInfo(
                deviceName="", useAutoDetect=False, hostPointingDevice="autodetect"
            ),
            deviceInfo=_label("Pointing device", "Pointing device; Device"),
        ),
        Device.VirtualVideoCard(
            key=500,
            controllerKey=100,
            unitNumber=0,
            videoRamSizeInKB=4096,
            numDisplays=1,
            useAutoDetect=False,
            enable3DSupport=False,
            deviceInfo=_label("Video card"),
        ),
        Device.VirtualVMCIDevice(
            key=12000,
            controllerKey=100,
            unitNumber=17,
            allowUnrestrictedCommunication=False,
            deviceInfo=_label("VMCI device"),
        ),
    ]


def _label(label: str, summary: str | None = None) -> WireObject:
    return vim.Description(label=label, summary=summary or label)


def _wire_disk(
    device: DiskDevice, name_of: Callable[[Path], str], datastore_of: Callable[[Path], WireObject]
) -> WireObject:
    capacity = device.disk.capacity_bytes
    return Device.VirtualDisk(
        key=device.key,
        controllerKey=device.controller_key,
        unitNumber=device.unit_number,
        capacityInKB=capacity // KIB,
        capacityInBytes=capacity,
        deviceInfo=_label(f"Hard disk {_ordinal(device)}", f"{capacity // KIB:,} KB"),
        shares=vim.SharesInfo(shares=1000, level="normal"),
        backing=_backing(device, name_of, datastore_of),
    )


def _ordinal(device: DiskDevice) -> int:
    return device.key - 2000 + 1 if 2000 <= device.key < 2064 else device.key


def _backing(
    device: DiskDevice, name_of: Callable[[Path], str], datastore_of: Callable[[Path], WireObject]
) -> WireObject:
    if device.raw_mapping is not None:
        return _raw_backing(device, name_of, datastore_of)
    disk = device.disk
    backing: WireObject = None
    for link in device.chain():
        is_delta = backing is not None
        backing = Device.VirtualDisk.FlatVer2BackingInfo(
            fileName=name_of(link),
            datastore=datastore_of(link),
            diskMode=device.mode,
            split=False,
            writeThrough=False,
            thinProvisioned=disk.provisioning is Provisioning.THIN,
            eagerlyScrub=disk.provisioning is Provisioning.THICK_EAGER or None,
            uuid=disk.uuid,
            parent=backing,
            sharing=device.sharing,
            digestEnabled=False,
        )
        if is_delta:
            sparse = disk.datastore_kind is DatastoreKind.VMFS
            backing.deltaDiskFormat = "seSparseFormat" if sparse else "redoLogFormat"
            backing.deltaGrainSize = 8 if sparse else 1
    # The id belongs to the link that the device opens; links below it show none.
    backing.changeId = device.change_id()
    return backing


def _raw_backing(
    device: DiskDevice, name_of: Callable[[Path], str], datastore_of: Callable[[Path], WireObject]
) -> WireObject:
    disk = device.disk
    backing: WireObject = None
    for link in device.chain():
        backing = Device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            fileName=name_of(link),
            datastore=datastore_of(link),
            lunUuid=(disk.uuid or "").replace("-", ""),
            deviceName=f"vml.{(disk.uuid or '').replace('-', '')}",
            compatibilityMode=device.raw_mapping,
            diskMode=device.mode,
            uuid=disk.uuid,
            parent=backing,
            sharing=device.sharing,
        )
    if device.raw_mapping == "virtualMode":
        backing.changeId = device.change_id()
    return backing

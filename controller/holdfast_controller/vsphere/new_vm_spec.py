"""A point's configuration as the specification of a new VM: new identity, networks off, unknown devices left out.

Before `virtual_machines`. Nothing in here asks vSphere anything. What is left out is named in a note,
never an error: a VM without its sound card is better than no VM at three in the morning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import FormatError
from holdfast_common.units import KIB
from holdfast_controller.vsphere.configuration import Json, decoded_device, device_label
from holdfast_controller.vsphere.entity_names import escaped_name, plain_name
from holdfast_controller.vsphere.foreign import Foreign, reference

Device = vim.vm.device
NONCE_KEY: Final = "holdfast.nonce"
IDE_KEYS: Final = (200, 201)  # made by vSphere with every VM
SCSI_BUSES: Final = 4
SCSI_UNITS: Final = 16
SCSI_UNIT_OF_THE_CONTROLLER: Final = 7
SUBSTITUTE_KEY: Final = -1_000_000  # below every negative of a device's key

_KEPT_CONTROLLERS: Final = (
    Device.VirtualSCSIController,
    Device.VirtualSATAController,
    Device.VirtualNVMEController,
    Device.VirtualUSBController,
    Device.VirtualUSBXHCIController,
)
_KEPT: Final = (*_KEPT_CONTROLLERS, Device.VirtualEthernetCard)
# vSphere makes these by itself with every new VM.
_MADE_BY_VSPHERE: Final = (
    Device.VirtualIDEController,
    Device.VirtualPCIController,
    Device.VirtualPS2Controller,
    Device.VirtualSIOController,
    Device.VirtualKeyboard,
    Device.VirtualPointingDevice,
    Device.VirtualVMCIDevice,
    Device.VirtualVideoCard,
)
# Settings that belong to the old VM's identity, place, devices or running state.
_DROPPED_SETTINGS: Final = re.compile(
    r"^(uuid\.|vc\.uuid|nvram$|migrate\.|sched\.|vmotion\.|ctkEnabled|guestinfo\.|vmware\.tools\."
    r"|(scsi|sata|ide|nvme|ethernet|floppy|serial|usb|pciBridge|sound|vmci|monitor|config\.|checkpoint"
    r"|toolsInstall|cleanShutdown|softPowerOff|migrateEncryptedHash|encryption|managedvm|holdfast)"
    r")",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """One disk of the new VM. ``file`` is ``[datastore] folder/name.vmdk``; ``create``: it is made empty and thin."""

    device_key: int
    file: str
    capacity_bytes: int
    create: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVmSpec:
    """The specification, and what was left out of it, in words. ``name`` is the VM's, plain.

    ``slots``: disks by device key that hang elsewhere than in the point, as ``lsisas 1:0``.
    """

    name: str
    spec: Foreign
    notes: tuple[str, ...]
    slots: Mapping[int, str]


def new_vm_spec(
    configuration: Mapping[str, Json],
    *,
    name: str,
    vmx_file: str,
    nonce: str,
    disks: Sequence[NewDisk],
    networks: Mapping[str, str],
) -> NewVmSpec:
    """The specification of a powered-off VM with these disks at their old places.

    ``vmx_file`` is ``[datastore] folder/name.vmx``; ``networks`` are names and morefs at the target.
    New uuids and MAC addresses are vSphere's to make: none is given. Raises: FormatError.
    """
    notes: list[str] = []
    hardware = configuration.get("hardware")
    if not isinstance(hardware, dict):
        raise FormatError("the point's configuration names no hardware")
    spec = vim.vm.ConfigSpec(
        name=escaped_name(name),
        guestId=_text(configuration, "guestId") or "otherGuest64",
        version=_text(configuration, "version") or None,
        firmware=_text(configuration, "firmware") or None,
        annotation=_text(configuration, "annotation") or None,
        numCPUs=_number(hardware, "numCPU", 1),
        numCoresPerSocket=_number(hardware, "numCoresPerSocket", 1),
        memoryMB=_number(hardware, "memoryMB", 1024),
        files=vim.vm.FileInfo(vmPathName=vmx_file),
        extraConfig=_settings(configuration, nonce),
    )
    secure = configuration.get("bootOptions")
    if isinstance(secure, dict) and secure.get("efiSecureBootEnabled"):
        spec.bootOptions = vim.vm.BootOptions(efiSecureBootEnabled=True)
    if configuration.get("keyId") is not None:
        notes.append("the VM was encrypted; the restored one is not")
    found = configuration.get("devices")
    devices = _Devices(disks={disk.device_key: disk for disk in disks}, networks=networks)
    devices.collect([each for each in _list(found) if isinstance(each, dict)])
    spec.deviceChange = devices.changes
    return NewVmSpec(name=name, spec=spec, notes=(*notes, *devices.notes), slots=devices.slots)


def added_disk(disk: NewDisk, *, controller_key: int, unit_number: int, device_key: int) -> Foreign:
    """The change that adds a disk to a VM; an existing file is opened as it is."""
    backing = Device.VirtualDisk.FlatVer2BackingInfo(fileName=disk.file, diskMode="persistent")
    if disk.create:
        backing.thinProvisioned = True
    device = Device.VirtualDisk(
        key=device_key,
        controllerKey=controller_key,
        unitNumber=unit_number,
        backing=backing,
        capacityInBytes=disk.capacity_bytes,
        capacityInKB=disk.capacity_bytes // KIB,
    )
    if disk.create:
        return Device.VirtualDeviceSpec(operation="add", fileOperation="create", device=device)
    return Device.VirtualDeviceSpec(operation="add", device=device)


@dataclass(slots=True)
class _Devices:
    """The devices of the new VM, collected one by one in the order of the old one's."""

    disks: Mapping[int, NewDisk]
    networks: Mapping[str, str]
    changes: list[Foreign] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    slots: dict[int, str] = field(default_factory=dict)
    controllers: set[int] = field(default_factory=lambda: set(IDE_KEYS))
    scsi_buses: set[int] = field(default_factory=set)
    # by the key of a controller that nobody knows: what its disks hang on instead
    substitutes: dict[int, _Substitute] = field(default_factory=dict)

    def collect(self, found: Sequence[Mapping[str, Json]]) -> None:
        """Raises: FormatError when a disk's place is not known or there is none for it."""
        known = [(each, self._known(each)) for each in found]
        # where a disk can hang is known before the first disk is met
        for _, device in known:
            if isinstance(device, _KEPT_CONTROLLERS):
                self.controllers.add(int(device.key))
            if isinstance(device, Device.VirtualSCSIController):
                self.scsi_buses.add(int(device.busNumber or 0))
        seen: set[int] = set()
        for described, device in known:
            key = _integer(described, "key")
            if key in self.disks and key not in seen:
                seen.add(key)
                self._add_disk(described, self.disks[key])
            elif device is not None:
                self._add(described, device)
        missing = set(self.disks) - seen
        if missing:
            raise FormatError(
                "the point's configuration does not say where its disks belong",
                device_keys=", ".join(map(str, sorted(missing))),
            )

    def _known(self, described: Mapping[str, Json]) -> Foreign:
        """The device as this vSphere interface knows it; None: it is left out (a disk's key will do)."""
        label = device_label(described)
        is_disk = _integer(described, "key") in self.disks
        try:
            device, dropped = decoded_device(described)
            if device.key is None:
                raise FormatError("it has no key")
        except FormatError as error:
            if not is_disk:
                self.notes.append(f"{label} is left out: {error.message}")
            return None
        if dropped and not is_disk and isinstance(device, _KEPT):
            self.notes.append(f"{label}: {', '.join(dropped)} is not known here and left out")
        return device

    def _add(self, described: Mapping[str, Json], device: Foreign) -> None:
        label = device_label(described)
        if isinstance(device, Device.VirtualDisk):
            self.notes.append(f"{label} is not in the restore point and is left out")
        elif isinstance(device, _KEPT_CONTROLLERS):
            self.changes.append(_added_controller(device))
        elif isinstance(device, Device.VirtualEthernetCard):
            self.changes.extend(_added_card(device, described, self.networks, label, self.notes))
        elif not isinstance(device, _MADE_BY_VSPHERE):
            self.notes.append(f"{label} ({type(device)._wsdlName}) is left out")

    def _add_disk(self, described: Mapping[str, Json], disk: NewDisk) -> None:
        """All that is needed of a disk is where it hangs: whatever else it has comes from the point."""
        controller, unit = _integer(described, "controllerKey"), _integer(described, "unitNumber")
        if controller in self.controllers:
            key = _controller(controller)
        else:
            substitute = self._substitute(controller)
            unit = substitute.free_unit(unit)
            key = substitute.key
            self.slots[disk.device_key] = f"lsisas {substitute.bus_number}:{unit}"
            self.notes.append(
                f"{device_label(described)} hangs on an LSI Logic SAS controller:"
                " its own kind of controller is not known here"
            )
        self.changes.append(
            added_disk(disk, controller_key=key, unit_number=unit, device_key=-disk.device_key)
        )

    def _substitute(self, controller: int) -> _Substitute:
        found = self.substitutes.get(controller)
        if found is None:
            bus = next((each for each in range(SCSI_BUSES) if each not in self.scsi_buses), None)
            if bus is None:
                raise FormatError("there is no room for another SCSI controller in the VM")
            self.scsi_buses.add(bus)
            found = _Substitute(key=SUBSTITUTE_KEY - bus, bus_number=bus)
            self.substitutes[controller] = found
            device = Device.VirtualLsiLogicSASController(
                key=found.key, busNumber=bus, sharedBus="noSharing"
            )
            self.changes.append(Device.VirtualDeviceSpec(operation="add", device=device))
        return found


@dataclass(slots=True)
class _Substitute:
    """A SCSI controller in the place of one that nobody knows."""

    key: int
    bus_number: int
    taken: set[int] = field(default_factory=lambda: {SCSI_UNIT_OF_THE_CONTROLLER})

    def free_unit(self, wanted: int) -> int:
        """The wanted unit, or the first that is free. Raises: FormatError."""
        free = [unit for unit in range(SCSI_UNITS) if unit not in self.taken]
        if not free:
            raise FormatError("there are more disks than a SCSI controller takes")
        unit = wanted if wanted in free else free[0]
        self.taken.add(unit)
        return unit


def _controller(key: int) -> int:
    # a negative key names a device that this specification adds; IDE controllers are there already
    return key if key in IDE_KEYS else -key


def _added_controller(device: Foreign) -> Foreign:
    device.key = -int(device.key)
    device.device = []
    device.controllerKey = None
    device.unitNumber = None
    device.slotInfo = None
    device.backing = None
    if isinstance(device, Device.VirtualSCSIController):
        device.hotAddRemove = None
        device.scsiCtlrUnitNumber = None
    return Device.VirtualDeviceSpec(operation="add", device=device)


def _added_card(
    device: Foreign,
    described: Mapping[str, Json],
    networks: Mapping[str, str],
    label: str,
    notes: list[str],
) -> list[Foreign]:
    backing = described.get("backing")
    network = plain_name(str(backing.get("deviceName") or "")) if isinstance(backing, dict) else ""
    if network not in networks:
        if not networks:
            notes.append(f"{label} is left out: the target has no network")
            return []
        chosen = min(networks)
        notes.append(
            f"{label}: there is no network {network or '(unnamed)'} here; on {chosen}, unplugged"
        )
        network = chosen
    card = type(device)(
        key=-int(device.key),
        addressType="generated",  # a copy beside a living original must not share its MAC address
        wakeOnLanEnabled=device.wakeOnLanEnabled,
        backing=Device.VirtualEthernetCard.NetworkBackingInfo(
            deviceName=escaped_name(network), network=reference(vim.Network, networks[network])
        ),
        connectable=Device.VirtualDevice.ConnectInfo(
            startConnected=False, connected=False, allowGuestControl=True
        ),
    )
    return [Device.VirtualDeviceSpec(operation="add", device=card)]


def _settings(configuration: Mapping[str, Json], nonce: str) -> list[Foreign]:
    settings = configuration.get("extraConfig")
    kept = {
        key: value
        for key, value in (settings.items() if isinstance(settings, dict) else [])
        if not _DROPPED_SETTINGS.match(key)
    }
    kept[NONCE_KEY] = nonce
    return [vim.option.OptionValue(key=key, value=str(value)) for key, value in kept.items()]


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _integer(described: Mapping[str, Json], name: str) -> int:
    value = described.get(name)
    return value if isinstance(value, int) else 0


def _text(configuration: Mapping[str, Json], name: str) -> str:
    value = configuration.get(name)
    return value if isinstance(value, str) else ""


def _number(hardware: Mapping[str, Json], name: str, default: int) -> int:
    value = hardware.get(name)
    return value if isinstance(value, int) and value > 0 else default

"""A point's configuration as the specification of a new VM: new identity, networks off, unknown devices left out.

Before `virtual_machines`. Nothing in here asks vSphere anything. What is left out is named in a note,
never an error: a VM without its sound card is better than no VM at three in the morning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import FormatError
from holdfast_common.units import KIB
from holdfast_controller.vsphere.configuration import Json, decoded_device, device_label
from holdfast_controller.vsphere.foreign import Foreign, reference

Device = vim.vm.device
NONCE_KEY: Final = "holdfast.nonce"
IDE_KEYS: Final = (200, 201)  # made by vSphere with every VM

_KEPT_CONTROLLERS: Final = (
    Device.VirtualSCSIController,
    Device.VirtualSATAController,
    Device.VirtualNVMEController,
    Device.VirtualUSBController,
    Device.VirtualUSBXHCIController,
)
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
    """The specification, and what was left out of it, in words."""

    spec: Foreign
    notes: tuple[str, ...]


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
        name=name,
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
    spec.deviceChange = _devices(configuration, disks, networks, notes)
    return NewVmSpec(spec=spec, notes=tuple(notes))


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


def _devices(
    configuration: Mapping[str, Json],
    disks: Sequence[NewDisk],
    networks: Mapping[str, str],
    notes: list[str],
) -> list[Foreign]:
    wanted = {disk.device_key: disk for disk in disks}
    found = configuration.get("devices")
    changes: list[Foreign] = []
    seen: set[int] = set()
    for described in found if isinstance(found, list) else []:
        if not isinstance(described, dict):
            continue
        label = device_label(described)
        try:
            device = decoded_device(described)
        except FormatError as error:
            notes.append(f"{label} is left out: {error.message}")
            continue
        if isinstance(device, Device.VirtualDisk):
            disk = wanted.get(int(device.key))
            if disk is None:
                notes.append(f"{label} is not in the restore point and is left out")
                continue
            seen.add(disk.device_key)
            changes.append(
                added_disk(
                    disk,
                    controller_key=_controller(int(device.controllerKey or 0)),
                    unit_number=int(device.unitNumber or 0),
                    device_key=-disk.device_key,
                )
            )
        elif isinstance(device, _KEPT_CONTROLLERS):
            changes.append(_added_controller(device))
        elif isinstance(device, Device.VirtualEthernetCard):
            changes.extend(_added_card(device, described, networks, label, notes))
        elif not isinstance(device, _MADE_BY_VSPHERE):
            notes.append(f"{label} ({type(device)._wsdlName}) is left out")
    missing = set(wanted) - seen
    if missing:
        raise FormatError(
            "the point's configuration does not say where its disks belong",
            device_keys=", ".join(map(str, sorted(missing))),
        )
    return changes


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
    network = str(backing.get("deviceName") or "") if isinstance(backing, dict) else ""
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
            deviceName=network, network=reference(vim.Network, networks[network])
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


def _text(configuration: Mapping[str, Json], name: str) -> str:
    value = configuration.get(name)
    return value if isinstance(value, str) else ""


def _number(hardware: Mapping[str, Json], name: str, default: int) -> int:
    value = hardware.get(name)
    return value if isinstance(value, int) and value > 0 else default

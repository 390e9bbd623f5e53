"""A VM's OVF descriptor for its restore point: what any other tool needs to make the VM again.

Made from the configuration that the snapshot holds. The disks' files are named ``disk-<device key>.vmdk``:
restored to stream-optimised files of these names beside the descriptor, they are a whole OVF package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.formats.ovf import (
    NVME_SUBTYPE,
    SATA_SUBTYPE,
    ControllerKind,
    OvfController,
    OvfDisk,
    OvfFile,
    OvfNic,
    OvfVm,
)
from holdfast_common.formats.ovf_text import ovf_text
from holdfast_common.job_spec import Blob
from holdfast_common.units import MIB
from holdfast_controller.facts import DiskFacts, SnapshotFacts
from holdfast_controller.vsphere.configuration import Json, device_label, parse_configuration
from holdfast_controller.vsphere.entity_names import plain_name

KIND: Final = "ovf"
_NOTE: Final = "made of the snapshot's configuration"
_CONTROLLERS: Final[Mapping[str, tuple[ControllerKind, str]]] = {
    "VirtualIDEController": (ControllerKind.IDE, ""),
    "VirtualBusLogicController": (ControllerKind.SCSI, "buslogic"),
    "VirtualLsiLogicController": (ControllerKind.SCSI, "lsilogic"),
    "VirtualLsiLogicSASController": (ControllerKind.SCSI, "lsilogicsas"),
    "ParaVirtualSCSIController": (ControllerKind.SCSI, "VirtualSCSI"),
    "VirtualAHCIController": (ControllerKind.SATA, SATA_SUBTYPE),
    "VirtualNVMEController": (ControllerKind.NVME, NVME_SUBTYPE),
}
_CARDS: Final[Mapping[str, str]] = {
    "VirtualVmxnet3": "VmxNet3",
    "VirtualVmxnet2": "VmxNet2",
    "VirtualE1000": "E1000",
    "VirtualE1000e": "E1000e",
    "VirtualPCNet32": "PCNet32",
}
# Every machine has these; an import makes them anew.
_UNNAMED: Final = frozenset(
    {
        "VirtualPCIController",
        "VirtualPS2Controller",
        "VirtualSIOController",
        "VirtualKeyboard",
        "VirtualPointingDevice",
        "VirtualVideoCard",
        "VirtualMachineVMCIDevice",
    }
)


def ovf_blob(snapshot: SnapshotFacts) -> Blob:
    """The descriptor of the VM with the disks that the snapshot froze.

    Raises: FormatError, when the VM cannot be described.
    """
    configuration = parse_configuration(snapshot.configuration)
    vm = described(configuration, snapshot.protected_disks)
    note = f"{_NOTE}; without {', '.join(vm.notes)}" if vm.notes else _NOTE
    return Blob(kind=KIND, data=ovf_text(vm).encode(), note=note)


def disk_file_name(device_key: int) -> str:
    """What the descriptor calls a disk's file."""
    return f"disk-{device_key}.vmdk"


def described(configuration: Mapping[str, Json], disks: Sequence[DiskFacts]) -> OvfVm:
    """The VM; ``notes`` name the devices that are left out. Raises: FormatError."""
    hardware = _object(configuration.get("hardware"))
    found = configuration.get("devices")
    devices = [_object(each) for each in (found if isinstance(found, list) else [])]
    needed = {disk.controller_key for disk in disks}
    saved = {disk.device_key for disk in disks}
    return OvfVm(
        name=plain_name(_text(configuration, "name")) or "restored",
        cpus=_number(hardware, "numCPU", 1),
        cores_per_socket=_number(hardware, "numCoresPerSocket", 1),
        memory_bytes=_number(hardware, "memoryMB") * MIB,
        guest_os=_text(configuration, "guestId"),
        firmware=_text(configuration, "firmware") or "bios",
        hardware=_text(configuration, "version"),
        controllers=tuple(_controllers(devices, needed)),
        disks=tuple(_disk(each) for each in disks),
        nics=tuple(_nics(devices)),
        files=tuple(
            OvfFile(file_id=_file_id(disk), name=disk_file_name(disk.device_key)) for disk in disks
        ),
        configuration=_settings(configuration),
        annotation=_text(configuration, "annotation"),
        notes=tuple(device_label(each) for each in devices if not _is_described(each, saved)),
    )


def _controllers(
    devices: Sequence[Mapping[str, Json]], needed: set[int]
) -> Iterator[OvfController]:
    """Those that a disk of the point hangs on. IDE has two in every VM, mostly for CD drives."""
    for device in devices:
        kind, model = _CONTROLLERS.get(_text(device, "_type"), (None, ""))
        if kind is not None and _number(device, "key") in needed:
            yield OvfController(
                key=_number(device, "key"),
                kind=kind,
                bus=_number(device, "busNumber", 0),
                model=model,
            )


def _disk(disk: DiskFacts) -> OvfDisk:
    return OvfDisk(
        key=disk.device_key,
        disk_id=f"vmdisk-{disk.device_key}",
        capacity_bytes=disk.capacity_bytes,
        controller_key=disk.controller_key,
        unit=disk.unit_number,
        file_ref=_file_id(disk),
    )


def _file_id(disk: DiskFacts) -> str:
    return f"file-{disk.device_key}"


def _nics(devices: Sequence[Mapping[str, Json]]) -> Iterator[OvfNic]:
    """Without their addresses: a copy beside its living original must not share them."""
    for device in devices:
        model = _CARDS.get(_text(device, "_type"))
        if model is not None:
            connectable = _object(device.get("connectable"))
            yield OvfNic(
                key=_number(device, "key"),
                network_name=_network(_object(device.get("backing"))),
                model=model,
                connected=bool(connectable.get("startConnected", True)),
            )


def _network(backing: Mapping[str, Json]) -> str:
    """Its name; what a distributed switch calls its group of ports where that is all we know."""
    name = plain_name(_text(backing, "deviceName"))
    return name or _text(_object(backing.get("port")), "portgroupKey") or "unknown network"


def _settings(configuration: Mapping[str, Json]) -> dict[str, str]:
    boot = _object(configuration.get("bootOptions"))
    if not boot.get("efiSecureBootEnabled"):
        return {}
    return {"bootOptions.efiSecureBootEnabled": "true"}


def _is_described(device: Mapping[str, Json], saved: set[int]) -> bool:
    kind = _text(device, "_type")
    if kind == "VirtualDisk":
        return _number(device, "key") in saved
    return kind in _CONTROLLERS or kind in _CARDS or kind in _UNNAMED


def _object(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _text(values: Mapping[str, Json], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _number(values: Mapping[str, Json], name: str, default: int | None = None) -> int:
    """Raises: FormatError, when there is none and no default."""
    value = values.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if default is None:
        raise FormatError("the VM's configuration lacks a number", name=name)
    return default

"""A VM's OVF descriptor: what the machine consists of, read into values.

What the VM cannot be rebuilt from here (unknown devices, sections, options) is not lost silently:
it is named in ``notes``. See ovf_text for writing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.formats.vmdk_descriptor import bare_file_name
from holdfast_common.formats.vmdk_limits import CAPACITY_BYTES_MAX
from holdfast_common.formats.xml_tree import XmlElement, parse_xml
from holdfast_common.units import MIB

RESOURCE_CPU: Final = 3
RESOURCE_MEMORY: Final = 4
RESOURCE_IDE: Final = 5
RESOURCE_SCSI: Final = 6
RESOURCE_NIC: Final = 10
RESOURCE_DISK: Final = 17
RESOURCE_OTHER_STORAGE: Final = 20
SATA_SUBTYPE: Final = "vmware.sata.ahci"
NVME_SUBTYPE: Final = "vmware.nvme.controller"
_ITEMS_MAX: Final = 2048
_DISK_ADDRESS: Final = re.compile(r"ovf:/{1,2}disk/(.+)|/disk/(.+)")
_UNITS: Final = re.compile(r"byte(?:\s*\*\s*(2|10)\s*\^\s*([0-9]{1,2}))?")
_OLD_UNITS: Final[Mapping[str, int]] = {
    "kilobytes": 1 << 10,
    "megabytes": 1 << 20,
    "gigabytes": 1 << 30,
}
_IGNORED_RESOURCES: Final = frozenset({1, 23, 24})  # chipset, USB controller, graphics: made anew
_KNOWN_SECTIONS: Final = frozenset(
    {"Info", "Name", "OperatingSystemSection", "VirtualHardwareSection", "AnnotationSection"}
)


class ControllerKind(StrEnum):
    """Kinds of disk controllers."""

    SCSI = "scsi"
    SATA = "sata"
    IDE = "ide"
    NVME = "nvme"


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfController:
    """A disk controller. ``model`` is VMware's sub-type: ``lsilogic``, ``VirtualSCSI``."""

    key: int
    kind: ControllerKind
    bus: int
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfDisk:
    """A virtual disk. ``file_ref`` names an `OvfFile`; empty: the disk is made empty."""

    key: int
    disk_id: str
    capacity_bytes: int
    controller_key: int
    unit: int
    file_ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfNic:
    """A network adapter. ``mac_address`` is empty when it is to be chosen anew."""

    key: int
    network_name: str
    model: str = ""
    mac_address: str = ""
    connected: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfFile:
    """A file that comes with the descriptor. ``length`` None: not said."""

    file_id: str
    name: str
    length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfVm:
    """One VM. ``notes`` say what of the descriptor is not among these values."""

    name: str
    cpus: int
    memory_bytes: int
    cores_per_socket: int = 1
    guest_os: str = ""
    firmware: str = "bios"
    hardware: str = ""
    controllers: tuple[OvfController, ...] = ()
    disks: tuple[OvfDisk, ...] = ()
    nics: tuple[OvfNic, ...] = ()
    files: tuple[OvfFile, ...] = ()
    configuration: Mapping[str, str] = field(default_factory=dict)
    extra_configuration: Mapping[str, str] = field(default_factory=dict)
    annotation: str = ""
    notes: tuple[str, ...] = ()


def parse_ovf(data: bytes) -> OvfVm:
    """Parse a descriptor with one VM. Raises: FormatError."""
    envelope = parse_xml(data, what="OVF")
    if envelope.local_name != "Envelope":
        raise FormatError("OVF: the root is no Envelope", element=envelope.name[:200])
    systems = list(envelope.all("VirtualSystem"))
    if len(systems) != 1:
        raise FormatError("OVF: holds not exactly one VM", count=len(systems))
    return _Reader(envelope, systems[0]).vm()


class _Reader:
    """Walks one envelope and gathers notes."""

    def __init__(self, envelope: XmlElement, system: XmlElement) -> None:
        self._envelope = envelope
        self._system = system
        self._notes: list[str] = []

    def vm(self) -> OvfVm:
        system = self._system
        hardware = system.first("VirtualHardwareSection")
        if hardware is None:
            raise FormatError("OVF: the VM has no hardware section")
        self._note_sections()
        items = [item for item in hardware.children if item.local_name.endswith("Item")]
        if len(items) > _ITEMS_MAX:
            raise FormatError("OVF: too many devices", count=len(items))
        by_type: dict[int, list[XmlElement]] = {}
        for item in items:
            by_type.setdefault(_number(item, "ResourceType"), []).append(item)
        controllers = self._controllers(by_type)
        cpu_items, memory_items = by_type.pop(RESOURCE_CPU, []), by_type.pop(RESOURCE_MEMORY, [])
        if len(cpu_items) != 1 or len(memory_items) != 1:
            raise FormatError("OVF: processors or memory are not said once")
        disks = tuple(self._disk(item) for item in by_type.pop(RESOURCE_DISK, []))
        nics = tuple(_nic(item) for item in by_type.pop(RESOURCE_NIC, []))
        self._note_devices(by_type)
        configuration = _pairs(hardware, "Config")
        return OvfVm(
            name=system.child_text("Name") or system.attribute("id"),
            cpus=_number(cpu_items[0], "VirtualQuantity"),
            memory_bytes=_memory(memory_items[0]),
            cores_per_socket=_number(cpu_items[0], "CoresPerSocket", default=1),
            guest_os=self._guest_os(),
            firmware=configuration.get("firmware", "bios"),
            hardware=_hardware_family(hardware),
            controllers=controllers,
            disks=disks,
            nics=nics,
            files=self._files(),
            configuration={k: v for k, v in configuration.items() if k != "firmware"},
            extra_configuration=_pairs(hardware, "ExtraConfig"),
            annotation=self._annotation(),
            notes=tuple(self._notes),
        )

    def _controllers(self, by_type: dict[int, list[XmlElement]]) -> tuple[OvfController, ...]:
        found = []
        kinds = {RESOURCE_IDE: ControllerKind.IDE, RESOURCE_SCSI: ControllerKind.SCSI}
        for resource in (RESOURCE_SCSI, RESOURCE_IDE, RESOURCE_OTHER_STORAGE):
            others = []
            for item in by_type.pop(resource, []):
                model = item.child_text("ResourceSubType")
                kind = kinds.get(resource)
                if kind is None and model.lower() == NVME_SUBTYPE:
                    kind = ControllerKind.NVME
                elif kind is None and ("sata" in model.lower() or model.upper() == "AHCI"):
                    kind = ControllerKind.SATA
                if kind is None:
                    others.append(item)
                    continue
                found.append(
                    OvfController(
                        key=_number(item, "InstanceID"),
                        kind=kind,
                        bus=_number(item, "Address", default=0),
                        model=model,
                    )
                )
            if others:
                by_type[resource] = others
        return tuple(found)

    def _disk(self, item: XmlElement) -> OvfDisk:
        host_resource = item.child_text("HostResource")
        match = _DISK_ADDRESS.fullmatch(host_resource)
        if match is None:
            raise FormatError("OVF: disk drive without a disk", host_resource=host_resource[:200])
        disk_id = match[1] or match[2]
        section = self._envelope.first("DiskSection")
        for disk in [] if section is None else section.all("Disk"):
            if disk.attribute("diskId") == disk_id:
                return OvfDisk(
                    key=_number(item, "InstanceID"),
                    disk_id=disk_id,
                    capacity_bytes=_capacity(disk, disk_id),
                    controller_key=_number(item, "Parent"),
                    unit=_number(item, "AddressOnParent"),
                    file_ref=disk.attribute("fileRef"),
                )
        raise FormatError("OVF: disk is not in the disk section", disk_id=disk_id[:200])

    def _files(self) -> tuple[OvfFile, ...]:
        references = self._envelope.first("References")
        found = []
        for file in [] if references is None else references.all("File"):
            size = file.attribute("size")
            found.append(
                OvfFile(
                    file_id=file.attribute("id"),
                    name=bare_file_name(file.attribute("href"), where="OVF: file"),
                    length=_digits(size, "file size") if size else None,
                )
            )
        if len(found) > _ITEMS_MAX:
            raise FormatError("OVF: too many files", count=len(found))
        return tuple(found)

    def _guest_os(self) -> str:
        section = self._system.first("OperatingSystemSection")
        return "" if section is None else section.attribute("osType")

    def _annotation(self) -> str:
        section = self._system.first("AnnotationSection")
        return "" if section is None else section.child_text("Annotation")

    def _note_sections(self) -> None:
        for child in self._system.children:
            if child.local_name not in _KNOWN_SECTIONS:
                self._notes.append(f"section {child.local_name[:100]}")

    def _note_devices(self, by_type: Mapping[int, list[XmlElement]]) -> None:
        for resource, items in sorted(by_type.items()):
            for item in items:
                if resource not in _IGNORED_RESOURCES:
                    name = item.child_text("ElementName") or item.child_text("Caption")
                    model = item.child_text("ResourceSubType")
                    self._notes.append(f"device {name[:100]!r} type={resource} {model[:100]}")


def _nic(item: XmlElement) -> OvfNic:
    return OvfNic(
        key=_number(item, "InstanceID"),
        network_name=item.child_text("Connection"),
        model=item.child_text("ResourceSubType"),
        mac_address=item.child_text("Address"),
        connected=item.child_text("AutomaticAllocation", "true").lower() == "true",
    )


def _hardware_family(hardware: XmlElement) -> str:
    system = hardware.first("System")
    return "" if system is None else system.child_text("VirtualSystemType")


def _pairs(hardware: XmlElement, local_name: str) -> dict[str, str]:
    return {
        element.attribute("key"): element.attribute("value")
        for element in hardware.all(local_name)
        if element.attribute("key")
    }


def _number(item: XmlElement, local_name: str, *, default: int | None = None) -> int:
    text = item.child_text(local_name)
    if not text and default is not None:
        return default
    return _digits(text, local_name)


def _digits(text: str, what: str) -> int:
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise FormatError(f"OVF: {what} is no number", value=text[:100])
    return int(text)


def _unit_bytes(text: str, *, default: int) -> int:
    words = text.strip().lower()
    if not words:
        return default
    if words in _OLD_UNITS:
        return _OLD_UNITS[words]
    match = _UNITS.fullmatch(words)
    if match is None:
        raise FormatError("OVF: unknown unit of size", unit=text[:100])
    return int(match[1]) ** int(match[2]) if match[1] else 1


def _memory(item: XmlElement) -> int:
    unit = _unit_bytes(item.child_text("AllocationUnits"), default=MIB)
    return _number(item, "VirtualQuantity") * unit


def _capacity(disk: XmlElement, disk_id: str) -> int:
    unit = _unit_bytes(disk.attribute("capacityAllocationUnits"), default=1)
    capacity_bytes = _digits(disk.attribute("capacity"), "disk capacity") * unit
    if not 0 < capacity_bytes <= CAPACITY_BYTES_MAX:
        raise FormatError(
            "OVF: disk capacity outside 1 byte to 64 TiB",
            disk_id=disk_id[:200],
            capacity_bytes=capacity_bytes,
        )
    return capacity_bytes

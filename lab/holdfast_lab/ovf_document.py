"""OVF descriptors of single VMs: written for exports, read for imports. Pure, no lab objects.

Only what a VM of the lab has: processors, memory, firmware, disk controllers, disks, network cards,
and files. Everything else in a descriptor that is read is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

OVF = "http://schemas.dmtf.org/ovf/envelope/1"
RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
VSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
VMW = "http://www.vmware.com/schema/ovf"
STREAM_FORMAT = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
CPU, MEMORY, IDE, SCSI, NETWORK, DISK, SATA = 3, 4, 5, 6, 10, 17, 20
UNIT_POWERS = {
    "byte": 0,
    "byte * 2^10": 10,
    "byte * 2^20": 20,
    "byte * 2^30": 30,
    "byte * 2^40": 40,
}


class OvfError(Exception):
    """The text is no OVF descriptor of one VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfController:
    """A disk controller: ``resource_type`` is IDE, SCSI or SATA."""

    identifier: str
    resource_type: int
    subtype: str
    bus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfDisk:
    """A disk in a slot; ``file_name`` empty: it has no content to be sent."""

    controller: str  # an OvfController's identifier
    unit: int
    capacity_bytes: int
    file_name: str
    file_bytes: int = 0
    populated_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfMachine:
    """One VM. ``extra_files`` are files beside disks: (name, bytes)."""

    name: str
    guest_id: str
    hardware_version: str
    firmware: str
    cpu_count: int
    memory_mib: int
    controllers: tuple[OvfController, ...]
    disks: tuple[OvfDisk, ...]
    networks: tuple[str, ...]
    nvram_file: str = ""
    nvram_bytes: int = 0


def to_text(machine: OvfMachine) -> str:
    """The descriptor's text."""
    for prefix, name in (("ovf", OVF), ("rasd", RASD), ("vssd", VSSD), ("vmw", VMW)):
        ElementTree.register_namespace(prefix, name)
    envelope = Element(f"{{{OVF}}}Envelope")
    references = SubElement(envelope, f"{{{OVF}}}References")
    section = SubElement(envelope, f"{{{OVF}}}DiskSection")
    _text(section, OVF, "Info", "Virtual disk information")
    for number, disk in enumerate(machine.disks, 1):
        if disk.file_name:
            _file(references, f"file{number}", disk.file_name, disk.file_bytes)
        attributes = {
            f"{{{OVF}}}diskId": f"vmdisk{number}",
            f"{{{OVF}}}capacity": str(disk.capacity_bytes),
            f"{{{OVF}}}capacityAllocationUnits": "byte",
            f"{{{OVF}}}format": STREAM_FORMAT,
            f"{{{OVF}}}populatedSize": str(disk.populated_bytes),
        }
        if disk.file_name:
            attributes[f"{{{OVF}}}fileRef"] = f"file{number}"
        SubElement(section, f"{{{OVF}}}Disk", attributes)
    if machine.nvram_file:
        _file(references, "nvram", machine.nvram_file, machine.nvram_bytes)
    section = SubElement(envelope, f"{{{OVF}}}NetworkSection")
    _text(section, OVF, "Info", "The list of logical networks")
    for name in dict.fromkeys(machine.networks):
        SubElement(section, f"{{{OVF}}}Network", {f"{{{OVF}}}name": name})
    _system(envelope, machine)
    ElementTree.indent(envelope)
    return ElementTree.tostring(envelope, encoding="unicode", xml_declaration=True)


def _file(references: Element, identifier: str, name: str, size: int) -> None:
    SubElement(
        references,
        f"{{{OVF}}}File",
        {
            f"{{{OVF}}}id": identifier,
            f"{{{OVF}}}href": name,
            f"{{{OVF}}}size": str(size),
        },
    )


def _system(envelope: Element, machine: OvfMachine) -> None:
    system = SubElement(envelope, f"{{{OVF}}}VirtualSystem", {f"{{{OVF}}}id": machine.name})
    _text(system, OVF, "Info", "A virtual machine")
    _text(system, OVF, "Name", machine.name)
    operating = SubElement(
        system,
        f"{{{OVF}}}OperatingSystemSection",
        {f"{{{OVF}}}id": "1", f"{{{VMW}}}osType": machine.guest_id},
    )
    _text(operating, OVF, "Info", "The kind of installed guest operating system")
    hardware = SubElement(system, f"{{{OVF}}}VirtualHardwareSection")
    _text(hardware, OVF, "Info", "Virtual hardware requirements")
    kind = SubElement(hardware, f"{{{OVF}}}System")
    for name, value in (
        ("ElementName", "Virtual Hardware Family"),
        ("InstanceID", "0"),
        ("VirtualSystemIdentifier", machine.name),
        ("VirtualSystemType", machine.hardware_version),
    ):
        _text(kind, VSSD, name, value)
    _item(hardware, "1", CPU, "virtual CPUs", {"VirtualQuantity": str(machine.cpu_count)})
    _item(
        hardware,
        "2",
        MEMORY,
        "memory",
        {"AllocationUnits": "byte * 2^20", "VirtualQuantity": str(machine.memory_mib)},
    )
    for each in machine.controllers:
        values = {"Address": str(each.bus), "ResourceSubType": each.subtype}
        _item(hardware, each.identifier, each.resource_type, f"controller {each.bus}", values)
    for number, disk in enumerate(machine.disks, 1):
        values = {
            "AddressOnParent": str(disk.unit),
            "HostResource": f"ovf:/disk/vmdisk{number}",
            "Parent": disk.controller,
        }
        _item(hardware, str(100 + number), DISK, f"Hard disk {number}", values)
    for number, network in enumerate(machine.networks, 1):
        values = {"Connection": network, "ResourceSubType": "VmxNet3"}
        _item(hardware, str(200 + number), NETWORK, f"Network adapter {number}", values)
    SubElement(
        hardware,
        f"{{{VMW}}}Config",
        {f"{{{VMW}}}key": "firmware", f"{{{VMW}}}value": machine.firmware},
    )
    if machine.nvram_file:
        SubElement(
            hardware,
            f"{{{VMW}}}ExtraConfig",
            {f"{{{VMW}}}key": "nvram", f"{{{VMW}}}value": "ovf:/file/nvram"},
        )


def _item(
    hardware: Element, identifier: str, resource: int, name: str, values: dict[str, str]
) -> None:
    item = SubElement(hardware, f"{{{OVF}}}Item")
    everything = {
        "ElementName": name,
        "InstanceID": identifier,
        "ResourceType": str(resource),
        **values,
    }
    for key in sorted(everything):  # the schema wants them in this order
        _text(item, RASD, key, everything[key])


def _text(parent: Element, namespace: str, name: str, text: str) -> None:
    SubElement(parent, f"{{{namespace}}}{name}").text = text


# reading ------------------------------------------------------------------------------------


def from_text(text: str) -> OvfMachine:
    """Understand a descriptor of one VM. Raises: OvfError."""
    try:
        envelope = ElementTree.fromstring(text)  # noqa: S314 - expat itself bounds entity expansion
    except ElementTree.ParseError as error:
        raise OvfError(f"no XML: {error}") from error
    system = envelope.find(f"{{{OVF}}}VirtualSystem")
    hardware = None if system is None else system.find(f"{{{OVF}}}VirtualHardwareSection")
    if system is None or hardware is None:
        raise OvfError("there is no VirtualSystem with hardware")
    files = {
        each.get(f"{{{OVF}}}id", ""): (
            each.get(f"{{{OVF}}}href", ""),
            int(each.get(f"{{{OVF}}}size") or 0),
        )
        for each in envelope.iterfind(f"{{{OVF}}}References/{{{OVF}}}File")
    }
    items = [
        {child.tag.rsplit("}", 1)[-1]: (child.text or "").strip() for child in each}
        for each in hardware.iterfind(f"{{{OVF}}}Item")
    ]
    options = {
        each.get(f"{{{VMW}}}key", ""): each.get(f"{{{VMW}}}value", "")
        for tag in ("Config", "ExtraConfig")
        for each in hardware.iterfind(f"{{{VMW}}}{tag}")
    }
    nvram = files.get(options.get("nvram", "").removeprefix("ovf:/file/"), ("", 0))
    operating = system.find(f"{{{OVF}}}OperatingSystemSection")
    try:
        return OvfMachine(
            name=str(system.findtext(f"{{{OVF}}}Name") or system.get(f"{{{OVF}}}id") or "vm"),
            guest_id=(
                operating.get(f"{{{VMW}}}osType", "otherGuest")
                if operating is not None
                else "otherGuest"
            ),
            hardware_version=(
                hardware.findtext(f"{{{OVF}}}System/{{{VSSD}}}VirtualSystemType") or "vmx-19"
            ).split()[0],
            firmware=options.get("firmware", "bios"),
            cpu_count=_quantity(items, CPU, 1),
            memory_mib=_quantity(items, MEMORY, 512),
            controllers=tuple(_controllers(items)),
            disks=tuple(_disks(items, _sizes(envelope), files)),
            networks=tuple(each.get("Connection", "") for each in items if _kind(each) == NETWORK),
            nvram_file=nvram[0],
            nvram_bytes=nvram[1],
        )
    except ValueError as error:
        raise OvfError(f"a number is none: {error}") from error


def _kind(item: dict[str, str]) -> int:
    return int(item.get("ResourceType", "0"))


def _quantity(items: list[dict[str, str]], kind: int, default: int) -> int:
    found = next((each for each in items if _kind(each) == kind), None)
    return default if found is None else int(found.get("VirtualQuantity", default))


def _controllers(items: list[dict[str, str]]) -> list[OvfController]:
    return [
        OvfController(
            identifier=each.get("InstanceID", ""),
            resource_type=_kind(each),
            subtype=each.get("ResourceSubType", ""),
            bus=int(each.get("Address") or 0),
        )
        for each in items
        if _kind(each) in (IDE, SCSI, SATA)
    ]


def _sizes(envelope: Element) -> dict[str, tuple[int, str]]:
    """Capacity in bytes and file reference of each disk, by the disk's id."""
    found = {}
    for each in envelope.iterfind(f"{{{OVF}}}DiskSection/{{{OVF}}}Disk"):
        units = each.get(f"{{{OVF}}}capacityAllocationUnits", "byte")
        if units not in UNIT_POWERS:
            raise OvfError(f"capacity units {units!r}")
        capacity = int(each.get(f"{{{OVF}}}capacity", "0")) << UNIT_POWERS[units]
        found[each.get(f"{{{OVF}}}diskId", "")] = (capacity, each.get(f"{{{OVF}}}fileRef", ""))
    return found


def _disks(
    items: list[dict[str, str]],
    sizes: dict[str, tuple[int, str]],
    files: dict[str, tuple[str, int]],
) -> list[OvfDisk]:
    disks = []
    for each in items:
        if _kind(each) != DISK:
            continue
        identifier = each.get("HostResource", "").rsplit("/", 1)[-1]
        if identifier not in sizes:
            raise OvfError(f"disk {identifier!r} is not in the disk section")
        capacity, reference = sizes[identifier]
        name, size = files.get(reference, ("", 0))
        if reference and not name:
            raise OvfError(f"file {reference!r} is not in the references")
        disks.append(
            OvfDisk(
                controller=each.get("Parent", ""),
                unit=int(each.get("AddressOnParent") or 0),
                capacity_bytes=capacity,
                file_name=name,
                file_bytes=size,
            )
        )
    return disks

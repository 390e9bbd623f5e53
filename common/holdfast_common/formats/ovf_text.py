"""Writing a VM's OVF descriptor, as VMware's own tools read it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.formats.ovf import (
    NVME_SUBTYPE,
    RESOURCE_CPU,
    RESOURCE_DISK,
    RESOURCE_IDE,
    RESOURCE_MEMORY,
    RESOURCE_NIC,
    RESOURCE_OTHER_STORAGE,
    RESOURCE_SCSI,
    SATA_SUBTYPE,
    ControllerKind,
    OvfController,
    OvfVm,
)
from holdfast_common.units import MIB

_DISK_FORMAT: Final = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_NOT_IN_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_CPU_KEY: Final = 1
_MEMORY_KEY: Final = 2
_CONTROLLERS: Final = {
    ControllerKind.SCSI: (RESOURCE_SCSI, "lsilogic", "SCSI Controller"),
    ControllerKind.IDE: (RESOURCE_IDE, "", "IDE"),
    ControllerKind.SATA: (RESOURCE_OTHER_STORAGE, SATA_SUBTYPE, "SATA Controller"),
    ControllerKind.NVME: (RESOURCE_OTHER_STORAGE, NVME_SUBTYPE, "NVME Controller"),
}
_HEAD: Final = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vmw="http://www.vmware.com/schema/ovf"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">"""


def ovf_text(vm: OvfVm) -> str:
    """The descriptor. ``notes`` are not written. Raises: FormatError."""
    _check_keys(vm)
    lines = [_HEAD, *_references(vm), *_disks(vm), *_networks(vm)]
    name = _text(vm.name)
    lines += [
        f'  <VirtualSystem ovf:id="{name}">',
        "    <Info>A virtual machine</Info>",
        f"    <Name>{name}</Name>",
    ]
    if vm.guest_os:
        lines += [
            f'    <OperatingSystemSection ovf:id="1" vmw:osType="{_text(vm.guest_os)}">',
            "      <Info>The guest operating system</Info>",
            "    </OperatingSystemSection>",
        ]
    lines += _hardware(vm)
    if vm.annotation:
        lines += [
            "    <AnnotationSection>",
            "      <Info>Notes</Info>",
            f"      <Annotation>{_text(vm.annotation)}</Annotation>",
            "    </AnnotationSection>",
        ]
    lines += ["  </VirtualSystem>", "</Envelope>"]
    return "\n".join(lines) + "\n"


def _check_keys(vm: OvfVm) -> None:
    keys = [_CPU_KEY, _MEMORY_KEY]
    keys += [controller.key for controller in vm.controllers]
    keys += [disk.key for disk in vm.disks]
    keys += [nic.key for nic in vm.nics]
    if len(set(keys)) != len(keys):
        raise FormatError("OVF: two devices have one key (1 and 2 are processors and memory)")
    file_ids = {file.file_id for file in vm.files}
    for disk in vm.disks:
        if disk.file_ref and disk.file_ref not in file_ids:
            raise FormatError("OVF: disk without its file", disk_id=disk.disk_id)


def _references(vm: OvfVm) -> Iterable[str]:
    yield "  <References>"
    for file in vm.files:
        size = "" if file.length is None else f' ovf:size="{file.length}"'
        yield f'    <File ovf:href="{_text(file.name)}" ovf:id="{_text(file.file_id)}"{size}/>'
    yield "  </References>"


def _disks(vm: OvfVm) -> Iterable[str]:
    yield "  <DiskSection>"
    yield "    <Info>Virtual disks</Info>"
    for disk in vm.disks:
        reference = f' ovf:fileRef="{_text(disk.file_ref)}"' if disk.file_ref else ""
        yield (
            f'    <Disk ovf:capacity="{disk.capacity_bytes}" ovf:capacityAllocationUnits="byte"'
            f' ovf:diskId="{_text(disk.disk_id)}"{reference} ovf:format="{_DISK_FORMAT}"/>'
        )
    yield "  </DiskSection>"


def _networks(vm: OvfVm) -> Iterable[str]:
    yield "  <NetworkSection>"
    yield "    <Info>Networks</Info>"
    for name in sorted({nic.network_name for nic in vm.nics}):
        yield f'    <Network ovf:name="{_text(name)}"/>'
    yield "  </NetworkSection>"


def _hardware(vm: OvfVm) -> Iterable[str]:
    yield "    <VirtualHardwareSection>"
    yield "      <Info>Virtual hardware</Info>"
    yield "      <System>"
    yield "        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>"
    yield "        <vssd:InstanceID>0</vssd:InstanceID>"
    if vm.hardware:
        yield f"        <vssd:VirtualSystemType>{_text(vm.hardware)}</vssd:VirtualSystemType>"
    yield "      </System>"
    # elements inside an Item stand in alphabetical order: the schema is a sequence
    yield from _item(
        {
            "AllocationUnits": "hertz * 10^6",
            "ElementName": f"{vm.cpus} virtual CPU(s)",
            "InstanceID": str(_CPU_KEY),
            "ResourceType": str(RESOURCE_CPU),
            "VirtualQuantity": str(vm.cpus),
        },
        extra=f'<vmw:CoresPerSocket ovf:required="false">{vm.cores_per_socket}</vmw:CoresPerSocket>',
    )
    if vm.memory_bytes % MIB:
        raise FormatError("OVF: memory is whole MiB", memory_bytes=vm.memory_bytes)
    yield from _item(
        {
            "AllocationUnits": "byte * 2^20",
            "ElementName": f"{vm.memory_bytes // MIB} MB of memory",
            "InstanceID": str(_MEMORY_KEY),
            "ResourceType": str(RESOURCE_MEMORY),
            "VirtualQuantity": str(vm.memory_bytes // MIB),
        }
    )
    for controller in vm.controllers:
        yield from _controller(controller)
    yield from _disk_items(vm)
    yield from _nic_items(vm)
    yield f'      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="{_text(vm.firmware)}"/>'
    for element, pairs in (("Config", vm.configuration), ("ExtraConfig", vm.extra_configuration)):
        for key, value in pairs.items():
            yield (
                f'      <vmw:{element} ovf:required="false" vmw:key="{_text(key)}"'
                f' vmw:value="{_text(value)}"/>'
            )
    yield "    </VirtualHardwareSection>"


def _controller(controller: OvfController) -> Iterable[str]:
    resource, model, name = _CONTROLLERS[controller.kind]
    return _item(
        {
            "Address": str(controller.bus),
            "ElementName": f"{name} {controller.bus}",
            "InstanceID": str(controller.key),
            "ResourceSubType": controller.model or model,
            "ResourceType": str(resource),
        }
    )


def _disk_items(vm: OvfVm) -> Iterable[str]:
    known = {controller.key for controller in vm.controllers}
    for number, disk in enumerate(vm.disks, start=1):
        if disk.controller_key not in known:
            raise FormatError("OVF: disk without its controller", disk_id=disk.disk_id)
        yield from _item(
            {
                "AddressOnParent": str(disk.unit),
                "ElementName": f"Hard Disk {number}",
                "HostResource": f"ovf:/disk/{disk.disk_id}",
                "InstanceID": str(disk.key),
                "Parent": str(disk.controller_key),
                "ResourceType": str(RESOURCE_DISK),
            }
        )


def _nic_items(vm: OvfVm) -> Iterable[str]:
    for number, nic in enumerate(vm.nics, start=1):
        yield from _item(
            {
                "Address": nic.mac_address,
                "AutomaticAllocation": "true" if nic.connected else "false",
                "Connection": nic.network_name,
                "ElementName": f"Ethernet {number}",
                "InstanceID": str(nic.key),
                "ResourceSubType": nic.model,
                "ResourceType": str(RESOURCE_NIC),
            }
        )


def _item(values: dict[str, str], *, extra: str = "") -> Iterable[str]:
    yield "      <Item>"
    for name, value in values.items():
        if value:
            yield f"        <rasd:{name}>{_text(value)}</rasd:{name}>"
    if extra:
        yield f"        {extra}"
    yield "      </Item>"


def _text(value: str) -> str:
    """``value`` for an attribute or a text. Raises: FormatError, if XML cannot hold it."""
    if _NOT_IN_XML.search(value) is not None:
        raise FormatError("OVF: characters that XML cannot hold", value=repr(value[:100]))
    escaped = html.escape(value, quote=True)
    # an attribute's white space would be read back as blanks
    return escaped.replace("\n", "&#10;").replace("\r", "&#13;").replace("\t", "&#9;")

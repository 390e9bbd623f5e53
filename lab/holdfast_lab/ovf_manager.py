"""OvfManager: descriptors for exports, specifications for imports, as ovftool and govc ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from holdfast_lab.datastores import Datastore
from holdfast_lab.device_table import Device
from holdfast_lab.hosts import Network
from holdfast_lab.lab import Lab
from holdfast_lab.lab_object import escaped_name
from holdfast_lab.machine import Machine, MachineSnapshot
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.ovf_document import (
    DISK,
    IDE,
    SATA,
    SCSI,
    OvfController,
    OvfDisk,
    OvfError,
    OvfMachine,
    from_text,
    to_text,
)
from holdfast_lab.transfer_lease import CONTROLLER_NAMES
from holdfast_lab.wire_types import WireObject, WireType

Manager = vim.OvfManager
SUBTYPES: Mapping[str, tuple[int, WireType]] = {
    "VirtualSCSI": (SCSI, Device.ParaVirtualSCSIController),
    "lsilogic": (SCSI, Device.VirtualLsiLogicController),
    "lsilogicsas": (SCSI, Device.VirtualLsiLogicSASController),
    "buslogic": (SCSI, Device.VirtualBusLogicController),
    "vmware.sata.ahci": (SATA, Device.VirtualAHCIController),
}
FILE_TYPE_OF_DISKS = DISK


@soap_method("CreateDescriptor")
def create_descriptor(call: Call) -> WireObject:
    """The OVF text for an export whose files the client has named."""
    machine = call.lab.get(call.arguments.required("obj", vim.ManagedEntity), Machine)
    asked = call.arguments.required("cdp", Manager.CreateDescriptorParams)
    settings, table = machine.settings, machine.devices
    if asked.snapshot is not None:
        snapshot = call.lab.get(asked.snapshot, MachineSnapshot)
        settings, table = snapshot.settings, snapshot.devices
    files = {each.deviceId: each for each in asked.ovfFiles}
    controllers, disks = [], []
    for controller in table.controllers():
        subtype = next((n for n, (_, kind) in SUBTYPES.items() if type(controller) is kind), "")
        kind = SUBTYPES[subtype][0] if subtype else IDE
        identifier = str(controller.key)
        controllers.append(
            OvfController(
                identifier=identifier,
                resource_type=kind,
                subtype=subtype,
                bus=int(controller.busNumber),
            )
        )
        name = next(name for each, name in CONTROLLER_NAMES if isinstance(controller, each))
        for device in table.disks.values():
            if device.controller_key != controller.key:
                continue
            slot = f"{name}{controller.busNumber}:{device.unit_number}"
            file = files.get(f"/{machine.moid}/{slot}")
            disks.append(
                OvfDisk(
                    controller=identifier,
                    unit=device.unit_number,
                    capacity_bytes=device.disk.capacity_bytes,
                    file_name=str(file.path) if file else "",
                    file_bytes=int(file.size) if file else 0,
                    populated_bytes=int(file.populatedSize or 0) if file else 0,
                )
            )
    nvram = files.get(f"/{machine.moid}/nvram")
    text = to_text(
        OvfMachine(
            name=str(asked.name or machine.name),
            guest_id=settings.guest_id,
            hardware_version=settings.hardware_version,
            firmware=settings.firmware,
            cpu_count=settings.cpu_count,
            memory_mib=settings.memory_mib,
            controllers=tuple(controllers),
            disks=tuple(disks),
            networks=tuple(
                str(getattr(each.backing, "deviceName", "")) for each in table.network_cards()
            ),
            nvram_file=str(nvram.path) if nvram else "",
            nvram_bytes=int(nvram.size) if nvram else 0,
        )
    )
    return Manager.CreateDescriptorResult(ovfDescriptor=text, includeImageFiles=False)


@soap_method("CreateImportSpec")
def create_import_spec(call: Call) -> WireObject:
    """A specification for ImportVApp from an OVF text, and which files go where."""
    lab = call.lab
    datastore = lab.get(call.arguments.required("datastore", vim.Datastore), Datastore)
    asked = call.arguments.required("cisp", Manager.CreateImportSpecParams)
    try:
        described = from_text(call.arguments.text("ovfDescriptor"))
        return _import_spec(lab, described, datastore, asked)
    except OvfError as error:
        fault = vim.fault.OvfInvalidPackage(lineNumber=0, msg=str(error))
        return Manager.CreateImportSpecResult(error=[fault])


def _import_spec(
    lab: Lab, described: OvfMachine, datastore: Datastore, asked: WireObject
) -> WireObject:
    name = str(asked.entityName or escaped_name(described.name))
    networks = {each.name: lab.get(each.network, Network) for each in asked.networkMapping}
    changes: list[Any] = []
    items: list[Any] = []
    keys: dict[str, tuple[int, str]] = {}
    for number, controller in enumerate(described.controllers, 1):
        key, slot = _controller(changes, controller, number)
        keys[controller.identifier] = (key, slot)
    for number, disk in enumerate(described.disks, 1):
        if disk.controller not in keys:
            raise OvfError(f"disk {number} has no controller")
        key, slot = keys[disk.controller]
        changes.append(
            _disk_change(disk, number, key=key, datastore=datastore, kind=asked.diskProvisioning)
        )
        if disk.file_name:
            items.append(
                Manager.FileItem(
                    deviceId=f"/{name}/{slot}:{disk.unit}",
                    path=disk.file_name,
                    size=disk.file_bytes or None,
                    cimType=FILE_TYPE_OF_DISKS,
                    create=False,
                )
            )
    changes += [
        _network_card(lab, number, each, networks) for number, each in enumerate(described.networks)
    ]
    config = vim.vm.ConfigSpec(
        name=name,
        guestId=described.guest_id,
        version=described.hardware_version,
        firmware=described.firmware,
        numCPUs=described.cpu_count,
        memoryMB=described.memory_mib,
        files=vim.vm.FileInfo(vmPathName=f"[{datastore.name}]"),
        deviceChange=changes,
    )
    if described.nvram_file:
        config.extraConfig = [vim.option.OptionValue(key="nvram", value="ovf:/file/nvram")]
        items.append(
            Manager.FileItem(
                deviceId=f"/{name}/nvram",
                path=described.nvram_file,
                size=described.nvram_bytes,
                cimType=1,
                create=True,
            )
        )
    return Manager.CreateImportSpecResult(
        importSpec=vim.vm.VmImportSpec(configSpec=config), fileItem=items
    )


def _controller(changes: list[Any], controller: OvfController, number: int) -> tuple[int, str]:
    """The key of a controller in the specification, and its name in lease keys."""
    if controller.resource_type == IDE:
        return 200 + controller.bus, f"VirtualIDEController{controller.bus}"
    subtype = controller.subtype if controller.subtype in SUBTYPES else "lsilogic"
    if controller.resource_type == SATA:
        subtype = "vmware.sata.ahci"
    made = SUBTYPES[subtype][1](key=-100 - number, busNumber=controller.bus)
    if controller.resource_type == SCSI:
        made.sharedBus = "noSharing"
    changes.append(Device.VirtualDeviceSpec(operation="add", device=made))
    name = next(name for each, name in CONTROLLER_NAMES if isinstance(made, each))
    return int(made.key), f"{name}{controller.bus}"


def _disk_change(
    disk: OvfDisk, number: int, *, key: int, datastore: Datastore, kind: str | None
) -> WireObject:
    return Device.VirtualDeviceSpec(
        operation="add",
        fileOperation="create",
        device=Device.VirtualDisk(
            key=-200 - number,
            controllerKey=key,
            unitNumber=disk.unit,
            capacityInKB=disk.capacity_bytes // 1024,
            capacityInBytes=disk.capacity_bytes,
            backing=Device.VirtualDisk.FlatVer2BackingInfo(
                fileName=f"[{datastore.name}]",
                diskMode="persistent",
                thinProvisioned=kind in (None, "", "thin"),
                eagerlyScrub=kind == "eagerZeroedThick" or None,
            ),
        ),
    )


def _network_card(
    lab: Lab, number: int, wanted: str, networks: Mapping[str, Network]
) -> WireObject:
    chosen = networks.get(wanted) or next(
        (each for each in lab.every(Network) if each.name == wanted), lab.every(Network)[0]
    )
    return Device.VirtualDeviceSpec(
        operation="add",
        device=Device.VirtualVmxnet3(
            key=-300 - number,
            addressType="assigned",
            backing=Device.VirtualEthernetCard.NetworkBackingInfo(
                deviceName=chosen.name, network=chosen.ref
            ),
        ),
    )

"""From a .vmx file back to a VM's settings and devices, for RegisterVM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pyVmomi import vim

from holdfast_lab.device_table import DeviceTable, DiskDevice, disk_key, scsi_controller
from holdfast_lab.disk_backings import open_existing
from holdfast_lab.faults import SoapFault
from holdfast_lab.hosts import Network
from holdfast_lab.lab import Lab
from holdfast_lab.machine import MachineSettings
from holdfast_lab.vmx_file import CARDS, plain_uuid
from holdfast_lab.wire_types import WireObject

SLOT = re.compile(r"(scsi|sata|nvme|ide)(\d+):(\d+)\.filename", re.IGNORECASE)
CONTROLLER = re.compile(r"(scsi|sata|nvme)(\d+)\.present", re.IGNORECASE)
CARD = re.compile(r"ethernet(\d+)\.present", re.IGNORECASE)
VOLUME = re.compile(r"/vmfs/volumes/([^/]+)/(.+)")
SCSI_KINDS = {
    "pvscsi": "pvscsi",
    "lsilogic": "lsilogic",
    "lsisas1068": "lsisas",
    "buslogic": "buslogic",
}
# keys with a meaning of their own; all others are extra configuration
KNOWN = re.compile(
    r"(?:\.encoding|config\.version|virtualhw\.version|displayname|guestos|guestosdetailed"
    r"|firmware|uefi\.secureboot\.enabled|numvcpus|cpuid\.corespersocket|memsize|uuid\..*"
    r"|vc\.uuid|annotation|ctkenabled|(?:scsi|sata|nvme|ide)\d.*|ethernet\d.*)",
    re.IGNORECASE,
)
MODES = {
    "persistent": "persistent",
    "independent-persistent": "independent_persistent",
    "independent-nonpersistent": "independent_nonpersistent",
}


def settings_from(values: Mapping[str, str]) -> MachineSettings:
    """The settings that a file holds. Raises: SoapFault (InvalidVmConfig)."""
    lower = {key.lower(): value for key, value in values.items()}
    settings = MachineSettings()
    try:
        settings.hardware_version = f"vmx-{int(lower.get('virtualhw.version', '19')):02d}"
        settings.cpu_count = int(lower.get("numvcpus", "1"))
        settings.cores_per_socket = int(lower.get("cpuid.corespersocket", "1"))
        settings.memory_mib = int(lower.get("memsize", "512"))
    except ValueError as error:
        raise SoapFault(vim.fault.InvalidVmConfig(property="vmx"), str(error)) from error
    settings.guest_id = lower.get("guestosdetailed", settings.guest_id)
    settings.firmware = lower.get("firmware", "bios")
    settings.secure_boot = lower.get("uefi.secureboot.enabled", "FALSE").upper() == "TRUE"
    settings.annotation = lower.get("annotation", "")
    settings.change_tracking = lower.get("ctkenabled", "FALSE").upper() == "TRUE"
    if "uuid.bios" in lower:
        settings.bios_uuid = plain_uuid(lower["uuid.bios"])
    if "vc.uuid" in lower:
        settings.instance_uuid = plain_uuid(lower["vc.uuid"])
    settings.extra_config = {
        key: value for key, value in values.items() if not KNOWN.fullmatch(key)
    }
    return settings


def devices_from(lab: Lab, directory: Path, values: Mapping[str, str]) -> DeviceTable:
    """The devices that a file holds; disks are opened. Without the lock. Raises: SoapFault."""
    lower = {key.lower(): value for key, value in values.items()}
    table = DeviceTable.of_a_new_machine()
    for key, value in lower.items():
        match = CONTROLLER.fullmatch(key)
        if match and value.upper() == "TRUE":
            _add_controller(table, lower, match[1], int(match[2]))
    for key, value in lower.items():
        match = SLOT.fullmatch(key)
        slot = key.removesuffix(".filename")
        if match is None or lower.get(f"{slot}.present", "TRUE").upper() != "TRUE":
            continue
        if not value.endswith(".vmdk"):
            continue
        controller = _controller(table, match[1], int(match[2]))
        unit = int(match[3])
        disk_path = _disk_path(lab, directory, value)
        disk = open_existing(lab, disk_path)
        number = disk_key(controller, unit)
        table.disks[number] = DiskDevice(
            key=number,
            controller_key=int(controller.key),
            unit_number=unit,
            disk=disk,
            link=None if disk_path == disk.tip_descriptor else disk_path,
            mode=MODES.get(lower.get(f"{slot}.mode", "persistent"), "persistent"),
        )
    for key, value in lower.items():
        match = CARD.fullmatch(key)
        if match and value.upper() == "TRUE":
            card = _card(lab, lower, int(match[1]))
            table.plain[card.key] = card
    return table


def _add_controller(table: DeviceTable, lower: Mapping[str, str], bus_kind: str, bus: int) -> None:
    if bus_kind == "scsi":
        kind = SCSI_KINDS.get(lower.get(f"scsi{bus}.virtualdev", "lsilogic"), "lsilogic")
        sharing = {"virtual": "virtualSharing", "physical": "physicalSharing"}.get(
            lower.get(f"scsi{bus}.sharedbus", "none"), "noSharing"
        )
        made = scsi_controller(bus, kind, sharing)
    elif bus_kind == "sata":
        made = vim.vm.device.VirtualAHCIController(key=15000 + bus, busNumber=bus)
    else:
        made = vim.vm.device.VirtualNVMEController(key=31000 + bus, busNumber=bus)
    made.controllerKey = 100
    table.plain[made.key] = made


def _controller(table: DeviceTable, bus_kind: str, bus: int) -> WireObject:
    key = {"scsi": 1000, "sata": 15000, "nvme": 31000, "ide": 200}[bus_kind] + bus
    if key not in table.plain:
        raise SoapFault(
            vim.fault.InvalidVmConfig(property="vmx"), f"there is no controller {bus_kind}{bus}"
        )
    return table.plain[key]


def _disk_path(lab: Lab, directory: Path, name: str) -> Path:
    match = VOLUME.fullmatch(name)
    with lab.lock:
        if match:
            for each in lab.datastores():
                if match[1] in (each.uuid, each.name):
                    return lab.resolve(f"[{each.name}] {match[2]}")[1]
        return lab.resolve(f"{lab.datastore_path(directory)}/{name}")[1]


def _card(lab: Lab, lower: Mapping[str, str], number: int) -> WireObject:
    prefix = f"ethernet{number}"
    kind = CARDS.get(lower.get(f"{prefix}.virtualdev", "vmxnet3"), CARDS["vmxnet3"])
    name = lower.get(f"{prefix}.networkname", "")
    static = lower.get(f"{prefix}.addresstype", "") == "static"
    address = lower.get(f"{prefix}.address" if static else f"{prefix}.generatedaddress", "")
    with lab.lock:
        network = next((each.ref for each in lab.every(Network) if each.name == name), None)
    return kind(
        key=4000 + number,
        controllerKey=100,
        unitNumber=7 + number,
        addressType="manual" if static else "assigned",
        macAddress=address,
        backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(
            deviceName=name, network=network, useAutoDetect=False
        ),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=lower.get(f"{prefix}.startconnected", "TRUE").upper() == "TRUE",
            allowGuestControl=True,
            connected=False,
            status="untried",
        ),
        deviceInfo=vim.Description(label=f"Network adapter {number + 1}", summary=name),
        wakeOnLanEnabled=True,
    )

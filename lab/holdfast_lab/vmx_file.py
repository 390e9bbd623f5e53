"""The .vmx file: a VM's configuration as text on its datastore, written and read back.

A VM that is registered from its files gets its settings and devices from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.machine import Machine

LINE = re.compile(r'\s*([^\s=#]+)\s*=\s*"(.*)"\s*')
ESCAPED = re.compile(r"\|([0-9A-Fa-f]{2})")
ADAPTERS: Mapping[str, Any] = {
    "pvscsi": vim.vm.device.ParaVirtualSCSIController,
    "lsisas1068": vim.vm.device.VirtualLsiLogicSASController,
    "lsilogic": vim.vm.device.VirtualLsiLogicController,
    "buslogic": vim.vm.device.VirtualBusLogicController,
}
CARDS: Mapping[str, Any] = {
    "vmxnet3": vim.vm.device.VirtualVmxnet3,
    "e1000e": vim.vm.device.VirtualE1000e,
    "e1000": vim.vm.device.VirtualE1000,
}
MODES = {"independent-persistent": "independent_persistent"}


def quote(value: str) -> str:
    """A value as the file holds it: quotes, bars and line ends become ``|XX``."""
    return re.sub(r'["|\n\r]', lambda match: f"|{ord(match[0]):02X}", value)


def unquote(value: str) -> str:
    """The reverse of ``quote``."""
    return ESCAPED.sub(lambda match: chr(int(match[1], 16)), value)


def vmx_uuid(text: str) -> str:
    """A uuid in the file's own spelling: ``56 4d 12 34 …-… 90 ab``."""
    digits = text.replace("-", "")
    pairs = [digits[at : at + 2] for at in range(0, len(digits), 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def plain_uuid(text: str) -> str:
    """The reverse of ``vmx_uuid``."""
    digits = re.sub(r"[^0-9A-Fa-f]", "", text).lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def values_of(machine: Machine) -> dict[str, str]:
    """Every key of the file."""
    settings = machine.settings
    values = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": settings.hardware_version.removeprefix("vmx-"),
        "displayName": machine.name,
        "guestOS": settings.guest_id.removesuffix("Guest").replace("_", "-"),
        "guestOSDetailed": settings.guest_id,
        "firmware": settings.firmware,
        "uefi.secureBoot.enabled": _flag(settings.secure_boot),
        "numvcpus": str(settings.cpu_count),
        "cpuid.coresPerSocket": str(settings.cores_per_socket),
        "memSize": str(settings.memory_mib),
        "uuid.bios": vmx_uuid(settings.bios_uuid),
        "uuid.location": vmx_uuid(settings.bios_uuid),
        "vc.uuid": vmx_uuid(settings.instance_uuid),
        "nvram": machine.nvram.name,
        "annotation": settings.annotation,
        "ctkEnabled": _flag(settings.change_tracking),
    }
    for controller in machine.devices.controllers():
        values |= _controller_values(controller)
    for device in machine.disks():
        slot = _slot(machine.devices.plain[device.controller_key], device.unit_number)
        values |= {
            f"{slot}.present": "TRUE",
            f"{slot}.deviceType": "scsi-hardDisk" if slot.startswith("scsi") else "disk",
            f"{slot}.fileName": _file_name(machine, device.descriptor),
            f"{slot}.mode": device.mode.replace("_", "-"),
            f"{slot}.ctkEnabled": _flag(settings.change_tracking),
        }
        if device.raw_mapping:
            values[f"{slot}.mapping"] = device.raw_mapping
        if device.sharing != "sharingNone":
            values[f"{slot}.sharing"] = "multi-writer"
    for number, card in enumerate(machine.devices.network_cards()):
        values |= _card_values(number, card)
    return values | {
        key: value for key, value in settings.extra_config.items() if key not in values
    }


def save_vmx(machine: Machine) -> None:
    """Write the file, whole or not at all. A VM whose folder is gone is left alone."""
    if not machine.directory.is_dir():
        return
    lines = [f'{key} = "{quote(value)}"' for key, value in values_of(machine).items()]
    temporary = machine.vmx.with_name(machine.vmx.name + "~")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(machine.vmx)


def load_vmx(path: Path) -> dict[str, str]:
    """The keys of a file; lines that are none are passed over. Keys keep their spelling."""
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = LINE.fullmatch(line)
        if match:
            values[match[1]] = unquote(match[2])
    return values


def _flag(value: bool) -> str:
    return "TRUE" if value else "FALSE"


def _controller_values(controller: WireObject) -> dict[str, str]:
    bus = int(controller.busNumber)
    if isinstance(controller, vim.vm.device.VirtualSCSIController):
        name = next(name for name, kind in ADAPTERS.items() if isinstance(controller, kind))
        sharing = {"noSharing": "none", "virtualSharing": "virtual", "physicalSharing": "physical"}
        return {
            f"scsi{bus}.present": "TRUE",
            f"scsi{bus}.virtualDev": name,
            f"scsi{bus}.sharedBus": sharing[str(controller.sharedBus)],
        }
    if isinstance(controller, vim.vm.device.VirtualAHCIController):
        return {f"sata{bus}.present": "TRUE"}
    if isinstance(controller, vim.vm.device.VirtualNVMEController):
        return {f"nvme{bus}.present": "TRUE"}
    return {}


def _slot(controller: WireObject, unit: int) -> str:
    bus = int(controller.busNumber)
    if isinstance(controller, vim.vm.device.VirtualSCSIController):
        return f"scsi{bus}:{unit}"
    if isinstance(controller, vim.vm.device.VirtualAHCIController):
        return f"sata{bus}:{unit}"
    if isinstance(controller, vim.vm.device.VirtualNVMEController):
        return f"nvme{bus}:{unit}"
    return f"ide{bus}:{unit}"


def _file_name(machine: Machine, descriptor: Path) -> str:
    if descriptor.parent == machine.directory:
        return descriptor.name
    for each in machine.lab.datastores():
        if descriptor.is_relative_to(each.root):
            relative = descriptor.relative_to(each.root)
            return f"/vmfs/volumes/{each.uuid}/{relative.as_posix()}"
    return str(descriptor.name)


def _card_values(number: int, card: WireObject) -> dict[str, str]:
    kind = next((name for name, each in CARDS.items() if isinstance(card, each)), "vmxnet3")
    prefix = f"ethernet{number}"
    generated = str(card.addressType or "assigned").lower() != "manual"
    connect = card.connectable
    return {
        f"{prefix}.present": "TRUE",
        f"{prefix}.virtualDev": kind,
        f"{prefix}.networkName": str(getattr(card.backing, "deviceName", "")),
        f"{prefix}.addressType": "vpx" if generated else "static",
        f"{prefix}.generatedAddress" if generated else f"{prefix}.address": str(card.macAddress),
        f"{prefix}.startConnected": _flag(connect is None or bool(connect.startConnected)),
    }

"""Where a device may sit: keys, controllers and unit numbers of a device table.

Pure: it changes the given table (a copy made for one Reconfigure) and touches no file.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable
from typing import Any, NoReturn

from pyVmomi import vim

from holdfast_lab.device_table import (
    AHCI_KEY,
    CDROM_KEY,
    NIC_KEY,
    NVME_KEY,
    SCSI_KEY,
    SCSI_UNIT_OF_THE_CONTROLLER,
    Device,
    DeviceTable,
    scsi_controller,
)
from holdfast_lab.faults import SoapFault
from holdfast_lab.wire_types import WireObject

CONTROLLERS_OF_A_KIND_MAX = 4
NETWORK_CARDS_MAX = 10
SCSI_UNITS = 16  # 0-15 without the controller's own; more exist only on newest hardware versions
UNITS_BY_KIND = (
    (Device.VirtualSCSIController, SCSI_UNITS),
    (Device.VirtualIDEController, 2),
    (Device.VirtualAHCIController, 30),
    (Device.VirtualNVMEController, 15),
)
FIRST_KEYS = (
    (Device.VirtualSCSIController, SCSI_KEY),
    (Device.VirtualAHCIController, AHCI_KEY),
    (Device.VirtualNVMEController, NVME_KEY),
)
NIC_UNIT_FIRST = 7
OTHER_KEYS_FIRST = 13000


def wrong_device(index: int, message: str, kind: type[Any] | None = None) -> SoapFault:
    """The fault for the ``index``-th device change, as vSphere words it."""
    fault = (kind or vim.fault.InvalidDeviceSpec)(
        property=f"virtualDeviceSpec.device[{index}]", deviceIndex=index
    )
    return SoapFault(fault, f"Invalid configuration for device '{index}': {message}")


class SlotChooser:
    """Gives keys and units in one table; remembers what the client's negative keys became."""

    def __init__(self, table: DeviceTable) -> None:
        self.table = table
        self._real_keys: dict[int, int] = {}

    def real_key(self, key: int) -> int:
        """The key that a client's temporary key stands for, or the key itself."""
        return self._real_keys.get(key, key)

    def note(self, temporary: int | None, real: int) -> None:
        """The client's key for a device of this call, so that later changes may name it."""
        if temporary is not None:
            self._real_keys[temporary] = real

    def add_controller(self, index: int, wanted: WireObject) -> WireObject:
        """Add a SCSI, SATA or NVMe controller; IDE ones are there already. Raises: SoapFault."""
        kind, first_key = self._family(index, wanted)
        present = [each for each in self.table.controllers() if isinstance(each, kind)]
        if len(present) >= CONTROLLERS_OF_A_KIND_MAX:
            raise SoapFault(
                vim.fault.TooManyDevices(property="virtualDeviceSpec.device"),
                "The maximum number of supported devices is exceeded.",
            )
        used = {int(each.busNumber) for each in present}
        bus = wanted.busNumber
        if bus is None or bus < 0:
            bus = min(set(range(CONTROLLERS_OF_A_KIND_MAX)) - used)
        if bus in used or bus >= CONTROLLERS_OF_A_KIND_MAX:
            raise wrong_device(index, f"bus number {bus} is not free")
        made = copy.deepcopy(wanted)
        made.key, made.busNumber, made.controllerKey = first_key + bus, bus, 100
        made.device = []
        if kind is Device.VirtualSCSIController:
            pattern = scsi_controller(bus)
            made.unitNumber = pattern.unitNumber
            made.hotAddRemove = True
            made.scsiCtlrUnitNumber = SCSI_UNIT_OF_THE_CONTROLLER
            made.sharedBus = made.sharedBus or "noSharing"
        made.deviceInfo = made.deviceInfo or vim.Description(
            label=f"{_family_name(kind)} controller {bus}", summary=_family_name(kind)
        )
        self.table.plain[made.key] = made
        self.note(wanted.key, made.key)
        return made

    def disk_slot(
        self, index: int, controller_key: int | None, unit_number: int | None
    ) -> tuple[WireObject, int]:
        """The controller and the unit for a disk. Raises: SoapFault."""
        if controller_key is None:
            self._refuse(index, "the disk names no controller", vim.fault.MissingController)
        controller = self.table.plain.get(self.real_key(controller_key))
        units = next((count for kind, count in UNITS_BY_KIND if isinstance(controller, kind)), 0)
        if controller is None or units == 0:
            fault = vim.fault.InvalidController(
                property=f"virtualDeviceSpec.device[{index}].controllerKey",
                deviceIndex=index,
                controllerKey=controller_key,
            )
            raise SoapFault(fault, f"Invalid controller {controller_key} for device '{index}'.")
        used = self.table.units_in_use(int(controller.key))
        if unit_number is None or unit_number < 0:
            free = [unit for unit in range(units) if unit not in used]
            if not free:
                self._refuse(index, "the controller has no free unit")
            return controller, free[0]
        if unit_number >= units or unit_number in used:
            self._refuse(index, f"unit {unit_number} of controller {controller.key} is not free")
        return controller, unit_number

    def add_network_card(
        self, index: int, wanted: WireObject, mac_taken: Callable[[str], bool]
    ) -> WireObject:
        """Add a network card; an unset address is generated. Raises: SoapFault."""
        present = self.table.network_cards()
        if len(present) >= NETWORK_CARDS_MAX:
            self._refuse(index, "there are ten network cards already")
        made = copy.deepcopy(wanted)
        made.key = self._free_key(NIC_KEY)
        made.controllerKey, made.unitNumber = 100, NIC_UNIT_FIRST + made.key - NIC_KEY
        fill_network_card(made, mac_taken)
        if made.deviceInfo is None:
            made.deviceInfo = vim.Description(
                label=f"Network adapter {made.key - NIC_KEY + 1}", summary=_network_of(made)
            )
        self.table.plain[made.key] = made
        self.note(wanted.key, made.key)
        return made

    def add_other(self, index: int, wanted: WireObject) -> WireObject:
        """Add anything else (CD-ROM, TPM, serial port, USB ...). Raises: SoapFault."""
        made = copy.deepcopy(wanted)
        if made.controllerKey is not None:
            made.controllerKey = self.real_key(made.controllerKey)
            if made.controllerKey not in self.table.plain:
                self._refuse(index, f"there is no controller {made.controllerKey}")
        if isinstance(made, Device.VirtualCdrom) and made.controllerKey is not None:
            _controller, made.unitNumber = self.disk_slot(
                index, made.controllerKey, made.unitNumber
            )
        first = CDROM_KEY if isinstance(made, Device.VirtualCdrom) else OTHER_KEYS_FIRST
        made.key = self._free_key(first)
        self.table.plain[made.key] = made
        self.note(wanted.key, made.key)
        return made

    def _free_key(self, first: int) -> int:
        key = first
        while key in self.table.plain or key in self.table.disks:
            key += 1
        return key

    def _family(self, index: int, wanted: WireObject) -> tuple[type[Any], int]:
        for kind, first_key in FIRST_KEYS:
            if isinstance(wanted, kind):
                return kind, first_key
        raise wrong_device(index, "this kind of controller cannot be added")

    def _refuse(self, index: int, message: str, kind: type[Any] | None = None) -> NoReturn:
        raise wrong_device(index, message, kind)


def fill_network_card(card: WireObject, mac_taken: Callable[[str], bool]) -> None:
    """What vSphere fills in: an address when none is given, how the card connects."""
    if card.addressType != "manual" or not card.macAddress:
        if not card.macAddress or card.addressType != "assigned":
            card.macAddress = _new_mac(mac_taken)
        card.addressType = "assigned"
    if card.connectable is None:
        card.connectable = Device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=False, status="untried"
        )
    if card.wakeOnLanEnabled is None:
        card.wakeOnLanEnabled = True


def _new_mac(mac_taken: Callable[[str], bool]) -> str:
    while True:
        tail = secrets.token_bytes(3)
        # 00:50:56:80-bf is vCenter's own range
        mac = f"00:50:56:{0x80 | tail[0] & 0x3F:02x}:{tail[1]:02x}:{tail[2]:02x}"
        if not mac_taken(mac):
            return mac


def _family_name(kind: type[Any]) -> str:
    names = {
        Device.VirtualSCSIController: "SCSI",
        Device.VirtualAHCIController: "SATA",
        Device.VirtualNVMEController: "NVME",
    }
    return names[kind]


def _network_of(card: WireObject) -> str:
    return str(getattr(card.backing, "deviceName", "") or "network")

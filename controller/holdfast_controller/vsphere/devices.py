"""Virtual hardware as facts: the disks of a VM or of a snapshot, with their chains and controllers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import VsphereFailed
from holdfast_common.identity import DatastoreId
from holdfast_controller.facts import ChainLink, DatastoreFacts, DiskFacts
from holdfast_controller.vsphere.foreign import Foreign, moref_of

Device = vim.vm.device
Disk = vim.vm.device.VirtualDisk
KIB: Final = 1024
CHAIN_LINKS_MAX: Final = 256  # vSphere's own limit is 32; a longer answer is no chain
_DATASTORE_PATH: Final = re.compile(r"^\[([^\]]+)\] ?(.*)$")
_ADAPTERS: Final = (
    (Device.ParaVirtualSCSIController, "pvscsi"),
    (Device.VirtualLsiLogicSASController, "lsisas"),
    (Device.VirtualLsiLogicController, "lsilogic"),
    (Device.VirtualBusLogicController, "buslogic"),
    (Device.VirtualIDEController, "ide"),
    (Device.VirtualAHCIController, "sata"),
    (Device.VirtualSATAController, "sata"),
    (Device.VirtualNVMEController, "nvme"),
)
_RAW: Final[Mapping[str, str]] = {"physicalMode": "physical", "virtualMode": "virtual"}


class DatastoreNames:
    """Datastores by moref and by name, to turn ``[name] path`` into something that lasts."""

    def __init__(self, datastores: Iterable[DatastoreFacts]) -> None:
        self.by_moref: dict[str, DatastoreFacts] = {}
        self._by_name: dict[str, list[DatastoreFacts]] = {}
        for each in datastores:
            self.by_moref[each.moref] = each
            self._by_name.setdefault(each.name, []).append(each)

    def link(self, file_name: str, datastore_moref: str = "") -> ChainLink:
        """The link of a datastore path. Raises: VsphereFailed for a path that is none."""
        name, path = split_datastore_path(file_name)
        known = self.by_moref.get(datastore_moref)
        if known is None:
            # names repeat across datacenters: only a unique one may stand for its datastore
            named = self._by_name.get(name, [])
            known = named[0] if len(named) == 1 else None
        if known is None:
            return ChainLink(
                datastore_id=DatastoreId(""),
                datastore_moref=datastore_moref,
                datastore_name=name,
                path=path,
            )
        return ChainLink(
            datastore_id=known.datastore_id,
            datastore_moref=known.moref,
            datastore_name=known.name,
            path=path,
        )

    def link_among(self, file_name: str, datastore_morefs: Sequence[str]) -> ChainLink:
        """The link of a path on one of a VM's datastores, whose names differ from each other.

        Raises: VsphereFailed for a path that is none.
        """
        name, _ = split_datastore_path(file_name)
        for moref in datastore_morefs:
            known = self.by_moref.get(moref)
            if known is not None and known.name == name:
                return self.link(file_name, moref)
        return self.link(file_name)


def split_datastore_path(file_name: str) -> tuple[str, str]:
    """``[datastore] folder/file`` in its two parts. Raises: VsphereFailed."""
    match = _DATASTORE_PATH.match(file_name)
    if match is None:
        raise VsphereFailed("vSphere named a file without its datastore", path=file_name[:200])
    return match[1], match[2]


def disk_facts(devices: Sequence[Foreign], names: DatastoreNames) -> tuple[DiskFacts, ...]:
    """The disks among ``config.hardware.device``, by device key."""
    controllers = {
        int(each.key): each for each in devices if isinstance(each, Device.VirtualController)
    }
    disks = [
        _one_disk(each, controllers.get(int(each.controllerKey or 0)), names)
        for each in devices
        if isinstance(each, Disk)
    ]
    return tuple(sorted(disks, key=lambda disk: disk.device_key))


def mac_addresses(devices: Sequence[Foreign]) -> tuple[str, ...]:
    """Of the network cards among ``config.hardware.device``."""
    cards = [each for each in devices if isinstance(each, Device.VirtualEthernetCard)]
    return tuple(str(each.macAddress).lower() for each in cards if each.macAddress)


def adapter_of(controller: Foreign) -> str:
    """The kind of a controller in one word; empty for one that we do not know."""
    for kind, name in _ADAPTERS:
        if isinstance(controller, kind):
            return name
    return ""


def capacity_of(disk: Foreign) -> int:
    """A disk's size in bytes; the older property counts KiB."""
    return int(disk.capacityInBytes or int(disk.capacityInKB) * KIB)


def _one_disk(disk: Foreign, controller: Foreign, names: DatastoreNames) -> DiskFacts:
    backing = disk.backing
    raw_mapping = _RAW.get(str(getattr(backing, "compatibilityMode", "") or ""), "")
    mode = str(getattr(backing, "diskMode", "") or "")
    sharing = str(getattr(backing, "sharing", "") or "")
    bus_sharing = str(getattr(controller, "sharedBus", "") or "")
    return DiskFacts(
        device_key=int(disk.key),
        backing_uuid=str(getattr(backing, "uuid", "") or ""),
        label=str(disk.deviceInfo.label) if disk.deviceInfo else f"disk {disk.key}",
        capacity_bytes=capacity_of(disk),
        sector_bytes=4096 if getattr(disk, "virtualDiskFormat", None) == "native_4k" else 512,
        chain=_chain(backing, names),
        change_id=str(getattr(backing, "changeId", "") or ""),
        mode=mode,
        sharing=sharing,
        thin=bool(getattr(backing, "thinProvisioned", False)),
        raw_mapping=raw_mapping,
        encrypted=getattr(backing, "keyId", None) is not None,
        controller_key=int(disk.controllerKey or 0),
        bus_number=int(getattr(controller, "busNumber", 0) or 0),
        unit_number=int(disk.unitNumber or 0),
        adapter=adapter_of(controller),
        bus_sharing=bus_sharing,
        unprotected_reason=_unprotected_reason(
            backing, mode=mode, sharing=sharing, raw_mapping=raw_mapping, bus_sharing=bus_sharing
        ),
    )


def _unprotected_reason(
    backing: Foreign, *, mode: str, sharing: str, raw_mapping: str, bus_sharing: str
) -> str:
    """Why a snapshot does not freeze the disk: such a disk is named, never silently left out."""
    if not isinstance(backing, Device.VirtualDevice.FileBackingInfo):
        return f"its backing {type(backing)._wsdlName} cannot be snapshotted"
    if raw_mapping == "physical":
        return "it is a raw device mapping in physical mode"
    if mode.startswith("independent"):
        return f"its mode is {mode}: snapshots leave it out"
    if bus_sharing not in ("", "noSharing"):
        return f"its SCSI bus is shared ({bus_sharing})"
    if sharing == "sharingMultiWriter":
        return "several VMs write to it (multi-writer)"
    return ""


def _chain(backing: Foreign, names: DatastoreNames) -> tuple[ChainLink, ...]:
    links: list[ChainLink] = []
    while backing is not None and getattr(backing, "fileName", None):
        if len(links) == CHAIN_LINKS_MAX:
            raise VsphereFailed("a disk's chain has no end", file=str(backing.fileName))
        datastore = moref_of(getattr(backing, "datastore", None))
        links.append(names.link(str(backing.fileName), datastore))
        backing = getattr(backing, "parent", None)
    links.reverse()
    return tuple(links)

"""Where at a proxy a disk may be attached, and what tells our device from everybody else's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import Refused, VsphereFailed
from holdfast_controller.decide.hot_add import (
    DatastoreSeen,
    ProxyVm,
    problem_of_disk,
    problems_of_proxy,
    unseen_datastores,
)
from holdfast_controller.facts import ChainLink, DiskFacts, VmFacts
from holdfast_controller.vsphere.devices import split_datastore_path
from holdfast_controller.vsphere.foreign import Foreign, moref_of
from holdfast_controller.vsphere.inventory import Surroundings

UNITS: Final = 16
UNIT_OF_THE_CONTROLLER: Final = 7
Device = vim.vm.device


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A unit of a SCSI controller."""

    controller_key: int
    bus_number: int
    unit_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file in a slot: all of it must match before a device counts as ours."""

    controller_key: int
    bus_number: int
    unit_number: int
    datastore_moref: str
    datastore_name: str
    path: str

    @classmethod
    def at(cls, slot: Slot, link: ChainLink) -> Attachment:
        """A disk's file in a slot."""
        return cls(
            controller_key=slot.controller_key,
            bus_number=slot.bus_number,
            unit_number=slot.unit_number,
            datastore_moref=link.datastore_moref,
            datastore_name=link.datastore_name,
            path=link.path,
        )

    @classmethod
    def of(cls, facts: Mapping[str, str]) -> Attachment:
        """From a ledger's entry. Raises: VsphereFailed when it does not say what was attached."""
        try:
            return cls(
                controller_key=int(facts["controller_key"]),
                bus_number=int(facts["bus_number"]),
                unit_number=int(facts["unit_number"]),
                datastore_moref=facts["datastore"],
                datastore_name=facts["datastore_name"],
                path=facts["path"],
            )
        except (KeyError, ValueError) as error:
            raise VsphereFailed(
                "a ledger entry does not say which disk it attached", cause=str(error)
            ) from error

    def facts(self) -> dict[str, str]:
        """For the ledger's entry."""
        return {
            "controller_key": str(self.controller_key),
            "bus_number": str(self.bus_number),
            "unit_number": str(self.unit_number),
            "datastore": self.datastore_moref,
            "datastore_name": self.datastore_name,
            "path": self.path,
        }

    @property
    def file_name(self) -> str:
        """``[datastore] path``."""
        return f"[{self.datastore_name}] {self.path}"

    def is_device(self, device: Foreign) -> bool:
        """Whether a device of the proxy is this one: a disk, in this slot, with this file."""
        if not isinstance(device, Device.VirtualDisk):
            return False
        if device.controllerKey != self.controller_key or device.unitNumber != self.unit_number:
            return False
        name = getattr(device.backing, "fileName", None)
        if not name:
            return False
        datastore_name, path = split_datastore_path(str(name))
        if path != self.path:
            return False
        moref = moref_of(getattr(device.backing, "datastore", None))
        if moref and self.datastore_moref:
            return moref == self.datastore_moref  # its name may have been changed meanwhile
        return datastore_name == self.datastore_name


def free_slot(devices: Sequence[Foreign], *, proxy: str) -> Slot:
    """The first free unit on a proxy's SCSI controllers, by bus. Raises: Refused."""
    controllers = sorted(
        (each for each in devices if isinstance(each, Device.VirtualSCSIController)),
        key=lambda each: int(each.busNumber),
    )
    usable = [each for each in controllers if str(each.sharedBus) == "noSharing"]
    for controller in usable:
        taken = {
            int(each.unitNumber)
            for each in devices
            if each.controllerKey == controller.key and each.unitNumber is not None
        }
        taken.add(int(controller.scsiCtlrUnitNumber or UNIT_OF_THE_CONTROLLER))
        for unit in range(UNITS):
            if unit not in taken:
                return Slot(
                    controller_key=int(controller.key),
                    bus_number=int(controller.busNumber),
                    unit_number=unit,
                )
    raise Refused(
        "the proxy has no free SCSI unit" if usable else "the proxy has no SCSI controller",
        proxy=proxy,
        controllers=len(usable),
        advice="give the proxy's VM another SCSI controller, or let fewer jobs run at once",
    )


def check_allowed(
    proxy: VmFacts,
    disks: Sequence[DiskFacts],
    around: Surroundings,
    *,
    owner: VmFacts | None,
    writable: bool,
) -> None:
    """What hot-add cannot do is refused before anything is touched. Raises: Refused."""
    own = ProxyVm.of(proxy, around.hosts.values())
    problems = problems_of_proxy(
        own,
        vm_instance_uuid=owner.instance_uuid if owner is not None else "",
        datacenter_moref=owner.datacenter_moref if owner is not None else "",
    )
    for disk in disks:
        problem = problem_of_disk(disk)
        if not problem and writable and len(disk.chain) != 1:
            problem = "only a disk without snapshots can be written"
        problems += [f"{disk.label}: {problem}"] if problem else []
    links = [link for disk in disks for link in disk.chain]
    problems += unseen_datastores(
        own, [DatastoreSeen(moref=link.datastore_moref, name=link.datastore_name) for link in links]
    )
    if problems:
        raise Refused("; ".join(problems), proxy=proxy.name, advice="choose another transport")

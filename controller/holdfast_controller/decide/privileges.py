"""The rights that an account needs at vSphere, one by one, each with what it is for. Pure.

Names are those of vSphere's privilege reference; what a method needs stands there and in the interface's own tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class RightOn(StrEnum):
    """On what an account holds a right."""

    VM = "VM"
    DATASTORE = "datastore"
    POOL = "resource pool"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class NeededRight:
    """``purpose``: what fails without it. ``backups``: whether backups do; otherwise only restores or one transport."""

    privilege: str
    on: RightOn
    purpose: str
    backups: bool = False


_VM: Final = "VirtualMachine"
NEEDED_RIGHTS: Final = (
    NeededRight(
        privilege=f"{_VM}.State.CreateSnapshot",
        on=RightOn.VM,
        purpose="backups make a snapshot",
        backups=True,
    ),
    NeededRight(
        privilege=f"{_VM}.State.RemoveSnapshot",
        on=RightOn.VM,
        purpose="backups remove their snapshot and consolidate its disks",
        backups=True,
    ),
    NeededRight(
        privilege=f"{_VM}.Config.ChangeTracking",
        on=RightOn.VM,
        purpose="change tracking is switched on; without it every backup reads everything",
        backups=True,
    ),
    NeededRight(
        privilege=f"{_VM}.Provisioning.DiskRandomRead",
        on=RightOn.VM,
        purpose="changed blocks are asked for; without it every backup reads everything",
        backups=True,
    ),
    NeededRight(
        privilege="VApp.Export",
        on=RightOn.VM,
        purpose="disks are read over the network (nfc)",
        backups=True,
    ),
    NeededRight(
        privilege="Datastore.Browse",
        on=RightOn.DATASTORE,
        purpose="the NVRAM is read, and restores look at their folders",
        backups=True,
    ),
    NeededRight(
        privilege="Datastore.FileManagement",
        on=RightOn.DATASTORE,
        purpose="the NVRAM is read, and restores write files and folders",
        backups=True,
    ),
    NeededRight(
        privilege=f"{_VM}.Config.AddExistingDisk",
        on=RightOn.VM,
        purpose="disks are attached to proxies (hotadd), and to restored VMs",
    ),
    NeededRight(
        privilege=f"{_VM}.Config.RemoveDisk",
        on=RightOn.VM,
        purpose="disks are detached from proxies (hotadd), and replaced by a restore in place",
    ),
    NeededRight(privilege=f"{_VM}.Config.AddNewDisk", on=RightOn.VM, purpose="restores make disks"),
    NeededRight(
        privilege=f"{_VM}.Config.AddRemoveDevice",
        on=RightOn.VM,
        purpose="restored VMs get their controllers and network cards",
    ),
    NeededRight(
        privilege=f"{_VM}.Config.EditDevice",
        on=RightOn.VM,
        purpose="network cards of restored VMs are connected",
    ),
    NeededRight(
        privilege=f"{_VM}.Config.Settings",
        on=RightOn.VM,
        purpose="restored VMs get their firmware and identity",
    ),
    NeededRight(
        privilege=f"{_VM}.Config.AdvancedConfig",
        on=RightOn.VM,
        purpose="restored VMs get their settings, and the mark by which ours are found",
    ),
    NeededRight(
        privilege=f"{_VM}.Interact.PowerOn", on=RightOn.VM, purpose="restored VMs are started"
    ),
    NeededRight(
        privilege=f"{_VM}.Inventory.Create", on=RightOn.FOLDER, purpose="restores make VMs"
    ),
    NeededRight(
        privilege=f"{_VM}.Inventory.Delete",
        on=RightOn.FOLDER,
        purpose="VMs that a failed restore made are deleted",
    ),
    NeededRight(
        privilege="Resource.AssignVMToPool",
        on=RightOn.POOL,
        purpose="restored VMs get a resource pool",
    ),
    NeededRight(
        privilege="VApp.Import",
        on=RightOn.POOL,
        purpose="disks are restored over the network (nfc)",
    ),
    NeededRight(
        privilege="Datastore.AllocateSpace",
        on=RightOn.DATASTORE,
        purpose="restores make disks, and snapshots grow",
    ),
)

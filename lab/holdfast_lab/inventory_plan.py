"""What an inventory is to hold, as values: built in (empty, demo) or read from a JSON file.

{"hosts": ["esx1.lab"],
 "datastores": [{"name": "nfs1", "kind": "NFS", "capacity": "10G"}],
 "machines": [{"name": "web", "datastore": "nfs1", "power": "on", "tools": true,
               "disks": [{"size": "64M", "content": "ext4", "seed": 1}]}]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from holdfast_lab.errors import LabError

Plan = TypeVar("Plan")
Content = Literal["empty", "random", "ext4"]
SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
MIB = 1 << 20
DATASTORE_BYTES = 64 << 30


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``64M``. Raises: LabError."""
    match = SIZE.fullmatch(str(text).strip())
    if match is None:
        raise LabError(f"not a size: {text!r}")
    return int(match[1]) << UNITS[match[2].upper()]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastorePlan:
    """A datastore to be made."""

    name: str
    kind: Literal["NFS", "VMFS"] = "VMFS"
    capacity_bytes: int = DATASTORE_BYTES
    vmfs_version: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """A disk to be made. ``datastore`` empty: the VM's. ``content_bytes`` None: a quarter."""

    size_bytes: int = 64 * MIB
    datastore: str = ""
    provisioning: Literal["thin", "thick_lazy", "thick_eager"] = "thin"
    mode: str = "persistent"
    content: Content = "empty"
    content_bytes: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePlan:
    """A VM to be made. ``user_snapshots`` are made in order, each on top of the former."""

    name: str
    datastore: str
    folder: str = ""
    host: str = ""
    power: Literal["on", "off"] = "on"
    tools: bool = True
    firmware: Literal["bios", "efi"] = "bios"
    memory_mib: int = 512
    cpu_count: int = 1
    change_tracking: bool = False
    disks: tuple[DiskPlan, ...] = ()
    user_snapshots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryPlan:
    """A whole inventory. In host mode only the first host is made."""

    datacenter: str = "dc1"
    cluster: str = "cluster1"
    hosts: tuple[str, ...] = ("esx1.lab", "esx2.lab")
    datastores: tuple[DatastorePlan, ...] = (
        DatastorePlan(name="nfs1", kind="NFS"),
        DatastorePlan(name="nfs2", kind="NFS"),
        DatastorePlan(name="vmfs1", kind="VMFS"),
    )
    networks: tuple[str, ...] = ("VM Network",)
    machines: tuple[MachinePlan, ...] = field(default_factory=tuple)

    @classmethod
    def empty(cls) -> InventoryPlan:
        """Hosts, datastores and a network, without VMs."""
        return cls()

    @classmethod
    def demo(cls, *, disk_bytes: int = 64 * MIB) -> InventoryPlan:
        """A VM with an ext4 disk, one with two disks and a snapshot, and a backup proxy."""
        web = MachinePlan(
            name="web",
            datastore="nfs1",
            disks=(DiskPlan(size_bytes=disk_bytes, content="ext4", seed=1),),
        )
        db = MachinePlan(
            name="db",
            datastore="nfs1",
            change_tracking=True,  # on since before the snapshot: under one it cannot be switched on
            firmware="efi",
            disks=(
                DiskPlan(size_bytes=disk_bytes, content="ext4", seed=2),
                DiskPlan(size_bytes=disk_bytes, datastore="vmfs1", content="random", seed=3),
            ),
            user_snapshots=("before upgrade",),
        )
        proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
        return replace(cls.empty(), machines=(web, db, proxy))

    @classmethod
    def load(cls, path: Path) -> InventoryPlan:
        """Read a JSON file. Raises: LabError for what is no inventory."""
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LabError(f"{path} cannot be read: {error}") from error
        return inventory_from(given)


def inventory_from(given: Mapping[str, Any]) -> InventoryPlan:
    """An inventory from plain values. Raises: LabError for unknown keys or wrong types."""
    values = dict(given)
    for name in ("hosts", "networks"):
        if name in values:
            values[name] = tuple(values[name])
    if "datastores" in values:
        values["datastores"] = tuple(_datastore(each) for each in values["datastores"])
    if "machines" in values:
        values["machines"] = tuple(machine_from(each) for each in values["machines"])
    return _made(InventoryPlan, values)


def machine_from(given: Mapping[str, Any]) -> MachinePlan:
    """A VM's plan from plain values. Raises: LabError."""
    values = dict(given)
    values["disks"] = tuple(disk_from(each) for each in values.get("disks", ()))
    values["user_snapshots"] = tuple(values.get("user_snapshots", ()))
    return _made(MachinePlan, values)


def disk_from(given: Mapping[str, Any]) -> DiskPlan:
    """A disk's plan from plain values; ``size`` is a text such as ``64M``. Raises: LabError."""
    values = dict(given)
    if "size" in values:
        values["size_bytes"] = parse_size(values.pop("size"))
    return _made(DiskPlan, values)


def _datastore(given: Mapping[str, Any]) -> DatastorePlan:
    values = dict(given)
    if "capacity" in values:
        values["capacity_bytes"] = parse_size(values.pop("capacity"))
    return _made(DatastorePlan, values)


def _made(kind: type[Plan], values: Mapping[str, Any]) -> Plan:
    try:
        return kind(**values)
    except TypeError as error:
        raise LabError(f"not a {kind.__name__}: {error}") from error

"""Datastores: a directory each, that looks like NFS or like VMFS, and its browser."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyVmomi import vim

from holdfast_lab.datastore_paths import datastore_path_of
from holdfast_lab.faults import LabError, SoapFault
from holdfast_lab.lab_clock import monotonic_seconds, utc_now
from holdfast_lab.lab_object import LabObject, ManagedEntity, wire_property
from holdfast_lab.method_registry import Call, soap_method

if TYPE_CHECKING:
    from holdfast_lab.hosts import Host
    from holdfast_lab.lab import Lab

KindName = Literal["NFS", "VMFS"]
SECTOR_BYTES = 512
COUNT_SECONDS = 1.0  # how old a count of the files may be while there is plenty of room
FILE_BYTES_MAX = 62 << 40  # VMFS's limit of one file


class DatastoreBrowser(LabObject):
    """The object through which clients search one datastore."""

    kind = vim.host.DatastoreBrowser

    def __init__(self, lab: Lab, moid: str, datastore: Datastore) -> None:
        super().__init__(lab, moid)
        self.datastore = datastore

    @wire_property("datastore")
    def datastore_references(self) -> object:
        return [self.datastore.ref]


class Datastore(ManagedEntity):
    """``root`` is the directory with its files; ``vmfs_version`` chooses the kind of redo logs."""

    kind = vim.Datastore

    def __init__(
        self,
        lab: Lab,
        moid: str,
        *,
        name: str,
        parent: ManagedEntity,
        kind_name: KindName,
        capacity_bytes: int,
        vmfs_version: int = 6,
    ) -> None:
        super().__init__(lab, moid, name=name, parent=parent)
        self.kind_name: KindName = kind_name
        self.capacity_bytes = capacity_bytes
        self.vmfs_version = vmfs_version
        self.root = lab.state / "datastores" / name
        self.root.mkdir(parents=True, exist_ok=True)
        self.uuid = str(uuid.uuid4())
        self.accessible = True
        self.read_latency_milliseconds = 1
        self.read_latency_each_stream_milliseconds = 0
        self.read_latency_told = 0
        self._counted_seconds = -COUNT_SECONDS
        self._counted_bytes = 0
        self.mounts: list[Host] = []
        self.browser = DatastoreBrowser(lab, f"datastoreBrowser-{moid}", self)
        lab.add(self.browser)

    @property
    def url(self) -> str:
        """The address that names the datastore for ever, unlike its name."""
        return f"ds:///vmfs/volumes/{self.uuid}/"

    def path_of(self, local: Path) -> str:
        """The datastore path of a local file."""
        return str(datastore_path_of(local, datastore=self.name, root=self.root))

    def used_bytes(self) -> int:
        """What the files take, holes not counted."""
        used = 0
        for path in self.root.rglob("*"):
            try:
                used += path.lstat().st_blocks * SECTOR_BYTES
            except FileNotFoundError:
                continue
        return used

    def free_bytes(self) -> int:
        """What is left; nothing while misbehaviour says that the datastore is full."""
        full = any(
            rule.kind == "datastore_full" and rule.match.get("datastore", self.name) == self.name
            for rule in self.lab.misbehaviour.rules
        )
        return 0 if full else max(0, self.capacity_bytes - self.used_bytes())

    def read_latency_now(self) -> int:
        """How long a read takes, in milliseconds: the longer the more streams are open."""
        counted = self.lab.calls.counted()["datastores"].get(self.name, {})
        streams = counted.get("open_now", 0)
        return self.read_latency_milliseconds + streams * self.read_latency_each_stream_milliseconds

    def check_space(self, wanted_bytes: int) -> None:
        """Raises: SoapFault (NoDiskSpace) when ``wanted_bytes`` do not fit."""
        told = self.lab.misbehaviour.due("datastore_full", datastore=self.name)
        if told is not None or not self._has_room(wanted_bytes):
            raise SoapFault(
                vim.fault.NoDiskSpace(file=self.name, datastore=self.name),
                f"There is no more space for virtual disk on datastore {self.name}.",
            )

    def _has_room(self, wanted_bytes: int) -> bool:
        """Count the files only when it can matter: a guest asks before each write."""
        now = monotonic_seconds()
        is_old = now - self._counted_seconds > COUNT_SECONDS
        left = self.capacity_bytes - self._counted_bytes
        if is_old or left < self.capacity_bytes // 10 or wanted_bytes > left // 10:
            self._counted_seconds, self._counted_bytes = now, self.used_bytes()
        return wanted_bytes <= self.capacity_bytes - self._counted_bytes

    def any_host(self) -> Host:
        """A host that has the datastore mounted. Raises: LabError."""
        if not self.mounts:
            raise LabError(f"datastore {self.name} is mounted nowhere")
        return self.mounts[0]

    @wire_property("summary")
    def summary(self) -> vim.Datastore.Summary:
        return vim.Datastore.Summary(
            datastore=self.ref,
            name=self.name,
            url=self.url,
            capacity=self.capacity_bytes,
            freeSpace=self.free_bytes(),
            uncommitted=0,
            accessible=self.accessible,
            multipleHostAccess=len(self.mounts) > 1,
            type=self.kind_name,
            maintenanceMode="normal",
        )

    @wire_property("info")
    def info(self) -> vim.Datastore.Info:
        common = {
            "name": self.name,
            "url": self.url,
            "freeSpace": self.free_bytes(),
            "maxFileSize": FILE_BYTES_MAX,
            "timestamp": utc_now(),
        }
        if self.kind_name == "NFS":
            return vim.host.NasDatastoreInfo(
                **common,
                nas=vim.host.NasVolume(
                    type="NFS",
                    name=self.name,
                    capacity=self.capacity_bytes,
                    remoteHost="127.0.0.1",
                    remotePath=str(self.root),
                    userName="",
                    remoteHostNames=["127.0.0.1"],
                ),
            )
        return vim.host.VmfsDatastoreInfo(
            **common,
            vmfs=vim.host.VmfsVolume(
                type="VMFS",
                name=self.name,
                capacity=self.capacity_bytes,
                blockSizeMb=1,
                maxBlocks=63963136,
                majorVersion=self.vmfs_version,
                version=f"{self.vmfs_version}.82",
                uuid=self.uuid,
                extent=[vim.host.ScsiDisk.Partition(diskName=f"naa.lab{self.moid}", partition=1)],
                vmfsUpgradable=False,
                ssd=False,
            ),
        )

    @wire_property("host")
    def host_mounts(self) -> object:
        return [
            vim.Datastore.HostMount(
                key=host.ref,
                mountInfo=vim.host.MountInfo(
                    path=f"/vmfs/volumes/{self.uuid}",
                    accessMode="readWrite",
                    mounted=True,
                    accessible=self.accessible,
                ),
            )
            for host in self.mounts
        ]

    @wire_property("vm")
    def machine_references(self) -> object:
        return [each.ref for each in self.lab.machines() if self in each.datastores()]

    @wire_property("browser")
    def browser_reference(self) -> object:
        return self.browser.ref

    @wire_property("capability")
    def capability(self) -> vim.Datastore.Capability:
        return vim.Datastore.Capability(
            directoryHierarchySupported=True,
            rawDiskMappingsSupported=self.kind_name == "VMFS",
            perFileThinProvisioningSupported=True,
            storageIORMSupported=False,
            nativeSnapshotSupported=False,
            topLevelDirectoryCreateSupported=True,
            seSparseSupported=self.kind_name == "VMFS" and self.vmfs_version >= 6,
        )


@soap_method("RefreshDatastore")
def refresh(call: Call) -> None:
    """Measure free space anew: done each time it is read, so there is nothing to do."""
    call.lab.get(call.this, Datastore)

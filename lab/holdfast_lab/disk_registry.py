"""All virtual disks that the lab knows, found by any of their descriptors.

One ``LabDisk`` stands for one chain of files, however many VMs name it: the VM itself, a backup
proxy that has a frozen link attached, or nobody at all (a file left on a datastore). It stays known
until its files are gone, so its log of guest writes outlives an unregistered VM.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

from holdfast_lab.storage.disk import DatastoreKind, LabDisk, Provisioning
from holdfast_lab.storage.errors import FileMissing

SpaceGuard = Callable[[Path, int], None]  # a file that is to grow, and by how many bytes


class DiskRegistry:
    """The known disks. Any thread.

    ``guard`` is asked before a disk grows and may refuse; it is called with the disk's lock held,
    so it must not take ``Lab.lock``.
    """

    def __init__(self, guest_root: Path, guard: SpaceGuard | None = None) -> None:
        self._guard = guard
        self._guest_root = guest_root
        self._lock = threading.RLock()
        self._disks: list[LabDisk] = []
        self._identities: dict[int, tuple[int, int]] = {}
        self._numbers = itertools.count(1)

    def create(
        self,
        directory: Path,
        base_name: str,
        capacity_bytes: int,
        *,
        kind: DatastoreKind,
        provisioning: Provisioning = Provisioning.THIN,
        adapter: str = "lsilogic",
        uuid: str | None = None,
    ) -> LabDisk:
        """Make a new disk, all zeros. Raises: FileExists."""
        with self._lock:
            disk = LabDisk.create(
                directory,
                base_name,
                capacity_bytes,
                guest_log=self._new_log(base_name),
                provisioning=provisioning,
                datastore_kind=kind,
                uuid=uuid,
                adapter=adapter,
            )
            return self._remember(disk)

    def find(self, descriptor: Path) -> LabDisk | None:
        """The disk that has this link; None when no known disk has it."""
        wanted = descriptor.resolve()
        with self._lock:
            self._drop_vanished()
            for disk in self._disks:
                if any(link.resolve() == wanted for link in disk.all_links):
                    return disk
        return None

    def open(self, descriptor: Path, *, kind: DatastoreKind) -> LabDisk:
        """The disk that has this link, taken over from the files when it was not known.

        Raises: FileMissing, DescriptorError.
        """
        with self._lock:
            known = self.find(descriptor)
            if known is not None:
                return known
            if not descriptor.is_file():
                raise FileMissing(f"{descriptor} is not there")
            disk = LabDisk.adopt(
                descriptor, guest_log=self._new_log(descriptor.stem), datastore_kind=kind
            )
            return self._remember(disk)

    def clone(
        self,
        source: LabDisk,
        directory: Path,
        base_name: str,
        *,
        descriptor: Path | None,
        kind: DatastoreKind,
        provisioning: Provisioning | None = None,
        uuid: str | None = None,
    ) -> LabDisk:
        """Copy a disk as seen from a link (None: the tip). Long; ``uuid`` None keeps the uuid."""
        copy = source.clone(
            directory,
            base_name,
            guest_log=self._new_log(base_name),
            descriptor=descriptor,
            uuid=uuid,
            provisioning=provisioning,
            datastore_kind=kind,
        )
        with self._lock:
            return self._remember(copy)

    def moved(self, disk: LabDisk) -> None:
        """The disk's files lie elsewhere now: remember where."""
        with self._lock:
            self._identities[id(disk)] = _identity(disk)

    def forget(self, disk: LabDisk) -> None:
        """The disk was deleted."""
        with self._lock:
            if disk in self._disks:
                self._disks.remove(disk)
                self._identities.pop(id(disk), None)

    def known(self) -> list[LabDisk]:
        """Every known disk."""
        with self._lock:
            self._drop_vanished()
            return list(self._disks)

    def _remember(self, disk: LabDisk) -> LabDisk:
        guard = self._guard
        if guard is not None:
            disk.space_guard = lambda length: guard(disk.tip_descriptor, length)
        self._disks.append(disk)
        self._identities[id(disk)] = _identity(disk)
        return disk

    def _new_log(self, base_name: str) -> Path:
        while True:
            log = self._guest_root / f"{next(self._numbers):04d}-{base_name}"
            if not log.exists():
                return log

    def _drop_vanished(self) -> None:
        """Forget disks whose base was deleted or replaced by somebody who writes the folder."""
        for disk in list(self._disks):
            if _identity(disk) != self._identities[id(disk)]:
                self.forget(disk)


def _identity(disk: LabDisk) -> tuple[int, int]:
    """Which file the base's data is now; (0, 0) when there is none."""
    base = disk.all_links[0]
    try:
        flat = next(file for file in disk.files(base) if file.name.endswith("-flat.vmdk"))
        found = flat.stat()
    except (OSError, StopIteration):
        return (0, 0)
    return (found.st_dev, found.st_ino)

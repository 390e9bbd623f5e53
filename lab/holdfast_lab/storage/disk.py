"""One virtual disk of a lab VM: its links, the guest's writes, change tracking, ground truth.

Every method takes the disk's own lock, so any thread may call any of them. Offsets and lengths
are bytes and whole sectors; ranges are half open. Links are named by their descriptor's path.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from holdfast_lab.storage.descriptor import (
    CreateType,
    Descriptor,
    load,
    new_cid,
    new_disk_uuid,
    save,
)
from holdfast_lab.storage.errors import FileExists, OutOfRange
from holdfast_lab.storage.flat import FlatExtent, create_flat
from holdfast_lab.storage.runs import Area

AREAS_MAX = 2000  # areas in one answer of QueryChangedDiskAreas
SECTOR_BYTES = 512


class Provisioning(enum.Enum):
    """How a base disk takes its space."""

    THIN = "thin"
    THICK_LAZY = "thick_lazy"
    THICK_EAGER = "thick_eager"


class DatastoreKind(enum.Enum):
    """Decides the redo log's format, and what the change id ``*`` answers."""

    NFS = "NFS"  # -delta (COWD)
    VMFS = "VMFS"  # VMFS 6: -sesparse
    VMFS5 = "VMFS5"  # -delta (COWD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What a freeze made. ``change_id`` is None while tracking is not yet effective."""

    descriptor: Path
    tip: Path
    sequence: int
    change_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedAreas:
    """One answer: it covers ``[start_offset, start_offset + length)``; the rest must be asked."""

    start_offset: int
    length: int
    areas: tuple[Area, ...]


class DiskReader(Protocol):
    """A whole disk as seen from one link, with the chain below it."""

    capacity_bytes: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from ``offset``. Raises: OutOfRange."""
        ...

    def allocated(self) -> Iterator[Area]:
        """Areas that hold data in any link, in order; everything else reads as zeros."""
        ...

    def close(self) -> None:
        """Give the files back."""
        ...


class LabDisk:
    """See the module. Make one with ``create`` or ``adopt``, never directly.

    Attributes:
        space_guard: called with the bytes about to be allocated by a guest write, a freeze or a
            merge; may raise (a full datastore).
    """

    space_guard: Callable[[int], None] | None

    # -- making and taking over ------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: Path,
        base_name: str,
        capacity_bytes: int,
        *,
        guest_log: Path,
        provisioning: Provisioning = Provisioning.THIN,
        datastore_kind: DatastoreKind = DatastoreKind.VMFS,
        uuid: str | None = None,
        adapter: str = "lsilogic",
    ) -> LabDisk:
        """Make ``base_name.vmdk`` and ``base_name-flat.vmdk`` in the directory, all zeros.

        ``guest_log`` is a directory for this disk's log of guest writes (made if needed).
        ``uuid`` None: a new one. Raises: FileExists.
        """
        descriptor_path = directory / f"{base_name}.vmdk"
        flat = directory / f"{base_name}-flat.vmdk"
        if descriptor_path.exists() or flat.exists():
            raise FileExists(f"{descriptor_path.name} is already there")
        create_flat(flat, capacity_bytes)
        save(
            descriptor_path,
            Descriptor(
                create_type=CreateType.FLAT,
                capacity_bytes=capacity_bytes,
                extent_name=flat.name,
                cid=new_cid(),
                uuid=uuid or new_disk_uuid(),
                adapter=adapter,
                thin=provisioning is Provisioning.THIN,
            ),
        )
        disk = cls.adopt(descriptor_path, guest_log=guest_log, datastore_kind=datastore_kind)
        disk.provisioning = provisioning
        return disk

    @classmethod
    def adopt(
        cls,
        descriptor: Path,
        *,
        guest_log: Path,
        datastore_kind: DatastoreKind = DatastoreKind.VMFS,
        pinned: Iterable[Path] | None = None,
    ) -> LabDisk:
        """Take over existing files; ``descriptor`` becomes the tip, its parents are followed.

        Branches beside the tip's chain, in the same directory, are found too. ``pinned``: frozen
        links that a snapshot names (None: all). The ground truth starts with the content found,
        or continues when ``guest_log`` already holds a log.
        Raises: DescriptorError, FileMissing.
        """
        self = cls.__new__(cls)
        self.lock = threading.RLock()
        self.space_guard = None
        found = load(descriptor)
        self.uuid = found.uuid
        self.adapter = found.adapter
        self.datastore_kind = datastore_kind
        self.provisioning = Provisioning.THIN if found.thin else Provisioning.THICK_LAZY
        self.directory = descriptor.parent
        self.base_name = descriptor.stem
        self.guest_log_directory = guest_log
        self._tip = descriptor
        self._flat = FlatExtent(descriptor.parent / found.extent_name)
        return self

    lock: threading.RLock
    uuid: str | None
    adapter: str
    datastore_kind: DatastoreKind
    provisioning: Provisioning
    directory: Path
    base_name: str
    guest_log_directory: Path

    # -- facts -----------------------------------------------------------------------------

    @property
    def capacity_bytes(self) -> int:
        """The size of the disk."""
        return self._flat.capacity_bytes

    @property
    def tip_descriptor(self) -> Path:
        """The link that the running VM writes to."""
        return self._tip

    @property
    def links(self) -> tuple[Path, ...]:
        """Descriptors of the tip's chain, base first."""
        return (self._tip,)

    @property
    def all_links(self) -> tuple[Path, ...]:
        """Descriptors of every link, other branches too; parents before children."""
        return (self._tip,)

    def parent_of(self, descriptor: Path) -> Path | None:
        """The link below; None for the base."""
        raise NotImplementedError

    def children_of(self, descriptor: Path) -> tuple[Path, ...]:
        """The links directly above."""
        raise NotImplementedError

    def chain_of(self, descriptor: Path) -> tuple[Path, ...]:
        """The link and all below it, base first."""
        raise NotImplementedError

    def files(self, descriptor: Path | None = None) -> tuple[Path, ...]:
        """All files of one link (descriptor, data, tracking); None: of all links."""
        raise NotImplementedError

    # -- data ------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from the tip. Raises: OutOfRange."""
        self._check(offset, len(buffer))
        self._flat.read_data(offset, buffer)

    def guest_write(self, offset: int, data: bytes | memoryview) -> int:
        """Write as the guest: tip, change tracking and log. Returns the log's sequence."""
        view = memoryview(data)
        self._check(offset, len(view))
        self._flat.write(offset, view, lambda _offset, _buffer: None)
        return 0

    def guest_zero(self, offset: int, length: int) -> int:
        """The guest writes zeros (WRITE SAME). Returns the log's sequence."""
        raise NotImplementedError

    def guest_discard(self, offset: int, length: int) -> int:
        """The guest unmaps a range; it reads as zeros afterwards. Returns the log's sequence."""
        raise NotImplementedError

    def reader_at(self, descriptor: Path | None = None) -> DiskReader:
        """Open a link as a whole disk (None: the tip). Close it: it holds its chain busy."""
        raise NotImplementedError

    def materialise(self, to: Path, descriptor: Path | None = None) -> None:
        """Write the disk as seen from a link (None: the tip) as a new sparse raw file."""
        raise NotImplementedError

    def flip_byte(self, offset: int | None = None) -> int:
        """Change one stored byte behind everybody's back (no log, no tracking).

        ``offset`` None: in the middle of the first allocated area. Returns the offset.
        """
        raise NotImplementedError

    def content_replaced(self) -> None:
        """Somebody else wrote to the files (restore through a path or a hot-added device).

        The ground truth starts again with what the files hold now.
        """
        raise NotImplementedError

    # -- the chain -------------------------------------------------------------------------

    def freeze(self, child_name: str | None = None) -> Frozen:
        """Put a new link above the tip; a snapshot names the frozen one. Also a stun.

        ``child_name``: the new descriptor's file name; None: the lowest free ``-00000N``.
        """
        raise NotImplementedError

    def release(self, frozen: Path, *, consolidate: bool = True) -> None:
        """The snapshot that named ``frozen`` is removed: merge what nobody needs any more.

        ``consolidate`` False leaves the links as they are (see ``consolidation_needed``).
        Raises: LinkBusy when a link is read just now; the release itself has then happened.
        """
        raise NotImplementedError

    @property
    def consolidation_needed(self) -> bool:
        """Are there links that no snapshot needs?"""
        raise NotImplementedError

    def consolidate(self) -> None:
        """Merge or delete every link that no snapshot needs. Raises: LinkBusy."""
        raise NotImplementedError

    def merge(self, link: Path) -> Path:
        """Copy a link into its parent, re-parent its children, delete it; gives the parent.

        The parent then stands for what ``link`` stood for. Raises: LinkBusy, ChainError (the
        base, or a parent with other children).
        """
        raise NotImplementedError

    def revert(self, frozen: Path) -> Path:
        """Drop the tip, put a new one above ``frozen``; gives the new tip. Also a stun."""
        raise NotImplementedError

    def extend(self, capacity_bytes: int) -> None:
        """Grow the disk. Raises: ChainError with snapshots, OutOfRange when not larger."""
        raise NotImplementedError

    def move(
        self,
        directory: Path,
        *,
        base_name: str | None = None,
        datastore_kind: DatastoreKind | None = None,
        tracking: Literal["keep", "reset"] = "reset",
    ) -> None:
        """Move every file (storage migration). ``reset``: change ids from before are unknown.

        Raises: LinkBusy, FileExists.
        """
        raise NotImplementedError

    def clone(
        self,
        directory: Path,
        base_name: str,
        *,
        guest_log: Path,
        descriptor: Path | None = None,
        uuid: str | None = None,
        provisioning: Provisioning | None = None,
        datastore_kind: DatastoreKind | None = None,
    ) -> LabDisk:
        """Copy the disk as seen from a link (None: the tip) into a new flat disk.

        ``uuid`` None keeps the uuid, as vSphere does.
        """
        raise NotImplementedError

    def delete(self) -> None:
        """Delete every file of the disk; the guest log stays. Raises: LinkBusy."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the files and keep them (unregister)."""
        self._flat.close()

    def hold(self, descriptor: Path, reason: str) -> object:
        """Keep a link and its chain from being merged, moved or deleted; gives a token."""
        raise NotImplementedError

    def let_go(self, token: object) -> None:
        """End a ``hold``; harmless when done twice."""
        raise NotImplementedError

    def holds(self, descriptor: Path) -> tuple[str, ...]:
        """Reasons of holds and open readers on a link, as the link itself or as a parent."""
        raise NotImplementedError

    # -- change tracking -------------------------------------------------------------------

    @property
    def tracking_enabled(self) -> bool:
        """The flag of the VM, seen at once after ``enable_tracking``."""
        raise NotImplementedError

    def enable_tracking(self, *, granularity: int | None = None) -> None:
        """Switch tracking on; it becomes effective with the next stun.

        ``granularity`` None: by the size of the disk (64 KiB up to 128 GiB).
        """
        raise NotImplementedError

    def disable_tracking(self) -> None:
        """Switch tracking off and delete the tracking files."""
        raise NotImplementedError

    def change_id(self, descriptor: Path | None = None) -> str | None:
        """The id to put into a config's backing (None: the tip's); None while unset."""
        raise NotImplementedError

    def stun(self) -> None:
        """A moment without guest I/O: power on or off, a migration, a snapshot removal."""
        raise NotImplementedError

    def power_on(self) -> None:
        """A stun; after an unclean stop tracking starts again with a new uuid."""
        raise NotImplementedError

    def unclean_stop(self) -> None:
        """The host died: the next ``power_on`` distrusts the tracking file."""
        raise NotImplementedError

    def damage_tracking(self) -> None:
        """Damage the tracking file of the tip; noticed at the next stun."""
        raise NotImplementedError

    def query(
        self,
        change_id: str,
        descriptor: Path | None = None,
        start_offset: int = 0,
        *,
        areas_max: int = AREAS_MAX,
        distort: Callable[[Sequence[Area]], Sequence[Area]] | None = None,
    ) -> ChangedAreas:
        """What changed after ``change_id`` up to a link (None: the tip), or ``*``.

        ``areas_max`` small = an honest short answer. ``distort`` gets all areas from
        ``start_offset`` on and may drop or shorten some: a lie.
        Raises: ChangeIdUnknown, OutOfRange (start at or past the capacity).
        """
        raise NotImplementedError

    # -- ground truth ----------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """The number of the log's newest record."""
        raise NotImplementedError

    def truth_sequence(self, descriptor: Path) -> int:
        """The log's sequence at which a link was frozen; the newest for the tip."""
        raise NotImplementedError

    def truth(self, to: Path, at: int | None = None) -> None:
        """Replay the guest log up to a sequence (None: all) into a new sparse raw file."""
        raise NotImplementedError

    def first_difference(self, candidate: Path | DiskReader, at: int | None = None) -> int | None:
        """The first offset where a raw file or reader differs from the truth; None: equal."""
        raise NotImplementedError

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.capacity_bytes:
            raise OutOfRange(f"[{offset}, {offset + length}) is not within the disk")

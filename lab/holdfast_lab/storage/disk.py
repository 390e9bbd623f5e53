"""One virtual disk of a lab VM: what its guest and its host do to it.

Below it ``disk_truth`` (what must be read) and ``disk_links`` (the files, change tracking).

Every method takes the disk's own lock, so any thread may call any of them. Offsets and lengths
are bytes and whole sectors; ranges are half open. Links are named by their descriptor's path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from holdfast_lab.storage.descriptor import CreateType, Descriptor, new_cid, new_disk_uuid, save
from holdfast_lab.storage.disk_truth import DiskWithTruth
from holdfast_lab.storage.disk_values import (
    AREAS_MAX,
    SECTOR_BYTES,
    ChangedAreas,
    DatastoreKind,
    DiskReader,
    Frozen,
    Hold,
    Provisioning,
    StarOnNfs,
)
from holdfast_lab.storage.errors import ChainError, FileExists, OutOfRange
from holdfast_lab.storage.flat import create_flat
from holdfast_lab.storage.guest_log import GuestLog
from holdfast_lab.storage.link_memory import restore_links, save_links
from holdfast_lab.storage.links import LinkTree
from holdfast_lab.storage.readers import chain_allocated, copy_data_to

__all__ = [
    "AREAS_MAX",
    "SECTOR_BYTES",
    "ChangedAreas",
    "DatastoreKind",
    "DiskReader",
    "Frozen",
    "Hold",
    "LabDisk",
    "Provisioning",
    "StarOnNfs",
]

NEW_LINK_BYTES = 1024 * 1024  # what a freeze asks the space guard for


class LabDisk(DiskWithTruth):
    """See the module. Make one with ``create`` or ``adopt``.

    Attributes:
        space_guard: called with the bytes about to be allocated by a guest write, a freeze or a
            merge; may raise (a full datastore). None: no limit.
    """

    def __init__(self, tree: LinkTree, log: GuestLog, *, provisioning: Provisioning) -> None:
        super().__init__(tree, log, provisioning=provisioning)
        self.space_guard: Callable[[int], None] | None = None

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
        ``uuid`` None: a new one. Raises: FileExists, also when the log is in use already.
        """
        path = directory / f"{base_name}.vmdk"
        flat = directory / f"{base_name}-flat.vmdk"
        if path.exists() or flat.exists():
            raise FileExists(f"{path.name} is already there")
        log = GuestLog(guest_log)
        if log.sequence:
            log.close()
            raise FileExists(f"{guest_log} holds the log of another disk")
        descriptor = Descriptor(
            create_type=CreateType.FLAT,
            capacity_bytes=capacity_bytes,
            extent_name=flat.name,
            cid=new_cid(),
            uuid=uuid or new_disk_uuid(),
            adapter=adapter,
            thin=provisioning is Provisioning.THIN,
        )
        create_flat(flat, capacity_bytes)
        save(path, descriptor)
        log.size(capacity_bytes)
        return cls(LinkTree(path, datastore_kind), log, provisioning=provisioning)

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
        links that a snapshot names (None: what ``guest_log`` remembers, otherwise all). The
        ground truth starts with the content found, or goes on when the log is not empty.
        Raises: DescriptorError, FileMissing, ChainError.
        """
        tree = LinkTree(descriptor, datastore_kind)
        thin = tree.base.descriptor.thin
        log = GuestLog(guest_log)
        disk = cls(tree, log, provisioning=Provisioning.THIN if thin else Provisioning.THICK_LAZY)
        if not log.sequence:
            log.restart(tree.tip.descriptor.capacity_bytes)
        restore_links(guest_log, tree, None if pinned is None else set(pinned))
        disk._links_changed()
        return disk

    # -- data ------------------------------------------------------------------------------

    def guest_write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Write as the guest: tip, change tracking and log. Returns the log's sequence."""
        view = memoryview(data).cast("B")
        with self.lock:
            self._before_guest_change(offset, len(view), allocates=len(view))
            self._tree.write(offset, view)
            self._tracking.mark(offset, len(view))
            return self._log.write(offset, view)

    def guest_zero(self, offset: int, length: int) -> int:
        """The guest writes zeros (WRITE SAME). Returns the log's sequence."""
        with self.lock:
            self._before_guest_change(offset, length, allocates=0)
            self._tree.write_zeros(offset, length)
            self._tracking.mark(offset, length)
            return self._log.zero(offset, length)

    def guest_discard(self, offset: int, length: int) -> int:
        """The guest unmaps; the range reads as zeros. Returns the log's sequence."""
        return self.guest_zero(offset, length)

    def flip_byte(self, offset: int | None = None) -> int:
        """Change one byte of the tip behind everybody's back: no log, no tracking.

        ``offset`` None: in the middle of the first area with data. Returns the offset.
        """
        with self.lock:
            tip = self._tree.tip
            if offset is None:
                area = next(chain_allocated(tip.extents(), self.capacity_bytes), None)
                offset = self.capacity_bytes // 2 if area is None else (area.offset + area.end) // 2
            start = offset // SECTOR_BYTES * SECTOR_BYTES
            sector = bytearray(SECTOR_BYTES)
            self.read_into(start, memoryview(sector))
            sector[offset - start] ^= 0xFF
            self._tree.write(start, memoryview(sector))
            return offset

    def content_replaced(self) -> None:
        """Somebody else wrote to the files (a restore by path, or through a hot-added device).

        The ground truth starts again with what the files hold now.
        """
        with self.lock:
            self._tree.open_again()
            self._log.restart(self.capacity_bytes)

    # -- the chain -------------------------------------------------------------------------

    def freeze(self, child_name: str | None = None) -> Frozen:
        """Put a new link above the tip; a snapshot names the frozen one. Also a stun.

        ``child_name``: the new descriptor's file name; None: the lowest free ``-00000N``.
        """
        with self.lock:
            self._ask_for_space(NEW_LINK_BYTES)
            self._tracking.before_freeze()
            frozen = self._tree.tip
            child = self._tree.add_child(frozen, child_name)
            frozen.sequence = self._log.freeze()
            frozen.pinned = True
            self._tree.tip = child
            self._tracking.after_freeze(frozen, child)
            self._links_changed()
            return Frozen(
                descriptor=frozen.path,
                tip=child.path,
                sequence=frozen.sequence,
                change_id=self._tracking.change_id(frozen),
            )

    def release(self, frozen: Path, *, consolidate: bool = True) -> None:
        """The snapshot that named ``frozen`` is removed; links that nobody needs are merged.

        ``consolidate`` False leaves them (see ``consolidation_needed``).
        Raises: LinkBusy when a link is in use; the release itself has then happened.
        """
        with self.lock:
            self._tree.link(frozen).pinned = False
            self._links_changed()
            if consolidate:
                self.consolidate()

    @property
    def consolidation_needed(self) -> bool:
        """Are there links that no snapshot needs and that could go?"""
        with self.lock:
            return self._tree.next_unneeded() is not None

    def consolidate(self) -> None:
        """Merge or delete every link that no snapshot needs. Raises: LinkBusy."""
        with self.lock:
            while (link := self._tree.next_unneeded()) is not None:
                if link.children:
                    self.merge(link.children[0].path)
                else:
                    self._tree.remove_leaf(link)
                    self._links_changed()

    def merge(self, link: Path) -> Path:
        """Copy a link into its parent, re-parent its children, delete it; gives the parent.

        The parent then stands for what ``link`` stood for. Raises: LinkBusy, ChainError (the
        base, or a parent with other children).
        """
        with self.lock:
            merged = self._tree.link(link)
            self._ask_for_space(merged.held_bytes())
            header = self._tracking.header(merged)
            forgets = self._tracking.merge_forgets(merged)
            parent = self._tree.merge(merged, keep_parents_tracking=forgets)
            self._tracking.after_merge(parent, header)
            self._links_changed()
            return parent.path

    def revert(self, frozen: Path) -> Path:
        """Drop the tip, put a new one above ``frozen``; gives the new tip. Also a stun."""
        with self.lock:
            target = self._tree.link(frozen)
            old = self._tree.tip
            if target is old:
                raise ChainError(f"{frozen.name} is the tip, not a frozen link")
            self._tree.refuse_when_busy([old])
            newest_epoch = self._tracking.newest_epoch()
            child = self._tree.add_child(target)
            self._tree.tip = child
            self._tree.remove_leaf(old)
            if target.sequence is None:  # frozen before this log began: only the files know
                self._log.restart(self.capacity_bytes)
            else:
                self._log.revert(target.sequence)
            self._tracking.after_revert(target, child, newest_epoch)
            self._links_changed()
            return child.path

    def extend(self, capacity_bytes: int) -> None:
        """Grow the disk. Raises: ChainError with snapshots, OutOfRange when not larger."""
        with self.lock:
            old = self.capacity_bytes
            if capacity_bytes <= old or capacity_bytes % SECTOR_BYTES:
                raise OutOfRange(f"{capacity_bytes} bytes is not a larger size in whole sectors")
            self._tree.extend(capacity_bytes)
            self._log.size(capacity_bytes)
            self._tracking.after_extend(old, capacity_bytes)

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
        with self.lock:
            self._tree.move(directory, base_name)
            self._tree.kind = datastore_kind or self._tree.kind
            if tracking == "reset":
                self._tracking.reset()
            self._tracking.stun()
            self._links_changed()

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
        with self.reader_at(descriptor, reason="clone") as reader:
            copy = LabDisk.create(
                directory,
                base_name,
                reader.capacity_bytes,
                guest_log=guest_log,
                provisioning=provisioning or self.provisioning,
                datastore_kind=datastore_kind or self.datastore_kind,
                uuid=uuid or self.uuid,
                adapter=self.adapter,
            )
            copy_data_to(reader, directory / f"{base_name}-flat.vmdk")
        copy.content_replaced()
        return copy

    def delete(self) -> None:
        """Delete every file of the disk; the guest log stays. Raises: LinkBusy."""
        with self.lock:
            self._tree.delete_all()
            self._log.close()

    def close(self) -> None:
        """Close the files and keep them (unregister); the object is of no use afterwards."""
        with self.lock:
            self._tree.close()
            self._log.close()

    # -- inside ----------------------------------------------------------------------------

    def _before_guest_change(self, offset: int, length: int, *, allocates: int) -> None:
        self._check(offset, length)
        if offset % SECTOR_BYTES or length % SECTOR_BYTES or not length:
            raise OutOfRange(f"[{offset}, {offset + length}) is not whole sectors")
        self._ask_for_space(allocates)
        self._take_baseline_if_pending()

    def _ask_for_space(self, length: int) -> None:
        if self.space_guard is not None and length:
            self.space_guard(length)

    def _links_changed(self) -> None:
        save_links(self._log.directory, self._tree)

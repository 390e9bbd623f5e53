"""The links of one disk as a tree of files: creating, freezing, merging, reverting.

Knows files and parents; nothing of the guest's log or of change ids (``disk`` joins them). The
disk's lock covers every call.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from holdfast_lab.storage.cowd import SECTORS_MAX, create_cowd
from holdfast_lab.storage.descriptor import (
    SECTOR_BYTES,
    CreateType,
    Descriptor,
    load,
    new_cid,
    save,
)
from holdfast_lab.storage.disk_values import DatastoreKind, Hold
from holdfast_lab.storage.errors import (
    ChainError,
    DescriptorError,
    FileExists,
    FileMissing,
    LinkBusy,
    StorageError,
)
from holdfast_lab.storage.extent_file import ExtentFile, ReadBelow
from holdfast_lab.storage.flat import FlatExtent, copy_data
from holdfast_lab.storage.readers import chain_runs, load_chain, open_extent, pieces, read_chain
from holdfast_lab.storage.runs import Area, RunKind
from holdfast_lab.storage.se_sparse import create_se_sparse

DESCRIPTORS_SEEN_MAX = 4096  # in one directory, when looking for branches
NAME_NUMBERS_MAX = 999_999


@dataclass(slots=True, eq=False)
class Link:
    """One link. ``sequence`` is the guest log's at which it was frozen; None: tip or unknown."""

    path: Path
    descriptor: Descriptor
    extent: ExtentFile
    parent: Link | None = None
    pinned: bool = False
    sequence: int | None = None
    children: list[Link] = field(default_factory=list)

    @property
    def data_path(self) -> Path:
        """The file with the data."""
        return self.path.parent / self.descriptor.extent_name

    @property
    def tracking_path(self) -> Path | None:
        """The change tracking file; None while there is none."""
        name = self.descriptor.change_track_name
        return None if name is None else self.path.parent / name

    @property
    def files(self) -> tuple[Path, ...]:
        """Descriptor, data, and tracking if any."""
        tracking = self.tracking_path
        return (self.path, self.data_path, *(() if tracking is None else (tracking,)))

    def held_bytes(self) -> int:
        """How much data the link itself holds."""
        runs = self.extent.runs(0, self.descriptor.capacity_bytes)
        return sum(run.length for run in runs if run.kind is RunKind.DATA)

    def chain(self) -> list[Link]:
        """The link and its parents, base last."""
        found = [self]
        while found[-1].parent is not None:
            found.append(found[-1].parent)
        return found

    def extents(self) -> list[ExtentFile]:
        """The data files of the chain, topmost first."""
        return [link.extent for link in self.chain()]

    def change_descriptor(self, descriptor: Descriptor) -> None:
        """Keep and store another text."""
        self.descriptor = descriptor
        save(self.path, descriptor)

    def below(self) -> ReadBelow:
        """Reads what the parents hold."""
        extents = [] if self.parent is None else self.parent.extents()

        def read(offset: int, buffer: memoryview) -> None:
            read_chain(extents, offset, buffer)

        return read


class LinkTree:
    """All links of one disk: one base, branches where a snapshot was reverted to, one tip."""

    def __init__(self, tip_path: Path, kind: DatastoreKind) -> None:
        self.kind = kind
        self.base_name = ""
        self.links: dict[Path, Link] = {}
        self.holds: set[Hold] = set()
        try:
            for path, _ in reversed(load_chain(tip_path)):
                self._add(path)
            self._find_branches()
        except BaseException:
            self.close()
            raise
        self.tip = self.links[tip_path]
        self.base_name = self.base.path.stem

    @property
    def base(self) -> Link:
        """The link without a parent."""
        return next(link for link in self.links.values() if link.parent is None)

    def link(self, path: Path) -> Link:
        """Find a link. Raises: FileMissing."""
        found = self.links.get(path)
        if found is None:
            raise FileMissing(f"{path} is not a link of this disk")
        return found

    def close(self) -> None:
        """Close every file."""
        for link in self.links.values():
            link.extent.close()

    def open_again(self) -> None:
        """Open every data file anew: somebody may have put others in their places."""
        for link in self.links.values():
            link.extent.close()
            link.extent = open_extent(link.path, link.descriptor, writable=True)

    # -- data ------------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> None:
        """Write to the tip."""
        self.tip.extent.write(offset, data, self.tip.below())

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range of the tip read as zeros; what does already is left alone."""
        write_zeros(self.tip, offset, length)

    # -- shape -----------------------------------------------------------------------------

    def add_child(self, parent: Link, name: str | None = None) -> Link:
        """A new, empty link above ``parent``. Raises: FileExists."""
        stem = self._free_stem() if name is None else name.removesuffix(".vmdk")
        path = parent.path.parent / f"{stem}.vmdk"
        capacity = parent.descriptor.capacity_bytes
        cowd = self.kind is not DatastoreKind.VMFS and capacity // SECTOR_BYTES <= SECTORS_MAX
        data = path.with_name(f"{stem}-{'delta' if cowd else 'sesparse'}.vmdk")
        if path.exists() or data.exists():
            raise FileExists(f"{path.name} is already there")
        if cowd:
            create_cowd(data, capacity)
        else:
            create_se_sparse(data, capacity)
        descriptor = Descriptor(
            create_type=CreateType.COWD if cowd else CreateType.SE_SPARSE,
            capacity_bytes=capacity,
            extent_name=data.name,
            cid=new_cid(),
            parent_cid=parent.descriptor.cid,
            parent_name=parent.path.name,
            uuid=parent.descriptor.uuid,
            adapter=parent.descriptor.adapter,
        )
        save(path, descriptor)
        return self._add(path)

    def merge(self, link: Link, *, keep_parents_tracking: bool = False) -> Link:
        """Copy a link into its parent, which takes over its place in the tree.

        ``keep_parents_tracking``: the tracking file is not taken over (see ``tracking``).
        Raises: ChainError, LinkBusy.
        """
        parent = link.parent
        if parent is None:
            raise ChainError("the base disk has no parent to merge into")
        if parent.children != [link]:
            raise ChainError(f"{parent.path.name} has other children")
        self.refuse_when_busy([parent])
        copy_into_parent(link, parent)
        if not keep_parents_tracking:
            self._take_over_tracking(link, parent)
        parent.change_descriptor(replace(parent.descriptor, cid=link.descriptor.cid))
        parent.pinned = link.pinned
        parent.sequence = link.sequence
        parent.children = link.children
        for child in link.children:
            child.parent = parent
            child.change_descriptor(replace(child.descriptor, parent_name=parent.path.name))
        link.children = []
        if self.tip is link:
            self.tip = parent
        self._remove_files(link)
        return parent

    def remove_leaf(self, link: Link) -> None:
        """Delete a link without children. Raises: ChainError, LinkBusy."""
        if link.children or link.parent is None:
            raise ChainError(f"{link.path.name} is not a leaf")
        self.refuse_when_busy([link])
        link.parent.children.remove(link)
        self._remove_files(link)

    def extend(self, capacity_bytes: int) -> None:
        """Grow the only link. Raises: ChainError when there are more."""
        extent = self.tip.extent
        if len(self.links) != 1 or not isinstance(extent, FlatExtent):
            raise ChainError("a disk with snapshots cannot grow")
        extent.resize(capacity_bytes)
        self.tip.change_descriptor(
            replace(self.tip.descriptor, capacity_bytes=capacity_bytes, cid=new_cid())
        )

    def next_unneeded(self) -> Link | None:
        """A link that no snapshot needs and that can go now; None when there is none."""
        for link in self.links.values():
            if not link.pinned and link is not self.tip and len(link.children) <= 1:
                return link
        return None

    def delete_all(self) -> None:
        """Delete every file. Raises: LinkBusy."""
        self.refuse_when_busy(list(self.links.values()))
        for link in list(self.links.values()):
            self._remove_files(link)

    def move(self, directory: Path, base_name: str | None) -> None:
        """Move every file. Raises: LinkBusy, FileExists."""
        everything = list(self.links.values())
        self.refuse_when_busy(everything)
        new_name = base_name or self.base_name
        plan = {
            file: directory / (new_name + file.name.removeprefix(self.base_name))
            for link in everything
            for file in link.files
        }
        for target in plan.values():
            if target.exists():
                raise FileExists(f"{target} is already there")
        for source, target in plan.items():
            move_sparse(source, target)
        for link in everything:
            tracking = link.tracking_path
            link.descriptor = replace(
                link.descriptor,
                extent_name=plan[link.data_path].name,
                change_track_name=None if tracking is None else plan[tracking].name,
            )
        for link in everything:
            link.path = plan[link.path]
        for link in everything:
            parent_name = None if link.parent is None else link.parent.path.name
            link.change_descriptor(replace(link.descriptor, parent_name=parent_name))
            link.extent.close()
            link.extent = open_extent(link.path, link.descriptor, writable=True)
        self.links = {link.path: link for link in everything}
        self.base_name = new_name

    # -- holds -----------------------------------------------------------------------------

    def reasons(self, link: Link) -> tuple[str, ...]:
        """Who uses the link, itself or as the parent of another."""
        return tuple(
            hold.reason
            for hold in self.holds
            if (holder := self.links.get(hold.descriptor)) is not None and link in holder.chain()
        )

    def refuse_when_busy(self, links: Sequence[Link]) -> None:
        """Raises: LinkBusy when one of the links is in use."""
        for link in links:
            reasons = self.reasons(link)
            if reasons:
                raise LinkBusy(f"{link.path.name} is in use: {', '.join(sorted(set(reasons)))}")

    # -- inside ----------------------------------------------------------------------------

    def _add(self, path: Path) -> Link:
        descriptor = load(path)
        parent = None
        if descriptor.parent_name is not None:
            parent = self.links[path.parent / descriptor.parent_name]
            if descriptor.parent_cid != parent.descriptor.cid:
                raise DescriptorError(f"{path.name} does not belong to this {parent.path.name}")
        link = Link(path, descriptor, open_extent(path, descriptor, writable=True), parent)
        if parent is not None:
            parent.children.append(link)
        self.links[path] = link
        return link

    def _find_branches(self) -> None:
        """Links in the directory whose parents are ours; other disks there are left alone."""
        waiting: dict[Path, Path] = {}
        directory = next(iter(self.links)).parent
        for path in sorted(directory.glob("*.vmdk"))[:DESCRIPTORS_SEEN_MAX]:
            try:
                parent_name = None if path in self.links else load(path).parent_name
            except (DescriptorError, OSError):
                continue
            if parent_name is not None:
                waiting[path] = directory / parent_name
        added = True
        while added:
            added = False
            for path, parent in list(waiting.items()):
                if parent in self.links:
                    del waiting[path]
                    # A left-over that does not fit is nobody's branch, not a broken disk.
                    with contextlib.suppress(StorageError):
                        self._add(path)
                        added = True

    def _free_stem(self) -> str:
        directory = self.tip.path.parent
        for number in range(1, NAME_NUMBERS_MAX + 1):
            stem = f"{self.base_name}-{number:06d}"
            if not any(
                (directory / f"{stem}{suffix}.vmdk").exists()
                for suffix in ("", "-delta", "-sesparse", "-ctk")
            ):
                return stem
        raise FileExists(f"no free name for a link of {self.base_name}")

    def _take_over_tracking(self, link: Link, parent: Link) -> None:
        source, target = link.tracking_path, parent.tracking_path
        if source is None:
            if target is not None:
                target.unlink(missing_ok=True)
                parent.descriptor = replace(parent.descriptor, change_track_name=None)
            return
        name = f"{parent.path.stem}-ctk.vmdk"
        source.replace(parent.path.with_name(name))
        parent.descriptor = replace(parent.descriptor, change_track_name=name)

    def _remove_files(self, link: Link) -> None:
        link.extent.close()
        for file in link.files:
            file.unlink(missing_ok=True)
        del self.links[link.path]


def write_zeros(link: Link, offset: int, length: int) -> None:
    """Zeros in one link, written only where the chain does not read as zeros already."""
    below = link.below()
    for at, count in pieces(Area(offset, length), 16 * 1024 * 1024):
        data = [run for _, run in chain_runs(link.extents(), at, count) if run.kind is RunKind.DATA]
        for run in data:
            link.extent.write_zeros(run.offset, run.length, below)


def copy_into_parent(link: Link, parent: Link) -> None:
    """Bring what the link holds into its parent's file."""
    below = parent.below()
    buffer = bytearray(1024 * 1024)
    for run in link.extent.runs(0, link.descriptor.capacity_bytes):
        if run.kind is RunKind.ZERO:
            write_zeros(parent, run.offset, run.length)
        elif run.kind is RunKind.DATA:
            for at, length in pieces(Area(run.offset, run.length)):
                view = memoryview(buffer)[:length]
                link.extent.read_data(run.position + at - run.offset, view)
                parent.extent.write(at, view, below)


def move_sparse(source: Path, target: Path) -> None:
    """Rename; to another file system: copy with the holes and delete."""
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    reading = os.open(source, os.O_RDONLY)
    try:
        writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            size = os.fstat(reading).st_size
            os.ftruncate(writing, size)
            copy_data(reading, writing, size)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    source.unlink()

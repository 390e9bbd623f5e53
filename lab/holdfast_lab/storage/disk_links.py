"""The files of one virtual disk: its links, reading them, holding them, change tracking.

``disk`` adds what changes them. Every method takes the disk's own lock, so any thread may call
any of them. Links are named by their descriptor's path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from holdfast_lab.storage.disk_values import (
    AREAS_MAX,
    ChangedAreas,
    DatastoreKind,
    Hold,
    Provisioning,
    StarOnNfs,
)
from holdfast_lab.storage.errors import OutOfRange, TruthUnknown
from holdfast_lab.storage.links import Link, LinkTree
from holdfast_lab.storage.readers import ChainReader, copy_to_raw, read_chain
from holdfast_lab.storage.runs import Area
from holdfast_lab.storage.tracking import ChangeTracking


class LinkedDisk:
    """See the module.

    Attributes:
        lock: re-entrant; hold it over several calls that belong together.
        star_on_nfs: what the change id ``*`` gives on NFS.
    """

    def __init__(self, tree: LinkTree, *, provisioning: Provisioning) -> None:
        self.lock = threading.RLock()
        self.star_on_nfs = StarOnNfs.WHOLE
        self.provisioning = provisioning
        self._tree = tree
        self._tracking = ChangeTracking(tree)

    # -- facts -----------------------------------------------------------------------------

    @property
    def capacity_bytes(self) -> int:
        """The size of the disk."""
        return self._tree.tip.descriptor.capacity_bytes

    @property
    def uuid(self) -> str:
        """The uuid of the disk in the spelling of the API; empty when the files name none."""
        return self._tree.base.descriptor.uuid or ""

    @property
    def adapter(self) -> str:
        """The adapter type in the base's descriptor."""
        return self._tree.base.descriptor.adapter

    @property
    def directory(self) -> Path:
        """Where the tip lies."""
        return self._tree.tip.path.parent

    @property
    def base_name(self) -> str:
        """The file name of the base descriptor without ``.vmdk``."""
        return self._tree.base_name

    @property
    def datastore_kind(self) -> DatastoreKind:
        """The kind of datastore that the disk lies on."""
        return self._tree.kind

    @property
    def tip_descriptor(self) -> Path:
        """The link that the running VM writes to."""
        return self._tree.tip.path

    @property
    def links(self) -> tuple[Path, ...]:
        """Descriptors of the tip's chain, base first."""
        return self.chain_of(self.tip_descriptor)

    @property
    def all_links(self) -> tuple[Path, ...]:
        """Descriptors of every link, other branches too; parents before children."""
        with self.lock:
            return tuple(
                sorted(self._tree.links, key=lambda path: len(self._tree.links[path].chain()))
            )

    def chain_of(self, descriptor: Path) -> tuple[Path, ...]:
        """The link and all below it, base first."""
        with self.lock:
            return tuple(link.path for link in reversed(self._tree.link(descriptor).chain()))

    def parent_of(self, descriptor: Path) -> Path | None:
        """The link below; None for the base."""
        with self.lock:
            parent = self._tree.link(descriptor).parent
            return None if parent is None else parent.path

    def children_of(self, descriptor: Path) -> tuple[Path, ...]:
        """The links directly above."""
        with self.lock:
            return tuple(child.path for child in self._tree.link(descriptor).children)

    def files(self, descriptor: Path | None = None) -> tuple[Path, ...]:
        """All files of one link (descriptor, data, tracking); None: of all links."""
        with self.lock:
            chosen = (
                list(self._tree.links.values())
                if descriptor is None
                else [self._tree.link(descriptor)]
            )
            return tuple(file for link in chosen for file in link.files)

    def frozen_descriptor(self, sequence: int) -> Path:
        """The link that stands for a frozen moment now, after merges and moves.

        Raises: TruthUnknown when it was merged away.
        """
        with self.lock:
            for link in self._tree.links.values():
                if link.sequence == sequence and link is not self._tree.tip:
                    return link.path
        raise TruthUnknown(f"no link stands for sequence {sequence} any more")

    # -- reading and holding ---------------------------------------------------------------

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from the tip. Raises: OutOfRange."""
        with self.lock:
            self._check(offset, len(buffer))
            read_chain(self._tree.tip.extents(), offset, buffer)

    def reader_at(self, descriptor: Path | None = None, *, reason: str = "read") -> ChainReader:
        """Open a link as a whole disk (None: the tip). Until closed it holds its chain."""
        with self.lock:
            token = self.hold(descriptor or self.tip_descriptor, reason)
            try:
                return ChainReader(token.descriptor, on_close=lambda: self.let_go(token))
            except BaseException:
                self.let_go(token)
                raise

    def materialise(self, to: Path, descriptor: Path | None = None) -> None:
        """Write the disk as seen from a link (None: the tip) as a new sparse raw file."""
        with self.reader_at(descriptor) as reader:
            copy_to_raw(reader, to)

    def hold(self, descriptor: Path, reason: str) -> Hold:
        """Keep a link and its chain from being merged, moved or deleted, until ``let_go``."""
        with self.lock:
            token = Hold(self._tree.link(descriptor).path, reason)
            self._tree.holds.add(token)
            return token

    def let_go(self, token: Hold) -> None:
        """End a hold; harmless when done twice."""
        with self.lock:
            self._tree.holds.discard(token)

    def holds(self, descriptor: Path) -> tuple[str, ...]:
        """Reasons of holds and open readers on a link, as the link itself or as a parent."""
        with self.lock:
            return self._tree.reasons(self._tree.link(descriptor))

    # -- change tracking -------------------------------------------------------------------

    @property
    def tracking_enabled(self) -> bool:
        """The flag of the VM, seen at once after ``enable_tracking``."""
        return self._tracking.enabled

    def enable_tracking(self, *, granularity: int | None = None) -> None:
        """Switch tracking on; it becomes effective with the next stun.

        ``granularity`` None: by the size of the disk (64 KiB up to 128 GiB).
        """
        with self.lock:
            self._tracking.enable(granularity)

    def disable_tracking(self) -> None:
        """Switch tracking off and delete the tracking files."""
        with self.lock:
            self._tracking.disable()

    def change_id(self, descriptor: Path | None = None) -> str | None:
        """The id to put into a config's backing (None: the tip's); None while unset."""
        with self.lock:
            return self._tracking.change_id(self._link(descriptor))

    def stun(self) -> None:
        """A moment without guest I/O: power on or off, a migration, a snapshot removal."""
        with self.lock:
            self._tracking.stun()

    def power_on(self) -> None:
        """A stun; after an unclean stop tracking starts again with a new uuid."""
        with self.lock:
            self._tracking.power_on()

    def unclean_stop(self) -> None:
        """The host died: the next ``power_on`` distrusts the tracking file."""
        with self.lock:
            self._tracking.unclean_stop()

    def damage_tracking(self) -> None:
        """Damage the tracking file of the tip; noticed at the next stun."""
        with self.lock:
            self._tracking.damage()

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
        with self.lock:
            return self._tracking.query(
                change_id,
                self._link(descriptor),
                start_offset,
                areas_max=areas_max,
                distort=distort,
                provisioning=self.provisioning,
                star_on_nfs=self.star_on_nfs,
            )

    # -- inside ----------------------------------------------------------------------------

    def _link(self, descriptor: Path | None) -> Link:
        return self._tree.tip if descriptor is None else self._tree.link(descriptor)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.capacity_bytes:
            raise OutOfRange(f"[{offset}, {offset + length}) is not within the disk")

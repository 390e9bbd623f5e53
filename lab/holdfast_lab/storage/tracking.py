"""Changed block tracking of one disk: ids, stuns, and the answers of QueryChangedDiskAreas.

What vSphere does wrong is done here too: tracking switched on under a snapshot forgets what was
written while a later snapshot existed; after a revert, or a growth past 128 GiB, old ids answer
plausibly and wrongly. The disk's lock covers every call.

Sources: VMware's VDDK programming guide (change ids, "*", stuns, new ids after an unclean stop),
the API reference of QueryChangedDiskAreas and DiskChangeInfo (paging, faults), KB 1020128
(switching on under a snapshot), KB 2090639 (growth past 128 GiB), and what backup programs met:
some 2,000 areas per answer, ids that survive their snapshot. The tracking file is our own.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from holdfast_lab.storage import tracking_file
from holdfast_lab.storage.disk_values import ChangedAreas, DatastoreKind, Provisioning, StarOnNfs
from holdfast_lab.storage.errors import ChangeIdUnknown, OutOfRange
from holdfast_lab.storage.links import Link, LinkTree
from holdfast_lab.storage.readers import chain_allocated
from holdfast_lab.storage.runs import Area, joined, rounded_out
from holdfast_lab.storage.tracking_file import TrackingHeader

STAR = "*"
VMFS_BLOCK_BYTES = 1024 * 1024  # what "allocated" is counted in
EXTENSION_BUG_BYTES = 128 * 1024**3  # growing past each multiple loses what was tracked

Distort = Callable[[Sequence[Area]], Sequence[Area]]


class ChangeTracking:
    """The tracking of one disk. ``enabled`` is the flag; ids come with the next stun."""

    def __init__(self, tree: LinkTree) -> None:
        self._tree = tree
        self.enabled = tree.tip.tracking_path is not None
        self._granularity: int | None = None
        self._tip_header = self._header(tree.tip)
        self._under_snapshot = self._tip_header is not None and self._tip_header.under_snapshot

    def enable(self, granularity: int | None) -> None:
        """Set the flag; ``granularity`` None: by size."""
        self.enabled = True
        self._granularity = granularity

    def disable(self) -> None:
        """Clear the flag and delete every tracking file."""
        self.enabled = False
        self._tip_header = None
        self._under_snapshot = False
        for link in self._tree.links.values():
            self._drop(link)

    def reset(self) -> None:
        """Forget everything; the next stun begins with a new uuid."""
        enabled = self.enabled
        self.disable()
        self.enabled = enabled

    def change_id(self, link: Link) -> str | None:
        """The id of a link's state; None while unset."""
        header = self._header(link)
        return None if header is None or not self.enabled else header.change_id

    def mark(self, offset: int, length: int) -> None:
        """The guest changed a range of the tip."""
        path = self._tree.tip.tracking_path
        if self._tip_header is not None and path is not None and path.exists():
            tracking_file.mark(path, self._tip_header, offset, length)

    def stun(self) -> None:
        """Become effective if just switched on; otherwise begin another epoch."""
        if self.enabled and not self._begin_if_needed():
            self._next_epoch(self._tree.tip)

    def before_freeze(self) -> None:
        """The stun of a snapshot: the id of the frozen link is set from here on."""
        if self.enabled:
            self._begin_if_needed()

    def after_freeze(self, frozen: Link, child: Link) -> None:
        """The new link goes on with the marks of the frozen one."""
        self._inherit(frozen, child)

    def after_revert(self, frozen: Link, child: Link, newest_epoch: int) -> None:
        """The new tip knows only what the frozen link knew; epochs never go back."""
        self._inherit(frozen, child, newest_epoch=newest_epoch)
        if self.enabled and self._tip_header is None:
            self._begin_if_needed()

    def newest_epoch(self) -> int:
        """The highest epoch of any link; 0 without tracking."""
        headers = [self._header(link) for link in self._tree.links.values()]
        return max((header.epoch for header in headers if header is not None), default=0)

    def merge_forgets(self, link: Link) -> bool:
        """Does a merge of this link keep only its parent's marks?"""
        parent = link.parent
        return self._under_snapshot and parent is not None and self._header(parent) is not None

    def after_merge(self, merged: Link, header: TrackingHeader | None) -> None:
        """``header`` is that of the link which was merged: its id now belongs to the parent."""
        path = merged.tracking_path
        kept = self._header(merged)
        if path is not None and kept is not None and header is not None:
            tracking_file.save_header(path, replace(kept, epoch=header.epoch, uuid=header.uuid))
        self._tip_header = self._header(self._tree.tip)

    def header(self, link: Link) -> TrackingHeader | None:
        """The state of a link's tracking file."""
        return self._header(link)

    def after_extend(self, old_bytes: int, new_bytes: int) -> None:
        """The disk grew."""
        path = self._tree.tip.tracking_path
        header = self._header(self._tree.tip)
        if path is None or header is None:
            return
        self._tip_header = replace(header, capacity_bytes=new_bytes)
        tracking_file.save_header(path, self._tip_header)
        if old_bytes // EXTENSION_BUG_BYTES != new_bytes // EXTENSION_BUG_BYTES:
            tracking_file.forget_marks(path)

    def unclean_stop(self) -> None:
        """The next power-on distrusts the file."""
        path = self._tree.tip.tracking_path
        if path is not None and self._tip_header is not None:
            self._tip_header = replace(self._tip_header, unclean=True)
            tracking_file.save_header(path, self._tip_header)

    def power_on(self) -> None:
        """A stun; a new uuid after an unclean stop."""
        header = self._header(self._tree.tip)
        if self.enabled and header is not None and header.unclean:
            self._begin()
        else:
            self.stun()

    def damage(self) -> None:
        """Damage the tip's file, if there is one."""
        path = self._tree.tip.tracking_path
        if path is not None and path.exists():
            tracking_file.damage(path)

    # -- answers ---------------------------------------------------------------------------

    def query(
        self,
        change_id: str,
        link: Link,
        start_offset: int,
        *,
        areas_max: int,
        distort: Distort | None,
        provisioning: Provisioning,
        star_on_nfs: StarOnNfs,
    ) -> ChangedAreas:
        """See ``LabDisk.query``."""
        capacity = link.descriptor.capacity_bytes
        if not 0 <= start_offset < capacity:
            raise OutOfRange(f"start {start_offset} is not within the disk")
        header = self._header(link)
        if header is None or not self.enabled:
            raise ChangeIdUnknown(f"{link.path.name} has no usable change tracking")
        if change_id == STAR:
            areas = self._allocated(link, provisioning, star_on_nfs)
        else:
            sequence = _sequence_of(change_id, header)
            path = link.tracking_path
            assert path is not None
            areas = tracking_file.changed_after(path, header, sequence, start_offset)
        clipped = _clipped(joined(areas), start_offset, capacity)
        if distort is not None:
            clipped = iter(distort(list(clipped)))
        return _one_answer(clipped, start_offset, capacity, areas_max)

    def _allocated(
        self, link: Link, provisioning: Provisioning, star_on_nfs: StarOnNfs
    ) -> Iterator[Area]:
        capacity = link.descriptor.capacity_bytes
        if self._tree.kind is DatastoreKind.NFS:
            if star_on_nfs is StarOnNfs.FAULT:
                raise ChangeIdUnknown("allocated areas are known on VMFS only")
            return iter([Area(0, capacity)])
        if provisioning is Provisioning.THICK_EAGER:
            return iter([Area(0, capacity)])
        # Switched on under a snapshot, only what the link itself holds is seen.
        extents = [link.extent] if self._under_snapshot else link.extents()
        return rounded_out(chain_allocated(extents, capacity), VMFS_BLOCK_BYTES, capacity)

    # -- inside ----------------------------------------------------------------------------

    def _header(self, link: Link) -> TrackingHeader | None:
        path = link.tracking_path
        return None if path is None else tracking_file.load_header(path)

    def _begin_if_needed(self) -> bool:
        """Start with a new uuid when the tip's file is missing or damaged; True if so."""
        header = self._header(self._tree.tip)
        if header is None:
            self._begin()
            return True
        return False

    def _begin(self) -> None:
        tip = self._tree.tip
        capacity = tip.descriptor.capacity_bytes
        first_time = tip.tracking_path is None
        if first_time:
            self._under_snapshot = tip.parent is not None
        self._set_name(tip)
        path = tip.tracking_path
        assert path is not None
        self._tip_header = TrackingHeader(
            capacity_bytes=capacity,
            granularity=self._granularity or tracking_file.granularity_for(capacity),
            epoch=1,
            uuid=_new_tracking_uuid(),
            under_snapshot=self._under_snapshot,
        )
        tracking_file.create_tracking(path, self._tip_header)

    def _next_epoch(self, link: Link) -> None:
        header = self._header(link)
        path = link.tracking_path
        if header is not None and path is not None:
            self._tip_header = replace(header, epoch=header.epoch + 1)
            tracking_file.save_header(path, self._tip_header)

    def _inherit(self, frozen: Link, child: Link, *, newest_epoch: int = 0) -> None:
        source = frozen.tracking_path
        header = self._header(frozen)
        if not self.enabled or source is None or header is None:
            self._tip_header = None
            return
        self._set_name(child)
        target = child.tracking_path
        assert target is not None
        tracking_file.copy_tracking(source, target, epoch=max(header.epoch, newest_epoch) + 1)
        self._tip_header = tracking_file.load_header(target)

    def _set_name(self, link: Link) -> None:
        name = f"{link.path.stem}-ctk.vmdk"
        if link.descriptor.change_track_name != name:
            link.change_descriptor(replace(link.descriptor, change_track_name=name))

    def _drop(self, link: Link) -> None:
        path = link.tracking_path
        if path is not None:
            path.unlink(missing_ok=True)
            link.change_descriptor(replace(link.descriptor, change_track_name=None))


def _new_tracking_uuid() -> str:
    """As ESXi spells them: ``52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63``."""
    pairs = ["52", *(f"{value:02x}" for value in secrets.token_bytes(15))]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


def _sequence_of(change_id: str, header: TrackingHeader) -> int:
    uuid, slash, number = change_id.rpartition("/")
    if not slash or uuid != header.uuid or not number.isdecimal() or len(number) > 9:
        raise ChangeIdUnknown(f"change id {change_id[:80]!r} is not of this disk")
    if int(number) > header.epoch:
        raise ChangeIdUnknown(f"change id {change_id!r} is newer than what is asked about")
    return int(number)


def _clipped(areas: Iterable[Area], start: int, end: int) -> Iterator[Area]:
    for area in areas:
        first = max(area.offset, start)
        last = min(area.end, end)
        if first < last:
            yield Area(first, last - first)


def _one_answer(
    areas: Iterator[Area], start_offset: int, capacity: int, areas_max: int
) -> ChangedAreas:
    found = tuple(itertools.islice(areas, areas_max))
    more = next(areas, None) is not None
    end = found[-1].end if more else capacity
    return ChangedAreas(start_offset=start_offset, length=end - start_offset, areas=found)

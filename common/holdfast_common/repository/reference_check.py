"""Before a point is published: is everything that it stands on still there, and as long as it was?

A writer's index may be old, and an incremental stands on pages, index objects and packs of attempts long
past, of which it reads next to none. A manifest therefore names all metadata that its point uses: map
objects are looked at one by one (`map_moves` keeps them few), index objects are listed, and of packs what
changed since the last listing. Only when something of it is gone, or an earlier point does not say what it
uses, every chunk that the new point's maps name is looked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from holdfast_common.errors import FormatError, IntegrityError, ObjectMissing, PreviousLost
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.disk_map import DiskMap, PageReference, PageStore
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import ObjectKind, index_name, map_name, pack_name
from holdfast_common.repository.manifest import (
    BlobRecord,
    DiskSummary,
    ObjectReference,
    PointDisk,
    UsedObjects,
)
from holdfast_common.repository.object_store import (
    HoldingStore,
    ObjectStore,
    OpenObject,
    RangeStore,
)
from holdfast_common.repository.pack_listing import PackListing, PresentPacks
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.sealed_object import SEGMENT_BYTES, SealedRanges, body_length
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.units import KIB

SMALL_BYTES: Final = 128 * KIB
HELD_OBJECTS_MAX: Final = 128  # twice as many as a map lies in
SINGLE_PAGES_MAX: Final = 16  # of one segment; about what reading and opening all of it costs


def stored_packs(
    store: ObjectStore, *, besides: Collection[bytes] = frozenset()
) -> dict[bytes, int]:
    """Digest and length of every pack in the store, ``besides`` those that are known to be damaged."""
    found = {
        bytes.fromhex(info.name.rpartition("/")[2]): info.length
        for info in stored_objects(store, "packs/")
    }
    for damaged in besides:
        found.pop(damaged, None)
    return found


class PreviousPages(PageStore):
    """Pages of an earlier point's maps: one that cannot be used means that nothing can build on them."""

    def page(self, reference: PageReference) -> bytes:
        """Raises: PreviousLost, RepositoryFailed."""
        try:
            return super().page(reference)
        except (IntegrityError, FormatError) as error:
            raise PreviousLost(
                "the map of an earlier point, on which this one builds, cannot be read",
                object=map_name(self._keys.lineage_tag, reference.object_id),
                reason=str(error),
            ) from error


class SinglePages(PreviousPages):
    """For an incremental, which wants few pages out of many objects: it reads these, and not what lies around.

    Each page is proven by the keyed digest in its reference. Of a small segment, and of one that is asked for
    again and again, all is read at once.
    """

    def __init__(self, store: ObjectStore, keys: ReaderKeys, lengths: Mapping[bytes, int]) -> None:
        """``lengths``: of the objects, as far as they are known."""
        super().__init__(store, keys)
        self._lengths = lengths
        self._asked: Counter[tuple[bytes, int]] = Counter()
        self._holding = store if isinstance(store, HoldingStore) else None
        self._held: list[OpenObject] = []

    def close(self) -> None:
        """Let go of the objects. What is read after that opens them again for each page."""
        held, self._held, self._holding = self._held, [], None
        for each in held:
            each.close()

    def _source(self, object_id: bytes, name: str) -> RangeStore:
        if self._holding is None or len(self._held) >= HELD_OBJECTS_MAX:
            return super()._source(object_id, name)
        held = self._holding.hold(name)
        self._held.append(held)
        return held

    def _length_of(self, object_id: bytes, name: str) -> int | None:
        return self._lengths.get(object_id) or super()._length_of(object_id, name)

    def _read(self, reference: PageReference) -> bytes:
        key = reference.object_id, reference.offset // SEGMENT_BYTES
        ranges = self._opened(reference.object_id)
        self._asked[key] += 1
        if self._asked[key] > SINGLE_PAGES_MAX or ranges.segment_length(key[1]) <= SMALL_BYTES:
            return super()._read(reference)
        return ranges.unproven(reference.offset, reference.length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one attempt made, and what it stands on besides."""

    disks: Sequence[DiskSummary]
    blobs: Sequence[BlobRecord]
    packs: Mapping[bytes, int]  # digest and length
    indexes: Sequence[ObjectReference]
    map: ObjectReference | None
    previous: Sequence[PointDisk]  # what its disks build on
    known_indexes: frozenset[bytes]  # by which it found chunks of others
    damaged_packs: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReferences:
    """The disks with their pages counted, and all metadata that the point uses."""

    disks: tuple[DiskSummary, ...]
    used: UsedObjects


def check_references(
    store: ObjectStore,
    keys: ReaderKeys,
    *,
    index: RepositoryIndex,
    listing: PackListing,
    written: Written,
) -> CheckedReferences:
    """Raises: PreviousLost naming the first object or chunk that is gone; RepositoryFailed."""
    listing.refresh(store)
    present = PresentPacks(listing, written.damaged_packs)
    for digest, length in written.packs.items():
        if present.get(digest) != length:
            raise PreviousLost("a pack of this attempt is gone", pack=digest.hex())
    pages = PreviousPages(store, keys)
    disks = tuple(_counted(disk, pages) for disk in written.disks)
    maps = _checked_maps(store, keys, written, disks)
    relied = _relied_indexes(written)
    if relied is None or not index.is_whole(relied, present=present):
        search = _Search(store, index.reloaded(), present)
        relied = search.indexes_of(_chunks(pages, disks, written.blobs))
    else:
        relied = index.current(relied)
        # What this point takes from others' attempts. What an earlier point names was on the disk before it.
        others = relied - _named_before(written) - {item.object_id for item in written.indexes}
        _confirm(store, map(index_name, others))
    return CheckedReferences(disks=disks, used=UsedObjects(maps=maps, indexes=relied))


def _counted(disk: DiskSummary, pages: PageStore) -> DiskSummary:
    """With its pages counted: from the previous point's count if it has one, otherwise from the map."""
    if disk.map_pages is not None:
        return disk
    disk_map = DiskMap(pages, disk.root, capacity_bytes=disk.header.capacity_bytes)
    counts: dict[bytes, int] = {}
    for reference in disk_map.pages():
        counts[reference.object_id] = counts.get(reference.object_id, 0) + 1
    return replace(disk, map_pages=counts)


def _checked_maps(
    store: ObjectStore, keys: ReaderKeys, written: Written, disks: Iterable[DiskSummary]
) -> dict[bytes, int]:
    """The map objects that the disks use, with their lengths, each of them seen in the store."""
    lengths = {
        object_id: length
        for disk in written.previous
        if disk.used is not None
        for object_id, length in disk.used.maps.items()
    }
    if written.map is not None:
        lengths[written.map.object_id] = written.map.length
    used = {}
    for object_id in sorted({each for disk in disks for each in disk.map_pages or ()}):
        name = map_name(keys.lineage_tag, object_id)
        info = store.head(name)
        found = info.length if info is not None else None
        wanted = lengths.get(object_id)
        if found is None or (wanted is not None and wanted != found):
            raise PreviousLost(
                "a map that this point would stand on is gone or has another length",
                object=name,
                length=found,
                wanted=wanted,
            )
        used[object_id] = found
        if wanted is None:  # nobody wrote its length down: only its true last segment opens as such
            _open_segment(store, keys, object_id, found, None)
    _prove_in_turn(store, keys, used, written.map)
    return used


def _prove_in_turn(
    store: ObjectStore, keys: ReaderKeys, used: Mapping[bytes, int], new: ObjectReference | None
) -> None:
    """Open one segment of the maps of earlier attempts, any: of most only single pages are ever read again."""
    if new is None:
        return
    places = [
        (object_id, length, number)
        for object_id, length in used.items()
        if object_id != new.object_id
        for number in range(_last_segment(length) + 1)
    ]
    if places:
        _open_segment(store, keys, *places[int.from_bytes(new.object_id, "big") % len(places)])


def _last_segment(length: int) -> int:
    return max(body_length(length, kind=ObjectKind.MAP) - 1, 0) // SEGMENT_BYTES


def _open_segment(
    store: ObjectStore, keys: ReaderKeys, object_id: bytes, length: int, number: int | None
) -> None:
    """None: the last one. Raises: PreviousLost (damaged, or the object is not that long), RepositoryFailed."""
    name = map_name(keys.lineage_tag, object_id)
    try:
        SealedRanges(
            store,
            name,
            expected=keys.expected(ObjectKind.MAP, object_id),
            body=body_length(length, kind=ObjectKind.MAP),
            class_key=keys.class_key,
        ).segment(_last_segment(length) if number is None else number)
    except (IntegrityError, FormatError) as error:
        raise PreviousLost(
            "a map that this point would stand on is damaged", object=name, reason=str(error)
        ) from error


def _named_before(written: Written) -> frozenset[bytes]:
    used = (disk.used.indexes for disk in written.previous if disk.used is not None)
    return frozenset().union(*(indexes for indexes in used if indexes is not None))


def _relied_indexes(written: Written) -> frozenset[bytes] | None:
    """Index objects that together name all chunks of the point, and maybe more; None: not known."""
    relied = written.known_indexes | {item.object_id for item in written.indexes}
    for disk in written.previous:
        if disk.used is None or disk.used.indexes is None:
            return None
        relied |= disk.used.indexes
    return relied


def _confirm(store: ObjectStore, names: Iterable[str]) -> None:
    """Make durable what others put. Raises: PreviousLost, RepositoryFailed."""
    try:
        store.confirm(names)
    except ObjectMissing as error:
        raise PreviousLost("an object that this point would stand on is gone") from error


class _Search:
    """Looks for each chunk, in a fresh index and in packs that no index names."""

    def __init__(self, store: ObjectStore, index: RepositoryIndex, present: PresentPacks) -> None:
        self._store = store
        self._index = index
        self._present = present

    def indexes_of(self, chunk_ids: Iterable[bytes]) -> frozenset[bytes] | None:
        """The index objects that name all of them; None: some stand in no index. Raises: PreviousLost."""
        found: set[bytes | None] = set()
        packs: set[bytes] = set()  # that no index names
        for chunk_id in chunk_ids:
            place = self._place(chunk_id)
            if place is None and self._index.recover(self._store):
                place = self._place(chunk_id)
            if place is None:
                raise PreviousLost(
                    "data that this point would refer to is no longer in the repository",
                    chunk=chunk_id.hex(),
                )
            object_id = self._index.object_of(place)
            found.add(object_id)
            if object_id is None:
                packs.add(place.origin.pack.digest)
        known = frozenset(each for each in found if each is not None)
        # whoever put these may have died before they were on the disk
        _confirm(self._store, [*map(index_name, known), *map(pack_name, packs)])
        return known if None not in found else None

    def _place(self, chunk_id: bytes) -> ChunkLocation | None:
        for place in self._index.find_all(chunk_id):
            pack = place.origin.pack
            if self._present.get(pack.digest) == pack.length:
                return place
        return None


def _chunks(
    pages: PageStore, disks: Iterable[DiskSummary], blobs: Iterable[BlobRecord]
) -> Iterator[bytes]:
    for disk in disks:
        disk_map = DiskMap(pages, disk.root, capacity_bytes=disk.header.capacity_bytes)
        for number, reference in disk_map.references():
            leaf = disk_map.load_leaf(number, reference)
            yield from {chunk_id for chunk_id in leaf.ids if chunk_id is not None}
    for blob in blobs:
        yield from (chunk_id for chunk_id, _ in blob.chunks)

"""Lost chunks from another repository that backs the same disks up: other keys, other ids, the same plain content.

Part of `repair`. Ids differ from one repository to the other, so content is looked for by its place: the same
disk, the same offset, in the points that are nearest in time. A block is taken only when its digest is the
one that the lost frame's id was made of, a blob's chunk when its id is: whatever the other repository says
of itself, what is accepted is true by our own keys.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import HoldfastError, NotFound
from holdfast_common.extents import Extent
from holdfast_common.repository.check import CheckReport
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.disk_map import DiskMap, Leaf, PageStore
from holdfast_common.repository.disk_reader import PointDiskSource
from holdfast_common.repository.key_sets import KeyRing, ReaderKeys, SegmentKeyOpener
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    BLOCKS_PER_LEAF,
    BlobKind,
)
from holdfast_common.repository.manifest import PointDisk
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.reader import RepositoryReader

log = logging.getLogger(__name__)

POSITIONS_MAX: Final = 4  # where a lost block is looked for: it is the same everywhere
CANDIDATES_MAX: Final = 64  # points of the other repository that are asked for one block
SOURCES_MAX: Final = 8  # disks of other points that are held open, each with a few MiB
_UNREADABLE: Final = (
    HoldfastError  # of another repository: whatever fails there fails for that piece only
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherRepository:
    """A repository with keys of its own; it is only read."""

    store: ObjectStore
    ring: KeyRing
    segment_keys: SegmentKeyOpener


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChunk:
    """The true content of a lost chunk, or of some blocks of a lost frame: one MiB at most."""

    chunk_id: bytes
    kind: BlobKind
    plain: bytes
    digests: bytes = b""  # of all blocks of the frame
    presence: int = 0  # which of its blocks are in ``plain``

    @property
    def held(self) -> int:
        """As `repair_packs.held_blocks`."""
        return self.presence if self.kind is BlobKind.DISK_FRAME else 1


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a point of ours has a block."""

    disk: PointDisk
    moment: float
    offset: int
    length: int


@dataclass(slots=True)
class LostContent:
    """Where lost chunks stand in our points: of frames each block by its place in the frame."""

    blocks: dict[bytes, dict[int, list[_Position]]] = field(default_factory=dict)
    blobs: dict[bytes, list[tuple[Point, str, int]]] = field(
        default_factory=dict
    )  # point, kind, number of the chunk

    def add_blocks(self, point: Point, disk: PointDisk, leaf: Leaf, numbers: Iterable[int]) -> None:
        """Blocks of a disk that are lost, by their numbers in the disk."""
        capacity = disk.header.capacity_bytes
        for number in numbers:
            chunk_id = leaf.ids[number % BLOCKS_PER_LEAF]
            if chunk_id is None:
                continue
            place = leaf.places[number % BLOCKS_PER_LEAF]
            found = self.blocks.setdefault(chunk_id, {}).setdefault(place, [])
            if len(found) < POSITIONS_MAX:
                offset = number * BLOCK_BYTES
                length = min(BLOCK_BYTES, capacity - offset)
                found.append(_Position(disk, _moment(point), offset, length))


def lost_content(store: ObjectStore, ring: KeyRing, report: CheckReport) -> LostContent:
    """Where what a check reports as lost stands. Raises: RepositoryFailed, IntegrityError (list of writers)."""
    points = {point.name: point for point in list_points(store, ring).points}
    lost = LostContent()
    for item in report.lost_ranges:
        point = points.get(item.point_name)
        keys = None if point is None else ring.of_tag(point.lineage_tag)
        if point is None or keys is None:
            continue
        disk = point.disk(item.device_key)
        first, end = item.extent.offset // BLOCK_BYTES, -(-item.extent.end // BLOCK_BYTES)
        for number, leaf in _leaves(store, keys, disk, first, end):
            start = number * BLOCKS_PER_LEAF
            lost.add_blocks(
                point, disk, leaf, range(max(first, start), min(end, start + BLOCKS_PER_LEAF))
            )
    for blob in report.lost_blobs:
        point = points.get(blob.point_name)
        if point is None:
            continue
        for number, (chunk_id, _) in enumerate(point.blob(blob.kind).chunks):
            lost.blobs.setdefault(chunk_id, []).append((point, blob.kind, number))
    return lost


def _leaves(
    store: ObjectStore, keys: ReaderKeys, disk: PointDisk, first: int, end: int
) -> Iterator[tuple[int, Leaf]]:
    disk_map = DiskMap(
        PageStore(store, keys), disk.summary.root, capacity_bytes=disk.header.capacity_bytes
    )
    for number in range(first // BLOCKS_PER_LEAF, -(-end // BLOCKS_PER_LEAF)):
        try:
            leaf = disk_map.leaf(number)
        except HoldfastError:
            continue  # the map is what is lost there
        if leaf is not None:
            yield number, leaf


class OtherContent:
    """Looks for lost content in another repository. One thread. Close it."""

    def __init__(self, other: OtherRepository, *, check: Callable[[], None]) -> None:
        """``check``: called between reads. Raises: IntegrityError, RepositoryFailed."""
        self._other = other
        self._check = check
        self._points = list_points(other.store, other.ring).points
        self._readers: dict[bytes, RepositoryReader] = {}
        self._sources: dict[tuple[str, int], PointDiskSource] = {}

    def close(self) -> None:
        """Twice is harmless."""
        for source in self._sources.values():
            source.close()
        for reader in self._readers.values():
            reader.close()
        self._sources, self._readers = {}, {}

    def frame(
        self,
        chunk_id: bytes,
        *,
        wanted: Mapping[int, list[_Position]],
        digests: bytes,
        own: Mapping[int, bytes],
        hasher: Hasher,
    ) -> FoundChunk | None:
        """What is found of a frame, with ``own``: its blocks that are still good here. None: nothing is.

        ``digests``: of all blocks of the frame; they must be those of its id.
        """
        if hasher.frame_id(digests) != chunk_id:
            return None
        blocks = dict(own)
        for place, positions in wanted.items():
            digest = digests[place * BLOCK_DIGEST_BYTES : (place + 1) * BLOCK_DIGEST_BYTES]
            for data in self._at(positions):
                if hasher.block_digest(data) == digest:
                    blocks[place] = data
                    break
        if blocks.keys() <= own.keys():
            return None
        return FoundChunk(
            chunk_id=chunk_id,
            kind=BlobKind.DISK_FRAME,
            plain=b"".join(blocks[place] for place in sorted(blocks)),
            digests=digests,
            presence=sum(1 << place for place in blocks),
        )

    def opaque(
        self, chunk_id: bytes, *, wanted: Iterable[tuple[Point, str, int]], hasher: Hasher
    ) -> FoundChunk | None:
        """A blob's chunk. None: it is not found."""
        for point, kind, number in wanted:
            for other in self._nearest(point.manifest.lineage_id, _moment(point)):
                self._check()
                try:
                    foreign = other.blob(kind).chunks[number][0]
                    data = self._reader(other).frames.read([foreign])[foreign]
                except (NotFound, IndexError):
                    continue
                except _UNREADABLE as error:
                    _unreadable(error)
                    continue
                if hasher.chunk_id(data) == chunk_id:
                    return FoundChunk(chunk_id=chunk_id, kind=BlobKind.OPAQUE, plain=data)
        return None

    def _at(self, positions: Iterable[_Position]) -> Iterator[bytes]:
        """What the other repository has there, each content once, nearest in time first."""
        tried: set[bytes] = set()
        for position in positions:
            for point, disk in self._disks(position):
                self._check()
                buffer = bytearray(position.length)
                try:
                    source = self._source(point, disk)
                    extent = Extent(offset=position.offset, length=position.length)
                    (seen,) = source.digests(extent)  # by the other one's keys: None for zeros
                    if seen is None or (seen and seen in tried):
                        continue
                    tried.add(seen)
                    source.read_into(position.offset, memoryview(buffer))
                except _UNREADABLE as error:
                    _unreadable(error)
                    continue
                yield bytes(buffer)

    def _disks(self, position: _Position) -> Iterator[tuple[Point, PointDisk]]:
        """The same disk in the other repository's points."""
        header = position.disk.header
        lineage_id = position.disk.lineage_id
        for point in self._nearest(lineage_id, position.moment, uuid=header.uuid):
            for disk in point.disks:
                same_uuid = bool(header.uuid) and disk.header.uuid == header.uuid
                same_vm = point.manifest.lineage_id == lineage_id
                if (
                    same_uuid or (same_vm and disk.header.device_key == header.device_key)
                ) and disk.header.capacity_bytes >= position.offset + position.length:
                    yield point, disk

    def _nearest(self, lineage_id: str, moment: float, *, uuid: str = "") -> list[Point]:
        """Points of that VM, or with that disk, nearest in time first."""
        same = [
            point
            for point in self._points
            if point.manifest.lineage_id == lineage_id
            or (uuid and any(disk.header.uuid == uuid for disk in point.disks))
        ]
        same.sort(key=lambda point: abs(_moment(point) - moment))
        return same[:CANDIDATES_MAX]

    def _source(self, point: Point, disk: PointDisk) -> PointDiskSource:
        key = (point.name, disk.header.device_key)
        if key not in self._sources:
            if len(self._sources) >= SOURCES_MAX:
                self._sources.pop(next(iter(self._sources))).close()
            self._sources[key] = self._reader(point).open_disk(point, disk.header.device_key)
        return self._sources[key]

    def _reader(self, point: Point) -> RepositoryReader:
        found = self._readers.get(point.lineage_tag)
        if found is None:
            keys = self._other.ring.of_tag(point.lineage_tag)
            assert keys is not None, "listed points have keys"
            first = next(iter(self._readers.values()), None)
            found = self._readers[point.lineage_tag] = RepositoryReader(
                self._other.store,
                keys,
                segment_keys=self._other.segment_keys,
                workers=0,
                index=None if first is None else first.index,
            )
        return found


def _moment(point: Point) -> float:
    """When it was taken, in seconds; only compared."""
    facts = point.manifest.facts
    try:
        return parse_utc(facts.snapshot_at or point.manifest.created_at).timestamp()
    except ValueError:
        return 0.0


def _unreadable(error: HoldfastError) -> None:
    log.warning("another repository cannot be read there", extra={"reason": str(error)})

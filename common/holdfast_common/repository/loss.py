"""From damaged chunks and pages to what they cost: exactly which ranges of which disks of which points.

Pages are shared between points, so each is judged once; subtrees without loss are skipped after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.repository.disk_map import DiskMap, PageReference, PageStore
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import BLOCK_BYTES, BLOCKS_PER_LEAF, LEAF_BYTES, MAP_FANOUT
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedObject:
    """An object that is not what it must be."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRange:
    """Bytes of a disk of a point that can no longer be restored."""

    point_id: PointId
    point_name: str
    device_key: int
    extent: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlistedLoss:
    """What more of a disk of a point is lost than a list names: so many ranges, together so many bytes."""

    point_id: PointId
    point_name: str
    device_key: int
    ranges: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LostBlob:
    """A blob of a point that can no longer be restored."""

    point_id: PointId
    point_name: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BadPage:
    """A page of a map that cannot be read, and why."""

    object_id: bytes
    offset: int
    reason: str


class RangeList:
    """Collects lost ranges, in order: the first ones each by itself, of the others how many and how long."""

    def __init__(self, *, ranges_max: int | None) -> None:
        """``ranges_max`` None: all are listed."""
        self._ranges_max = ranges_max
        self.listed: list[LostRange] = []
        self._unlisted: dict[tuple[PointId, str, int], tuple[int, int]] = {}

    @property
    def unlisted(self) -> tuple[UnlistedLoss, ...]:
        """Of each disk of a point that has ranges which are not listed."""
        return tuple(
            UnlistedLoss(
                point_id=point_id, point_name=name, device_key=key, ranges=ranges, length=length
            )
            for (point_id, name, key), (ranges, length) in self._unlisted.items()
        )

    def add(self, ranges: Iterable[LostRange]) -> None:
        """Take these; all are looked at."""
        for lost in ranges:
            if self._ranges_max is None or len(self.listed) < self._ranges_max:
                self.listed.append(lost)
                continue
            key = (lost.point_id, lost.point_name, lost.device_key)
            count, length = self._unlisted.get(key, (0, 0))
            self._unlisted[key] = (count + 1, length + lost.extent.length)


class LossFinder:
    """Judges points of one lineage. One thread.

    ``is_lost`` says whether no good copy of a chunk is left, or none that holds that block of the frame.
    """

    def __init__(
        self, store: ObjectStore, keys: ReaderKeys, *, is_lost: Callable[[bytes, int | None], bool]
    ) -> None:
        self._pages = PageStore(store, keys)
        self._is_lost = is_lost
        self._clean: set[bytes] = set()  # digests of pages without loss below
        self.bad_pages: dict[tuple[bytes, int], BadPage] = {}

    def ranges(self, point: Point) -> Iterator[LostRange]:
        """What is lost of a point's disks, touching ranges joined, ascending; found while it is asked for."""
        for disk in point.disks:
            disk_map = DiskMap(
                self._pages, disk.summary.root, capacity_bytes=disk.header.capacity_bytes
            )
            if disk_map.root is None:
                continue
            lost = self._lost(disk_map, disk_map.root, disk_map.root_level, 0)
            for extent in _joined(lost, capacity_bytes=disk.header.capacity_bytes):
                yield LostRange(
                    point_id=point.point_id,
                    point_name=point.name,
                    device_key=disk.header.device_key,
                    extent=extent,
                )

    def blobs(self, point: Point) -> list[LostBlob]:
        """Which blobs of a point are lost."""
        return [
            LostBlob(point_id=point.point_id, point_name=point.name, kind=blob.kind)
            for blob in point.manifest.blobs
            if any(self._is_lost(chunk_id, None) for chunk_id, _ in blob.chunks)
        ]

    def _lost(
        self, disk_map: DiskMap, reference: PageReference, level: int, number: int
    ) -> Iterator[tuple[int, int]]:
        if reference.digest in self._clean:
            return
        span = LEAF_BYTES * MAP_FANOUT**level
        found = False
        ranges: Iterable[tuple[int, int]]
        try:
            if level == 0:
                ranges = self._lost_in_leaf(disk_map, reference, number)
            else:
                children = disk_map.children(reference, level=level, number=number)
                ranges = (
                    item
                    for slot in sorted(children)
                    for item in self._lost(
                        disk_map, children[slot], level - 1, number * MAP_FANOUT + slot
                    )
                )
        except (IntegrityError, FormatError, RepositoryFailed) as error:
            self._note(reference, str(error))
            yield number * span, (number + 1) * span
            return
        for item in ranges:
            found = True
            yield item
        if not found:
            self._clean.add(reference.digest)

    def _lost_in_leaf(
        self, disk_map: DiskMap, reference: PageReference, number: int
    ) -> list[tuple[int, int]]:
        leaf = disk_map.load_leaf(number, reference)
        lost: dict[tuple[bytes, int], bool] = {}
        result = []
        for block, chunk_id in enumerate(leaf.ids):
            if chunk_id is None:
                continue
            wanted = (chunk_id, leaf.places[block])
            if wanted not in lost:
                lost[wanted] = self._is_lost(*wanted)
            if lost[wanted]:
                start = (number * BLOCKS_PER_LEAF + block) * BLOCK_BYTES
                result.append((start, start + BLOCK_BYTES))
        return result

    def _note(self, reference: PageReference, reason: str) -> None:
        self.bad_pages[(reference.object_id, reference.offset)] = BadPage(
            object_id=reference.object_id, offset=reference.offset, reason=reason
        )


def _joined(ranges: Iterable[tuple[int, int]], *, capacity_bytes: int) -> Iterator[Extent]:
    """Ascending starts and ends as extents within the disk, those that touch as one."""
    start = end = 0
    for low, high in ranges:
        if low > end:
            if end > start:
                yield Extent(offset=start, length=end - start)
            start = low
        end = min(high, capacity_bytes)
    if end > start:
        yield Extent(offset=start, length=end - start)

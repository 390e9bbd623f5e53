"""The read side: points of a lineage, their blobs, their disks; and comparing another disk with a point."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from holdfast_common.blocks.source import BlockSource
from holdfast_common.errors import IntegrityError, NotFound
from holdfast_common.extents import Extent, aligned, merged, split
from holdfast_common.identity import PointId
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.disk_map import DiskMap, PageStore
from holdfast_common.repository.disk_reader import PointDiskSource
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyOpener
from holdfast_common.repository.layout import BLOCK_BYTES, FRAME_BYTES
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import Point, find_job_point, list_points
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.writers import load_writers
from holdfast_common.units import SECTOR_BYTES

BLOB_BYTES_MAX: Final = 256 << 20


class RepositoryReader:
    """Reads one lineage. Close it, or use it as a context. Several threads may use it, one per disk."""

    def __init__(
        self,
        store: ObjectStore,
        keys: ReaderKeys,
        *,
        segment_keys: SegmentKeyOpener,
        workers: int | None = None,
        index: RepositoryIndex | None = None,
        cache: IndexCache | None = None,
    ) -> None:
        """``workers``: threads that read ahead, cores + 1 unless said; 0: none.

        Raises: IntegrityError (list of writers), RepositoryFailed.
        """
        self._store = store
        self._keys = keys
        count = (os.cpu_count() or 1) + 1 if workers is None else workers
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="frames") if count > 0 else None
        self.index = index if index is not None else RepositoryIndex(store, keys, cache=cache)
        self.index.refresh(load_writers(store, keys))
        self.frames = FrameReader(store, keys, index=self.index, segment_keys=segment_keys)

    def close(self) -> None:
        """End the threads. Twice is harmless."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> RepositoryReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def points(self) -> list[Point]:
        """The lineage's usable points, oldest first (`points.list_points` also names the unusable ones)."""
        return list(list_points(self._store, self._keys).points)

    def load_point(self, point_id: PointId) -> Point:
        """One point. Raises: NotFound; IntegrityError, FormatError when it is damaged."""
        point = find_job_point(self._store, self._keys, point_id)
        if point is not None and point.point_id == point_id:
            return point
        for point in self.points():
            if point.point_id == point_id:
                return point
        raise NotFound("there is no such restore point", point=point_id)

    def blob(self, point: Point, kind: str) -> bytes:
        """A blob of a point (.vmx, OVF, NVRAM). Raises: NotFound, IntegrityError, ObjectMissing and others."""
        record = point.blob(kind)
        if record.length > BLOB_BYTES_MAX:
            raise IntegrityError(
                "a blob is longer than any may be", kind=kind, length=record.length
            )
        found = self.frames.read([chunk_id for chunk_id, _ in record.chunks])
        data = b"".join(found[chunk_id] for chunk_id, _ in record.chunks)
        if len(data) != record.length:
            raise IntegrityError("a blob has another length than its record", kind=kind)
        return data

    def open_disk(self, point: Point, device_key: int) -> PointDiskSource:
        """A disk of a point, for one thread. Raises: NotFound."""
        disk = point.disk(device_key)
        disk_map = DiskMap(
            PageStore(self._store, self._keys),
            disk.summary.root,
            capacity_bytes=disk.header.capacity_bytes,
        )
        return PointDiskSource(disk, disk_map=disk_map, frames=self.frames, pool=self._pool)


def verify_extents(
    expected: PointDiskSource,
    actual: BlockSource,
    extents: Iterable[Extent],
    *,
    hasher: Hasher,
) -> list[Extent]:
    """Where ``actual`` differs from the point's disk within ``extents``, in whole sectors, merged.

    What the point says is zero must be zero there. Only digests of the point are read, and its data just
    where they differ. Raises: what either side raises.
    """
    capacity = expected.capacity_bytes
    wanted = aligned(extents, unit=BLOCK_BYTES, capacity_bytes=capacity)
    buffer = memoryview(bytearray(FRAME_BYTES))
    differing: list[Extent] = []
    for piece in split(wanted, unit=FRAME_BYTES):
        found = buffer[: piece.length]
        actual.read_into(piece.offset, found)
        for number, digest in enumerate(expected.digests(piece)):
            block = found[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            if digest is None:
                same = not np.frombuffer(block, np.uint8).any()
            else:
                same = hasher.block_digest(block) == digest
            if not same:
                offset = piece.offset + number * BLOCK_BYTES
                differing += _differing_sectors(expected, offset=offset, found=block)
    return merged(differing)


def _differing_sectors(
    expected: PointDiskSource, *, offset: int, found: memoryview
) -> Sequence[Extent]:
    right = bytearray(len(found))
    expected.read_into(offset, memoryview(right))
    differs = np.frombuffer(found, np.uint8) != np.frombuffer(right, np.uint8)
    sectors = np.flatnonzero(differs) // SECTOR_BYTES
    return [
        Extent(offset=offset + int(sector) * SECTOR_BYTES, length=SECTOR_BYTES)
        for sector in np.unique(sectors)
    ]

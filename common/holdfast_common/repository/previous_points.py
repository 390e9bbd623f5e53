"""Before a writer builds on an earlier point: does it still count, and is it of the same disk?

A point can be forgotten between the moment in which it was chosen and the one in which the writer was
announced; what it stood on may be dead then. From the announcement on it cannot: see `fence`.
"""

from __future__ import annotations

import threading

from holdfast_common.errors import PreviousLost, UsageError
from holdfast_common.identity import PointId
from holdfast_common.repository.disk_map import DiskMap
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.manifest import PointDisk
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import find_job_point
from holdfast_common.repository.reference_check import SinglePages


class PreviousPoints:
    """Looks each point up once. Made after the writer's lease was acquired. Thread-safe; each map is one thread's."""

    def __init__(self, store: ObjectStore, keys: ReaderKeys) -> None:
        self._store = store
        self._keys = keys
        self._counted: set[PointId] = set()
        self._pages: list[SinglePages] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the maps' objects. Twice is harmless; maps can be read after it, at a higher cost."""
        for pages in self._pages:
            pages.close()

    def map_of(self, previous: PointDisk | None, *, capacity_bytes: int) -> DiskMap:
        """The map of the disk to build on; an empty one when there is none.

        Raises: UsageError when it has another size or lineage; PreviousLost, RepositoryFailed.
        """
        used = previous.used if previous is not None else None
        pages = SinglePages(self._store, self._keys, used.maps if used is not None else {})
        self._pages.append(pages)
        if previous is None:
            return DiskMap(pages, None, capacity_bytes=capacity_bytes)
        if (
            previous.header.capacity_bytes != capacity_bytes
            or previous.lineage_id != self._keys.lineage_id
        ):
            raise UsageError(
                "a disk of another size or VM cannot be built on",
                capacity_bytes=capacity_bytes,
                previous_capacity_bytes=previous.header.capacity_bytes,
            )
        with self._lock:
            if previous.point_id not in self._counted:
                if find_job_point(self._store, self._keys, previous.point_id) is None:
                    raise PreviousLost("the point to build on is gone", point=previous.point_id)
                self._counted.add(previous.point_id)
        return DiskMap(pages, previous.summary.root, capacity_bytes=capacity_bytes)

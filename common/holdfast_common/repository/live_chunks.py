"""What the restore points need: their chunks, map objects and index objects. The mark of mark and sweep.

Every page of every counted point's maps is read, each once. Chunks are remembered by the first eight bytes
of their ids: two that agree there are taken for one, which can only keep more than is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from holdfast_common.errors import FormatError, IntegrityError, PointVoided, RevokedWriter
from holdfast_common.repository.disk_map import DiskMap, PageReference, PageStore, level_count
from holdfast_common.repository.fence import Fences
from holdfast_common.repository.index import id_prefix
from holdfast_common.repository.key_sets import KeyRing
from holdfast_common.repository.layout import MAP_FANOUT, map_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import Point, PointList, list_points
from holdfast_common.repository.prune_progress import MARKING, PruneProgress, Tell
from holdfast_common.repository.repair_staging import unfinished_replacements

PENDING_MAX: Final = 1 << 20  # ids that wait to be sorted in: 8 MiB
Prefixes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """What must stay. ``problems``: why that is not known; then nothing may be deleted."""

    census: dict[str, bytes]  # all points that count: manifest's name -> its digest
    void: tuple[str, ...]  # manifests that never count again
    chunks: Prefixes  # first eight bytes of each chunk id, as numbers, ascending, each once
    maps: frozenset[str]  # names of map objects
    indexes: frozenset[bytes]  # index objects that points name
    problems: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()  # of the problems: manifests that cannot be used


def find_needed(
    store: ObjectStore,
    ring: KeyRing,
    *,
    fences: Fences | None = None,
    check: Callable[[], None] = lambda: None,
    tell: Tell = lambda _: None,
) -> Needed:
    """Read all maps of all points. ``check``: called often; raises when the work is to stop.

    ``fences``: those that the caller goes by.
    Raises: IntegrityError (list of writers), RepositoryFailed.
    """
    unfinished = set(unfinished_replacements(store))
    listed = list_points(store, ring, fences=fences)
    unfinished |= set(unfinished_replacements(store))
    problems = list(_problems(listed))
    problems += [f"a repair was not finished: {name} waits" for name in sorted(unfinished)]
    chunks = _Chunks()
    maps: set[str] = set()
    indexes: set[bytes] = set()
    walks: dict[bytes, _MapWalk] = {}
    for number, point in enumerate(listed.points):
        check()
        tell(PruneProgress(step=MARKING, done=number, total=len(listed.points)))
        walk = walks.get(point.lineage_tag)
        if walk is None:
            keys = ring.of_tag(point.lineage_tag)
            assert keys is not None, "listed points have keys"
            pages = PageStore(store, keys)
            walk = walks[point.lineage_tag] = _MapWalk(pages, chunks.add, check=check)
        try:
            walk.walk(point)
        except (IntegrityError, FormatError) as error:
            problems.append(f"a map of {point.name} cannot be read: {error}")
        manifest = point.manifest
        maps |= {map_name(point.lineage_tag, item.object_id) for item in manifest.maps}
        indexes |= {item.object_id for item in manifest.indexes}
        if manifest.used is not None:
            indexes |= manifest.used.indexes or frozenset()
        for blob in manifest.blobs:
            chunks.add(chunk_id for chunk_id, _ in blob.chunks)
    for tag, walk in walks.items():
        maps |= {map_name(tag, object_id) for object_id in walk.objects}
    never_counted = (PointVoided.code, RevokedWriter.code)
    return Needed(
        census={point.name: point.digest for point in listed.points},
        void=tuple(item.name for item in listed.unusable if item.code in never_counted),
        unusable=tuple(item.name for item in listed.unusable if item.code not in never_counted),
        chunks=chunks.sorted(),
        maps=frozenset(maps),
        indexes=frozenset(indexes),
        problems=tuple(problems),
    )


def are_needed(needed: Prefixes, prefixes: NDArray[Any]) -> NDArray[np.bool_]:
    """Of each prefix whether it is among the needed ones."""
    if not len(needed):
        return np.zeros(len(prefixes), np.bool_)
    places = np.minimum(needed.searchsorted(prefixes), len(needed) - 1)
    found: NDArray[np.bool_] = needed[places] == prefixes
    return found


def _problems(listed: PointList) -> Iterable[str]:
    """A manifest that cannot be read may be repaired some day, and nobody knows what it needs."""
    for item in listed.unusable:
        if item.code not in (PointVoided.code, RevokedWriter.code):
            yield f"{item.name} cannot be used: {item.reason}"
    for name in listed.unopened:
        yield f"there is no key for {name}"


class _Chunks:
    def __init__(self) -> None:
        self._sorted: Prefixes = np.zeros(0, np.uint64)
        self._pending: list[int] = []

    def add(self, chunk_ids: Iterable[bytes]) -> None:
        self._pending += map(id_prefix, chunk_ids)
        if len(self._pending) >= PENDING_MAX:
            self.sorted()

    def sorted(self) -> Prefixes:
        if self._pending:
            fresh = np.array(self._pending, np.uint64)
            self._sorted = np.unique(np.concatenate([self._sorted, fresh]))
            self._pending = []
        return self._sorted


@dataclass(slots=True)
class _MapWalk:
    """The maps of one lineage. Pages are shared between its points: each is read once."""

    pages: PageStore
    add: Callable[[Iterable[bytes]], None]
    check: Callable[[], None]
    objects: set[bytes] = field(default_factory=set)  # map objects with pages that were seen
    seen: set[bytes] = field(default_factory=set)  # digests of pages of which all below was seen

    def walk(self, point: Point) -> None:
        """All pages of a point's disks. Raises: IntegrityError, FormatError."""
        for disk in point.disks:
            root = disk.summary.root
            if root is not None:
                capacity = disk.header.capacity_bytes
                disk_map = DiskMap(self.pages, root, capacity_bytes=capacity)
                self._below(disk_map, root, level=level_count(capacity), number=0)

    def _below(
        self, disk_map: DiskMap, reference: PageReference, *, level: int, number: int
    ) -> None:
        self.objects.add(reference.object_id)  # the same page may stand in two of them
        if reference.digest in self.seen:
            return
        if level == 0:
            leaf = disk_map.load_leaf(number, reference)
            self.add({chunk_id for chunk_id in leaf.ids if chunk_id is not None})
        else:
            self.check()
            children = disk_map.children(reference, level=level, number=number)
            for slot, child in children.items():
                self._below(disk_map, child, level=level - 1, number=number * MAP_FANOUT + slot)
        self.seen.add(reference.digest)

"""Is the repository whole? Every damaged object, and exactly what of which point is lost by it.

`check_structure` reads metadata and the packs' footers; `check_data` also decodes and hashes what is in
the packs. (`scrub` needs no key at all and compares packs with their own digests.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from holdfast_common.errors import (
    FormatError,
    IntegrityError,
    PointVoided,
    RepositoryFailed,
    RevokedWriter,
)
from holdfast_common.identity import PointId
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.index_segment import writers_of_packs
from holdfast_common.repository.key_sets import KeyRing, SegmentKeyOpener
from holdfast_common.repository.layout import (
    METADATA_BYTES_MAX,
    aside_name,
    index_name,
    is_object_name,
    map_name,
    pack_name,
)
from holdfast_common.repository.loss import (
    DamagedObject,
    LossFinder,
    LostBlob,
    LostRange,
    RangeList,
    UnlistedLoss,
)
from holdfast_common.repository.metadata_check import check_metadata
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import read_contents
from holdfast_common.repository.pack_decoder import PackDecoder
from holdfast_common.repository.points import PointList, UnusablePoint, list_points
from holdfast_common.repository.proof import load_proof_times
from holdfast_common.repository.reference_check import stored_packs
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.subset import Share, Subset, chosen_packs
from holdfast_common.repository.trusted_chunks import names_all
from holdfast_common.repository.writers import WriterList, load_writers

PROVEN_PACKS: Final = 256  # 16 GiB: so much is read again after a check was cut off
RANGES_LISTED_MAX: Final = 250_000  # 85 MiB
_DAMAGE: Final = (IntegrityError, FormatError, RepositoryFailed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check found."""

    points: int
    packs: int
    objects_checked: int
    packs_decoded: int = 0
    bytes_decoded: int = 0
    damaged: tuple[DamagedObject, ...] = ()
    lost_points: tuple[
        str, ...
    ] = ()  # names of manifests that cannot be used: everything of them is lost
    lost_ranges: tuple[LostRange, ...] = ()  # by point and disk, ascending
    unlisted: tuple[UnlistedLoss, ...] = ()  # of lost ranges those that were too many for the list
    lost_blobs: tuple[LostBlob, ...] = ()
    voided: tuple[str, ...] = ()  # manifests that the fence shut out; no damage
    unopened: tuple[str, ...] = ()  # manifests of lineages whose keys were not given; not checked
    proven_packs: tuple[bytes, ...] = ()  # every blob decoded and true: what a proof may name

    @property
    def is_clean(self) -> bool:
        """Whether nothing is damaged; then nothing is lost either."""
        lost = self.lost_points or self.lost_ranges or self.unlisted or self.lost_blobs
        return not (self.damaged or lost)


def check_structure(
    store: ObjectStore,
    ring: KeyRing,
    *,
    expected_points: Collection[str] = (),
    points: Collection[PointId] = (),
) -> CheckReport:
    """Check all metadata and the packs' footers, without reading data.

    ``expected_points``: names of manifests that a catalogue knows; a repository cannot tell by itself that
    a whole manifest was taken away. ``points``: only of these tell what is lost; none: of all.
    Raises: IntegrityError when the list of writers itself cannot be trusted; RepositoryFailed.
    """
    state = RepositoryCheck(store, ring)
    state.check_objects(expected_points)
    return state.report(points=points)


def check_data(
    store: ObjectStore,
    ring: KeyRing,
    *,
    segment_keys: SegmentKeyOpener,
    subset: Subset | Share | None = None,
    reader: bytes = b"",
    workers: int = 2,
    expected_points: Collection[str] = (),
    points: Collection[PointId] = (),
    proven: Callable[[Sequence[bytes]], None] | None = None,
) -> CheckReport:
    """`check_structure`, and open, decompress and hash every blob of the packs (or of a subset of them).

    ``reader``: public key of who signs what is found true; a share of the data is chosen by what his proof
    adds. ``proven``: hears in between of packs that were found true, so that a long check which is cut off
    was not in vain.
    Raises: as `check_structure`; Refused, ControllerUnreachable from ``segment_keys``.
    """
    state = RepositoryCheck(store, ring)
    state.check_objects(expected_points)
    state.decode(segment_keys, subset, reader=reader, workers=workers, proven=proven)
    return state.report(points=points)


class RepositoryCheck:
    """A check under way: `check_objects`, perhaps `decode`, then `report`. Repair goes on from it."""

    def __init__(self, store: ObjectStore, ring: KeyRing) -> None:
        self._store = store
        self._ring = ring
        self._damaged: dict[str, str] = {}
        self._checked = 0
        self._present = stored_packs(store)
        self._writers = load_writers(store, ring.common)
        self.index = RepositoryIndex(store, ring.common)
        self._bad_places: set[tuple[bytes, int]] = set()  # pack, offset
        self._decoded: list[bytes] = []
        self._proven: list[bytes] = []
        self._decoded_bytes = 0
        self._points: PointList = list_points(store, ring)
        self._missing_points: list[str] = []
        self._expected_points: Collection[str] = ()
        self._looked_up: tuple[bytes, list[ChunkLocation]] = (b"", [])
        self._asked_all_packs = False
        # that points need, after `report`: of frames a bit per lost block, of other chunks 1
        self.lost_chunks: dict[bytes, int] = {}

    @property
    def writers(self) -> WriterList:
        """Who may sign what."""
        return self._writers

    def check_objects(self, expected_points: Collection[str]) -> None:
        """All metadata, and the packs' footers. Raises: RepositoryFailed."""
        epochs = [point.manifest.writer_epoch for point in self._points.points]
        metadata = check_metadata(self._store, self._ring.common, self._writers, epochs=epochs)
        self._damaged |= metadata.damaged
        self._checked += metadata.checked
        names = {point.name for point in self._points.points}
        names |= {item.name for item in self._points.unusable}
        self._expected_points = expected_points
        self._missing_points = sorted(set(expected_points) - names)
        self._damaged |= dict.fromkeys(self._missing_points, "the manifest is missing")
        self.index.refresh(self._writers)
        for refused in self.index.refused:
            if refused.code != RevokedWriter.code:  # unless a point needs it, see _check_written
                self._damaged[refused.name] = refused.reason
        for pack in self.index.packs():
            found = self._present.get(pack.digest)
            if found is None and self._store.head(aside_name(pack_name(pack.digest))):
                continue  # a repair took it out; what is lost by that is told as lost
            if found is None and pack.digest in metadata.tombstoned:
                continue  # deleted while its index could not be rewritten; what points lack is found below
            if found != pack.length:
                self._damaged[pack_name(pack.digest)] = (
                    "the pack is missing" if found is None else "the pack has another length"
                )
        for digest, length in self._present.items():
            self._checked += 1
            try:
                read_contents(self._store, digest, length=length, keys=self._ring.common)
            except _DAMAGE as error:
                self._damaged.setdefault(pack_name(digest), str(error))
        self.index.recover(self._store)
        self._check_written()
        self._checked += len(self.index.packs()) + len(self._points.points)

    def decode(
        self,
        segment_keys: SegmentKeyOpener,
        subset: Subset | Share | None,
        *,
        workers: int,
        reader: bytes = b"",
        proven: Callable[[Sequence[bytes]], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Every blob of the packs. ``check``: called between packs.

        Raises: Refused, ControllerUnreachable, RepositoryFailed; what ``proven`` and ``check`` do.
        """
        frames = FrameReader(
            self._store, self._ring.common, index=self.index, segment_keys=segment_keys
        )
        packs = PackDecoder(self._store, frames)
        proven_at = self._proven_at(reader) if isinstance(subset, Share) else {}
        chosen = chosen_packs(self._present, subset, proven_at=proven_at)
        told = 0
        with ThreadPoolExecutor(max(1, workers)) as pool:
            results = (
                (digest, places, found)
                for group in self.index.in_groups(chosen)
                for (digest, places), found in zip(
                    group.items(),
                    pool.map(
                        lambda item: packs.decode(item[0], self._present[item[0]], item[1]),
                        group.items(),
                    ),
                    strict=True,
                )
            )
            for digest, places, found in results:
                check()
                self._decoded.append(digest)
                self._decoded_bytes += sum(place.plain_length for place in places)
                self._bad_places |= {(digest, place.offset) for place in found.bad}
                if found.reason:
                    self._damaged.setdefault(pack_name(digest), found.reason)
                elif pack_name(digest) not in self._damaged and self._is_all(digest, places):
                    self._proven.append(digest)
                if proven is not None and len(self._proven) - told >= PROVEN_PACKS:
                    proven(self._proven[told:])
                    told = len(self._proven)
        if proven is not None and self._proven[told:]:
            proven(self._proven[told:])

    def _proven_at(self, reader: bytes) -> dict[bytes, str]:
        times = load_proof_times(self._store, self._ring.common, self._writers)
        writers = writers_of_packs(self.index.segments())
        return {
            pack: times.last(pack, writers=writers.get(pack, ()), reader=reader)
            for pack in self._present
        }

    def report(
        self, *, points: Collection[PointId] = (), ranges_max: int | None = RANGES_LISTED_MAX
    ) -> CheckReport:
        """What all of that comes to. Raises: RepositoryFailed.

        ``points``: of others no ranges are listed; none: of all they are. ``ranges_max``: None = no limit.
        """
        self._looked_up = (b"", [])
        ranges = RangeList(ranges_max=ranges_max)
        lost_blobs: list[LostBlob] = []
        finders: dict[bytes, LossFinder] = {}
        for point in self._points.points:
            finder = finders.get(point.lineage_tag)
            if finder is None:
                keys = self._ring.of_tag(point.lineage_tag)
                assert keys is not None, "listed points have keys"
                finder = LossFinder(self._store, keys, is_lost=self._is_lost)
                finders[point.lineage_tag] = finder
            lost = finder.ranges(point)
            if points and point.point_id not in points:
                deque(lost, maxlen=0)  # only what it notes of pages and chunks
            else:
                ranges.add(lost)
            lost_blobs += finder.blobs(point)
        for tag, finder in finders.items():
            for page in finder.bad_pages.values():
                self._damaged.setdefault(map_name(tag, page.object_id), page.reason)
        unusable = [item for item in self._points.unusable if self._is_missed(item)]
        for item in unusable:
            self._damaged[item.name] = item.reason
        return CheckReport(
            points=len(self._points.points),
            packs=len(self._present),
            objects_checked=self._checked,
            packs_decoded=len(self._decoded),
            bytes_decoded=self._decoded_bytes,
            damaged=tuple(
                DamagedObject(name=name, reason=reason)
                for name, reason in sorted(self._damaged.items())
            ),
            lost_points=(*(item.name for item in unusable), *self._missing_points),
            lost_ranges=tuple(ranges.listed),
            unlisted=ranges.unlisted,
            lost_blobs=tuple(lost_blobs),
            voided=tuple(
                item.name for item in self._points.unusable if item.code == PointVoided.code
            ),
            unopened=self._points.unopened,
            proven_packs=tuple(self._proven),
        )

    def _is_all(self, digest: bytes, places: Sequence[ChunkLocation]) -> bool:
        """Whether the index named every blob of the pack: what was not decoded is not proven."""
        try:
            contents = read_contents(
                self._store, digest, length=self._present[digest], keys=self._ring.common
            )
        except _DAMAGE as error:
            self._damaged.setdefault(pack_name(digest), str(error))
            return False
        return names_all(contents, places)

    def _is_lost(self, chunk_id: bytes, block: int | None) -> bool:
        """``block``: which one of a disk's frame is needed; of others than frames everything is."""
        if self._looked_up[0] != chunk_id:  # one frame is asked for block after block
            self._looked_up = (chunk_id, self._places_of(chunk_id))
        good = [
            place
            for place in self._looked_up[1]
            if self.is_good(place) and (block is None or place.presence >> block & 1)
        ]
        if not good:
            self.lost_chunks[chunk_id] = self.lost_chunks.get(chunk_id, 0) | 1 << (block or 0)
        elif not self._damaged_indexes() and all(
            self.index.object_of(place) is None for place in good
        ):
            # found by asking the packs themselves: the object that named them is gone
            self._damaged.setdefault(
                "index/", f"no index object names {pack_name(good[0].origin.pack.digest)}"
            )
        return not good

    def _places_of(self, chunk_id: bytes) -> list[ChunkLocation]:
        found = self.index.find_all(chunk_id)
        if not found and not self._asked_all_packs:
            self._asked_all_packs = True  # an index may say too little of a pack that has it
            self.index.recover(self._store, thorough=True)
            found = self.index.find_all(chunk_id)
        return found

    def _damaged_indexes(self) -> bool:
        return any(name.startswith("index/") and is_object_name(name) for name in self._damaged)

    def is_good(self, place: ChunkLocation) -> bool:
        """Whether that copy of a chunk is there, and nothing found it damaged."""
        digest = place.origin.pack.digest
        end = place.offset + place.stored_length
        return (
            end <= self._present.get(digest, 0) and (digest, place.offset) not in self._bad_places
        )

    def _is_missed(self, item: UnusablePoint) -> bool:
        """Not what never counted, nor what somebody put with a revoked key, unless a catalogue knows it."""
        if item.code == RevokedWriter.code:
            return item.name in self._expected_points
        return item.code != PointVoided.code

    def _check_written(self) -> None:
        """What a point's attempt wrote besides packs: every index object is there, every map object whole."""
        seen: set[bytes] = set()
        for point in self._points.points:
            for written in point.manifest.indexes:
                name = index_name(written.object_id)
                if not self.index.uses(name) and not self._store.head(aside_name(name)):
                    self._damaged.setdefault(name, "the index object is missing")
            for item in point.manifest.maps:
                if item.object_id in seen:
                    continue
                seen.add(item.object_id)
                self._checked += 1
                name = map_name(point.lineage_tag, item.object_id)
                try:
                    data = self._store.get(name, length_max=METADATA_BYTES_MAX)
                    if blake3(data).digest() != item.digest:
                        raise IntegrityError("the object is not the one that was stored")
                except _DAMAGE as error:
                    self._damaged[name] = str(error)

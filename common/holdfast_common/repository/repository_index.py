"""All index segments of a repository together: where a chunk lies, and who says so.

Small segments are merged into a few sorted tables in memory; large ones are mapped from this machine's
cache (`index_cache`), one table each, so opening reads none of them whole. Every segment is checked
against the list of writers. Lookups need no lock: the tables are replaced, never changed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    ObjectMissing,
    RepositoryFailed,
)
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.cold_digests import ColdDigests
from holdfast_common.repository.index import IndexSegment, decoded_segment
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.index_cache_builder import cached_segment, check_name, check_role
from holdfast_common.repository.index_cache_file import CachedSegment, DamagedCache
from holdfast_common.repository.index_segment import IndexedPack, OpenSegment, rows_in_packs
from holdfast_common.repository.index_table import (
    ChunkTable,
    IdBatch,
    Matches,
    MemoryTable,
    joined_tables,
    search,
    with_table,
)
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    BLOCK_DIGEST_BYTES,
    METADATA_BYTES_MAX,
    BlobKind,
    ObjectKind,
    index_name,
)
from holdfast_common.repository.merged_segments import MergedSegments, object_id_of
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore
from holdfast_common.repository.pack_listing import PresentPacks
from holdfast_common.repository.pack_recovery import PackRecovery
from holdfast_common.repository.sealed_object import OpenedObject
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import WriterList

log = logging.getLogger(__name__)

PASSES_MAX: Final = 256  # each goes through all tables: 0.3 CPU seconds a million chunks
PACKS_AT_ONCE: Final = 512  # some 33,000 places of large frames: 20 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedIndex:
    """An index object that was not used, and why."""

    name: str
    reason: str
    code: str  # of the error


class RepositoryIndex:
    """What all index objects say. Safe for several threads."""

    def __init__(
        self, store: ObjectStore, keys: ReaderKeys, *, cache: IndexCache | None = None
    ) -> None:
        """``cache``: this machine's; None: everything is read anew and held in memory."""
        self._store = store
        self._keys = keys
        self._cache = cache
        self._lock = threading.RLock()
        self._segments: list[OpenSegment] = []
        self._mapped: tuple[CachedSegment, ...] = ()
        self._tables: tuple[MemoryTable, ...] = ()
        self._waiting: list[OpenSegment] = []  # proven, and not asked for anything yet
        self._cold = ColdDigests(store, keys)
        self._loaded: set[str] = set()  # names that were looked at
        self._used: dict[str, OpenSegment] = {}  # by the names of objects that were right
        self._writers: WriterList | None = None
        self._recovery = PackRecovery(keys)
        self._recovered: dict[int, bytes] = {}  # bodies of segments that were made from packs
        self.refused: list[RefusedIndex] = []
        self._merged = MergedSegments()

    def refresh(self, writers: WriterList) -> None:
        """Load index objects that were not there before. Unusable ones are noted in ``refused``.

        Raises: RepositoryFailed.
        """
        self._writers = writers
        # large ones first: what merged ones contain needs not be opened
        listed = stored_objects(self._store, "index/")
        new = [info for info in listed if info.name not in self._loaded]
        self._merged.expect(info.name for info in new)
        for info in sorted(new, key=lambda info: -info.length):
            if self._cache is not None and self._merged.into(info.name):
                self._loaded.add(info.name)
                continue
            try:
                self._load_listed(info, writers)
            except ObjectMissing:
                continue  # replaced by a merged one between the listing and now
            except RepositoryFailed as error:  # a bad sector below one object must not stop all
                self._refuse(info.name, error)
                continue  # the next refresh tries it again
            except (FormatError, IntegrityError) as error:
                self._refuse(info.name, error)
            self._loaded.add(info.name)
        if self._cache is not None and new:
            self._cache.keep_only(set(self._used), self._keys)

    def _refuse(self, name: str, error: HoldfastError) -> None:
        log.warning("index object refused", extra={"object": name, "reason": str(error)})
        self.refused.append(RefusedIndex(name=name, reason=str(error), code=error.code))

    def _load_listed(self, info: ObjectInfo, writers: WriterList) -> None:
        """Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed."""
        if self._cache is None:
            data = self._store.get(info.name, length_max=METADATA_BYTES_MAX)
            self.load(data, info.name, writers)
            return
        segment = cached_segment(self._cache, self._store, info, keys=self._keys)
        if isinstance(segment, bytes):
            self.load(segment, info.name, writers)
            return
        head = segment.head
        check_role(head.object, head.supersedes, head.writers, writers)
        self._add(segment, name=info.name, stored_length=info.length)

    def load(self, data: bytes, name: str, writers: WriterList) -> OpenedObject:
        """Check and add one index object. Raises: FormatError, IntegrityError."""
        found = self._keys.open(ObjectKind.INDEX, data)
        check_name(found, name)
        segment = decoded_segment(found.body)
        check_role(found, len(segment.supersedes), segment.writers, writers)
        self._add(segment, name=name, stored_length=len(data))
        return found

    def is_whole(self, object_ids: Iterable[bytes], *, present: PresentPacks) -> bool:
        """Whether these index objects, or merged ones in their place, and all of their packs are there now.

        Raises: RepositoryFailed.
        """
        for name in self._names_of(object_ids):
            segment = self._used.get(name)
            info = self._store.head(name) if segment is not None else None
            if segment is None or info is None or info.length != segment.stored_length:
                return False
            if not present.hold(name, segment.pack_rows):
                return False
        return True

    def current(self, object_ids: Iterable[bytes]) -> frozenset[bytes]:
        """These index objects, or merged ones in their place: what a new point names."""
        return frozenset(object_id_of(name) for name in self._names_of(object_ids) if name)

    def _names_of(self, object_ids: Iterable[bytes]) -> set[str]:
        """Empty for what is neither used nor contained in another one."""
        names = set()
        with self._lock:
            for object_id in object_ids:
                name = index_name(object_id)
                names.add(self._merged.into(name) or (name if name in self._used else ""))
        return names

    def object_of(self, location: ChunkLocation) -> bytes | None:
        """The id of the index object that says where a chunk lies; None: its own pack does."""
        name = self._segments[location.digest_segment].name
        return object_id_of(name) if name else None

    def reloaded(self) -> RepositoryIndex:
        """A new index of what is listed now. Raises: RepositoryFailed."""
        fresh = RepositoryIndex(self._store, self._keys, cache=self._cache)
        assert self._writers is not None, "refresh comes first"
        fresh.refresh(self._writers)
        return fresh

    def recover(self, store: ObjectStore, *, thorough: bool = False) -> bool:
        """Ask packs that no index names for their own footers; whether that told anything new.

        ``thorough``: if it did not, all others too, once: some index may say too little of them.
        Files of this machine's cache are proven first: one that is damaged is made again.
        Raises: RepositoryFailed.
        """
        found = self._verified()
        with self._lock:
            body = self._recovery.contents(store, known={pack.digest for pack in self.packs()})
            if thorough and not body:
                body = self._recovery.contradicted(store, self.in_groups)
            if body:
                self._recovered[len(self._segments)] = body
                self._add(decoded_segment(body), name="", stored_length=0)
        return found or bool(body)

    def superseded(self) -> dict[str, str]:
        """Index objects that were seen and are not needed any more, each with the merged one that contains it."""
        with self._lock:
            found = {name: self._merged.into(name) for name in self._loaded}
        return {name: into for name, into in found.items() if into}

    def uses(self, name: str) -> bool:
        """Whether that index object was loaded, or a merged one that contains it."""
        with self._lock:
            return name in self._used or bool(self._merged.into(name))

    def find(self, chunk_id: bytes) -> ChunkLocation | None:
        """One place of that chunk."""
        return next(iter(self.find_all(chunk_id)), None)

    def find_all(self, chunk_id: bytes) -> list[ChunkLocation]:
        """Every place of that chunk."""
        return self.find_many((chunk_id,)).get(chunk_id, [])

    def find_many(self, chunk_ids: Sequence[bytes]) -> dict[bytes, list[ChunkLocation]]:
        """Every place of each of these chunks; much cheaper than one by one. Unknown ones are left out."""
        found: dict[bytes, list[ChunkLocation]] = {}
        for matches in self.look_up(chunk_ids):
            for asked, row in zip(matches.asked.tolist(), matches.rows.tolist(), strict=True):
                chunk_id = chunk_ids[asked]
                found.setdefault(chunk_id, []).append(self._location(chunk_id, row))
        return found

    def look_up(
        self, chunk_ids: Sequence[bytes] | bytes, *, filtered: bool = False
    ) -> list[Matches]:
        """As `find_many`, as rows of tables. ``filtered``: frames of less than four blocks may be missed."""
        batch, mapped = IdBatch.of(chunk_ids), self._mapped
        results = [search(table, batch) for table in self._in_memory()]
        results += [self._search_mapped(table, batch, filtered=True) for table in mapped]
        found = [matches for matches in results if matches is not None]
        if not filtered and mapped:
            # an id's filter bits are in every table that has it, or in none: what was found is found everywhere
            known = np.zeros(len(batch.order), bool)
            for matches in found:
                known[matches.asked] = True
            rest = batch.chosen(np.flatnonzero(~known[batch.order]))
            if len(rest.order):
                results = [self._search_mapped(table, rest, filtered=False) for table in mapped]
                found += [matches for matches in results if matches is not None]
        return found

    def in_groups(self, wanted: Sequence[bytes]) -> Iterator[dict[bytes, list[ChunkLocation]]]:
        """As `by_pack`, some packs after the other: what is in memory does not grow with the repository."""
        count = max(PACKS_AT_ONCE, -(-len(wanted) // PASSES_MAX))
        for start in range(0, len(wanted), count):
            yield self.by_pack(wanted[start : start + count])

    def by_pack(self, wanted: Collection[bytes]) -> dict[bytes, list[ChunkLocation]]:
        """What is indexed of these packs, those that are; each in its own order. All tables are gone through."""
        packs, rows = rows_in_packs(
            self.segments(), [*self._in_memory(), *self._mapped], set(wanted)
        )
        found: dict[bytes, list[ChunkLocation]] = {digest: [] for digest in packs}
        for chunk_id, row in rows:
            location = self._location(chunk_id, row)
            found[location.origin.pack.digest].append(location)
        for locations in found.values():
            locations.sort(key=lambda location: location.offset)
        return {digest: found[digest] for digest in wanted if digest in found}

    def digests(self, location: ChunkLocation) -> bytes:
        """The digests of its blocks, from the index's cold part. Raises: IntegrityError, RepositoryFailed."""
        segment = self._segments[location.digest_segment]
        start = segment.digests_offset + location.digest_start * BLOCK_DIGEST_BYTES
        end = start + location.blocks * BLOCK_DIGEST_BYTES
        recovered = self._recovered.get(location.digest_segment)
        if recovered is not None:
            return recovered[start:end]
        return self._cold.read(
            segment.name, stored_length=segment.stored_length, start=start, end=end
        )

    def packs(self) -> list[IndexedPack]:
        """All packs that any index names."""
        found = {pack.digest: pack for each in self.segments() for pack in each.packs()}
        return list(found.values())

    def segments(self) -> list[OpenSegment]:
        """All that is loaded, by number."""
        with self._lock:
            return list(self._segments)

    @property
    def chunk_count(self) -> int:
        """Entries, duplicates included."""
        tables: list[ChunkTable] = [*self._in_memory(), *self._mapped]
        return sum(len(table.prefixes) for table in tables)

    def _location(self, chunk_id: bytes, row: tuple[int, ...]) -> ChunkLocation:
        origin, number, offset, stored, plain, digest, kind, blocks, presence, segment = row
        return ChunkLocation(
            chunk_id=chunk_id,
            kind=BlobKind(kind),
            origin=self._segments[segment].origin(origin),
            number=number,
            offset=offset,
            stored_length=stored,
            plain_length=plain,
            blocks=blocks,
            presence=presence,
            digest_segment=segment,
            digest_start=digest,
        )

    def _add(self, source: IndexSegment | CachedSegment, *, name: str, stored_length: int) -> None:
        with self._lock:
            self._place(source, name=name, number=len(self._segments), stored_length=stored_length)
            if name:
                self._loaded.add(name)

    def _place(
        self, source: IndexSegment | CachedSegment, *, name: str, number: int, stored_length: int
    ) -> None:
        """Make a segment the one of that number: a new one, or one that was made again."""
        segment = OpenSegment(source, name=name, number=number, stored_length=stored_length)
        self._segments[number : number + 1] = [segment]
        if segment.mapped is not None:
            self._mapped = (*self._mapped, segment.mapped)
        elif segment.is_proven:
            self._waiting.append(segment)
        else:
            self._tables = with_table(self._tables, segment.memory_table())
        if name:
            self._used[name] = segment
            self._merged.add(name, segment.supersedes)

    def _in_memory(self) -> tuple[MemoryTable, ...]:
        """The tables of small segments. Their rows are read now: a small change asks for none at all."""
        if self._waiting:
            with self._lock:
                if self._waiting:
                    joined = joined_tables([segment.memory_table() for segment in self._waiting])
                    self._tables = with_table(self._tables, joined)
                    self._waiting = []  # last: who finds it empty finds the tables
        return self._tables

    def _search_mapped(
        self, table: CachedSegment, batch: IdBatch, *, filtered: bool
    ) -> Matches | None:
        try:
            return search(table, batch, filtered=filtered)
        except DamagedCache:
            made = self._made_again(table)
            return None if made is None else search(made, batch)

    def _made_again(self, damaged: CachedSegment) -> ChunkTable | None:
        """The segment whose file is damaged, from the repository; None when that cannot be."""
        with self._lock:
            segment = self._segments[damaged.number]
            if segment.mapped is damaged and damaged in self._mapped:
                log.warning("local index made again", extra={"object": segment.name})
                self._mapped = tuple(each for each in self._mapped if each is not damaged)
                assert self._cache is not None, "only files of the cache are mapped"
                self._cache.drop(segment.name, self._keys)
                info = ObjectInfo(name=segment.name, length=segment.stored_length)
                try:
                    source: CachedSegment | IndexSegment | bytes = cached_segment(
                        self._cache, self._store, info, keys=self._keys
                    )
                    if isinstance(source, bytes):
                        source = decoded_segment(self._keys.open(ObjectKind.INDEX, source).body)
                except HoldfastError as error:
                    self._refuse(segment.name, error)
                    self._used.pop(segment.name, None)
                    return None
                self._place(
                    source,
                    name=segment.name,
                    number=segment.number,
                    stored_length=segment.stored_length,
                )
            again = self._segments[damaged.number]
            if again.mapped is damaged:
                return None  # it could not be made again
            return again.mapped if again.mapped is not None else again.memory_table()

    def _verified(self) -> bool:
        """Prove every mapped file; whether one was damaged."""
        found = False
        for table in self._mapped:
            try:
                table.verify()
            except DamagedCache:
                self._made_again(table)
                found = True
        return found

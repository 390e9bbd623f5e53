"""All index segments of a repository together: where a chunk lies, and who says so.

Segments are loaded once, checked against the list of writers, and merged into a few sorted tables, so a
lookup costs a few binary searches. Lookups need no lock: the tables are replaced, never changed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
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
from holdfast_common.repository.index import (
    Array,
    IndexBuilder,
    IndexSegment,
    decoded_segment,
    id_prefix,
)
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyRequest
from holdfast_common.repository.layout import (
    BLOCK_DIGEST_BYTES,
    METADATA_BYTES_MAX,
    BlobKind,
    ObjectKind,
    index_name,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import read_contents
from holdfast_common.repository.sealed_object import (
    SEGMENT_BYTES,
    OpenedObject,
    SealedRanges,
    body_length,
)
from holdfast_common.repository.writers import ROLE_PRUNE, ROLE_WRITE, WriterList

log = logging.getLogger(__name__)

DIGEST_CACHE_SEGMENTS: Final = 8  # of 1 MiB; digests stand in the order in which disks were read
_ROW = np.dtype(
    [
        ("origin", "<u4"),
        ("number", "<u4"),
        ("offset", "<u4"),
        ("stored", "<u4"),
        ("plain", "<u4"),
        ("digest", "<u4"),
        ("kind", "u1"),
        ("blocks", "u1"),
        ("presence", "<u2"),
        ("segment", "<u4"),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedPack:
    """A pack that an index names."""

    digest: bytes
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedOrigin:
    """A pack segment that an index names."""

    pack: IndexedPack
    request: SegmentKeyRequest
    writer: bytes  # public key


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLocation:
    """Where one copy of a chunk lies and how to open it."""

    chunk_id: bytes
    kind: BlobKind
    origin: IndexedOrigin
    number: int
    offset: int
    stored_length: int
    plain_length: int
    blocks: int
    presence: int
    digest_segment: int  # which loaded index segment holds its digests
    digest_start: int

    @property
    def is_hollow(self) -> bool:
        """Whether dead blocks were taken out of it."""
        return self.presence != (1 << self.blocks) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedIndex:
    """An index object that was not used, and why."""

    name: str
    reason: str
    code: str  # of the error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    length: int
    packs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    prefixes: Array
    tails: Array
    rows: Array


class RepositoryIndex:
    """What all index objects say. Safe for several threads."""

    def __init__(self, store: ObjectStore, keys: ReaderKeys) -> None:
        self._store = store
        self._keys = keys
        self._lock = threading.Lock()
        self._tables: tuple[_Table, ...] = ()
        self._packs: dict[bytes, IndexedPack] = {}
        self._origins: list[IndexedOrigin] = []
        self._digest_places: list[
            tuple[str, int, int]
        ] = []  # object, offset of DIGESTS, stored length
        self._ranges: dict[int, SealedRanges] = {}
        self._digest_cache: dict[tuple[int, int], bytes] = {}
        self._loaded: set[str] = set()  # names that were looked at
        self._used: dict[str, _Loaded] = {}  # by the names of objects that were right
        self._writers: WriterList | None = None
        self._asked_packs: set[bytes] = set()
        self._recovered: dict[int, bytes] = {}  # bodies of segments that were made from packs
        self.refused: list[RefusedIndex] = []
        self._superseding: dict[str, str] = {}  # name of an object -> of the merged one with it

    def refresh(self, writers: WriterList) -> None:
        """Load index objects that were not there before. Unusable ones are noted in ``refused``.

        Raises: RepositoryFailed.
        """
        self._writers = writers
        infos = [info for info in self._store.list("index/") if info.name not in self._loaded]
        for info in infos:
            try:
                self.load(
                    self._store.get(info.name, length_max=METADATA_BYTES_MAX), info.name, writers
                )
            except ObjectMissing:
                continue  # replaced by a merged one between the listing and now
            except RepositoryFailed as error:  # a bad sector below one object must not stop all
                log.warning(
                    "index object unreadable", extra={"object": info.name, "reason": str(error)}
                )
                self._refuse(info.name, error)
                continue  # the next refresh tries it again
            except (FormatError, IntegrityError) as error:
                log.warning(
                    "index object refused", extra={"object": info.name, "reason": str(error)}
                )
                self._refuse(info.name, error)
            self._loaded.add(info.name)

    def _refuse(self, name: str, error: HoldfastError) -> None:
        self.refused.append(RefusedIndex(name=name, reason=str(error), code=error.code))

    def load(self, data: bytes, name: str, writers: WriterList) -> OpenedObject:
        """Check and add one index object. Raises: FormatError, IntegrityError."""
        found = self._keys.open(ObjectKind.INDEX, data)
        if index_name(found.header.object_id) != name:
            raise IntegrityError("an index object stands under another name", name=name)
        segment = decoded_segment(found.body)
        merged_by_prune = bool(segment.supersedes) or segment.writers != (found.signer,)
        writers.check(found, role=ROLE_PRUNE if merged_by_prune else ROLE_WRITE)
        with self._lock:
            self._add(segment, name=name, stored_length=len(data))
            self._loaded.add(name)
            packs = tuple(row["digest"].tobytes() for row in segment.packs)
            self._used[name] = _Loaded(length=len(data), packs=packs)
            self._superseding |= {index_name(each): name for each in segment.supersedes}
        return found

    def is_whole(
        self,
        object_ids: Iterable[bytes],
        *,
        listed: Mapping[str, int],
        present: Mapping[bytes, int],
    ) -> bool:
        """Whether these index objects, or merged ones in their place, and all of their packs are there.

        ``listed``: names and lengths of the index objects in the store; ``present``: of the packs.
        """
        with self._lock:
            for object_id in object_ids:
                name = index_name(object_id)
                # until it is deleted, a merged one stands beside it, without packs that nobody needs
                either = (name, self._superseding.get(name, ""))
                if not any(self._is_whole(each, listed, present) for each in either):
                    return False
        return True

    def _is_whole(self, name: str, listed: Mapping[str, int], present: Mapping[bytes, int]) -> bool:
        found = self._used.get(name)
        return (
            found is not None
            and listed.get(name) == found.length
            and all(present.get(pack) == self._packs[pack].length for pack in found.packs)
        )

    def object_of(self, location: ChunkLocation) -> bytes | None:
        """The id of the index object that says where a chunk lies; None: its own pack does."""
        name = self._digest_places[location.digest_segment][0]
        return bytes.fromhex(name.rpartition("/")[2]) if name else None

    def reloaded(self) -> RepositoryIndex:
        """A new index of what is listed now. Raises: RepositoryFailed."""
        fresh = RepositoryIndex(self._store, self._keys)
        assert self._writers is not None, "refresh comes first"
        fresh.refresh(self._writers)
        return fresh

    def recover(self, store: ObjectStore) -> bool:
        """Ask packs that no index names for their own footers; whether that told anything new.

        Raises: RepositoryFailed.
        """
        builder = IndexBuilder()
        found = False
        for info in store.list("packs/"):
            digest = bytes.fromhex(info.name.rpartition("/")[2])
            with self._lock:
                if digest in self._packs or digest in self._asked_packs:
                    continue
                self._asked_packs.add(digest)
            try:
                builder.add(read_contents(store, digest, length=info.length, keys=self._keys))
                found = True
            except (FormatError, IntegrityError) as error:
                log.warning("pack unreadable", extra={"object": info.name, "reason": str(error)})
        if found:
            body = builder.encode(writer=bytes(32))  # nobody: never trusted for dedup
            with self._lock:
                self._add(decoded_segment(body), name="", stored_length=0)
                self._recovered[len(self._digest_places) - 1] = body
        return found

    def uses(self, name: str) -> bool:
        """Whether that index object was loaded, or a merged one that contains it."""
        with self._lock:
            return name in self._used or name in self._superseding

    def find(self, chunk_id: bytes) -> ChunkLocation | None:
        """One place of that chunk."""
        return next(iter(self.find_all(chunk_id)), None)

    def find_all(self, chunk_id: bytes) -> list[ChunkLocation]:
        """Every place of that chunk."""
        prefix = np.uint64(id_prefix(chunk_id))
        tail = chunk_id[8:]
        found = []
        for table in self._tables:
            position = int(table.prefixes.searchsorted(prefix))
            while position < len(table.prefixes) and table.prefixes[position] == prefix:
                if table.tails[position].tobytes() == tail:
                    found.append(self._location(chunk_id, table.rows[position]))
                position += 1
        return found

    def by_pack(self) -> dict[bytes, list[ChunkLocation]]:
        """Everything that is indexed, by the pack's digest and in the pack's order. For checks: all in memory."""
        found: dict[bytes, list[ChunkLocation]] = {digest: [] for digest in self._packs}
        for table in self._tables:
            for prefix, tail, row in zip(table.prefixes, table.tails, table.rows, strict=True):
                chunk_id = int(prefix).to_bytes(8, "big") + tail.tobytes()
                location = self._location(chunk_id, row)
                found[location.origin.pack.digest].append(location)
        for locations in found.values():
            locations.sort(key=lambda location: location.offset)
        return found

    def digests(self, location: ChunkLocation) -> bytes:
        """The digests of its blocks, from the index's cold part. Raises: IntegrityError, RepositoryFailed."""
        with self._lock:
            _, base, _ = self._digest_places[location.digest_segment]
            start = base + location.digest_start * BLOCK_DIGEST_BYTES
            end = start + location.blocks * BLOCK_DIGEST_BYTES
            if location.digest_segment in self._recovered:
                return self._recovered[location.digest_segment][start:end]
            ranges = self._ranges_of(location.digest_segment)
            pieces = []
            for number in range(start // SEGMENT_BYTES, -(-end // SEGMENT_BYTES)):
                plain = self._digest_segment(location.digest_segment, number, ranges)
                origin = number * SEGMENT_BYTES
                pieces.append(plain[max(start - origin, 0) : end - origin])
            return b"".join(pieces)

    def packs(self) -> list[IndexedPack]:
        """All packs that any index names."""
        with self._lock:
            return list(self._packs.values())

    @property
    def chunk_count(self) -> int:
        """Entries, duplicates included."""
        return sum(len(table.prefixes) for table in self._tables)

    def _location(self, chunk_id: bytes, row: np.void) -> ChunkLocation:
        return ChunkLocation(
            chunk_id=chunk_id,
            kind=BlobKind(int(row["kind"])),
            origin=self._origins[int(row["origin"])],
            number=int(row["number"]),
            offset=int(row["offset"]),
            stored_length=int(row["stored"]),
            plain_length=int(row["plain"]),
            blocks=int(row["blocks"]),
            presence=int(row["presence"]),
            digest_segment=int(row["segment"]),
            digest_start=int(row["digest"]),
        )

    def _add(self, segment: IndexSegment, *, name: str, stored_length: int) -> None:
        first_origin = len(self._origins)
        packs = []
        for row in segment.packs:
            pack = IndexedPack(digest=row["digest"].tobytes(), length=int(row["length"]))
            packs.append(self._packs.setdefault(pack.digest, pack))
        for row in segment.origins:
            request = SegmentKeyRequest(
                origin_id=row["origin_id"].tobytes(),
                content_epoch=int(row["epoch"]),
                wrapped_key=row["wrapped_key"].tobytes(),
            )
            self._origins.append(
                IndexedOrigin(
                    pack=packs[int(row["pack"])],
                    request=request,
                    writer=segment.writers[int(row["writer"])],
                )
            )
        rows = np.zeros(len(segment.locations), _ROW)
        for column in segment.locations.dtype.names or ():
            rows[column] = segment.locations[column]
        rows["origin"] += first_origin
        rows["segment"] = len(self._digest_places)
        self._digest_places.append((name, segment.digests_offset, stored_length))
        table = _Table(segment.prefixes.copy(), segment.tails.copy(), rows)
        tables = list(self._tables)
        # As in a log-structured tree: few tables, each row moved a logarithmic number of times.
        while tables and len(tables[-1].prefixes) < 2 * len(table.prefixes) + 1:
            table = _merged(tables.pop(), table)
        self._tables = (*tables, table)

    def _ranges_of(self, segment: int) -> SealedRanges:
        if segment not in self._ranges:
            name, _, stored = self._digest_places[segment]
            self._ranges[segment] = SealedRanges(
                self._store,
                name,
                expected=self._keys.expected(
                    ObjectKind.INDEX, bytes.fromhex(name.rpartition("/")[2])
                ),
                body=body_length(stored, kind=ObjectKind.INDEX),
                class_key=self._keys.class_key,
            )
        return self._ranges[segment]

    def _digest_segment(self, segment: int, number: int, ranges: SealedRanges) -> bytes:
        key = (segment, number)
        plain = self._digest_cache.get(key)
        if plain is None:
            while len(self._digest_cache) >= DIGEST_CACHE_SEGMENTS:
                self._digest_cache.pop(next(iter(self._digest_cache)))
            plain = self._digest_cache[key] = ranges.segment(number)
        return plain


def _merged(left: _Table, right: _Table) -> _Table:
    prefixes = np.concatenate([left.prefixes, right.prefixes])
    order = np.argsort(prefixes, kind="stable")
    return _Table(
        prefixes[order],
        np.concatenate([left.tails, right.tails])[order],
        np.concatenate([left.rows, right.rows])[order],
    )

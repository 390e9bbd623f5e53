"""One index segment that is open: its packs, origins and table, in memory or mapped. Below `repository_index`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from holdfast_common.repository.index import Array, IndexSegment
from holdfast_common.repository.index_cache_file import CachedSegment
from holdfast_common.repository.index_table import ChunkTable, MemoryTable, memory_table
from holdfast_common.repository.key_sets import SegmentKeyRequest

ROWS_AT_ONCE: Final = 1 << 17  # when all are gone through: 10 MiB
SMALL_CHUNKS: Final = 1 << 12  # smaller segments are held in memory, together: 64 bytes a chunk
ORIGINS_KEPT: Final = 1 << 14  # some 10 MiB of those that were asked for last


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


class OpenSegment:
    """Rows of packs and origins are read when they are asked for. Safe for several threads."""

    def __init__(
        self,
        source: IndexSegment | CachedSegment,
        *,
        name: str,
        number: int,
        stored_length: int,
    ) -> None:
        """``name``: of the index object, empty where there is none; ``number``: in the `RepositoryIndex`."""
        self.name = name
        self.number = number
        self.stored_length = stored_length
        self._source = source
        self.supersedes: Array = source.supersedes  # object ids
        self._origins: dict[int, IndexedOrigin] = {}
        if isinstance(source, CachedSegment):
            source.number = number
            self.writers = source.head.writers
            self.digests_offset = source.head.digests_offset
        else:
            self.writers = source.writers
            self.digests_offset = source.digests_offset

    @property
    def mapped(self) -> CachedSegment | None:
        """The file, if it is asked in place; None: its rows belong into memory."""
        source = self._source
        is_large = isinstance(source, CachedSegment) and source.head.chunks >= SMALL_CHUNKS
        return source if is_large and isinstance(source, CachedSegment) else None

    @property
    def is_proven(self) -> bool:
        """Whether its rows are what was written: a small file was compared with its digest when it was opened."""
        source = self._source
        return isinstance(source, IndexSegment) or bool(source.head.rest_digest)

    def memory_table(self) -> MemoryTable:
        """All its rows, in memory. Raises: IntegrityError (a damaged file)."""
        source = self._source
        if isinstance(source, IndexSegment):
            return memory_table(source, self.number)
        tails, rows = source.rows_at(np.arange(source.head.chunks))
        return MemoryTable(source.prefixes.copy(), tails.copy(), rows)

    def pack_rows(self) -> Array:
        """Digest and length of every pack. Raises: IntegrityError (a damaged file)."""
        source = self._source
        return source.packs if isinstance(source, IndexSegment) else source.pack_rows(slice(None))

    def origin_packs(self) -> Array:
        """Of every origin the number of its pack. Raises: IntegrityError (a damaged file)."""
        source = self._source
        rows = (
            source.origins if isinstance(source, IndexSegment) else source.origin_rows(slice(None))
        )
        return rows["pack"]

    def which_packs(self, wanted: Collection[bytes]) -> tuple[Array, list[bytes]]:
        """Of every pack whether it is one of these, and those that are. Raises: as `pack_rows`."""
        digests = np.ascontiguousarray(self.pack_rows()["digest"])
        words = np.frombuffer(digests.tobytes(), "<u8").reshape(-1, 4)[:, 0]
        asked = np.frombuffer(b"".join(digest[:8] for digest in wanted), "<u8")
        inside = np.zeros(len(words), bool)
        found = []
        for at in np.flatnonzero(np.isin(words, asked)).tolist():
            digest = digests[at].tobytes()
            if digest in wanted:
                inside[at] = True
                found.append(digest)
        return inside, found

    def packs(self) -> list[IndexedPack]:
        """Every pack. Raises: as `pack_rows`."""
        rows = self.pack_rows()
        lengths = rows["length"].tolist()
        digests = rows["digest"].tobytes()
        return [
            IndexedPack(digest=digests[at * 32 : at * 32 + 32], length=length)
            for at, length in enumerate(lengths)
        ]

    def pack_writers(self) -> Iterator[tuple[bytes, bytes]]:
        """Digest and writer of every pack, once for each of its writers. Raises: as `pack_rows`."""
        source = self._source
        rows = (
            source.origins if isinstance(source, IndexSegment) else source.origin_rows(slice(None))
        )
        digests = self.pack_rows()["digest"].tobytes()
        pairs = set(zip(rows["pack"].tolist(), rows["writer"].tolist(), strict=True))
        for pack, writer in pairs:
            yield digests[pack * 32 : pack * 32 + 32], self.writers[writer]

    def origin(self, number: int) -> IndexedOrigin:
        """One origin. Raises: IntegrityError (a damaged file)."""
        found = self._origins.get(number)
        if found is None:
            found = self._read_origin(number)
            if len(self._origins) >= ORIGINS_KEPT:
                self._origins = {}
            self._origins[number] = found
        return found

    def _read_origin(self, number: int) -> IndexedOrigin:
        source = self._source
        if isinstance(source, IndexSegment):
            row = source.origins[number]
            pack = source.packs[int(row["pack"])]
        else:
            row = source.origin_rows(np.array([number]))[0]
            pack = source.pack_rows(np.array([int(row["pack"])]))[0]
        return IndexedOrigin(
            pack=IndexedPack(digest=pack["digest"].tobytes(), length=int(pack["length"])),
            request=SegmentKeyRequest(
                origin_id=row["origin_id"].tobytes(),
                content_epoch=int(row["epoch"]),
                wrapped_key=row["wrapped_key"].tobytes(),
            ),
            writer=self.writers[int(row["writer"])],
        )


def writers_of_packs(segments: Iterable[OpenSegment]) -> dict[bytes, frozenset[bytes]]:
    """Public keys of those who wrote what is in each pack. Raises: IntegrityError (a damaged file)."""
    found: dict[bytes, frozenset[bytes]] = {}
    sets: dict[frozenset[bytes], frozenset[bytes]] = {}  # few different ones: each is held once
    for segment in segments:
        for digest, writer in segment.pack_writers():
            known = found.get(digest, frozenset()) | {writer}
            found[digest] = sets.setdefault(known, known)
    return found


def rows_in_packs(
    segments: Sequence[OpenSegment], tables: Sequence[ChunkTable], wanted: Collection[bytes]
) -> tuple[set[bytes], Iterator[tuple[bytes, tuple[int, ...]]]]:
    """Which of these packs are indexed, and the ids and rows of what lies in them.

    Every table is gone through, some rows at a time. Raises: IntegrityError (a damaged file).
    """
    found: set[bytes] = set()
    origins: dict[int, Array] = {}  # by segment: whether an origin lies in one of the packs
    for segment in segments:
        inside, digests = segment.which_packs(wanted)
        found.update(digests)
        origins[segment.number] = inside[segment.origin_packs()]
    return found, _rows_of(tables, origins)


def _rows_of(
    tables: Sequence[ChunkTable], origins: Mapping[int, Array]
) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    for table in tables:
        for start in range(0, len(table.prefixes), ROWS_AT_ONCE):
            positions = np.arange(start, min(start + ROWS_AT_ONCE, len(table.prefixes)))
            tails, rows = table.rows_at(positions)
            here = np.zeros(len(rows), bool)
            for number in np.unique(rows["segment"]).tolist():
                of = np.flatnonzero(rows["segment"] == number)
                here[of] = origins[number][rows["origin"][of]]
            for at in np.flatnonzero(here).tolist():
                prefix = int(table.prefixes[start + at]).to_bytes(8, "big")
                yield prefix + tails[at].tobytes(), rows[at].tolist()

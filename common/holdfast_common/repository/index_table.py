"""Sorted tables of chunk ids, and how many ids are looked up in one at once. Below `repository_index`.

A table is asked by positions, so it may lie in memory or in a mapped file (`index_cache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from holdfast_common.repository.index import FILTER_PROBES, LOCATION_ROW, Array, IndexSegment

TAIL_WORDS: Final = 3  # an id is four words: the prefix and these
_BYTE_SHIFT: Final = np.uint64(3)  # from a bit's place in a filter to its byte's,
_BIT_MASK: Final = np.uint64(7)  # and to its place in that byte
LOCATED_ROW: Final = np.dtype([*LOCATION_ROW.descr, ("segment", "<u4")])  # number of the segment


class ChunkTable(Protocol):
    """Ids ascending by their first eight bytes, one location each."""

    @property
    def prefixes(self) -> Array:
        """The first eight bytes of each id as a number, big-endian; ascending."""
        ...

    @property
    def filter(self) -> Array | None:
        """The bloom filter's bytes; None: there is none."""
        ...

    def rows_at(self, positions: Array) -> tuple[Array, Array]:
        """Tails (three words each) and `LOCATED_ROW`s. Raises: IntegrityError."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """A table in memory, of many small segments together."""

    prefixes: Array
    tails: Array  # three little-endian words each
    rows: Array  # LOCATED_ROW

    @property
    def filter(self) -> Array | None:
        """None: it is asked at once."""
        return None

    def rows_at(self, positions: Array) -> tuple[Array, Array]:
        """As `ChunkTable.rows_at`."""
        return self.tails[positions], self.rows[positions]


@dataclass(frozen=True, slots=True)
class Matches:
    """What a batch of ids was found as: rows, and to which of the ids each belongs."""

    asked: Array  # position in the batch
    rows: Array  # LOCATED_ROW


@dataclass(frozen=True, slots=True)
class IdBatch:
    """Ids to be looked up together, ascending."""

    prefixes: Array
    tails: Array
    order: Array  # position in what the caller gave

    @classmethod
    def of(cls, chunk_ids: Sequence[bytes] | bytes) -> IdBatch:
        """From ids of 32 bytes, one after the other or in a sequence."""
        joined = chunk_ids if isinstance(chunk_ids, bytes) else b"".join(chunk_ids)
        prefixes = np.frombuffer(joined, ">u8").reshape(-1, 4)[:, 0].astype("<u8")
        tails = np.frombuffer(joined, "<u8").reshape(-1, 4)[:, 1:]
        order = np.argsort(prefixes)
        return cls(prefixes[order], tails[order], order)

    def chosen(self, which: Array) -> IdBatch:
        """Some of them."""
        return IdBatch(self.prefixes[which], self.tails[which], self.order[which])


# Below, `nonzero` of the array itself: numpy's `flatnonzero` wraps it so often that it was a fifth of a look-up.
def search(table: ChunkTable, batch: IdBatch, *, filtered: bool = False) -> Matches | None:
    """Every place of these ids in a table; None: there is none.

    ``filtered``: the table's filter is asked first; it knows no disk frame of less than four blocks.
    Raises: IntegrityError (a table in a damaged file).
    """
    if filtered and table.filter is not None:
        batch = batch.chosen(_candidates(table.filter, batch))
    prefixes = table.prefixes
    count = len(prefixes)
    if not count or not len(batch.order):
        return None
    asked: list[Array] = []
    rows: list[Array] = []
    positions = prefixes.searchsorted(batch.prefixes)
    while True:
        (inside,) = (positions < count).nonzero()
        inside = inside[prefixes[positions[inside]] == batch.prefixes[inside]]
        if not len(inside):
            break
        batch, positions = batch.chosen(inside), positions[inside]
        tails, found = table.rows_at(positions)
        (same,) = (tails == batch.tails).all(axis=1).nonzero()
        if len(same):
            asked.append(batch.order[same])
            rows.append(found[same])
        positions = positions + 1  # two ids may share their first bytes, one id may have two places
    if not rows:
        return None
    if len(rows) == 1:
        return Matches(asked[0], rows[0])
    return Matches(np.concatenate(asked), np.concatenate(rows))


def memory_table(segment: IndexSegment, number: int) -> MemoryTable:
    """A segment's columns, copied; ``number``: the segment's."""
    rows = np.zeros(len(segment.locations), LOCATED_ROW)
    for column in LOCATION_ROW.names or ():
        rows[column] = segment.locations[column]
    rows["segment"] = number
    tails = np.frombuffer(segment.tails.tobytes(), "<u8").reshape(-1, TAIL_WORDS)
    return MemoryTable(segment.prefixes.copy(), tails, rows)


def joined_tables(tables: Sequence[MemoryTable]) -> MemoryTable:
    """One table of several; at least one."""
    if len(tables) == 1:
        return tables[0]
    prefixes = np.concatenate([table.prefixes for table in tables])
    order = np.argsort(prefixes, kind="stable")
    return MemoryTable(
        prefixes[order],
        np.concatenate([table.tails for table in tables])[order],
        np.concatenate([table.rows for table in tables])[order],
    )


def with_table(tables: Sequence[MemoryTable], table: MemoryTable) -> tuple[MemoryTable, ...]:
    """These and one more: as in a log-structured tree, few tables, each row moved a logarithmic number of times."""
    kept = list(tables)
    while kept and len(kept[-1].prefixes) < 2 * len(table.prefixes) + 1:
        table = joined_tables([kept.pop(), table])
    return (*kept, table)


def _candidates(bits: Array, batch: IdBatch) -> Array:
    """Which ids the filter does not rule out; each probe looks at those only that are left."""
    mask = np.uint64(len(bits) * 8 - 1)
    place = batch.tails[:, 0].byteswap()
    step = batch.tails[:, 1].byteswap() | np.uint64(1)
    left: Array = np.arange(len(place))
    for _ in range(FILTER_PROBES):
        at = place & mask
        (hit,) = (bits[at >> _BYTE_SHIFT] >> (at & _BIT_MASK).astype(np.uint8) & 1).nonzero()
        left, step = left[hit], step[hit]
        place = place[hit] + step
    return left

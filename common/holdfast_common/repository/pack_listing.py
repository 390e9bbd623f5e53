"""Which packs are in the store: listed once, afterwards only where something changed.

Every chunk that is not stored again stands on a pack that may have been lost since. A listing of all packs
for each backup would cost what is there; so a store that can tell whether the names below a prefix are
still the same (`StampedStore`) is asked for that, and where they are not, for the names. Lengths of packs
that stayed are looked at in turn, a few each time: a pack has the name of its content.
"""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np

from holdfast_common.repository.index import Array
from holdfast_common.repository.index_table import IdBatch, MemoryTable, search
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore

PACKS: Final = "packs/"
LOOKED_AT_IN_TURN: Final = 16  # packs of one prefix of 256, twice for each attempt
ASKED_MAX: Final = 4096
_NAME: Final = re.compile(
    r"packs/([0-9a-f]{2})/(\1[0-9a-f]{62})"
)  # as `layout.pack_name` makes them
FEW_PACKS: Final = 64  # of one index object: looked up one by one, so that nothing of all is made


@runtime_checkable
class StampedStore(Protocol):
    """A store that can tell cheaply whether the names below a prefix changed, and which they are."""

    def stamps(self, prefix: str) -> Mapping[str, str] | None:
        """Every prefix one level below ``prefix``, and its stamp; None: it cannot tell.

        As long as the stamp stays the same the same names are there; an empty one is never the same.
        Raises: RepositoryFailed.
        """
        ...

    def names(self, prefix: str) -> Sequence[str]:
        """Of the objects right below ``prefix``; they are not looked at. Raises: RepositoryFailed."""
        ...

    def head(self, name: str) -> ObjectInfo | None:
        """As `ObjectStore.head`."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    stamp: str  # taken before it was listed
    table: MemoryTable  # digests; a row is the length


class PackListing:
    """The packs of one repository, kept between attempts in one process; 40 bytes a pack.

    Safe for several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, _Part] = {}
        self._turn = 0
        self._joined: MemoryTable | None = None  # all of them, made when many are looked up at once
        self._asked: dict[bytes, int | None] = {}  # lately: neighbours on a disk lie in few packs
        self._whole: set[str] = set()  # index objects whose packs were all there, and stayed

    def refresh(self, store: ObjectStore) -> None:
        """Learn what changed. Raises: RepositoryFailed."""
        with self._lock:
            stamped = (
                store if isinstance(store, StampedStore) else None
            )  # asked once: it takes long
            stamps = None if stamped is None else stamped.stamps(PACKS)
            if stamps is None:
                stamped, stamps = None, {PACKS: ""}
            before, parts = self._parts, {}
            round_number, place = divmod(self._turn, len(stamps) or 1)
            self._turn += 1
            for number, (prefix, stamp) in enumerate(sorted(stamps.items())):
                part = before.get(prefix)
                if part is None or stamped is None:
                    part = _Part(stamp, _table(store.list(prefix)))
                elif number == place:
                    part = _Part(stamp, _renewed(part.table, stamped, prefix, round_number))
                elif not stamp or part.stamp != stamp:
                    part = _Part(stamp, _renewed(part.table, stamped, prefix))
                parts[prefix] = part
            for prefix, part in before.items():
                found = parts.get(prefix)
                if found is not part and (found is None or not _holds(found.table, part.table)):
                    self._whole = set()
            self._parts, self._joined = parts, None
            self._asked = {}  # after the parts: see `length_of`

    def length_of(self, digest: bytes) -> int | None:
        """The length of a pack; None: it is not there."""
        asked = self._asked  # taken before the parts, so an old answer never gets among newer ones
        if digest in asked:
            return asked[digest]
        parts = self._parts
        part = parts.get(f"{PACKS}{digest[:1].hex()}/") or parts.get(PACKS)
        found = None if part is None else search(part.table, IdBatch.of(digest))
        length = None if found is None else int(found.rows[0])
        if len(asked) >= ASKED_MAX:
            asked.clear()
        asked[digest] = length
        return length

    def holds(self, name: str, packs: Callable[[], Array]) -> bool:
        """Whether all of these packs (`PACK_ROW`s) are there; remembered by the index object's name."""
        with self._lock:
            if name not in self._whole and self._has(packs()):
                self._whole.add(name)
            return name in self._whole

    def _has(self, packs: Array) -> bool:
        if len(packs) <= FEW_PACKS:
            lengths = packs["length"].tolist()
            digests = [row.tobytes() for row in packs["digest"]]
            return all(map(operator.eq, map(self.length_of, digests), lengths))
        if self._joined is None:
            self._joined = _joined([part.table for part in self._parts.values()])
        return _holds(self._joined, _rows_table(packs))


class PresentPacks:
    """The packs that one attempt may build on. Safe for several threads."""

    def __init__(
        self,
        listing: PackListing,
        besides: frozenset[bytes] = frozenset(),
        *,
        unread: ObjectStore | None = None,
    ) -> None:
        """``besides``: known to be damaged, or about to be deleted.

        ``unread``: the listing is refreshed from there when it is first asked. When all that an attempt
        stores is new, nobody asks.
        """
        self.added: dict[bytes, int] = {}  # by this attempt
        self._listing = listing
        self._besides = besides
        self._unread = unread
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> int | None:
        """The length of a pack; None: it is not there, or must not be built on. Raises: RepositoryFailed."""
        if digest in self._besides:
            return None
        length = self.added.get(digest)
        if length is None:
            self._read()
            length = self._listing.length_of(digest)
        return length

    def hold(self, name: str, packs: Callable[[], Array]) -> bool:
        """Whether all packs of an index object (`PACK_ROW`s, read when they must be) are there.

        Raises: RepositoryFailed.
        """
        if self._besides and any(row.tobytes() in self._besides for row in packs()["digest"]):
            return False
        self._read()
        return self._listing.holds(name, packs)

    def _read(self) -> None:
        if self._unread is not None:
            with self._lock:
                if self._unread is not None:
                    self._listing.refresh(self._unread)
                    self._unread = None


def _digest_in(name: str) -> bytes:
    """The digest of a pack by its name; empty: no pack has that name."""
    found = _NAME.fullmatch(name)
    return b"" if found is None else bytes.fromhex(found[2])


def _table(infos: Iterable[ObjectInfo]) -> MemoryTable:
    return _table_of({digest: info.length for info in infos if (digest := _digest_in(info.name))})


def _table_of(lengths: Mapping[bytes, int]) -> MemoryTable:
    return _sorted_table(b"".join(lengths), np.array(list(lengths.values()), "<u8"))


def _renewed(
    table: MemoryTable, store: StampedStore, prefix: str, round_number: int | None = None
) -> MemoryTable:
    """The packs by the names that are there now; only those that came are looked at.

    ``round_number``: so are some of those that stayed, other ones in each round.
    """
    packs = {digest: name for name in store.names(prefix) if (digest := _digest_in(name))}
    lengths: dict[int, int] = {}
    if packs and (found := search(table, IdBatch.of(list(packs)))) is not None:
        lengths = dict(zip(found.asked.tolist(), found.rows.tolist(), strict=True))
    stayed = {digest: lengths[at] for at, digest in enumerate(packs) if at in lengths}
    if round_number is not None and stayed:
        ordered = sorted(stayed)
        first = round_number * LOOKED_AT_IN_TURN
        for step in range(min(LOOKED_AT_IN_TURN, len(ordered))):
            del stayed[ordered[(first + step) % len(ordered)]]
    looked_at = (
        info
        for digest, name in packs.items()
        if digest not in stayed and (info := store.head(name))
    )
    return _table_of(stayed | {_digest_in(info.name): info.length for info in looked_at})


def _rows_table(packs: Array) -> MemoryTable:
    return _sorted_table(packs["digest"].tobytes(), packs["length"])


def _sorted_table(digests: bytes, lengths: Array) -> MemoryTable:
    batch = IdBatch.of(digests)
    return MemoryTable(batch.prefixes, batch.tails, lengths[batch.order])


def _joined(tables: list[MemoryTable]) -> MemoryTable:
    """Of prefixes in ascending order: one after the other they are sorted."""
    if not tables:
        return _table([])
    return MemoryTable(
        np.concatenate([table.prefixes for table in tables]),
        np.concatenate([table.tails for table in tables]),
        np.concatenate([table.rows for table in tables]),
    )


def _holds(table: MemoryTable, wanted: MemoryTable) -> bool:
    """Whether all that is wanted is there, each as long as it must be."""
    count = len(wanted.prefixes)
    found = search(table, IdBatch(wanted.prefixes, wanted.tails, np.arange(count)))
    if found is None:
        return not count
    right = found.rows == wanted.rows[found.asked]
    return bool(right.all()) and len(np.unique(found.asked)) == count

"""What lies in every pack, and how much of it is needed.

The index says it cheaply; where it says that a pack is dead, or worth repacking, the pack's own footers
have the last word, because an index is any writer's claim about anybody's packs. While an index object
cannot be used, packs that no other names count as if one did: the copy elsewhere, which an index claims, may
be rotten, and this one be what a point stands on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace

import numpy as np
from blake3 import blake3

from holdfast_common.errors import FormatError, IntegrityError, RevokedWriter
from holdfast_common.repository.index import Array, decoded_segment, id_prefix
from holdfast_common.repository.index_claims import claims_of
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    METADATA_BYTES_MAX,
    ObjectKind,
    aside_name,
    index_name,
    pack_name,
)
from holdfast_common.repository.live_chunks import Prefixes, are_needed
from holdfast_common.repository.object_store import ObjectStore, get_range
from holdfast_common.repository.pack import PackBlob, PackContents, read_contents
from holdfast_common.repository.reference_check import stored_packs
from holdfast_common.repository.sealed_object import OpenedObject
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import ROLE_PRUNE, ROLE_WRITE, WriterList

log = logging.getLogger(__name__)
BlobKey = tuple[bytes, int]  # origin and number: the same ciphertext, wherever it lies


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFact:
    """One index object that can be used. ``claims``: what it says of each pack, see `index_claims`."""

    object_id: bytes
    length: int
    digest: bytes  # of the object as it was surveyed, whose signer was looked at
    claims: Mapping[bytes, bytes]
    supersedes: tuple[bytes, ...]

    @property
    def packs(self) -> Set[bytes]:
        """Digests of those that it names."""
        return self.claims.keys()

    @property
    def name(self) -> str:
        """Of its object."""
        return index_name(self.object_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFact:
    """One pack. ``needed_bytes``: of stored blobs that some point needs and no better pack has."""

    digest: bytes
    length: int
    stored_bytes: int
    needed_bytes: int
    is_indexed: bool = True
    is_doomed: bool = False  # the newest fence calls it dead
    problem: str = ""  # why its own footers cannot be read; it is left alone

    @property
    def dead_share(self) -> float:
        """From 0 to 1."""
        return 1 - self.needed_bytes / self.stored_bytes if self.stored_bytes else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobCopy:
    """A blob that points need, and the pack from which they shall have it."""

    blob: PackBlob
    holder: bytes


@dataclass(slots=True)
class PackSurvey:
    """Everything about packs and indexes. ``contents``: of those packs whose footers were read."""

    packs: dict[bytes, PackFact] = field(default_factory=dict)
    indexes: list[IndexFact] = field(default_factory=list)
    # objects that cannot be read or are gone although a point names them, and that no repair dealt with
    refused_indexes: list[str] = field(default_factory=list)
    contents: dict[bytes, PackContents] = field(default_factory=dict)
    origin_packs: dict[bytes, set[bytes]] = field(default_factory=dict)
    origin_writers: dict[bytes, bytes] = field(default_factory=dict)
    needed_blobs: dict[bytes, list[PackBlob]] = field(default_factory=dict)  # of packs in contents
    copies: dict[bytes, list[BlobCopy]] = field(
        default_factory=dict
    )  # likewise: needed, but elsewhere
    missing_chunks: int = 0  # that points need and no pack has


def survey_packs(
    store: ObjectStore,
    keys: ReaderKeys,
    writers: WriterList,
    *,
    needed: Prefixes,
    needed_indexes: frozenset[bytes],
    doomed: frozenset[bytes],
    dead_share_min: float,
    check: Callable[[], None] = lambda: None,
) -> PackSurvey:
    """Read all index objects, and the footers of the packs that may be dead or repacked.

    ``needed_indexes``: that points name; those that are gone, with none in their place, are told as refused.
    ``doomed``: packs that the newest fence calls dead; what lies elsewhere too is not needed from them.
    Raises: RepositoryFailed.
    """
    present = stored_packs(store)
    survey = PackSurvey()
    reading = _IndexReading(survey, present, needed)
    for info in list(stored_objects(store, "index/")):
        check()
        try:
            data = store.get(info.name, length_max=METADATA_BYTES_MAX)
            reading.add(_opened(data, info.name, keys, writers), data)
        except (IntegrityError, FormatError) as error:
            log.warning("index object refused", extra={"object": info.name, "reason": str(error)})
            if not isinstance(error, RevokedWriter):  # it never counts, unless a point needs it
                survey.refused_indexes.append(info.name)
    survey.refused_indexes += _lost_indexes(store, survey, needed_indexes)
    for digest, length in present.items():
        fact = survey.packs.get(digest)
        if fact is None or fact.dead_share >= dead_share_min or digest in doomed:
            check()
            _read_footers(store, keys, survey, digest=digest, length=length)
    _read_shared(store, keys, survey)
    _weigh(survey, needed, doomed=doomed, found=reading.found)
    _prove_copies(store, survey, doomed, check)
    return survey


def _opened(data: bytes, name: str, keys: ReaderKeys, writers: WriterList) -> OpenedObject:
    found = keys.open(ObjectKind.INDEX, data)
    if index_name(found.header.object_id) != name:
        raise IntegrityError("an index object stands under another name", name=name)
    segment = decoded_segment(found.body)
    merged = len(segment.supersedes) > 0 or segment.writers != (found.signer,)
    writers.check(found, role=ROLE_PRUNE if merged else ROLE_WRITE)
    return found


def _lost_indexes(store: ObjectStore, survey: PackSurvey, needed: frozenset[bytes]) -> list[str]:
    """Names of those that points name and that nothing stands for; a repair's note says that one is not missed."""
    standing = {each for fact in survey.indexes for each in (fact.object_id, *fact.supersedes)}
    names = {index_name(each) for each in needed - standing} - set(survey.refused_indexes)
    return sorted(name for name in names if store.head(aside_name(name)) is None)


class _IndexReading:
    """Adds index after index; of a pack that several name, the first one is believed for now."""

    def __init__(self, survey: PackSurvey, present: Mapping[bytes, int], needed: Prefixes) -> None:
        self._survey = survey
        self._present = present
        self._needed = needed
        self.found = np.zeros(
            len(needed), np.bool_
        )  # which needed chunks an index knows a place of

    def add(self, found: OpenedObject, data: bytes) -> None:
        segment = decoded_segment(found.body)
        object_id = found.header.object_id
        digests = [row["digest"].tobytes() for row in segment.packs]
        fact = IndexFact(
            object_id=object_id,
            length=len(data),
            digest=blake3(data).digest(),
            claims=claims_of(segment, found.body, object_id=object_id),
            supersedes=tuple(each.tobytes() for each in segment.supersedes),
        )
        self._survey.indexes.append(fact)
        for row in segment.origins:
            writer = segment.writers[int(row["writer"])]
            origin = row["origin_id"].tobytes()
            self._survey.origin_writers.setdefault(origin, writer)
            if digests[int(row["pack"])] in self._present:
                packs = self._survey.origin_packs.setdefault(origin, set())
                packs.add(digests[int(row["pack"])])
        rows = segment.locations
        packs_of_rows = segment.origins["pack"][rows["origin"]] if len(rows) else np.zeros(0, "u4")
        alive = are_needed(self._needed, segment.prefixes)
        stored = np.bincount(packs_of_rows, weights=rows["stored"], minlength=len(digests))
        live = np.bincount(packs_of_rows, weights=rows["stored"] * alive, minlength=len(digests))
        here = np.array([digest in self._present for digest in digests], np.bool_)
        self._mark_found(segment.prefixes[alive & here[packs_of_rows]] if len(rows) else alive)
        for number, digest in enumerate(digests):
            if here[number] and digest not in self._survey.packs:
                self._survey.packs[digest] = PackFact(
                    digest=digest,
                    length=self._present[digest],
                    stored_bytes=int(stored[number]),
                    needed_bytes=int(live[number]),
                )

    def _mark_found(self, prefixes: Array) -> None:
        if len(prefixes):
            self.found[self._needed.searchsorted(prefixes)] = True


def _read_footers(
    store: ObjectStore, keys: ReaderKeys, survey: PackSurvey, *, digest: bytes, length: int
) -> None:
    indexed = digest in survey.packs
    try:
        survey.contents[digest] = read_contents(store, digest, length=length, keys=keys)
    except (IntegrityError, FormatError) as error:
        known = survey.packs.get(digest)
        survey.packs[digest] = PackFact(
            digest=digest,
            length=length,
            stored_bytes=length if known is None else known.stored_bytes,
            needed_bytes=length if known is None else known.needed_bytes,
            is_indexed=indexed,
            problem=str(error),
        )


def _read_shared(store: ObjectStore, keys: ReaderKeys, survey: PackSurvey) -> None:
    """The footers of packs that may hold copies of the same ciphertexts as those read already."""
    for contents in list(survey.contents.values()):
        for segment in contents.segments:
            for digest in survey.origin_packs.get(segment.header.origin_id, ()):
                fact = survey.packs.get(digest)
                if digest not in survey.contents and fact is not None and not fact.problem:
                    _read_footers(store, keys, survey, digest=digest, length=fact.length)


def _weigh(survey: PackSurvey, needed: Prefixes, *, doomed: frozenset[bytes], found: Array) -> None:
    """From the footers: which blobs of which of these packs are needed.

    Of copies of the same ciphertext one is enough: the one in the pack that is to stay. Other copies of a
    chunk count as well, since nobody here can tell whether two writers meant the same by one id. A pack in no
    index is what an attempt left that never finished; it counts only for what nobody else has, unless an
    index object cannot be used: then it may be the one that named it.
    """
    holders: dict[BlobKey, list[bytes]] = {}
    for digest, contents in survey.contents.items():
        for blob in contents.blobs:
            holders.setdefault(_key(contents, blob), []).append(digest)
    order = _preference(survey, needed, doomed)
    lacking = {int(prefix) for prefix in needed[~found]}
    for digest in sorted(survey.contents, key=lambda each: order[each]):
        contents = survey.contents[digest]
        indexed = digest in survey.packs
        counts = indexed or bool(survey.refused_indexes)
        alive = are_needed(needed, _prefixes(contents))
        chosen, copied = [], []
        for blob, is_alive in zip(contents.blobs, alive, strict=True):
            if not is_alive or not (counts or id_prefix(blob.chunk_id) in lacking):
                continue
            best = min(holders[_key(contents, blob)], key=lambda each: order[each])
            if best == digest:
                chosen.append(blob)
            else:
                copied.append(BlobCopy(blob=blob, holder=best))
        lacking -= {id_prefix(blob.chunk_id) for blob in chosen}
        survey.needed_blobs[digest] = chosen
        survey.copies[digest] = copied
        survey.packs[digest] = PackFact(
            digest=digest,
            length=contents.length,
            stored_bytes=sum(blob.stored_length for blob in contents.blobs),
            needed_bytes=sum(blob.stored_length for blob in chosen),
            is_indexed=indexed,
            is_doomed=digest in doomed,
        )
    survey.missing_chunks = len(lacking)


def _prove_copies(
    store: ObjectStore, survey: PackSurvey, doomed: frozenset[bytes], check: Callable[[], None]
) -> None:
    """Before a pack goes whose blobs were copied: read every copy. Where one is bad, its original stays."""
    for digest in sorted(doomed & survey.copies.keys()):
        for copy in survey.copies[digest]:
            check()
            if not _is_proven(store, survey.contents[copy.holder], copy.blob, survey, digest):
                survey.needed_blobs[digest].append(copy.blob)
                fact = survey.packs[digest]
                survey.packs[digest] = replace(
                    fact, needed_bytes=fact.needed_bytes + copy.blob.stored_length
                )


def _is_proven(
    store: ObjectStore, holder: PackContents, wanted: PackBlob, survey: PackSurvey, digest: bytes
) -> bool:
    key = _key(survey.contents[digest], wanted)
    for blob in holder.blobs:
        if _key(holder, blob) == key and blob.ciphertext_digest == wanted.ciphertext_digest:
            try:
                data = get_range(
                    store,
                    pack_name(holder.digest),
                    offset=blob.offset,
                    length=blob.stored_length,
                )
            except IntegrityError:
                return False
            return blake3(data).digest() == wanted.ciphertext_digest
    return False


def _key(contents: PackContents, blob: PackBlob) -> BlobKey:
    return contents.segments[blob.segment].header.origin_id, blob.number


def _prefixes(contents: PackContents) -> Array:
    return np.array([id_prefix(blob.chunk_id) for blob in contents.blobs], np.uint64)


def _preference(
    survey: PackSurvey, needed: Prefixes, doomed: frozenset[bytes]
) -> dict[bytes, tuple[bool, bool, float, bytes]]:
    """Smaller is better: it stays already, is indexed, has the least that is dead."""
    order = {}
    for digest, contents in survey.contents.items():
        stored = np.array([blob.stored_length for blob in contents.blobs], np.float64)
        live = float((stored * are_needed(needed, _prefixes(contents))).sum())
        share = 1 - live / max(1.0, float(stored.sum()))
        order[digest] = (digest in doomed, digest not in survey.packs, share, digest)
    return order

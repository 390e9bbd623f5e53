"""Merges index segments in the repository, so that their number grows with the logarithm of what they name.

Called by prune and by the controller's job after backups, never by a writer. A merged object says which
ones it contains; those stay until prune deletes them in its two phases. Whoever finds both uses the merged
one. Memory: some MiB for each segment that is merged, and the filter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    ObjectMissing,
    RepositoryFailed,
    RepositoryFull,
)
from holdfast_common.repository.index import (
    LOCATION_ROW,
    ORIGIN_ROW,
    PACK_ROW,
    Array,
    Section,
    check_origins,
    check_rows,
    empty_filter,
    note_in_filter,
    packed_filter,
    section_start,
)
from holdfast_common.repository.index_cache_builder import (
    SegmentBody,
    check_name,
    check_role,
    segment_head,
)
from holdfast_common.repository.index_cache_file import SegmentHead
from holdfast_common.repository.index_table import TAIL_WORDS
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import BLOCK_DIGEST_BYTES, ID_BYTES, ObjectKind, index_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import WriterList

log = logging.getLogger(__name__)

SEGMENTS_MAX: Final = 16  # more than that are worth a merge
MERGED_CHUNKS_MAX: Final = 1 << 22  # 4 TiB of full frames, some 1.3 GiB with their digests
MERGED_SEGMENTS_MAX: Final = 256  # in one merge: bounds memory and open ranges
MERGES_MAX: Final = 64  # in one go
WRITERS_MAX: Final = 1 << 16  # an origin names its writer by 16 bits
_ROWS_PER_STEP: Final = 1 << 16
_TAIL = np.dtype(("<u8", (TAIL_WORDS,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSegment:
    """An index object that may be merged."""

    name: str
    length: int  # of the object
    chunks: int


def plan_merge(segments: Sequence[StoredSegment]) -> list[StoredSegment]:
    """Which of them to merge into one now; empty: none. As in a log-structured tree, small ones first.

    A larger one joins when it is at most twice what is merged so far, so each row moves a logarithmic
    number of times.
    """
    if len(segments) <= SEGMENTS_MAX:
        return []
    ordered = sorted(segments, key=lambda segment: (segment.chunks, segment.name))
    chosen: list[StoredSegment] = []
    total = 0
    for segment in ordered:
        is_far = len(chosen) > SEGMENTS_MAX // 2 and segment.chunks > 2 * total
        if is_far or total + segment.chunks > MERGED_CHUNKS_MAX:
            break
        chosen.append(segment)
        total += segment.chunks
        if len(chosen) == MERGED_SEGMENTS_MAX:
            break
    return chosen if len(chosen) > 1 else []


def live_segments(store: ObjectStore, keys: ReaderKeys) -> list[StoredSegment]:
    """Index objects that stand in no other one. Only their starts are read, and nobody's signature.

    Raises: RepositoryFailed.
    """
    found: dict[str, StoredSegment] = {}
    contained: set[str] = set()
    for info in stored_objects(store, "index/"):
        try:
            body = SegmentBody.unproven(store, info.name, length=info.length, keys=keys)
            chunks = body.count(Section.PREFIXES, 8)
            contained |= {index_name(each) for each in body.ids(Section.SUPERSEDES, ID_BYTES)}
        except (FormatError, IntegrityError, ObjectMissing) as error:
            _log_left_out(info.name, error)
            continue
        found[info.name] = StoredSegment(name=info.name, length=info.length, chunks=chunks)
    return [segment for name, segment in found.items() if name not in contained]


def merge_index(
    store: ObjectStore,
    keys: ReaderKeys,
    writers: WriterList,
    *,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness = SYSTEM_RANDOMNESS,
    check: Callable[[], None] = lambda: None,
) -> str | None:
    """One merge, if there are too many segments; the new object's name, None: there was nothing to do.

    Never beside prune, which takes names of packs out of the index while this would put them in again.
    ``signing_key``: of the role `prune`. ``check``: called between steps; what it raises ends the merge.
    Raises: IntegrityError (a segment turned out damaged: nothing was stored), RepositoryFull, RepositoryFailed.
    """
    inputs = []
    for item in plan_merge(live_segments(store, keys)):
        check()
        try:
            inputs.append(_opened_input(store, item, keys, writers))
        except (FormatError, IntegrityError, ObjectMissing) as error:
            _log_left_out(item.name, error)
    if len(inputs) < 2:
        return None
    upload = store.begin()
    try:
        stream = keys.stream(
            ObjectKind.INDEX, signing_key=signing_key, randomness=randomness, write=upload.write
        )
        for piece in _body(_Merge(inputs)):
            check()
            stream.write(piece)
        stream.finish()
        name = index_name(stream.header.object_id)
        upload.commit(name)
    finally:
        upload.abort()
    log.info("index segments merged", extra={"object": name, "count": len(inputs)})
    return name


def merge_while_many(
    store: ObjectStore,
    keys: ReaderKeys,
    writers: WriterList,
    *,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness = SYSTEM_RANDOMNESS,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Merge until there are few segments; how many merges. For prune: a full or failing store ends it quietly.

    Raises: what ``check`` raises.
    """
    for count in range(MERGES_MAX):
        try:
            name = merge_index(
                store,
                keys,
                writers,
                signing_key=signing_key,
                randomness=randomness,
                check=check,
            )
        except (RepositoryFull, RepositoryFailed, IntegrityError, ObjectMissing) as error:
            log.warning("index segments not merged", extra={"reason": str(error)})
            return count
        if name is None:
            return count
    return MERGES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    body: SegmentBody
    head: SegmentHead
    first_pack: int
    first_origin: int
    first_digest: int


class _Merge:
    """What is merged, and where the rows of each input begin in the result."""

    def __init__(self, opened: Sequence[tuple[SegmentBody, SegmentHead]]) -> None:
        self.inputs: list[_Input] = []
        self.packs = self.origins = self.digests = self.chunks = 0
        for body, head in opened:
            self.inputs.append(
                _Input(
                    body=body,
                    head=head,
                    first_pack=self.packs,
                    first_origin=self.origins,
                    first_digest=self.digests,
                )
            )
            self.packs += head.packs
            self.origins += head.origins
            self.digests += head.digests_length // BLOCK_DIGEST_BYTES
            self.chunks += head.chunks
        every = {key: None for item in self.inputs for key in item.head.writers}
        self.writers = {key: number for number, key in enumerate(every)}
        if len(self.writers) > WRITERS_MAX or self.digests >= 1 << 32:
            raise IntegrityError("these index segments do not fit into one")
        superseded: dict[bytes, None] = {}
        for item in self.inputs:
            superseded[item.body.found.header.object_id] = None
            superseded |= dict.fromkeys(item.body.ids(Section.SUPERSEDES, ID_BYTES))
        self.supersedes = b"".join(superseded)
        self.filter = empty_filter(self.chunks)

    def steps(self) -> Iterator[list[tuple[_Input, int, int]]]:
        """Ranges of the ids' space, ascending: each input's rows in it. Some 65,536 rows each."""
        count = max(1, self.chunks // _ROWS_PER_STEP)
        bounds = [(1 << 64) * step // count for step in range(1, count)]
        starts = [0] * len(self.inputs)
        for bound in [*bounds, 1 << 64]:
            pieces = []
            for number, item in enumerate(self.inputs):
                end = _position(item, starts[number], bound)
                pieces.append((item, starts[number], end))
                starts[number] = end
            yield pieces


def _position(item: _Input, start: int, bound: int) -> int:
    """The first row at or after ``start`` whose prefix is ``bound`` or more."""
    chunks = item.head.chunks
    if bound == 1 << 64:
        return chunks
    while start < chunks:
        end = min(start + _ROWS_PER_STEP, chunks)
        prefixes = item.body.rows(Section.PREFIXES, np.dtype("<u8"), start, end)
        position = int(prefixes.searchsorted(np.uint64(bound)))
        if position < len(prefixes):
            return start + position
        start = end
    return chunks


def _body(merge: _Merge) -> Iterator[bytes]:
    """The merged segment's body, piece by piece."""
    lengths = {
        Section.PACKS: merge.packs * PACK_ROW.itemsize,
        Section.ORIGINS: merge.origins * ORIGIN_ROW.itemsize,
        Section.WRITERS: len(merge.writers) * 32,
        Section.SUPERSEDES: len(merge.supersedes),
        Section.PREFIXES: merge.chunks * 8,
        Section.TAILS: merge.chunks * TAIL_WORDS * 8,
        Section.LOCATIONS: merge.chunks * LOCATION_ROW.itemsize,
        Section.FILTER: len(merge.filter) // 8,
        Section.DIGESTS: merge.digests * BLOCK_DIGEST_BYTES,
    }
    yield section_start(lengths)
    for item in merge.inputs:
        yield item.body.rows(Section.PACKS, PACK_ROW, 0, item.head.packs).tobytes()
    for item in merge.inputs:
        yield _origins(merge, item).tobytes()
    yield b"".join(merge.writers)
    yield merge.supersedes
    for step in merge.steps():
        prefixes = _gathered(step, Section.PREFIXES, np.dtype("<u8"))
        yield prefixes[np.argsort(prefixes, kind="stable")].tobytes()
    for step in merge.steps():
        yield _gathered(step, Section.TAILS, _TAIL)[_order(step)].tobytes()
    for step in merge.steps():
        yield _locations(merge, step).tobytes()
    yield packed_filter(merge.filter)
    digest = np.dtype(f"V{BLOCK_DIGEST_BYTES}")
    for item in merge.inputs:
        count = item.head.digests_length // BLOCK_DIGEST_BYTES
        for start in range(0, count, _ROWS_PER_STEP):
            end = min(start + _ROWS_PER_STEP, count)
            yield item.body.rows(Section.DIGESTS, digest, start, end).tobytes()


def _origins(merge: _Merge, item: _Input) -> Array:
    rows = item.body.rows(Section.ORIGINS, ORIGIN_ROW, 0, item.head.origins).copy()
    check_origins(rows, packs=item.head.packs, writers=len(item.head.writers))
    rows["pack"] += item.first_pack
    numbers = np.array([merge.writers[key] for key in item.head.writers], "<u2")
    rows["writer"] = numbers[rows["writer"]] if len(numbers) else 0
    return rows


def _locations(merge: _Merge, step: list[tuple[_Input, int, int]]) -> Array:
    """Locations that count from the merged tables' beginnings; their ids are noted in the filter."""
    pieces = []
    for item, start, end in step:
        rows = item.body.rows(Section.LOCATIONS, LOCATION_ROW, start, end).copy()
        prefixes = item.body.rows(Section.PREFIXES, np.dtype("<u8"), start, end)
        check_rows(
            prefixes, rows, origins=item.head.origins, digests_length=item.head.digests_length
        )
        tails = item.body.rows(Section.TAILS, _TAIL, start, end)
        note_in_filter(merge.filter, tails.byteswap(), rows)
        rows["origin"] += item.first_origin
        rows["digest"] += item.first_digest
        pieces.append(rows)
    joined: Array = np.concatenate(pieces)[_order(step)]
    return joined


def _order(step: list[tuple[_Input, int, int]]) -> Array:
    order: Array = np.argsort(_gathered(step, Section.PREFIXES, np.dtype("<u8")), kind="stable")
    return order


def _gathered(step: list[tuple[_Input, int, int]], section: Section, row: np.dtype[Any]) -> Array:
    joined: Array = np.concatenate(
        [item.body.rows(section, row, start, end) for item, start, end in step]
    )
    return joined


def _log_left_out(name: str, error: HoldfastError) -> None:
    log.warning("index object not merged", extra={"object": name, "reason": str(error)})


def _opened_input(
    store: ObjectStore, item: StoredSegment, keys: ReaderKeys, writers: WriterList
) -> tuple[SegmentBody, SegmentHead]:
    body = SegmentBody.stored(store, item.name, length=item.length, keys=keys)
    return body, _checked_head(body, item.name, item.length, writers)


def _checked_head(body: SegmentBody, name: str, length: int, writers: WriterList) -> SegmentHead:
    """Raises: IntegrityError (another name, signed by nobody who may)."""
    check_name(body.found, name)
    head = segment_head(body, stored_length=length)
    check_role(body.found, head.supersedes, head.writers, writers)
    return head

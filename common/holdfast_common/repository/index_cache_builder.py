"""From an index object in the repository to its file on this machine, piece by piece. After `index_cache`.

Memory: the filter and some MiB, however large the object is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from blake3 import blake3

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.index import (
    LOCATION_ROW,
    ORIGIN_ROW,
    PACK_ROW,
    SECTION_TABLE_BYTES_MAX,
    Array,
    Section,
    check_origins,
    check_rows,
    section_table,
)
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.index_cache_file import (
    CHECKED_ORIGIN,
    CHECKED_PACK,
    ENTRY_WORDS,
    SMALL_BYTES,
    CachedSegment,
    RowCipher,
    SegmentHead,
    checked_rows,
    sealed_start,
    whole_pages,
)
from holdfast_common.repository.index_table import TAIL_WORDS
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    ID_BYTES,
    KEY_BYTES,
    METADATA_BYTES_MAX,
    ObjectKind,
    index_name,
)
from holdfast_common.repository.merged_segments import in_order
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore, get_range
from holdfast_common.repository.sealed_object import (
    HEADER,
    SEGMENT_BYTES,
    ObjectHeader,
    OpenedObject,
    SealedRanges,
    Signer,
    body_length,
    stored_signer,
)
from holdfast_common.repository.writers import ROLE_PRUNE, ROLE_WRITE, WriterList

log = logging.getLogger(__name__)

STREAMED_BYTES_MIN: Final = 8 << 20  # larger objects are never held in memory as a whole
_ROWS_PER_PIECE: Final = 1 << 16  # some 8 MiB while they are enciphered
_SEGMENTS_KEPT: Final = 3
_SALT_BYTES: Final = 32


class SegmentBody:
    """The body of an index object, whole or by ranges, and its sections."""

    def __init__(self, found: OpenedObject, read: Callable[[int, int], bytes], length: int) -> None:
        self.found = found  # without its body, perhaps
        self._read = read
        head = read(0, min(SECTION_TABLE_BYTES_MAX, length))
        self.sections = section_table(head, length=length)

    @classmethod
    def opened(cls, found: OpenedObject) -> SegmentBody:
        """Of an object that is in memory. Raises: IntegrityError."""
        body = found.body
        return cls(found, lambda start, length: body[start : start + length], len(body))

    @classmethod
    def stored(cls, store: ObjectStore, name: str, *, length: int, keys: ReaderKeys) -> SegmentBody:
        """Of one in the repository, whose signature is checked now and whose seal while it is read.

        Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed.
        """
        if length > METADATA_BYTES_MAX:
            raise IntegrityError("object is longer than its kind may be", name=name, length=length)
        return cls._ranged(
            store, name, stored_signer(store, name, length=length), length=length, keys=keys
        )

    @classmethod
    def unproven(
        cls, store: ObjectStore, name: str, *, length: int, keys: ReaderKeys
    ) -> SegmentBody:
        """As `stored`, but nobody has looked who signed it: to see what there is, not to rely on it."""
        header = ObjectHeader.decode(get_range(store, name, offset=0, length=HEADER.size))
        unknown = Signer(header=header, signer=b"", digest=b"")
        return cls._ranged(store, name, unknown, length=length, keys=keys)

    @classmethod
    def _ranged(
        cls, store: ObjectStore, name: str, signer: Signer, *, length: int, keys: ReaderKeys
    ) -> SegmentBody:
        body = body_length(length, kind=ObjectKind.INDEX)
        expected = keys.expected(ObjectKind.INDEX, signer.header.object_id)
        ranges = SealedRanges(store, name, expected=expected, body=body, class_key=keys.class_key)
        found = OpenedObject(
            header=signer.header, body=b"", digest=signer.digest, signer=signer.signer
        )
        return cls(found, ranges_reader(ranges), body)

    def rows(self, section: Section, row: np.dtype[Any], start: int, end: int) -> Array:
        """Some rows of a section. Raises: IntegrityError, ObjectMissing, RepositoryFailed."""
        offset, _ = self.sections.get(section, (0, 0))
        size = row.itemsize
        return np.frombuffer(self._read(offset + start * size, (end - start) * size), row)

    def count(self, section: Section, row_bytes: int) -> int:
        """How many rows a section has. Raises: IntegrityError."""
        _, length = self.sections.get(section, (0, 0))
        if length % row_bytes:
            raise IntegrityError(
                "an index segment's column has a wrong length", section=section.name
            )
        return length // row_bytes

    def ids(self, section: Section, length: int) -> tuple[bytes, ...]:
        """All rows of a section of ids or keys. Raises: as `rows`."""
        count = self.count(section, length)
        rows = self.rows(section, np.dtype(f"V{length}"), 0, count)
        return tuple(item.tobytes() for item in rows)


def ranges_reader(ranges: SealedRanges) -> Callable[[int, int], bytes]:
    """Reads any range of a body; the segments read last are kept: who copies reads two columns in turn."""
    kept: dict[int, bytes] = {}

    def read(start: int, length: int) -> bytes:
        pieces = []
        for number in range(start // SEGMENT_BYTES, -(-(start + length) // SEGMENT_BYTES)):
            if number not in kept:
                while len(kept) >= _SEGMENTS_KEPT:
                    kept.pop(next(iter(kept)))
                kept[number] = ranges.segment(number)
            base = number * SEGMENT_BYTES
            pieces.append(kept[number][max(start - base, 0) : start + length - base])
        return b"".join(pieces)

    return read


def segment_head(body: SegmentBody, *, stored_length: int) -> SegmentHead:
    """What a segment's file says of it. Raises: IntegrityError, ObjectMissing, RepositoryFailed."""
    chunks = body.count(Section.PREFIXES, 8)
    if not chunks == body.count(Section.TAILS, TAIL_WORDS * 8) == body.count(
        Section.LOCATIONS, LOCATION_ROW.itemsize
    ):  # fmt: skip
        raise IntegrityError("an index segment's columns differ in length")
    filter_bytes = body.count(Section.FILTER, 1)
    if filter_bytes & (filter_bytes - 1) or filter_bytes < 8:
        filter_bytes = 0  # it is asked without one
    offset, length = body.sections.get(Section.DIGESTS, (0, 0))
    return SegmentHead(
        object=replace(body.found, body=b""),
        stored_length=stored_length,
        chunks=chunks,
        filter_bytes=filter_bytes,
        packs=body.count(Section.PACKS, PACK_ROW.itemsize),
        origins=body.count(Section.ORIGINS, ORIGIN_ROW.itemsize),
        writers=body.ids(Section.WRITERS, KEY_BYTES),
        supersedes=body.count(Section.SUPERSEDES, ID_BYTES),
        supersedes_digest=blake3(_superseded(body)).digest(),
        digests_offset=offset,
        digests_length=length,
        rest_digest=b"",
    )


def _superseded(body: SegmentBody) -> bytes:
    """The ids of what the segment contains, in the order in which each job looks them up."""
    count = body.count(Section.SUPERSEDES, ID_BYTES)
    return in_order(body.rows(Section.SUPERSEDES, np.dtype(f"V{ID_BYTES}"), 0, count)).tobytes()


def store_in_cache(
    cache: IndexCache, name: str, body: SegmentBody, *, stored_length: int, keys: ReaderKeys
) -> CachedSegment | None:
    """Write a segment's file and open it.

    Raises: IntegrityError, FormatError (the object), ObjectMissing, RepositoryFailed; OSError (the cache).
    """
    head = segment_head(body, stored_length=stored_length)
    salt = os.urandom(_SALT_BYTES)
    index_key = keys.class_key(ObjectKind.INDEX, head.object.header.key_epoch)
    cipher = RowCipher(index_key, salt)
    file = cache.new_file(name, keys)
    try:
        is_small = head.rest_bytes() <= SMALL_BYTES
        if is_small:
            head = replace(head, rest_digest=bytes(32))  # as long as the true one
        begin = len(sealed_start(head, cipher=cipher, salt=salt))  # this one is never written
        os.ftruncate(file.descriptor, begin + head.rest_bytes())
        write_columns(file.descriptor, begin, head, body, cipher)
        if is_small:
            rest = os.pread(file.descriptor, head.rest_bytes(), begin)
            head = replace(head, rest_digest=blake3(rest).digest())
        _write(file.descriptor, sealed_start(head, cipher=cipher, salt=salt), 0)
        file.keep(synced=not is_small)
    finally:
        file.discard()
    return cache.open(name, keys)


def write_columns(
    descriptor: int, begin: int, head: SegmentHead, body: SegmentBody, cipher: RowCipher
) -> None:
    """All that follows the start, checked while it is copied. Raises: as `store_in_cache`."""
    at = [begin]
    for length in head.lengths():
        at.append(at[-1] + whole_pages(length))
    last = np.zeros(0, "<u8")
    for start in range(0, head.chunks, _ROWS_PER_PIECE):
        end = min(start + _ROWS_PER_PIECE, head.chunks)
        prefixes = body.rows(Section.PREFIXES, np.dtype("<u8"), start, end)
        locations = body.rows(Section.LOCATIONS, LOCATION_ROW, start, end)
        if len(last) and prefixes[0] < last[0]:
            raise IntegrityError("an index segment is not sorted")
        check_rows(prefixes, locations, origins=head.origins, digests_length=head.digests_length)
        last = prefixes[-1:]
        tails = body.rows(Section.TAILS, np.dtype(("<u8", (TAIL_WORDS,))), start, end)
        entries = sealed_entries(prefixes, tails, locations, start=start, cipher=cipher)
        _write(descriptor, prefixes.tobytes(), at[0] + start * 8)
        _write(descriptor, entries.tobytes(), at[1] + start * ENTRY_WORDS * 8)
    for start in range(0, head.filter_bytes, SEGMENT_BYTES):
        end = min(start + SEGMENT_BYTES, head.filter_bytes)
        piece = body.rows(Section.FILTER, np.dtype(np.uint8), start, end)
        _write(descriptor, piece.tobytes(), at[2] + start)
    for section, source, target, place, count in (
        (Section.PACKS, PACK_ROW, CHECKED_PACK, at[3], head.packs),
        (Section.ORIGINS, ORIGIN_ROW, CHECKED_ORIGIN, at[4], head.origins),
    ):
        for start in range(0, count, _ROWS_PER_PIECE):
            end = min(start + _ROWS_PER_PIECE, count)
            rows = body.rows(section, source, start, end)
            if section is Section.ORIGINS:
                check_origins(rows, packs=head.packs, writers=len(head.writers))
            checked = np.zeros(len(rows), target)
            for column in source.names or ():
                checked[column] = rows[column]
            checked["check"] = checked_rows(checked, np.arange(start, end), cipher)
            _write(descriptor, checked.tobytes(), place + start * target.itemsize)
    _write(descriptor, _superseded(body), at[5])


def sealed_entries(
    prefixes: Array, tails: Array, locations: Array, *, start: int, cipher: RowCipher
) -> Array:
    """Entries as they stand in the file; ``start``: the number of the first of them."""
    count = len(prefixes)
    entries = np.zeros((count, ENTRY_WORDS), "<u8")
    entries[:, :TAIL_WORDS] = tails
    raw = entries.view(np.uint8).reshape(count, -1)
    at = TAIL_WORDS * 8
    packed = np.frombuffer(locations.tobytes(), np.uint8).reshape(count, -1)
    raw[:, at : at + LOCATION_ROW.itemsize] = packed
    positions = np.arange(start, start + count, dtype="<u8")
    entries[:, -1] = cipher.checks(entries[:, :-1], positions, prefixes)
    return entries ^ cipher.keystream(positions)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def cached_segment(
    cache: IndexCache, store: ObjectStore, info: ObjectInfo, *, keys: ReaderKeys
) -> CachedSegment | bytes:
    """The file of an index object, made now if there is none; the object itself where no file can be made.

    Who may have signed it is the caller's question.
    Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed.
    """
    cached = cache.open(info.name, keys)
    if cached is not None:
        is_it = index_name(cached.head.object.header.object_id) == info.name
        if is_it and cached.head.stored_length == info.length:
            return cached
        cache.drop(info.name, keys)
    if info.length >= STREAMED_BYTES_MIN:
        body = SegmentBody.stored(store, info.name, length=info.length, keys=keys)
        data = b""
    else:
        data = store.get(info.name, length_max=METADATA_BYTES_MAX)
        body = SegmentBody.opened(keys.open(ObjectKind.INDEX, data))
    check_name(body.found, info.name)
    try:
        made = store_in_cache(cache, info.name, body, stored_length=info.length, keys=keys)
    except OSError as error:
        log.warning("local index not written", extra={"object": info.name, "reason": str(error)})
        made = None
    return made or data or store.get(info.name, length_max=METADATA_BYTES_MAX)


def check_name(found: OpenedObject, name: str) -> None:
    """Raises: IntegrityError."""
    if index_name(found.header.object_id) != name:
        raise IntegrityError("an index object stands under another name", name=name)


def check_role(
    found: OpenedObject, superseded: int, segment_writers: Sequence[bytes], writers: WriterList
) -> None:
    """Whether its signer may say this. Raises: IntegrityError."""
    is_pruners = superseded > 0 or tuple(segment_writers) != (found.signer,)
    writers.check(found, role=ROLE_PRUNE if is_pruners else ROLE_WRITE)

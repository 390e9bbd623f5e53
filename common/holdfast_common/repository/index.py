"""An index segment: where chunks lie. Immutable, sorted by chunk id, in columns that can be mapped.

The hot columns answer "where is this chunk"; the cold part, the blocks' digests in the packs' own
order, is read only to compare disks without reading packs. Unknown sections are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.layout import (
    BLOCK_DIGEST_BYTES,
    BLOCKS_PER_FRAME,
    CHUNK_ID_BYTES,
    DEDUP_BLOCKS_MIN,
    ID_BYTES,
    KEY_BYTES,
    WRAPPED_KEY_BYTES,
    BlobKind,
)
from holdfast_common.repository.pack import PackContents

# magic 8 | sections u32 | zero u32
_START: Final = struct.Struct("<8sII")
_MAGIC: Final = b"HFINDEX1"
# section u32 | zero u32 | offset in the body u64 | length u64
_SECTION: Final = struct.Struct("<IIQQ")
_SECTIONS_MAX: Final = 64
FILTER_BITS_PER_CHUNK: Final = 10
FILTER_PROBES: Final = 5
_KINDS: Final = [int(kind) for kind in BlobKind]
_TAIL_BYTES: Final = CHUNK_ID_BYTES - 8


class Section(IntEnum):
    """What stands in a section of an index segment."""

    PACKS = 1
    ORIGINS = 2
    WRITERS = 3
    PREFIXES = 4
    TAILS = 5
    LOCATIONS = 6
    DIGESTS = 7
    FILTER = 8
    SUPERSEDES = 9


PACK_ROW: Final = np.dtype([("digest", "V32"), ("length", "<u8")])
ORIGIN_ROW: Final = np.dtype(
    [
        ("origin_id", f"V{ID_BYTES}"),
        ("epoch", "<u4"),
        ("pack", "<u4"),
        ("writer", "<u2"),
        ("zero", "<u2"),
        ("wrapped_key", f"V{WRAPPED_KEY_BYTES}"),
    ]
)
LOCATION_ROW: Final = np.dtype(
    [
        ("origin", "<u4"),  # row in ORIGINS
        ("number", "<u4"),  # of the blob in its segment
        ("offset", "<u4"),  # in the pack
        ("stored", "<u4"),
        ("plain", "<u4"),
        ("digest", "<u4"),  # first of its digests in DIGESTS, counted in digests
        ("kind", "u1"),
        ("blocks", "u1"),
        ("presence", "<u2"),
    ]
)
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSegment:
    """The columns of one segment; arrays may be views of a mapping."""

    packs: Array
    origins: Array
    writers: tuple[bytes, ...]  # public keys of who wrote the origins
    prefixes: Array  # the first eight bytes of each id as a number, big-endian; ascending
    tails: Array  # the other 24 bytes
    locations: Array
    digests_offset: int  # in the body
    digests_length: int
    supersedes: Array  # object ids of segments that this one contains


class IndexBuilder:
    """Collects finished packs into one segment; memory: some 60 bytes a chunk, 16 a block."""

    def __init__(self) -> None:
        self._packs: list[tuple[bytes, int]] = []
        self._origins: list[tuple[bytes, int, int, int, int, bytes]] = []
        self._ids = bytearray()
        self._locations: list[Array] = []
        self._digests = bytearray()
        self.chunk_count = 0

    def add(self, contents: PackContents) -> None:
        """Add all blobs of a pack that is durable."""
        first_origin = len(self._origins)
        pack = len(self._packs)
        self._packs.append((contents.digest, contents.length))
        for segment in contents.segments:
            header = segment.header
            self._origins.append(
                (header.origin_id, header.content_epoch, pack, 0, 0, header.wrapped_key)
            )
        rows = []
        for blob in contents.blobs:
            rows.append(
                (
                    first_origin + blob.segment,
                    blob.number,
                    blob.offset,
                    blob.stored_length,
                    blob.plain_length,
                    len(self._digests) // BLOCK_DIGEST_BYTES,
                    blob.kind,
                    blob.blocks,
                    blob.presence,
                )
            )
            self._ids += blob.chunk_id
            self._digests += blob.digests
        self._locations.append(np.array(rows, LOCATION_ROW))
        self.chunk_count += len(rows)

    def encode(self, *, writer: bytes) -> bytes:
        """The segment's body. ``writer``: the public key of whoever wrote these packs."""
        ids = np.frombuffer(bytes(self._ids), ">u8").reshape(-1, 4)
        order = np.lexsort((ids[:, 3], ids[:, 2], ids[:, 1], ids[:, 0]))
        locations = (
            np.concatenate(self._locations) if self._locations else np.zeros(0, LOCATION_ROW)
        )
        in_order = ids[order]
        sections = {
            Section.PACKS: np.array(self._packs, PACK_ROW).tobytes(),
            Section.ORIGINS: np.array(self._origins, ORIGIN_ROW).tobytes(),
            Section.WRITERS: writer,
            Section.PREFIXES: in_order[:, 0].astype("<u8").tobytes(),
            Section.TAILS: np.ascontiguousarray(in_order[:, 1:]).tobytes(),
            Section.LOCATIONS: locations[order].tobytes(),
            Section.FILTER: filter_bits(in_order, locations[order]),
            Section.DIGESTS: bytes(self._digests),
        }
        return encoded_sections(sections)


def decoded_segment(body: bytes | memoryview) -> IndexSegment:
    """Raises: IntegrityError."""
    sections = _decoded_sections(body)
    prefixes = _column(body, sections, Section.PREFIXES, np.dtype("<u8"))
    tails = _column(body, sections, Section.TAILS, np.dtype(f"V{_TAIL_BYTES}"))
    locations = _column(body, sections, Section.LOCATIONS, LOCATION_ROW)
    packs = _column(body, sections, Section.PACKS, PACK_ROW)
    origins = _column(body, sections, Section.ORIGINS, ORIGIN_ROW)
    writers = _column(body, sections, Section.WRITERS, np.dtype(f"V{KEY_BYTES}"))
    supersedes = _column(body, sections, Section.SUPERSEDES, np.dtype(f"V{ID_BYTES}"))
    digests_offset, digests_length = sections.get(Section.DIGESTS, (0, 0))
    if not len(prefixes) == len(tails) == len(locations):
        raise IntegrityError("an index segment's columns differ in length")
    check_rows(prefixes, locations, origins=len(origins), digests_length=digests_length)
    check_origins(origins, packs=len(packs), writers=len(writers))
    return IndexSegment(
        packs=packs,
        origins=origins,
        writers=tuple(bytes(key) for key in writers),
        prefixes=prefixes,
        tails=tails,
        locations=locations,
        digests_offset=digests_offset,
        digests_length=digests_length,
        supersedes=supersedes,
    )


def id_prefix(chunk_id: bytes) -> int:
    """The number by which segments are sorted."""
    return int.from_bytes(chunk_id[:8], "big")


def check_rows(prefixes: Array, locations: Array, *, origins: int, digests_length: int) -> None:
    """Whether rows stay within their segment and ascend. Raises: IntegrityError."""
    if not len(prefixes):
        return
    ends = locations["digest"].astype(np.uint64) + locations["blocks"]
    wrong = (
        int(locations["origin"].max()) >= origins
        or int(ends.max()) * BLOCK_DIGEST_BYTES > digests_length
        or bool((prefixes[1:] < prefixes[:-1]).any())
        or not np.isin(locations["kind"], _KINDS).all()
        or int(locations["blocks"].max()) > BLOCKS_PER_FRAME
    )
    if wrong:
        raise IntegrityError(
            "an index segment points outside of itself, is not sorted or holds unknown kinds"
        )


def check_origins(origins: Array, *, packs: int, writers: int) -> None:
    """Whether origins stay within their segment. Raises: IntegrityError."""
    if len(origins) and (
        int(origins["pack"].max()) >= packs or int(origins["writer"].max()) >= writers
    ):
        raise IntegrityError("an index segment points outside of itself")


def section_table(body: bytes | memoryview, *, length: int) -> dict[int, tuple[int, int]]:
    """Offset and length of each section, from the first bytes of a body of ``length``. Raises: IntegrityError."""
    return _decoded_sections(body, length)


SECTION_TABLE_BYTES_MAX: Final = _START.size + _SECTIONS_MAX * _SECTION.size


def empty_filter(chunks: int) -> Array:
    """A flag for each bit of a filter for so many chunks: a power of two of them."""
    bits = 64
    while bits < FILTER_BITS_PER_CHUNK * chunks:
        bits *= 2
    return np.zeros(bits, np.uint8)


def note_in_filter(flags: Array, tails: Array, locations: Array) -> None:
    """Note the ids worth looking up: double hashing by the id itself. ``tails``: three words each, big-endian."""
    chosen = tails[_is_worth_a_look(locations)]
    mask = np.uint64(len(flags) - 1)
    step = chosen[:, 1] | np.uint64(1)
    for probe in range(FILTER_PROBES):
        flags[(chosen[:, 0] + np.uint64(probe) * step) & mask] = 1


def packed_filter(flags: Array) -> bytes:
    """The filter as it is stored."""
    return np.packbits(flags, bitorder="little").tobytes()


def section_start(lengths: Mapping[Section, int]) -> bytes:
    """What stands before the sections of a body."""
    offset = _START.size + len(lengths) * _SECTION.size
    table = [_START.pack(_MAGIC, len(lengths), 0)]
    for section, length in lengths.items():
        table.append(_SECTION.pack(section, 0, offset, length))
        offset += length
    return b"".join(table)


def _is_worth_a_look(locations: Array) -> Array:
    wanted: Array = (locations["blocks"] >= DEDUP_BLOCKS_MIN) | (
        locations["kind"] != BlobKind.DISK_FRAME
    )
    return wanted


def filter_bits(ids: Array, locations: Array) -> bytes:
    """A bloom filter over the chunks worth looking up: power-of-two bits, double hashing by the id itself."""
    flags = empty_filter(int(np.count_nonzero(_is_worth_a_look(locations))))
    note_in_filter(flags, ids[:, 1:].astype(np.uint64), locations)
    return packed_filter(flags)


def encoded_sections(sections: dict[Section, bytes]) -> bytes:
    """The body of a segment with these sections."""
    lengths = {section: len(data) for section, data in sections.items()}
    return b"".join([section_start(lengths), *sections.values()])


def _decoded_sections(
    body: bytes | memoryview, whole: int | None = None
) -> dict[int, tuple[int, int]]:
    whole = len(body) if whole is None else whole
    if len(body) < _START.size:
        raise IntegrityError("an index segment is too short", length=len(body))
    magic, count, _ = _START.unpack_from(body)
    if magic != _MAGIC:
        raise IntegrityError("not an index segment")
    if count > _SECTIONS_MAX or len(body) < _START.size + count * _SECTION.size:
        raise IntegrityError("an index segment ends in its table", sections=count)
    found: dict[int, tuple[int, int]] = {}
    for position in range(count):
        section, _, offset, length = _SECTION.unpack_from(
            body, _START.size + position * _SECTION.size
        )
        if offset + length > whole or section in found:
            raise IntegrityError("an index segment's section is wrong", section=section)
        found[section] = (offset, length)
    return found


def _column(
    body: bytes | memoryview,
    sections: dict[int, tuple[int, int]],
    section: Section,
    row: np.dtype[Any],
) -> Array:
    offset, length = sections.get(section, (0, 0))
    if length % row.itemsize:
        raise IntegrityError("an index segment's column has a wrong length", section=section.name)
    return np.frombuffer(body, row, count=length // row.itemsize, offset=offset)

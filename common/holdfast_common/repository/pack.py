"""A pack as bytes: segments of sealed blobs, a plain footer, a sealed footer, a trailer.

The plain footer needs no key and lets anyone check every ciphertext; it also repeats the segments'
headers, so that one flipped bit does not cost a whole segment. The sealed footer says what the blobs
are, so that a lost index can be made again from packs alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.chunk_codec import SEGMENT_HEADER, SegmentHeader
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    BLOCK_DIGEST_BYTES,
    BLOCKS_PER_FRAME,
    PACK_FILE_BYTES_MAX,
    BlobKind,
    ObjectKind,
    pack_name,
)
from holdfast_common.repository.object_store import ObjectStore, get_range
from holdfast_common.repository.randomness import Randomness

# magic 8 | format u16 | zero u16 | segments u32 | blobs u32
_FOOTER: Final = struct.Struct("<8sHHII")
_FOOTER_MAGIC: Final = b"HFPACKFT"
_SEGMENT: Final = struct.Struct(
    f"<I{SEGMENT_HEADER.size}s"
)  # offset of the header in the pack, the header again
# segment u32 | number u32 | offset in the pack u32 | stored length u32 | BLAKE3 of the ciphertext 32
_BLOB: Final = struct.Struct("<IIII32s")
# chunk id 32 | kind u8 | blocks u8 | presence u16 | plain length u32
_SEALED_BLOB: Final = struct.Struct("<32sBBHI")
# plain footer's offset u32 | its length u32 | sealed footer's length u32 | zero u32 | magic 8
TRAILER: Final = struct.Struct("<IIII8s")
_TRAILER_MAGIC: Final = b"HFPACKEN"
BLOBS_MAX: Final = 1 << 20
SEGMENTS_MAX: Final = 1 << 16
_KINDS: Final = frozenset(int(kind) for kind in BlobKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackBlob:
    """One blob of a pack, as both footers together describe it."""

    segment: int  # index among the pack's segments
    number: int  # within its segment; never changes
    offset: int
    stored_length: int
    ciphertext_digest: bytes
    chunk_id: bytes
    kind: BlobKind
    blocks: int  # of a disk frame; 0 for other kinds
    presence: int  # which of the blocks are there; all, unless dead ones were taken out
    plain_length: int
    digests: bytes  # 16 bytes per block


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSegment:
    """A segment of a pack: where its header stands, and the header."""

    offset: int
    header: SegmentHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class PackContents:
    """A whole pack's description."""

    digest: bytes
    length: int
    segments: tuple[PackSegment, ...]
    blobs: tuple[PackBlob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainBlob:
    """What the plain footer says of a blob."""

    segment: int
    number: int
    offset: int
    stored_length: int
    ciphertext_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFooter:
    """What anyone can read at the end of a pack."""

    segments: tuple[PackSegment, ...]
    blobs: tuple[PlainBlob, ...]


def encoded_footers(
    segments: Sequence[PackSegment],
    blobs: Sequence[PackBlob],
    *,
    footer_offset: int,
    keys: ReaderKeys,
    randomness: Randomness,
) -> bytes:
    """Everything after the last blob."""
    pieces = [_FOOTER.pack(_FOOTER_MAGIC, 1, 0, len(segments), len(blobs))]
    pieces += [_SEGMENT.pack(segment.offset, segment.header.encode()) for segment in segments]
    pieces += [
        _BLOB.pack(b.segment, b.number, b.offset, b.stored_length, b.ciphertext_digest)
        for b in blobs
    ]
    plain = b"".join(pieces)
    described = [blake3(plain).digest()]
    for blob in blobs:
        described.append(
            _SEALED_BLOB.pack(
                blob.chunk_id, blob.kind, blob.blocks, blob.presence, blob.plain_length
            )
        )
        described.append(blob.digests)
    secret = keys.seal(
        ObjectKind.PACK_FOOTER, b"".join(described), signing_key=None, randomness=randomness
    )
    return plain + secret + TRAILER.pack(footer_offset, len(plain), len(secret), 0, _TRAILER_MAGIC)


def decoded_plain_footer(data: bytes | memoryview) -> PlainFooter:
    """Raises: IntegrityError."""
    if len(data) < _FOOTER.size:
        raise IntegrityError("a pack's footer is too short", length=len(data))
    magic, version, _, segment_count, blob_count = _FOOTER.unpack_from(data)
    if magic != _FOOTER_MAGIC or version != 1:
        raise IntegrityError("not a pack's footer")
    if segment_count > SEGMENTS_MAX or blob_count > BLOBS_MAX:
        raise IntegrityError(
            "a pack's footer counts too much", segments=segment_count, blobs=blob_count
        )
    blobs_at = _FOOTER.size + segment_count * _SEGMENT.size
    if len(data) != blobs_at + blob_count * _BLOB.size:
        raise IntegrityError("a pack's footer has a wrong length", length=len(data))
    segments = []
    for offset, header in _SEGMENT.iter_unpack(data[_FOOTER.size : blobs_at]):
        segments.append(PackSegment(offset=offset, header=SegmentHeader.decode(header)))
    blobs = []
    for segment, number, offset, stored, digest in _BLOB.iter_unpack(data[blobs_at:]):
        if segment >= segment_count:
            raise IntegrityError(
                "a pack's footer names a segment that is not there", segment=segment
            )
        blobs.append(
            PlainBlob(
                segment=segment,
                number=number,
                offset=offset,
                stored_length=stored,
                ciphertext_digest=digest,
            )
        )
    return PlainFooter(segments=tuple(segments), blobs=tuple(blobs))


def read_plain_footer(
    store: ObjectStore, digest: bytes, *, length: int
) -> tuple[PlainFooter, bytes, bytes]:
    """The plain footer, its bytes, and the sealed footer's bytes.

    Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed.
    """
    name = pack_name(digest)
    if not TRAILER.size <= length <= PACK_FILE_BYTES_MAX:
        raise IntegrityError("a pack has an impossible length", name=name, length=length)
    trailer = get_range(store, name, offset=length - TRAILER.size, length=TRAILER.size)
    offset, plain_length, sealed_length, _, magic = TRAILER.unpack(trailer)
    if magic != _TRAILER_MAGIC or offset + plain_length + sealed_length + TRAILER.size != length:
        raise IntegrityError("a pack's trailer is wrong", name=name)
    footers = get_range(store, name, offset=offset, length=plain_length + sealed_length)
    plain = footers[:plain_length]
    return decoded_plain_footer(plain), plain, footers[plain_length:]


def read_contents(
    store: ObjectStore, digest: bytes, *, length: int, keys: ReaderKeys
) -> PackContents:
    """A pack's description from its own footers.

    Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed.
    """
    footer, plain, secret = read_plain_footer(store, digest, length=length)
    body = keys.open(ObjectKind.PACK_FOOTER, secret).body
    if body[:32] != blake3(plain).digest():
        raise IntegrityError("a pack's two footers do not belong together", pack=digest.hex())
    blobs = []
    position = 32
    for blob in footer.blobs:
        if len(body) < position + _SEALED_BLOB.size:
            raise IntegrityError("a pack's sealed footer is too short", pack=digest.hex())
        chunk_id, kind, blocks, presence, plain_length = _SEALED_BLOB.unpack_from(body, position)
        position += _SEALED_BLOB.size
        if kind not in _KINDS or blocks > BLOCKS_PER_FRAME:
            raise IntegrityError("unknown kind of blob", kind=kind, pack=digest.hex())
        end = position + blocks * BLOCK_DIGEST_BYTES
        blobs.append(
            PackBlob(
                segment=blob.segment,
                number=blob.number,
                offset=blob.offset,
                stored_length=blob.stored_length,
                ciphertext_digest=blob.ciphertext_digest,
                chunk_id=chunk_id,
                kind=BlobKind(kind),
                blocks=blocks,
                presence=presence,
                plain_length=plain_length,
                digests=body[position:end],
            )
        )
        position = end
    if position != len(body):
        raise IntegrityError("a pack's sealed footer has a wrong length", pack=digest.hex())
    return PackContents(digest=digest, length=length, segments=footer.segments, blobs=tuple(blobs))

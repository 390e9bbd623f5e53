"""Blobs that were found good, copied into new packs, proven there, and named by a new index object.

Part of `repair`. Nothing is opened to be copied: a segment's header and its blobs go as they are. They are
opened once more afterwards, from where they lie now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.chunk_codec import SegmentHeader
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.index import IndexBuilder
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyOpener
from holdfast_common.repository.layout import BlobKind, ObjectKind, index_name, pack_name
from holdfast_common.repository.object_store import ObjectStore, get_range
from holdfast_common.repository.pack import (
    PackBlob,
    PackContents,
    PackSegment,
    encoded_footers,
    read_contents,
)
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.repository_index import ChunkLocation, RepositoryIndex
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.writers import WriterList
from holdfast_common.units import MIB

PACK_BYTES = 32 * MIB  # one is held in memory


@dataclass(frozen=True, slots=True)
class GoodBlob:
    """A copy of a chunk that was opened and is true, and where its digests can be looked up."""

    store: ObjectStore
    index: RepositoryIndex
    place: ChunkLocation


def held_blocks(place: ChunkLocation) -> int:
    """Bit per block of a frame that is stored there; 1 for a chunk that is no frame."""
    return place.presence if place.kind is BlobKind.DISK_FRAME else 1


def richest_first(places: Iterable[ChunkLocation]) -> list[ChunkLocation]:
    """Copies of one chunk, those with most of its blocks first."""
    return sorted(places, key=lambda place: -held_blocks(place).bit_count())


def store_blobs(
    store: ObjectStore,
    keys: ReaderKeys,
    blobs: Sequence[GoodBlob],
    *,
    unindexed: Sequence[bytes] = (),
    segment_keys: SegmentKeyOpener,
    writers: WriterList,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness,
) -> list[bytes]:
    """Put new packs with these blobs and an index object over them; the packs' digests.

    ``unindexed``: packs that the index object names too; the caller has proven them.
    Raises: IntegrityError (what was written is not what was read), RepositoryFull, RepositoryFailed, and what
    ``segment_keys`` raises.
    """
    builder = IndexBuilder()
    packs = []
    for group in _packs_full(blobs):
        contents = _store_pack(store, keys, group, randomness=randomness)
        builder.add(contents)
        packs.append(contents.digest)
    for digest in unindexed:
        info = store.head(pack_name(digest))
        if info is not None:
            builder.add(read_contents(store, digest, length=info.length, keys=keys))
    if not builder.chunk_count:
        return []
    body = builder.encode(writer=signing_key.public_key().public_bytes_raw())
    data = keys.seal(ObjectKind.INDEX, body, signing_key=signing_key, randomness=randomness)
    # Proven before anybody can see it: an index object that is found wrong is never put.
    fresh = RepositoryIndex(store, keys)
    name = index_name(ObjectHeader.decode(data).object_id)
    fresh.load(data, name, writers)
    frames = FrameReader(store, keys, index=fresh, segment_keys=segment_keys)
    wanted = {blob.place.chunk_id for blob in blobs}
    for digest, places in fresh.by_pack().items():
        for place in places if digest in packs else ():
            if not place.is_hollow:  # its digests can be asked for only when the index is there
                frames.read_at(place)
            wanted.discard(place.chunk_id)
    if wanted:
        raise IntegrityError("a new index lacks chunks that were copied", chunks=len(wanted))
    store.put(name, data)
    return packs


def _packs_full(blobs: Iterable[GoodBlob]) -> Iterator[list[GoodBlob]]:
    group: list[GoodBlob] = []
    length = 0
    order = sorted(blobs, key=lambda blob: (blob.place.origin.request.origin_id, blob.place.number))
    for blob in order:
        if group and length + blob.place.stored_length > PACK_BYTES:
            yield group
            group, length = [], 0
        group.append(blob)
        length += blob.place.stored_length
    if group:
        yield group


def _store_pack(
    store: ObjectStore, keys: ReaderKeys, group: list[GoodBlob], *, randomness: Randomness
) -> PackContents:
    data = bytearray()
    segments: list[PackSegment] = []
    blobs = []
    for blob in group:
        place = blob.place
        request = place.origin.request
        if not segments or segments[-1].header.origin_id != request.origin_id:
            header = SegmentHeader(
                repository_id=keys.repository_id,
                domain_id=keys.domain_id,
                origin_id=request.origin_id,
                content_epoch=request.content_epoch,
                wrapped_key=request.wrapped_key,
            )
            segments.append(PackSegment(offset=len(data), header=header))
            data += header.encode()
        stored = get_range(
            blob.store,
            pack_name(place.origin.pack.digest),
            offset=place.offset,
            length=place.stored_length,
        )
        blobs.append(
            PackBlob(
                segment=len(segments) - 1,
                number=place.number,
                offset=len(data),
                stored_length=place.stored_length,
                ciphertext_digest=blake3(stored).digest(),
                chunk_id=place.chunk_id,
                kind=place.kind,
                blocks=place.blocks,
                presence=place.presence,
                plain_length=place.plain_length,
                digests=blob.index.digests(place),
            )
        )
        data += stored
    data += encoded_footers(
        segments, blobs, footer_offset=len(data), keys=keys, randomness=randomness
    )
    digest = blake3(data).digest()
    upload = store.begin(bulk=True)
    try:
        upload.write(data)
        upload.commit(pack_name(digest))
    finally:
        upload.abort()
    return read_contents(store, digest, length=len(data), keys=keys)

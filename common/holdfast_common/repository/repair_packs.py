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
from holdfast_common.repository.chunk_codec import Compressor, SegmentHeader
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.index import IndexBuilder
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyOpener, WriterKeys
from holdfast_common.repository.layout import TAG_BYTES, BlobKind, ObjectKind, index_name, pack_name
from holdfast_common.repository.object_store import ObjectStore, get_range
from holdfast_common.repository.pack import (
    PackBlob,
    PackContents,
    PackSegment,
    encoded_footers,
    read_contents,
)
from holdfast_common.repository.pack_writer import PackWriter
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.repair_content import FoundChunk
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.writers import WriterList
from holdfast_common.units import MIB

COMPRESSION_LEVEL = 3
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
    sealed: Sequence[PackContents] = (),
    segment_keys: SegmentKeyOpener,
    writers: WriterList,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness,
) -> list[bytes]:
    """Put new packs with these blobs and an index object over them; the packs' digests.

    ``unindexed``: packs that the index object names too; the caller has proven them. ``sealed``: such as
    `ContentPacks` has stored; they are proven here.
    Raises: IntegrityError (what was written is not what was read), RepositoryFull, RepositoryFailed, and what
    ``segment_keys`` raises.
    """
    builder = IndexBuilder()
    new = list(sealed)
    for group in _packs_full(blobs):
        new.append(_store_pack(store, keys, group, randomness=randomness))
    for contents in new:
        builder.add(contents)
    packs = [contents.digest for contents in new]
    for digest in unindexed:
        info = store.head(pack_name(digest))
        if info is not None:
            builder.add(read_contents(store, digest, length=info.length, keys=keys))
    if not builder.chunk_count:
        return []
    body = builder.encode(writer=signing_key.public_key().public_bytes_raw())
    data = keys.seal(ObjectKind.INDEX, body, signing_key=signing_key, randomness=randomness)
    # Proven before anybody can see it: an index object that is found wrong is never put.
    fresh = _UnseenIndex(store, keys, new)
    name = index_name(ObjectHeader.decode(data).object_id)
    fresh.load(data, name, writers)
    frames = FrameReader(store, keys, index=fresh, segment_keys=segment_keys)
    wanted = {blob.place.chunk_id for blob in blobs}
    wanted |= {blob.chunk_id for contents in sealed for blob in contents.blobs}
    for indexed in fresh.in_groups(packs):
        for place in (each for places in indexed.values() for each in places):
            frames.read_at(place)
            wanted.discard(place.chunk_id)
    if wanted:
        raise IntegrityError("a new index lacks chunks that were copied", chunks=len(wanted))
    store.put(name, data)
    return packs


class ContentPacks:
    """Content that came as plain bytes, sealed into new packs as a backup's. One thread; leave it by `abort`."""

    def __init__(self, store: ObjectStore, keys: WriterKeys, *, randomness: Randomness) -> None:
        self.complete: list[PackContents] = []  # durable, and in no index yet
        self._compressor = Compressor(COMPRESSION_LEVEL)
        self._packs = PackWriter(
            store,
            keys,
            randomness=randomness,
            finished=lambda pack: self.complete.append(pack.commit()),
        )

    def add(self, found: FoundChunk) -> int:
        """How many bytes are stored for it. Raises: RepositoryFull, RepositoryFailed."""
        payload = self._compressor.payload(found.plain)
        stored_length = len(payload) + TAG_BYTES
        sealer = self._packs.sealer(stored_length)
        binding = sealer.next_binding(
            kind=found.kind, chunk_id=found.chunk_id, plain_length=len(found.plain)
        )
        sealer.cipher.seal_into(payload, binding, self._packs.room(stored_length))
        self._packs.append(
            number=binding.number,
            stored_length=stored_length,
            chunk_id=found.chunk_id,
            kind=found.kind,
            plain_length=len(found.plain),
            digests=found.digests,
            presence=found.presence if found.kind is BlobKind.DISK_FRAME else None,
        )
        return stored_length

    def close(self) -> None:
        """Make the open pack durable. Raises: RepositoryFull, RepositoryFailed."""
        self._packs.close()

    def abort(self) -> None:
        """Discard the open pack. Twice is harmless."""
        self._packs.abort()


class _UnseenIndex(RepositoryIndex):
    """Of an index object that is not stored yet: the digests of its frames are those of the packs' footers."""

    def __init__(self, store: ObjectStore, keys: ReaderKeys, packs: Iterable[PackContents]) -> None:
        super().__init__(store, keys)
        self._of_blobs = {
            (contents.digest, blob.offset): blob.digests
            for contents in packs
            for blob in contents.blobs
        }

    def digests(self, location: ChunkLocation) -> bytes:
        """As the index, once it is stored."""
        return self._of_blobs[location.origin.pack.digest, location.offset]


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

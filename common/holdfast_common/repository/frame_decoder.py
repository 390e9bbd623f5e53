"""Stored bytes of a chunk -> its plain bytes, checked. Between `frame_reader` and `chunk_codec`.

One decoder belongs to one thread and uses its buffers again and again: a buffer of its own for each frame
would cost more in page faults than opening and hashing it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.chunk_codec import (
    PLAIN_BYTES_MAX,
    BlobBinding,
    Decompressor,
    SegmentCipher,
    payload_length,
)
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.frame_worker import frame_id_of
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    FRAME_BYTES,
    BlobKind,
)
from holdfast_common.units import MIB

STORED_BYTES: Final = 2 * MIB  # of neighbours in a pack, read at once


class FrameDecoder:
    """Opens, decompresses and checks chunks. One thread."""

    def __init__(self, hasher: Hasher, digests_of: Callable[[ChunkLocation], bytes]) -> None:
        """``digests_of``: the digests of all blocks of a frame, from the index."""
        self._hasher = hasher
        self._digests_of = digests_of
        self._decompressor = Decompressor()
        self._stored = _Room(STORED_BYTES)
        self._opened = _Room(FRAME_BYTES)
        self._plain = _Room(FRAME_BYTES)
        self._whole = _Room(FRAME_BYTES)

    def stored_room(self, length: int) -> memoryview:
        """Where to read stored bytes to; its content counts until the next call."""
        return self._stored.take(length)

    def decode(
        self,
        place: ChunkLocation,
        stored: memoryview,
        cipher: SegmentCipher,
        target: memoryview | None = None,
    ) -> memoryview:
        """The plain bytes: in ``target``, if that is given and of their length, else valid until the next call.

        When this raises, ``target`` holds nothing that may be used. Raises: IntegrityError.
        """
        if not 0 < place.plain_length <= PLAIN_BYTES_MAX:
            raise IntegrityError("a blob's length is out of bounds", length=place.plain_length)
        is_hollow = place.is_hollow
        if is_hollow or target is None or len(target) != place.plain_length:
            target = self._plain.take(place.plain_length)
        binding = BlobBinding(
            kind=place.kind,
            origin_id=place.origin.request.origin_id,
            number=place.number,
            chunk_id=place.chunk_id,
            plain_length=place.plain_length,
        )
        length = payload_length(place.stored_length)
        if length == place.plain_length:
            cipher.open_into(stored, binding, target)
        else:
            opened = self._opened.take(length)
            cipher.open_into(stored, binding, opened)
            self._decompressor.decompress_into(opened, target)
        if is_hollow:
            return self._checked_hollow(place, target)
        if place.kind is BlobKind.DISK_FRAME:
            actual = frame_id_of(target, self._hasher)
        else:
            actual = self._hasher.chunk_id(target)
        if actual != place.chunk_id:
            raise IntegrityError(
                "a chunk holds other data than its id says", chunk=place.chunk_id.hex()
            )
        return target

    def _checked_hollow(self, place: ChunkLocation, plain: memoryview) -> memoryview:
        """A frame that lost its dead blocks, with zeros in their places; no map points at those.

        The id covers the digests of all blocks, so the dead ones' must come from the index.
        """
        digests = self._digests_of(place)
        if self._hasher.frame_id(digests) != place.chunk_id:
            raise IntegrityError(
                "a frame's digests are not those of its id", chunk=place.chunk_id.hex()
            )
        whole = self._whole.take(place.blocks * BLOCK_BYTES)
        rest = plain
        for block in range(place.blocks):
            room = whole[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            if not place.presence >> block & 1:
                room[:] = bytes(BLOCK_BYTES)
                continue
            data, rest = rest[:BLOCK_BYTES], rest[BLOCK_BYTES:]
            wanted = digests[block * BLOCK_DIGEST_BYTES : (block + 1) * BLOCK_DIGEST_BYTES]
            if self._hasher.block_digest(data) != wanted:
                raise IntegrityError(
                    "a chunk holds other data than its id says", chunk=place.chunk_id.hex()
                )
            room[: len(data)] = data
            room[len(data) :] = bytes(len(room) - len(data))
        if rest:
            raise IntegrityError("a frame is longer than its blocks", chunk=place.chunk_id.hex())
        return whole


class _Room:
    """A buffer that is used again; it grows for what is longer than chunks usually are."""

    def __init__(self, length: int) -> None:
        self._usual = length
        self._buffer = memoryview(b"")

    def take(self, length: int) -> memoryview:
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(max(length, self._usual)))
        return self._buffer[:length]

"""From chunk ids to bytes: where they lie, the keys of their segments, few large reads, everything checked.

A chunk that has several copies is read from another one when the first is damaged. When no index knows a
chunk, packs that no index names are asked for their own footers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    ObjectMissing,
    RepositoryFailed,
)
from holdfast_common.repository.chunk_codec import (
    BlobBinding,
    Decompressor,
    SegmentCipher,
    payload_length,
)
from holdfast_common.repository.frame_worker import frame_id_of
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyOpener
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    FRAME_BYTES,
    BlobKind,
    pack_name,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.repository_index import ChunkLocation, RepositoryIndex
from holdfast_common.units import KIB, MIB

log = logging.getLogger(__name__)

GAP_BYTES_MAX: Final = 128 * KIB  # reading over a gap is cheaper than another read
READ_BYTES_MAX: Final = 2 * MIB  # per thread
KEY_BATCH_MAX: Final = 512  # per question to the controller


class FrameReader:
    """Reads and checks chunks. Safe for several threads, which share its segment keys."""

    def __init__(
        self,
        store: ObjectStore,
        keys: ReaderKeys,
        *,
        index: RepositoryIndex,
        segment_keys: SegmentKeyOpener,
    ) -> None:
        self._store = store
        self._keys = keys
        self.index = index
        self._segment_keys = segment_keys
        self._hasher = keys.hasher()
        self._ciphers: dict[bytes, SegmentCipher] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()

    def locate(self, chunk_ids: Iterable[bytes]) -> dict[bytes, ChunkLocation]:
        """Where chunks lie, and ask at once for all keys that reading them needs; unknown ones are left out.

        Raises: WrongKey, Refused, ControllerUnreachable, RepositoryFailed.
        """
        found: dict[bytes, ChunkLocation] = {}
        unknown = []
        for chunk_id in chunk_ids:
            location = self.index.find(chunk_id)
            if location is None:
                unknown.append(chunk_id)
            else:
                found[chunk_id] = location
        if unknown and self.index.recover(self._store):
            for chunk_id in unknown:
                location = self.index.find(chunk_id)
                if location is not None:
                    found[chunk_id] = location
        self._open_keys(found.values())
        return found

    def read(self, chunk_ids: Sequence[bytes]) -> dict[bytes, bytes | memoryview]:
        """All of these chunks, whole and right. Raises: IntegrityError, ObjectMissing, RepositoryFailed and others."""
        located = self.locate(dict.fromkeys(chunk_ids))
        for chunk_id in chunk_ids:
            if chunk_id not in located:
                raise ObjectMissing(
                    "data of this point is not in the repository", chunk=chunk_id.hex()
                )
        result: dict[bytes, bytes | memoryview] = {}
        order = sorted(located.values(), key=lambda place: (place.origin.pack.digest, place.offset))
        for group in _groups(order):
            self._read_group(group, result)
        return result

    def _read_group(
        self, group: list[ChunkLocation], result: dict[bytes, bytes | memoryview]
    ) -> None:
        start = group[0].offset
        length = max(place.offset + place.stored_length for place in group) - start
        buffer = memoryview(bytearray(length))
        try:
            self._store.read_into(pack_name(group[0].origin.pack.digest), start, buffer)
        except (IntegrityError, RepositoryFailed) as error:
            for place in group:
                result[place.chunk_id] = self._read_elsewhere(place, error)
            return
        for place in group:
            at = place.offset - start
            try:
                result[place.chunk_id] = self._decoded(place, buffer[at : at + place.stored_length])
            except (IntegrityError, FormatError) as error:
                result[place.chunk_id] = self._read_elsewhere(place, error)

    def _read_elsewhere(self, bad: ChunkLocation, error: HoldfastError) -> bytes | memoryview:
        """Another copy of the chunk, or the error that the first one gave."""
        for place in self.index.find_all(bad.chunk_id):
            if (place.origin.pack.digest, place.offset) == (bad.origin.pack.digest, bad.offset):
                continue
            try:
                return self.read_at(place)
            except (IntegrityError, FormatError, RepositoryFailed):
                continue
        raise error

    def read_at(self, place: ChunkLocation) -> bytes | memoryview:
        """The copy of a chunk that lies at one place. Raises: IntegrityError, FormatError, RepositoryFailed."""
        payload_length(place.stored_length)
        self._open_keys([place])
        stored = memoryview(bytearray(place.stored_length))
        self._store.read_into(pack_name(place.origin.pack.digest), place.offset, stored)
        return self._decoded(place, stored)

    def _decoded(self, place: ChunkLocation, stored: memoryview) -> bytes | memoryview:
        length = payload_length(place.stored_length)
        binding = BlobBinding(
            kind=place.kind,
            origin_id=place.origin.request.origin_id,
            number=place.number,
            chunk_id=place.chunk_id,
            plain_length=place.plain_length,
        )
        decompressor, scratch = self._tools()
        is_raw = length == place.plain_length
        # A blob that was not compressed is handed out as it is, so it needs a buffer of its own.
        target = (
            memoryview(bytearray(length)) if is_raw or length > len(scratch) else scratch[:length]
        )
        self._ciphers[binding.origin_id].open_into(stored, binding, target)
        plain = decompressor.plain(target, plain_length=place.plain_length)
        if place.is_hollow:
            return self._checked_hollow(place, plain)
        if place.kind is BlobKind.DISK_FRAME:
            actual = frame_id_of(plain, self._hasher)
        else:
            actual = self._hasher.chunk_id(plain)
        if actual != place.chunk_id:
            raise IntegrityError(
                "a chunk holds other data than its id says", chunk=place.chunk_id.hex()
            )
        return plain

    def _checked_hollow(self, place: ChunkLocation, plain: bytes | memoryview) -> memoryview:
        """A frame that lost its dead blocks, with zeros in their places; no map points at those.

        The id covers the digests of all blocks, so the dead ones' must come from the index.
        """
        digests = self.index.digests(place)
        if self._hasher.frame_id(digests) != place.chunk_id:
            raise IntegrityError(
                "a frame's digests are not those of its id", chunk=place.chunk_id.hex()
            )
        full = memoryview(bytearray(place.blocks * BLOCK_BYTES))
        rest = memoryview(plain)
        for block in range(place.blocks):
            if not place.presence >> block & 1:
                continue
            data, rest = rest[:BLOCK_BYTES], rest[BLOCK_BYTES:]
            wanted = digests[block * BLOCK_DIGEST_BYTES : (block + 1) * BLOCK_DIGEST_BYTES]
            if self._hasher.block_digest(data) != wanted:
                raise IntegrityError(
                    "a chunk holds other data than its id says", chunk=place.chunk_id.hex()
                )
            full[block * BLOCK_BYTES : block * BLOCK_BYTES + len(data)] = data
        if rest:
            raise IntegrityError("a frame is longer than its blocks", chunk=place.chunk_id.hex())
        return full

    def _tools(self) -> tuple[Decompressor, memoryview]:
        tools: tuple[Decompressor, memoryview] | None = getattr(self._thread, "tools", None)
        if tools is None:
            tools = self._thread.tools = (Decompressor(), memoryview(bytearray(FRAME_BYTES)))
        return tools

    def _open_keys(self, places: Iterable[ChunkLocation]) -> None:
        with self._lock:
            wanted = {
                place.origin.request.origin_id: place.origin.request
                for place in places
                if place.origin.request.origin_id not in self._ciphers
            }
            requests = list(wanted.values())
            for start in range(0, len(requests), KEY_BATCH_MAX):
                batch = requests[start : start + KEY_BATCH_MAX]
                for request, key in zip(
                    batch, self._segment_keys.open_segment_keys(batch), strict=True
                ):
                    self._ciphers[request.origin_id] = SegmentCipher(
                        self._keys.repository_id, self._keys.domain_id, AESGCM(key)
                    )


def _groups(places: list[ChunkLocation]) -> Iterable[list[ChunkLocation]]:
    """Neighbours in one pack, to be read at once."""
    group: list[ChunkLocation] = []
    end = 0
    for place in places:
        payload_length(place.stored_length)
        place_end = place.offset + place.stored_length
        if group and (
            place.origin.pack.digest != group[0].origin.pack.digest
            or place.offset - end > GAP_BYTES_MAX
            or place_end - group[0].offset > READ_BYTES_MAX
        ):
            yield group
            group = []
        group.append(place)
        end = place_end
    if group:
        yield group

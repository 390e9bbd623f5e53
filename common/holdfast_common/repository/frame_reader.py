"""From chunk ids to bytes: where they lie, the keys of their segments, few large reads, everything checked.

A chunk that has several copies is read from another one when the first is damaged. When no index knows a
chunk, packs that no index names are asked for their own footers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    ObjectMissing,
    RepositoryFailed,
)
from holdfast_common.repository.chunk_codec import SegmentCipher, payload_length
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.frame_decoder import STORED_BYTES, FrameDecoder
from holdfast_common.repository.key_sets import ReaderKeys, SegmentKeyOpener, SegmentKeyRequest
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.units import KIB

log = logging.getLogger(__name__)

GAP_BYTES_MAX: Final = 128 * KIB  # reading over a gap is cheaper than another read
LOOKUP_BATCH: Final = 1024  # ids per question to the index: what it is fastest at
KEY_BATCH_MAX: Final = 512  # per question to the controller


@dataclass(frozen=True, slots=True)
class WantedChunk:
    """A chunk to read. ``blocks``: bit per block of the frame that must be in what is stored.

    ``target``: a buffer of the chunk's length to decode it into; its content counts once the chunk came.
    """

    place: ChunkLocation
    blocks: int = 0
    target: memoryview | None = None


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
        wanted = list(dict.fromkeys(chunk_ids))
        found = self._found(wanted)
        for thorough in (False, True):
            unknown = [chunk_id for chunk_id in wanted if chunk_id not in found]
            if unknown and self.index.recover(self._store, thorough=thorough):
                found |= self._found(unknown)
        self.open_keys(found.values())
        return found

    def _found(self, chunk_ids: Sequence[bytes]) -> dict[bytes, ChunkLocation]:
        """One place of each chunk that the index knows."""
        found: dict[bytes, ChunkLocation] = {}
        for start in range(0, len(chunk_ids), LOOKUP_BATCH):
            places = self.index.find_many(chunk_ids[start : start + LOOKUP_BATCH])
            found |= {chunk_id: copies[0] for chunk_id, copies in places.items()}
        return found

    def read(self, chunk_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """All of these chunks, whole and right. Raises: IntegrityError, ObjectMissing, RepositoryFailed and others."""
        located = self.locate(dict.fromkeys(chunk_ids))
        for chunk_id in chunk_ids:
            if chunk_id not in located:
                raise missing_chunk(chunk_id)
        wanted = [WantedChunk(place) for place in located.values()]
        return {item.place.chunk_id: bytes(plain) for item, plain in self.each(wanted)}

    def each(self, wanted: Iterable[WantedChunk]) -> Iterator[tuple[WantedChunk, memoryview]]:
        """Every chunk with its plain bytes, in the order of packs; they are valid until the next step.

        Keys that `locate` did not ask for are asked for here.
        Raises: IntegrityError, ObjectMissing, RepositoryFailed and others.
        """
        decoder = self._decoder()
        order = sorted(wanted, key=lambda item: (item.place.origin.pack.digest, item.place.offset))
        self.open_keys(item.place for item in order)
        for group in _groups(order):
            yield from self._each_of_group(group, decoder)

    def _each_of_group(
        self, group: list[WantedChunk], decoder: FrameDecoder
    ) -> Iterator[tuple[WantedChunk, memoryview]]:
        start = group[0].place.offset
        length = max(item.place.offset + item.place.stored_length for item in group) - start
        buffer = decoder.stored_room(length)
        bad: list[tuple[WantedChunk, HoldfastError]] = []
        try:
            self._store.read_into(pack_name(group[0].place.origin.pack.digest), start, buffer)
        except (IntegrityError, RepositoryFailed) as error:
            bad = [(item, error) for item in group]
            group = []
        for item in group:
            place = item.place
            at = place.offset - start
            try:
                plain = decoder.decode(
                    place,
                    buffer[at : at + place.stored_length],
                    self._ciphers[place.origin.request.origin_id],
                    item.target,
                )
            except (IntegrityError, FormatError) as error:
                bad.append((item, error))
                continue
            yield item, plain
        for item, reason in bad:  # last: this reads into the same buffer
            yield item, self._read_elsewhere(item, reason)

    def _read_elsewhere(self, item: WantedChunk, error: HoldfastError) -> memoryview:
        """Another copy of the chunk, or the error that the first one gave."""
        bad = item.place
        tried = {(bad.origin.pack.digest, bad.offset)}
        while True:
            for place in self.index.find_all(bad.chunk_id):
                where = (place.origin.pack.digest, place.offset)
                if where in tried or not holds(place, item.blocks):
                    continue
                tried.add(where)
                try:
                    return self.read_at(place, item.target)
                except (IntegrityError, FormatError, RepositoryFailed):
                    continue
            if not self.index.recover(self._store):  # a good copy may lie where no index tells of
                raise error

    def read_at(self, place: ChunkLocation, target: memoryview | None = None) -> memoryview:
        """The copy of a chunk that lies at one place; valid until this thread reads something else.

        Raises: IntegrityError, FormatError, RepositoryFailed.
        """
        payload_length(place.stored_length)
        self.open_keys([place])
        decoder = self._decoder()
        stored = decoder.stored_room(place.stored_length)
        self._store.read_into(pack_name(place.origin.pack.digest), place.offset, stored)
        return self.decode(place, stored, target)

    def decode(
        self, place: ChunkLocation, stored: memoryview, target: memoryview | None = None
    ) -> memoryview:
        """As `read_at`, when what is stored was read already and its key asked for. Raises: IntegrityError."""
        cipher = self._ciphers[place.origin.request.origin_id]
        return self._decoder().decode(place, stored, cipher, target)

    def _decoder(self) -> FrameDecoder:
        decoder: FrameDecoder | None = getattr(self._thread, "decoder", None)
        if decoder is None:
            decoder = self._thread.decoder = FrameDecoder(self._hasher, self.index.digests)
        return decoder

    def open_keys(self, places: Iterable[ChunkLocation]) -> None:
        """Ask for all keys that reading these needs, at once. Raises: WrongKey, Refused, ControllerUnreachable."""
        # Nobody waits for the controller who has all keys already.
        wanted = self._missing_keys(places)
        if wanted:
            self._ask_for_keys(wanted)

    def _missing_keys(self, places: Iterable[ChunkLocation]) -> dict[bytes, SegmentKeyRequest]:
        requests = (place.origin.request for place in places)
        return {each.origin_id: each for each in requests if each.origin_id not in self._ciphers}

    def _ask_for_keys(self, wanted: dict[bytes, SegmentKeyRequest]) -> None:
        with self._lock:
            requests = [each for each in wanted.values() if each.origin_id not in self._ciphers]
            for start in range(0, len(requests), KEY_BATCH_MAX):
                batch = requests[start : start + KEY_BATCH_MAX]
                for request, key in zip(
                    batch, self._segment_keys.open_segment_keys(batch), strict=True
                ):
                    self._ciphers[request.origin_id] = SegmentCipher(
                        self._keys.repository_id, self._keys.domain_id, AESGCM(key)
                    )


def holds(place: ChunkLocation, blocks: int) -> bool:
    """Whether these blocks (bit per block) are in what is stored there: dead ones may have been taken out."""
    return not place.is_hollow or not blocks & ~place.presence


def missing_chunk(chunk_id: bytes) -> ObjectMissing:
    """What a chunk that stands nowhere is."""
    return ObjectMissing("data of this point is not in the repository", chunk=chunk_id.hex())


def _groups(wanted: list[WantedChunk]) -> Iterator[list[WantedChunk]]:
    """Neighbours in one pack, to be read at once."""
    group: list[WantedChunk] = []
    end = 0
    for item in wanted:
        place = item.place
        payload_length(place.stored_length)
        place_end = place.offset + place.stored_length
        if group and (
            place.origin.pack.digest != group[0].place.origin.pack.digest
            or place.offset - end > GAP_BYTES_MAX
            or place_end - group[0].place.offset > STORED_BYTES
        ):
            yield group
            group = []
        group.append(item)
        end = max(end, place_end) if len(group) > 1 else place_end
    if group:
        yield group

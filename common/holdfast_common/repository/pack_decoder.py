"""Every byte of a pack hashed and every blob of it decoded, in one pass over the file. Under `check`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.units import MIB

BUFFER_BYTES: Final = 4 * MIB  # per thread
DAMAGE: Final = (IntegrityError, FormatError, RepositoryFailed)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPack:
    """``reason``: why the pack is damaged; empty: it is not. ``bad``: the blobs that cannot be read."""

    reason: str
    bad: tuple[ChunkLocation, ...]


class PackDecoder:
    """Decodes whole packs; safe for several threads, a pack each."""

    def __init__(self, store: ObjectStore, frames: FrameReader) -> None:
        self._store = store
        self._frames = frames
        self._thread = threading.local()

    def decode(self, digest: bytes, length: int, places: Sequence[ChunkLocation]) -> DecodedPack:
        """``places``: its blobs as the index knows them. Raises: what has nothing to do with the pack."""
        self._frames.open_keys(places)
        order = sorted(places, key=lambda place: place.offset)
        try:
            return self._in_one_pass(digest, length, order)
        except DAMAGE as error:  # a part of the file cannot be read: the rest blob by blob
            bad = tuple(place for place in order if self._problem(place))
            return DecodedPack(reason=str(error), bad=bad)

    def _in_one_pass(
        self, digest: bytes, length: int, order: Sequence[ChunkLocation]
    ) -> DecodedPack:
        buffer = self._buffer()
        hasher = blake3()
        bad: list[ChunkLocation] = []
        reasons: list[str] = []
        start = end = 0  # what of the file is in the buffer
        following = 0  # the blob that comes next
        while end < length:
            piece = buffer[end - start : min(len(buffer), length - start)]
            self._store.read_into(pack_name(digest), end, piece)
            hasher.update(piece)
            end += len(piece)
            while following < len(order):
                place = order[following]
                place_end = place.offset + place.stored_length
                fits = start <= place.offset and place_end - place.offset <= len(buffer)
                if fits and place_end > end and end < length:
                    break
                stored = buffer[place.offset - start : place_end - start]
                problem = self._problem(place, stored if fits and place_end <= end else None)
                if problem:
                    bad.append(place)
                    reasons.append(problem)
                following += 1
            keep = min(order[following].offset, end) if following < len(order) else end
            buffer[: end - keep] = buffer[keep - start : end - start]
            start = keep
        if hasher.digest() != digest:
            reasons.insert(0, "the pack's bytes do not match its name")
        return DecodedPack(reason=reasons[0] if reasons else "", bad=tuple(bad))

    def _problem(self, place: ChunkLocation, stored: memoryview | None = None) -> str:
        """Why a blob cannot be read; empty: it can."""
        try:
            if stored is None:
                self._frames.read_at(place)
            else:
                self._frames.decode(place, stored)
        except DAMAGE as error:
            return str(error) or type(error).__name__
        return ""

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._thread, "buffer", None)
        if buffer is None:
            buffer = self._thread.buffer = memoryview(bytearray(BUFFER_BYTES))
        return buffer

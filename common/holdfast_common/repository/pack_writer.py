"""Writes one pack after another for one thread: staged in memory, streamed to an upload, finished aside.

A pack holds one segment. It is hashed on its way, since its name is the hash of all its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from holdfast_common.direct_writes import PAGE_BYTES, page_aligned
from holdfast_common.repository.chunk_codec import SEGMENT_HEADER, SegmentSealer
from holdfast_common.repository.key_sets import WriterKeys
from holdfast_common.repository.layout import BLOCK_DIGEST_BYTES, PACK_BYTES, BlobKind, pack_name
from holdfast_common.repository.object_store import ObjectStore, Upload
from holdfast_common.repository.pack import PackBlob, PackContents, PackSegment, encoded_footers
from holdfast_common.repository.randomness import Randomness
from holdfast_common.units import MIB

STAGING_BYTES: Final = 4 * MIB  # one write call for several frames; per worker


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletePack:
    """A pack whose bytes are all written; it becomes durable and visible by `commit`."""

    contents: PackContents
    upload: Upload

    def commit(self) -> PackContents:
        """Raises: RepositoryFull, RepositoryFailed."""
        try:
            self.upload.commit(pack_name(self.contents.digest))
        finally:
            self.upload.abort()
        return self.contents


class PackWriter:
    """One thread's open pack. ``finished`` is called, in that thread, with each complete one."""

    def __init__(
        self,
        store: ObjectStore,
        keys: WriterKeys,
        *,
        randomness: Randomness,
        finished: Callable[[CompletePack], None],
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        self._store = store
        self._keys = keys
        self._randomness = randomness
        self._finished = finished
        self._pack_bytes = pack_bytes
        self._staging = page_aligned(STAGING_BYTES)
        self._staged = 0
        self._flushed = 0
        self._upload: Upload | None = None
        self._sealer: SegmentSealer | None = None
        self._hash = blake3()
        self._blobs: list[PackBlob] = []

    def sealer(self, stored_length: int) -> SegmentSealer:
        """The segment that takes the next blob of ``stored_length`` bytes; a new pack when this one is full."""
        if self._sealer is not None and self._length + stored_length > self._pack_bytes:
            self.close()
        if self._sealer is None:
            self._open()
        assert self._sealer is not None
        return self._sealer

    def room(self, stored_length: int) -> memoryview:
        """Where to seal the next blob; it counts only after `append`."""
        if self._staged + stored_length > len(self._staging):
            self._flush()
        return self._staging[self._staged : self._staged + stored_length]

    def append(
        self,
        *,
        number: int,
        stored_length: int,
        chunk_id: bytes,
        kind: BlobKind,
        plain_length: int,
        digests: bytes = b"",
        presence: int | None = None,
    ) -> None:
        """Count what was sealed into `room`. ``presence``: bits of the blocks that are there; None: all."""
        stored = self._staging[self._staged : self._staged + stored_length]
        blocks = len(digests) // BLOCK_DIGEST_BYTES
        self._blobs.append(
            PackBlob(
                segment=0,
                number=number,
                offset=self._length,
                stored_length=stored_length,
                ciphertext_digest=blake3(stored).digest(),
                chunk_id=chunk_id,
                kind=kind,
                blocks=blocks,
                presence=(1 << blocks) - 1 if presence is None else presence,
                plain_length=plain_length,
                digests=digests,
            )
        )
        self._staged += stored_length

    def close(self) -> None:
        """Write the footers and hand the pack over; nothing happens when none is open."""
        if self._upload is None or self._sealer is None:
            return
        segment = PackSegment(offset=0, header=self._sealer.header)
        self._write(
            encoded_footers(
                [segment],
                self._blobs,
                footer_offset=self._length,
                keys=self._keys.reader,
                randomness=self._randomness,
            )
        )
        self._flush(all_of_it=True)
        contents = PackContents(
            digest=self._hash.digest(),
            length=self._length,
            segments=(segment,),
            blobs=tuple(self._blobs),
        )
        complete = CompletePack(contents=contents, upload=self._upload)
        self._upload = None
        self._sealer = None
        self._finished(complete)

    def abort(self) -> None:
        """Discard the open pack. Twice is harmless."""
        upload, self._upload, self._sealer = self._upload, None, None
        if upload is not None:
            upload.abort()

    @property
    def _length(self) -> int:
        return self._flushed + self._staged

    def _open(self) -> None:
        self._upload = self._store.begin(bulk=True)
        self._sealer = SegmentSealer(self._keys, self._randomness)
        self._hash = blake3()
        self._blobs = []
        self._staged = self._flushed = 0
        header = self._sealer.header.encode()
        assert len(header) == SEGMENT_HEADER.size
        self._write(header)

    def _write(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            if self._staged == len(self._staging):
                self._flush()
            count = min(len(data) - position, len(self._staging) - self._staged)
            self._staging[self._staged : self._staged + count] = data[position : position + count]
            self._staged += count
            position += count

    def _flush(self, *, all_of_it: bool = False) -> None:
        """Hand over whole pages, so that a store can write past the page cache; the rest waits."""
        assert self._upload is not None
        count = self._staged if all_of_it else self._staged - self._staged % PAGE_BYTES
        staged = self._staging[:count]
        self._hash.update(staged)
        self._upload.write(staged)
        self._flushed += count
        rest = self._staged - count
        self._staging[:rest] = self._staging[count : self._staged]
        self._staged = rest

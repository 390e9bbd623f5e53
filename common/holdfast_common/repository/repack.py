"""The needed blobs of packs that are mostly dead, copied as they are into new packs. No content key.

A segment's header and any of its ciphertexts may stand in another pack: neither offset nor pack is bound.
Every ciphertext is compared with its digest before it is copied, so nothing damaged passes for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from blake3 import blake3

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.chunk_codec import SEGMENT_HEADER
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import PACK_BYTES, pack_name
from holdfast_common.repository.object_store import ObjectStore, Upload, get_range
from holdfast_common.repository.pack import (
    PackBlob,
    PackContents,
    PackSegment,
    encoded_footers,
)
from holdfast_common.repository.randomness import Randomness

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repacked:
    """``done``: packs of which every needed blob lies in ``new`` ones now; both durable."""

    done: tuple[bytes, ...]
    new: tuple[PackContents, ...]
    moved_bytes: int


def repack(
    store: ObjectStore,
    packs: Iterable[tuple[PackContents, Sequence[PackBlob]]],
    *,
    keys: ReaderKeys,
    randomness: Randomness,
    go_on: Callable[[], bool] = lambda: True,
    moved: Callable[[int], None] = lambda _: None,
    pack_bytes: int = PACK_BYTES,
) -> Repacked:
    """Copy the given blobs of each pack. ``go_on``: asked before each pack; what was begun is finished.

    ``moved``: told after each pack how many bytes were copied so far.

    A pack with a damaged blob is left as it is. Raises: RepositoryFull, RepositoryFailed; then what was
    copied is garbage, and every pack is still needed.
    """
    target = _NewPacks(store, keys, randomness, pack_bytes)
    done: list[bytes] = []
    moved_bytes = 0
    try:
        for contents, blobs in packs:
            if not go_on():
                break
            if not _all_good(store, contents, blobs):
                continue
            for blob, data in _read(store, contents, blobs):
                target.copy(contents.segments[blob.segment], blob, data)
                moved_bytes += len(data)
            done.append(contents.digest)
            moved(moved_bytes)
        target.close()
    finally:
        target.abort()
    return Repacked(done=tuple(done), new=tuple(target.complete), moved_bytes=moved_bytes)


def _all_good(store: ObjectStore, contents: PackContents, blobs: Sequence[PackBlob]) -> bool:
    try:
        for _ in _read(store, contents, blobs):
            pass
    except IntegrityError as error:
        log.warning(
            "a damaged pack is not repacked",
            extra={"object": pack_name(contents.digest), "reason": str(error)},
        )
        return False
    return True


def _read(
    store: ObjectStore, contents: PackContents, blobs: Sequence[PackBlob]
) -> Iterable[tuple[PackBlob, bytes]]:
    name = pack_name(contents.digest)
    for blob in sorted(blobs, key=lambda each: each.offset):
        data = get_range(store, name, offset=blob.offset, length=blob.stored_length)
        if blake3(data).digest() != blob.ciphertext_digest:
            raise IntegrityError("a blob is damaged", name=name, offset=blob.offset)
        yield blob, data


class _NewPacks:
    """Writes packs of several segments. One thread."""

    def __init__(
        self, store: ObjectStore, keys: ReaderKeys, randomness: Randomness, pack_bytes: int
    ) -> None:
        self._store = store
        self._keys = keys
        self._randomness = randomness
        self._pack_bytes = pack_bytes
        self._upload: Upload | None = None
        self._hash = blake3()
        self._length = 0
        self._segments: list[PackSegment] = []
        self._blobs: list[PackBlob] = []
        self.complete: list[PackContents] = []

    def copy(self, segment: PackSegment, blob: PackBlob, data: bytes) -> None:
        """Append one ciphertext, below its segment's header."""
        if self._length + len(data) + SEGMENT_HEADER.size > self._pack_bytes and self._blobs:
            self.close()
        if self._upload is None:
            self._upload = self._store.begin(bulk=True)
            self._hash = blake3()
            self._length = 0
            self._segments, self._blobs = [], []
        if not self._segments or self._segments[-1].header != segment.header:
            self._segments.append(PackSegment(offset=self._length, header=segment.header))
            self._write(segment.header.encode())
        offset = self._length
        self._write(data)
        self._blobs.append(replace(blob, segment=len(self._segments) - 1, offset=offset))

    def close(self) -> None:
        """Make the open pack durable; nothing happens when none is open."""
        if self._upload is None:
            return
        self._write(
            encoded_footers(
                self._segments,
                self._blobs,
                footer_offset=self._length,
                keys=self._keys,
                randomness=self._randomness,
            )
        )
        digest = self._hash.digest()
        self._upload.commit(pack_name(digest))
        self.abort()
        self.complete.append(
            PackContents(
                digest=digest,
                length=self._length,
                segments=tuple(self._segments),
                blobs=tuple(self._blobs),
            )
        )

    def abort(self) -> None:
        """Discard what is open. Twice is harmless."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.abort()

    def _write(self, data: bytes) -> None:
        assert self._upload is not None
        self._upload.write(data)
        self._hash.update(data)
        self._length += len(data)

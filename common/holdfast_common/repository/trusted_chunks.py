"""Which stored chunks of other writers a backup may refer to. Between `proof` and `frame_worker`.

A proof speaks of a pack, not of what an index says about it: so a chunk is believed only where the proven
pack's own footers, which the verifier decoded by, say the same. Else a writer could name a place in
somebody's proven pack under the id of data that nobody stored yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import PackContents, read_contents
from holdfast_common.repository.proof import NOBODY, Provers, load_provers
from holdfast_common.repository.writers import WriterList

log = logging.getLogger(__name__)

FOOTERS_KEPT: Final = 64  # some 40 KiB each; neighbouring windows mostly lie in the same pack

Place = tuple[object, ...]


class TrustedChunks:
    """What this writer stored itself, and what somebody proved who did not write it. Safe for several threads."""

    def __init__(
        self, store: ObjectStore, keys: ReaderKeys, *, writer: bytes, provers: Provers
    ) -> None:
        """``writer``: the public key of who asks."""
        self._store = store
        self._keys = keys
        self._writer = writer
        self._provers = provers
        self._footers: dict[bytes, frozenset[Place]] = {}

    @classmethod
    def load(
        cls, store: ObjectStore, keys: ReaderKeys, writers: WriterList, *, writer: bytes
    ) -> TrustedChunks:
        """By the proofs that are stored now. Raises: RepositoryFailed."""
        return cls(store, keys, writer=writer, provers=load_provers(store, keys, writers))

    def trusts(self, location: ChunkLocation) -> bool:
        """Whether a writer may refer to that copy, if it is there."""
        writer = location.origin.writer
        if writer == self._writer:
            return True
        pack = location.origin.pack.digest
        if writer == NOBODY or not self._provers.vouch(pack, writer=writer):
            return False
        footers = self._footers.get(pack)
        if footers is None:
            footers = self._read(location)
            if len(self._footers) >= FOOTERS_KEPT:
                self._footers = {}
            self._footers[pack] = footers
        return place_of(location) in footers

    def _read(self, location: ChunkLocation) -> frozenset[Place]:
        pack = location.origin.pack
        try:
            contents = read_contents(self._store, pack.digest, length=pack.length, keys=self._keys)
        except (FormatError, IntegrityError, RepositoryFailed) as error:
            log.warning(
                "pack not trusted", extra={"object": pack.digest.hex(), "reason": str(error)}
            )
            return frozenset()
        return frozenset(places_in(contents))


def names_all(contents: PackContents, locations: Iterable[ChunkLocation]) -> bool:
    """Whether these are all that a pack's footers name: else decoding them proves less than the pack."""
    return {place_of(location) for location in locations} >= set(places_in(contents))


def place_of(location: ChunkLocation) -> Place:
    """All that an index says of a copy and the footers of its pack say too."""
    request = location.origin.request
    return (
        request.origin_id,
        request.content_epoch,
        request.wrapped_key,
        location.number,
        location.offset,
        location.stored_length,
        location.plain_length,
        location.chunk_id,
        location.kind,
        location.blocks,
        location.presence,
    )


def places_in(contents: PackContents) -> Iterable[Place]:
    """The same of every blob of a pack."""
    for blob in contents.blobs:
        header = contents.segments[blob.segment].header
        yield (
            header.origin_id,
            header.content_epoch,
            header.wrapped_key,
            blob.number,
            blob.offset,
            blob.stored_length,
            blob.plain_length,
            blob.chunk_id,
            blob.kind,
            blob.blocks,
            blob.presence,
        )

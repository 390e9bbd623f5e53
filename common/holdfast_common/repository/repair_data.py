"""Which chunks that points need are lost, who still has them, and how they come back. Part of `repair`.

Looking changes nothing but to store packs that no index names yet; `mend` lets an index object name them, and
`tidy_up` takes out of the way what is replaced then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.repository.check import CheckReport, RepositoryCheck
from holdfast_common.repository.fence import tombstoned_packs
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.key_sets import KeyRing, SegmentKeyOpener
from holdfast_common.repository.layout import BLOCK_BYTES, is_object_name
from holdfast_common.repository.lease import WriterLease
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.repair_content import (
    OtherContent,
    OtherRepository,
    lost_content,
)
from holdfast_common.repository.repair_objects import note_gone, set_aside
from holdfast_common.repository.repair_packs import (
    ContentPacks,
    GoodBlob,
    held_blocks,
    richest_first,
    store_blobs,
)
from holdfast_common.repository.repository_index import RepositoryIndex

log = logging.getLogger(__name__)


class DataRepair:
    """Which chunks that points need are lost, which of them a source has, and which are good, but badly kept."""

    def __init__(
        self,
        store: ObjectStore,
        ring: KeyRing,
        segment_keys: SegmentKeyOpener,
        sources: Sequence[ObjectStore],
        others: Sequence[OtherRepository],
    ) -> None:
        self._store = store
        self._ring = ring
        self._segment_keys = segment_keys
        self._sources = sources
        self._others = others
        self._check = RepositoryCheck(store, ring)
        self._report: CheckReport | None = None
        self._mendable: list[str] = []  # packs of which nothing stays lost
        self._salvaged: list[GoodBlob] = []  # good ones in those packs, that no whole pack has
        self.found: list[GoodBlob] = []  # lost ones, in a source
        self.content: ContentPacks | None = None  # where others' content goes; None: it is counted
        self.content_chunks = 0
        self.content_bytes = 0  # as stored, or plain when it is only counted

    def look(
        self,
        expected_points: Collection[str],
        *,
        workers: int,
        lease: WriterLease | None = None,
    ) -> None:
        """Read everything once more, now that the objects are mended, and then the sources.

        ``lease``: of this repair; None: nothing will be written.
        """
        go_on = (lambda: None) if lease is None else lease.renew_when_due
        self._check.check_objects(expected_points)
        self._check.decode(self._segment_keys, None, workers=workers, check=go_on)
        # what is taken from other repositories is looked for range by range
        ranges_max = None if self._others else 0
        report = self._report = self._check.report(ranges_max=ranges_max)
        lost = dict(self._check.lost_chunks)
        for source in self._sources:
            self._take(source, lost, go_on)
        try:
            for other in self._others:
                self._take_content(other, report, lost, go_on)
            if self.content is not None:
                self.content.close()
        finally:
            if self.content is not None:
                self.content.abort()
        names = [item.name for item in report.damaged if item.name.startswith("packs/")]
        names = [name for name in names if is_object_name(name)]
        damaged = {bytes.fromhex(name.rpartition("/")[2]): name for name in names}
        leaving = set(damaged)
        if lease is not None:  # a prune under way may delete these, whatever is announced now
            leaving |= tombstoned_packs(lease.fences)
        contents = self._check.index.by_pack(damaged)
        kept: set[bytes] = set()
        for digest, name in damaged.items():
            chunks = {place.chunk_id for place in contents.get(digest, ())}
            if chunks & lost.keys() or (lost and not chunks):
                continue
            self._mendable.append(name)
            for chunk_id in chunks - kept:
                kept.add(chunk_id)
                self._salvage(chunk_id, leaving)

    def _salvage(self, chunk_id: bytes, leaving: Collection[bytes]) -> None:
        """Every block of a chunk that is good only in packs which leave."""
        good = [p for p in self._check.index.find_all(chunk_id) if self._check.is_good(p)]
        held = 0
        for place in good:
            if place.origin.pack.digest not in leaving:
                held |= held_blocks(place)
        for place in richest_first(good):
            if held_blocks(place) & ~held:
                held |= held_blocks(place)
                self._salvaged.append(GoodBlob(self._store, self._check.index, place))

    def mend(self, signing_key: Ed25519PrivateKey, randomness: Randomness) -> list[bytes]:
        """Store anew what was found, and index what no index object names; the new packs."""
        return store_blobs(
            self._store,
            self._ring.common,
            [*self.found, *self._salvaged],
            unindexed=self._unindexed(),
            sealed=() if self.content is None else self.content.complete,
            segment_keys=self._segment_keys,
            writers=self._check.writers,
            signing_key=signing_key,
            randomness=randomness,
        )

    def tidy_up(self, go_on: Callable[[], None]) -> list[str]:
        """Take out of the way what is replaced now; what of it is kept aside. Raises: what ``go_on`` does."""
        assert self._report is not None
        aside = []
        indexes = [i.name for i in self._report.damaged if i.name.startswith("index/")]
        indexes = [name for name in indexes if is_object_name(name)]  # one's name nobody knows
        for name in [*self._mendable, *indexes]:
            go_on()
            if set_aside(self._store, name):
                aside.append(name)
            elif self._store.head(name) is None:
                note_gone(self._store, name)
        return aside

    def _unindexed(self) -> list[bytes]:
        """Packs that are proven and that no index object names: the one that did is damaged."""
        assert self._report is not None
        index = self._check.index
        return [
            digest
            for group in index.in_groups(self._report.proven_packs)
            for digest, places in group.items()
            if all(index.object_of(place) is None for place in places)
        ]

    def _take(self, source: ObjectStore, lost: dict[bytes, int], go_on: Callable[[], None]) -> None:
        """What a source has of these chunks, each opened and found true; what stays lost is left in ``lost``."""
        if not lost:
            return
        keys = self._ring.common
        index = RepositoryIndex(source, keys)
        try:
            # by our list: the copy's own may be older than we allow a list to be, and what counts here counts there
            index.refresh(self._check.writers)
            index.recover(source)
        except (IntegrityError, FormatError, RepositoryFailed) as error:
            log.warning("a source cannot be read", extra={"reason": str(error)})
            return
        frames = FrameReader(source, keys, index=index, segment_keys=self._segment_keys)
        for chunk_id in list(lost):
            go_on()
            for place in richest_first(index.find_all(chunk_id)):
                if not held_blocks(place) & lost[chunk_id]:
                    continue
                try:
                    frames.read_at(place)
                except (IntegrityError, FormatError, RepositoryFailed):
                    continue
                self.found.append(GoodBlob(source, index, place))
                lost[chunk_id] &= ~held_blocks(place)
                if not lost[chunk_id]:
                    del lost[chunk_id]
                    break

    def _take_content(
        self,
        other: OtherRepository,
        report: CheckReport,
        lost: dict[bytes, int],
        go_on: Callable[[], None],
    ) -> None:
        """What another repository has at the places of what is lost, each block proven by its digest here."""
        if not lost:
            return
        places = lost_content(self._store, self._ring, report)
        try:
            content = OtherContent(other, check=go_on)
        except (IntegrityError, FormatError, RepositoryFailed) as error:
            log.warning("another repository cannot be read", extra={"reason": str(error)})
            return
        hasher = self._ring.common.hasher()
        with closing(content):
            for chunk_id in list(lost):
                blocks, blobs = places.blocks.get(chunk_id), places.blobs.get(chunk_id)
                found = None
                if blocks is not None:
                    wanted = {p: at for p, at in blocks.items() if lost[chunk_id] >> p & 1}
                    found = content.frame(
                        chunk_id,
                        wanted=wanted,
                        digests=self._digests(chunk_id),
                        own=self._good_blocks(chunk_id),
                        hasher=hasher,
                    )
                elif blobs is not None:
                    found = content.opaque(chunk_id, wanted=blobs, hasher=hasher)
                if found is None:
                    continue
                self.content_chunks += 1
                self.content_bytes += (
                    len(found.plain) if self.content is None else self.content.add(found)
                )
                lost[chunk_id] &= ~found.held
                if not lost[chunk_id]:
                    del lost[chunk_id]

    def _digests(self, chunk_id: bytes) -> bytes:
        """Of all blocks of a frame, from wherever they are still right; empty: from nowhere."""
        hasher = self._ring.common.hasher()
        for place in self._check.index.find_all(chunk_id):
            with suppress(IntegrityError, FormatError, RepositoryFailed):
                digests = self._check.index.digests(place)
                if hasher.frame_id(digests) == chunk_id:
                    return digests
        return b""

    def _good_blocks(self, chunk_id: bytes) -> dict[int, bytes]:
        """Blocks of a frame that are good here: a reader wants all it needs of a frame in one place."""
        frames = FrameReader(
            self._store,
            self._ring.common,
            index=self._check.index,
            segment_keys=self._segment_keys,
        )
        found: dict[int, bytes] = {}
        for place in self._check.index.find_all(chunk_id):
            if not self._check.is_good(place) or not place.is_hollow:
                continue
            with suppress(IntegrityError, FormatError, RepositoryFailed):
                whole = frames.read_at(place)
                held = [block for block in range(place.blocks) if place.presence >> block & 1]
                last = place.plain_length - (len(held) - 1) * BLOCK_BYTES  # at a disk's odd end
                for block in held:
                    length = last if block == held[-1] else BLOCK_BYTES
                    start = block * BLOCK_BYTES
                    found[block] = bytes(whole[start : start + length])
        return found

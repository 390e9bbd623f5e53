"""The write side: one restore point, from its first range to its manifest.

Order of what becomes durable: packs -> index objects -> map object -> manifest. The manifest is last and
put at once, so a point is whole or invisible; what an attempt leaves behind otherwise is garbage that
harms nobody, and its packs are found again by the writer's next attempt.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import ObjectExists, Refused, UsageError
from holdfast_common.identity import JobId, PointId
from holdfast_common.repository.disk_writer import DiskWriter
from holdfast_common.repository.fence import tombstoned_packs
from holdfast_common.repository.frame_worker import FrameWorker, KnownChunks
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.key_sets import WriterKeys
from holdfast_common.repository.layout import ObjectKind, manifest_name
from holdfast_common.repository.lease import acquire_writer_lease
from holdfast_common.repository.manifest import (
    MANIFEST_BYTES_MAX,
    BlobRecord,
    DiskHeader,
    DiskSummary,
    Manifest,
    ManifestFacts,
    PointDisk,
)
from holdfast_common.repository.map_object import MapObject
from holdfast_common.repository.new_indexes import NewIndexes
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack_listing import PackListing, PresentPacks
from holdfast_common.repository.pack_writer import CompletePack, PackWriter
from holdfast_common.repository.previous_digests import PreviousBlocks, previous_digests_of
from holdfast_common.repository.previous_points import PreviousPoints
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.reference_check import (
    Written,
    check_references,
)
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.trusted_chunks import TrustedChunks
from holdfast_common.repository.worker_pool import WorkerPool
from holdfast_common.repository.writers import ROLE_WRITE, WriterList, load_writers

log = logging.getLogger(__name__)

COMPRESSION_LEVEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPoint:
    """A point of which everything but the manifest is durable."""

    point_id: PointId
    manifest: Manifest
    manifest_digest: bytes  # what the controller grants
    stored: bytes = field(repr=False)


class PointWriter:
    """Writes one attempt of one job. Disks may be written by several threads, one each.

    Use it as a context: leaving it without `publish` abandons the attempt.
    """

    def __init__(
        self,
        store: ObjectStore,
        keys: WriterKeys,
        *,
        signing_key: Ed25519PrivateKey,
        agent_id: str,
        job_id: JobId,
        attempt: int,
        clock: Clock,
        workers: int,
        compression_level: int = COMPRESSION_LEVEL,
        index: RepositoryIndex | None = None,
        randomness: Randomness = SYSTEM_RANDOMNESS,
        damaged_packs: Collection[bytes] = (),
        listing: PackListing | None = None,
        cache: IndexCache | None = None,
    ) -> None:
        """Announce the writer and load the index.

        ``workers``: threads; cores + 1 is best, 0 means the caller's own thread. ``index``: one that a
        proxy keeps between jobs of the same repository. ``damaged_packs``: nothing is built on them.
        ``listing``: of the repository's packs, kept between jobs. ``cache``: this machine's index.
        Raises: Refused (this key may not write), IntegrityError, RepositoryFull, RepositoryFailed.
        """
        self._store = store
        self._keys = keys
        self._signing_key = signing_key
        self._public_key = signing_key.public_key().public_bytes_raw()
        self._agent_id = agent_id
        self._job_id = job_id
        self._attempt = attempt
        self._clock = clock
        self._randomness = randomness
        self._hasher = keys.reader.hasher()
        self._lock = threading.Lock()
        self._disks: list[DiskSummary] = []
        self._open_disks = 0
        self._blobs: list[BlobRecord] = []
        self._packs: dict[bytes, int] = {}  # digest and length
        self._previous: list[PointDisk] = []
        self._previous_points = PreviousPoints(store, keys.reader)
        self._map: MapObject | None = None
        self._ended = False
        self._published = b""
        writers = self._checked_writers()
        # First of all: what is looked at from now on is not deleted, unless the fence named it already.
        self._lease = acquire_writer_lease(
            store,
            keys.reader,
            writers=writers,
            signing_key=signing_key,
            job_id=job_id,
            attempt=attempt,
            clock=clock,
            randomness=randomness,
        )
        trusted = TrustedChunks.load(store, keys.reader, writers, writer=self._public_key)
        self._index = (
            index if index is not None else RepositoryIndex(store, keys.reader, cache=cache)
        )
        self._index.refresh(writers)
        self._damaged_packs = frozenset(damaged_packs)
        self._listing = listing if listing is not None else PackListing()
        packs = PresentPacks(
            self._listing,
            self._damaged_packs | tombstoned_packs(self._lease.fences),
            unread=store,
        )
        if problem := self._lease.fences.newest_problem:
            # any pack may be dead: everything is stored anew that the previous point does not have
            log.warning("nothing stored is taken for known", extra={"reason": problem})
            packs = PresentPacks(PackListing())
        self._known = KnownChunks(self._index, trusted, packs)
        self._new_indexes = NewIndexes(
            store,
            self._index,
            self._known,
            writer=self._public_key,
            writers=self._checked_writers,
            sealed=self._sealed,
        )
        self._level = compression_level
        self._pool = WorkerPool(self._new_worker, threads=workers, committed=self._pack_committed)

    def begin_disk(
        self,
        header: DiskHeader,
        *,
        previous: PointDisk | None = None,
        compare: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> DiskWriter:
        """Start a disk.

        ``previous``: the same disk in an earlier point of this lineage; what is not written stays as it is
        there. ``compare``: everything will be written (no change list); blocks that equal the previous
        point's are not stored again. ``check`` is called while the disk waits for its workers.
        Raises: UsageError when the previous disk has another size or lineage.
        """
        disk_map = self._previous_points.map_of(previous, capacity_bytes=header.capacity_bytes)
        writer = DiskWriter(
            header,
            pool=self._pool,
            editor=self._map_object().editor(
                disk_map,
                self._hasher,
                previous_pages=previous.summary.map_pages if previous is not None else None,
            ),
            finished=self._disk_finished,
            renew_lease=self._lease.renew_when_due,
            previous_digests=previous_digests_of(disk_map, self._known) if compare else None,
            check=check,
        )
        with self._lock:
            self._open_disks += 1
            self._previous += [previous] if previous is not None else []
        return writer

    def previous_blocks(self, previous: PointDisk) -> PreviousBlocks:
        """The disk's blocks as an earlier point of this lineage has them, to compare what is read with.

        Raises: UsageError (another lineage), PreviousLost, RepositoryFailed.
        """
        disk_map = self._previous_points.map_of(
            previous, capacity_bytes=previous.header.capacity_bytes
        )
        return PreviousBlocks(previous_digests_of(disk_map, self._known), self._hasher)

    def add_blob(self, kind: str, data: bytes) -> None:
        """Add an opaque blob (.vmx, OVF, NVRAM) under its kind. Raises: as `DiskWriter.write`."""
        if any(blob.kind == kind for blob in self._blobs):
            raise UsageError("a point has one blob of each kind", kind=kind)
        self._pool.check()
        done = threading.Event()
        chunks: list[tuple[bytes, int]] = []

        def task(worker: FrameWorker) -> None:
            chunks.extend(worker.store_opaque(data))
            done.set()

        self._pool.submit(task)
        while not done.wait(1.0):
            self._pool.check()
        self._blobs.append(BlobRecord(kind=kind, length=len(data), chunks=tuple(chunks)))

    def renew_lease(self) -> None:
        """Renew the writer lease if it is due. Writing does so by itself; who only waits calls this.

        Raises: LeaseExpired, RepositoryFull, RepositoryFailed.
        """
        self._lease.renew_when_due()

    def prepare(self, facts: ManifestFacts, *, order: Sequence[int] = ()) -> PreparedPoint:
        """Make everything durable and check all that the point refers to; only the manifest is missing.

        ``order``: device keys, in which the point names its disks; empty: as they were finished.

        Raises: PreviousLost (what it stands on is gone), IntegrityError, LeaseExpired, RepositoryFull,
        RepositoryFailed.
        """
        if self._open_disks:
            raise UsageError("a disk was begun and not finished", disks=self._open_disks)
        positions = {key: position for position, key in enumerate(order)}
        self._disks.sort(key=lambda disk: positions.get(disk.header.device_key, len(positions)))
        self._lease.renew_when_due()
        self._pool.close()
        self._new_indexes.flush()
        pages = self._map.finish() if self._map is not None else None
        self._previous_points.close()
        checked = check_references(
            self._store,
            self._keys.reader,
            index=self._index,
            listing=self._listing,
            written=Written(
                disks=self._disks,
                blobs=self._blobs,
                packs=self._packs,
                indexes=self._new_indexes.stored,
                map=pages,
                previous=self._previous,
                known_indexes=frozenset(self._known.used_indexes),
                damaged_packs=self._damaged_packs,
            ),
        )
        manifest = Manifest(
            point_id=PointId(self._job_id),
            job_id=self._job_id,
            attempt=self._attempt,
            lineage_id=self._keys.reader.lineage_id,
            agent_id=self._agent_id,
            created_at=utc_text(self._clock.now()),
            writer_epoch=self._lease.writer_epoch,
            facts=facts,
            disks=checked.disks,
            blobs=tuple(self._blobs),
            packs=tuple(self._packs),
            indexes=tuple(self._new_indexes.stored),
            maps=(pages,) if pages is not None else (),
            used=checked.used,
        )
        stored = self._sealed(ObjectKind.MANIFEST, manifest.encode())
        return PreparedPoint(
            point_id=manifest.point_id,
            manifest=manifest,
            manifest_digest=blake3(stored).digest(),
            stored=stored,
        )

    def publish(self, prepared: PreparedPoint, grant: bytes) -> PointId:
        """Put the manifest: from now on the point exists. Harmless when it is there already.

        ``grant``: the controller's, for exactly this manifest.
        Raises: IntegrityError (grant), LeaseExpired, ObjectExists (another attempt was first),
        RepositoryFull, RepositoryFailed. After the last two nobody knows: look for the point.
        """
        stored = prepared.stored + grant
        if self._published == stored:
            return prepared.point_id
        reader = self._keys.reader
        reader.check_grant(
            grant,
            job_id=self._job_id,
            attempt=self._attempt,
            manifest_digest=prepared.manifest_digest,
        )
        self._lease.check_epoch(self._checked_writers())
        name = manifest_name(reader.lineage_tag, self._job_id)
        try:
            self._store.put(name, stored)
        except ObjectExists:
            if self._store.get(name, length_max=MANIFEST_BYTES_MAX) != stored:
                raise
            self._store.confirm(
                [name]
            )  # the put that was told as failed may have ended before its sync
        # If this process was suspended just now, the point may have come too late to be counted.
        self._lease.check_epoch(self._checked_writers())
        self._published = stored
        self._ended = True
        self._lease.release_quietly()
        log.info("point published", extra={"job_id": self._job_id, "attempt": self._attempt})
        return prepared.point_id

    def abandon(self) -> None:
        """Give up the attempt; nothing of it becomes visible. Harmless after `publish` and when called twice."""
        if self._ended:
            return
        self._ended = True
        self._pool.abort()
        if self._map is not None:
            self._map.abort()
        self._previous_points.close()
        self._lease.release_quietly()

    def suspend(self) -> None:
        """Give up the attempt, but keep what it has stored: the writer's next attempt will know it.

        Raises: what a worker raised, RepositoryFull, RepositoryFailed; then nothing was kept.
        """
        if self._ended:
            return
        try:
            self._pool.close()
            self._new_indexes.flush()
        finally:
            self.abandon()

    def __enter__(self) -> PointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def _checked_writers(self) -> WriterList:
        writers = load_writers(self._store, self._keys.reader)
        mine = writers.of(self._public_key)
        if mine is None or mine.revoked_at or ROLE_WRITE not in mine.roles:
            raise Refused(
                "this agent's key is not listed as a writer of the repository", agent=self._agent_id
            )
        return writers

    def _new_worker(self, finished: Callable[[CompletePack], None]) -> FrameWorker:
        packs = PackWriter(
            self._store,
            self._keys,
            randomness=self._randomness,
            finished=finished,
        )
        return FrameWorker(packs=packs, known=self._known, hasher=self._hasher, level=self._level)

    def _pack_committed(self, pack: CompletePack) -> None:
        """In the finishing thread: make a pack durable, then let the index name it."""
        contents = pack.commit()
        self._lease.renew_when_due()
        with self._lock:
            self._packs[contents.digest] = self._known.packs.added[contents.digest] = (
                contents.length
            )
        self._new_indexes.add(contents)

    def _sealed(self, kind: ObjectKind, body: bytes) -> bytes:
        return self._keys.reader.seal(
            kind, body, signing_key=self._signing_key, randomness=self._randomness
        )

    def _map_object(self) -> MapObject:
        with self._lock:
            if self._map is None:
                self._map = MapObject(self._store, self._keys.reader, self._randomness)
            return self._map

    def _disk_finished(self, summary: DiskSummary) -> None:
        with self._lock:
            self._open_disks -= 1
            self._disks.append(summary)

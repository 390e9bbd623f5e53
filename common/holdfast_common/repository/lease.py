"""A writer's lease in the repository: who writes, in which epoch, until when.

Renewals are new objects, since nothing is overwritten. Prune never removes what a living lease may
still refer to; a writer whose lease has run out does not publish, and if it does, the fence voids it.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import Clock, parse_utc, utc_text
from holdfast_common.errors import (
    HoldfastError,
    IntegrityError,
    LeaseExpired,
    Locked,
    ObjectMissing,
    RevokedWriter,
)
from holdfast_common.repository.fence import Fences, confirm_newest, load_fences
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import UNREADABLE, ObjectKind, lease_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import ROLE_WRITE, WriterList

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 1800  # prune waits for it; a writer renews at a third
LEASE_BYTES_MAX: Final = 1 << 16
_VALID_SECONDS_MAX: Final = 86_400
_ANNOUNCEMENTS_MAX: Final = 8  # fences are hours apart; a second one in this moment is rare already


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """One lease object: the newest sequence of a lease id counts."""

    lease_id: bytes
    sequence: int
    job_id: str
    attempt: int
    writer_epoch: int
    written_at: str
    valid_seconds: int
    released: bool = False

    def is_alive(self, now: datetime) -> bool:
        """Whether its writer may still be writing. The writer's clock is advisory: add a margin."""
        until = parse_utc(self.written_at) + timedelta(seconds=self.valid_seconds)
        return not self.released and now < until


class WriterLease:
    """A lease that this process holds. Safe for several threads."""

    def __init__(
        self,
        store: ObjectStore,
        keys: ReaderKeys,
        *,
        signing_key: Ed25519PrivateKey,
        record: LeaseRecord,
        fences: Fences,
        clock: Clock,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        self.fences = fences  # as they were when the writer was announced
        self._store = store
        self._keys = keys
        self._signing_key = signing_key
        self._clock = clock
        self._randomness = randomness
        self._record = record
        self._lock = threading.Lock()
        self._renewed_at = clock.monotonic_seconds()
        self._put(record)

    @property
    def writer_epoch(self) -> int:
        """The epoch that manifests under this lease carry."""
        return self._record.writer_epoch

    def renew_when_due(self) -> None:
        """Renew it when a third of its time is over.

        Raises: LeaseExpired when it ran out before; RepositoryFull, RepositoryFailed.
        """
        with self._lock:
            age = self._clock.monotonic_seconds() - self._renewed_at
            self._check(age)
            if age * 3 < self._record.valid_seconds:
                return
            # Counted from before the write: the lease never lives longer here than prune believes.
            renewed_at = self._clock.monotonic_seconds()
            self._put(self._next(released=False))
            self._renewed_at = renewed_at

    def check(self) -> None:
        """Raises: LeaseExpired."""
        with self._lock:
            self._check(self._clock.monotonic_seconds() - self._renewed_at)

    def check_epoch(self, writers: WriterList) -> None:
        """While a lease lives and its epoch is undecided, every census counts what is there now.

        Raises: LeaseExpired, RepositoryFailed.
        """
        fences = load_fences(self._store, self._keys, writers)
        if fences.decided_epoch >= self.writer_epoch:
            raise LeaseExpired("the epoch of this writer was closed", epoch=self.writer_epoch)
        self.check()
        self._check_announced()

    def _check_announced(self) -> None:
        """Prune takes the announcement of a writer that it does not wait for away before it counts.

        This machine's clocks cannot tell how long a suspended VM stood still. The announcement is opened,
        not looked up: a network file system may answer for a removed name out of its memory.
        """
        name = lease_name(self._record.lease_id, 0)
        try:
            self._store.get(name, length_max=LEASE_BYTES_MAX)
        except ObjectMissing as error:
            raise LeaseExpired(
                "this writer was given up by a prune of the repository; it stood still for too long",
                epoch=self.writer_epoch,
            ) from error

    def release_quietly(self) -> None:
        """Release it; a failure is logged: it ends by itself, and no point depends on it."""
        try:
            self.release()
        except HoldfastError as error:
            log.warning(
                "writer lease not released",
                extra={"job_id": self._record.job_id, "reason": str(error)},
            )

    def release(self) -> None:
        """Say that this writer is done. Twice is harmless. Raises: RepositoryFull, RepositoryFailed."""
        with self._lock:
            if not self._record.released:
                self._put(self._next(released=True))

    def _check(self, age: float) -> None:
        if self._record.released or age >= self._record.valid_seconds:
            raise LeaseExpired("the writer lease of this attempt ran out", seconds=round(age))

    def _next(self, *, released: bool) -> LeaseRecord:
        return replace(
            self._record,
            sequence=self._record.sequence + 1,
            written_at=utc_text(self._clock.now()),
            released=released,
        )

    def _put(self, record: LeaseRecord) -> None:
        data = self._keys.seal(
            ObjectKind.LEASE,
            _to_json(record),
            signing_key=self._signing_key,
            randomness=self._randomness,
        )
        self._store.put(lease_name(record.lease_id, record.sequence), data)
        self._record = record


def acquire_writer_lease(
    store: ObjectStore,
    keys: ReaderKeys,
    *,
    writers: WriterList,
    signing_key: Ed25519PrivateKey,
    job_id: str,
    attempt: int,
    clock: Clock,
    randomness: Randomness = SYSTEM_RANDOMNESS,
) -> WriterLease:
    """Announce a writer in the current epoch. Raises: Locked, RepositoryFull, RepositoryFailed."""
    fences = load_fences(store, keys, writers)
    for _ in range(_ANNOUNCEMENTS_MAX):
        confirm_newest(store, fences)  # this writer goes by it: it must not be closed anew
        record = LeaseRecord(
            lease_id=randomness.draw(16),
            sequence=0,
            job_id=job_id,
            attempt=attempt,
            writer_epoch=fences.current_epoch,
            written_at=utc_text(clock.now()),
            valid_seconds=LEASE_SECONDS,
        )
        lease = WriterLease(
            store,
            keys,
            signing_key=signing_key,
            record=record,
            fences=fences,
            clock=clock,
            randomness=randomness,
        )
        # A fence that came before the lease was there may not have waited for it.
        fences = load_fences(store, keys, writers)
        if fences.current_epoch == record.writer_epoch:
            lease.fences = fences
            return lease
        lease.release()
    raise Locked("the repository is pruned again and again; no writer can begin", job_id=job_id)


def load_leases(store: ObjectStore, keys: ReaderKeys, writers: WriterList) -> list[LeaseRecord]:
    """The newest record of every lease; those of a revoked writer are ended: it can publish nothing.

    Raises: IntegrityError, RepositoryFailed.
    """
    newest: dict[bytes, LeaseRecord] = {}
    for info in stored_objects(store, "leases/"):
        try:
            record = read_lease(store, info.name, keys, writers)
        except RevokedWriter:
            continue
        known = newest.get(record.lease_id)
        if known is None or record.sequence > known.sequence:
            newest[record.lease_id] = record
    return list(newest.values())


def read_lease(store: ObjectStore, name: str, keys: ReaderKeys, writers: WriterList) -> LeaseRecord:
    """One lease object. Raises: RevokedWriter, IntegrityError, ObjectMissing, RepositoryFailed."""
    item = keys.open(ObjectKind.LEASE, store.get(name, length_max=LEASE_BYTES_MAX))
    writers.check(
        item, role=ROLE_WRITE
    )  # first: what a revoked writer says is no damage, whatever it is
    record = _from_json(item.body)
    if lease_name(record.lease_id, record.sequence) != name:
        raise IntegrityError("a lease stands under another name", name=name)
    return record


def _to_json(record: LeaseRecord) -> bytes:
    document = {
        "lease_id": record.lease_id.hex(),
        "sequence": record.sequence,
        "job_id": record.job_id,
        "attempt": record.attempt,
        "writer_epoch": record.writer_epoch,
        "written_at": record.written_at,
        "valid_seconds": record.valid_seconds,
        "released": record.released,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _from_json(body: bytes) -> LeaseRecord:
    try:
        document = json.loads(body)
        parse_utc(document["written_at"])
        if not 0 <= int(document["valid_seconds"]) <= _VALID_SECONDS_MAX:
            raise ValueError("nobody waits for a writer that long")
        return LeaseRecord(
            lease_id=bytes.fromhex(document["lease_id"]),
            sequence=int(document["sequence"]),
            job_id=str(document["job_id"]),
            attempt=int(document["attempt"]),
            writer_epoch=int(document["writer_epoch"]),
            written_at=str(document["written_at"]),
            valid_seconds=int(document["valid_seconds"]),
            released=bool(document["released"]),
        )
    except UNREADABLE as error:
        raise IntegrityError("a lease cannot be read") from error

"""Every writer that was ever announced and not yet forgotten: does it still have to be waited for?

`survey_leases` reads; `is_at_work` and `litter` decide, without I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import FormatError, IntegrityError, ObjectMissing, RevokedWriter
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.lease import LEASE_SECONDS, LeaseRecord, read_lease
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.storage_time import stored_at
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import WriterList

LEASE_MARGIN_SECONDS: Final = 300  # between two clocks, and for a renewal that is on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedWriter:
    """One lease with all of its renewals."""

    names: tuple[str, ...]  # of its objects, oldest first
    record: LeaseRecord | None  # the newest renewal; None: it cannot be read
    stored_at: datetime | None  # of that object, by the storage's clock; None: not known
    revoked: bool = False

    @property
    def writer_epoch(self) -> int:
        """The epoch in which it was announced; 0 when that cannot be read: then it may be any."""
        return 0 if self.record is None else self.record.writer_epoch

    def is_at_work(self, *, now: datetime, storage_now: datetime | None) -> bool:
        """Whether it may still publish. The storage's clock counts where it is known: it is only one."""
        if self.revoked or (self.record is not None and self.record.released):
            return False
        seconds = LEASE_SECONDS if self.record is None else self.record.valid_seconds
        valid = timedelta(seconds=seconds + LEASE_MARGIN_SECONDS)
        if storage_now is not None and self.stored_at is not None:
            return storage_now < self.stored_at + valid
        return self.record is None or now < parse_utc(self.record.written_at) + valid


def survey_leases(
    store: ObjectStore, keys: ReaderKeys, writers: WriterList
) -> tuple[AnnouncedWriter, ...]:
    """All of them. One that cannot be read is told as such. Raises: RepositoryFailed."""
    by_lease: dict[str, list[str]] = {}
    for info in stored_objects(store, "leases/"):
        by_lease.setdefault(info.name.rpartition("/")[0], []).append(info.name)
    return tuple(_announced(store, names, keys, writers) for names in by_lease.values())


def litter(
    leases: Iterable[AnnouncedWriter], *, now: datetime, storage_now: datetime | None
) -> list[str]:
    """Lease objects that tell nobody anything any more: ended ones, and renewals but the newest.

    The announcement stands as long as its writer may publish: that is how the writer knows that it may.
    """
    found: list[str] = []
    for lease in leases:
        alive = lease.is_at_work(now=now, storage_now=storage_now)
        found += lease.names[1:-1] if alive else lease.names
    return found


def _announced(
    store: ObjectStore, names: list[str], keys: ReaderKeys, writers: WriterList
) -> AnnouncedWriter:
    names.sort()
    record = None
    revoked = False
    try:
        record = read_lease(store, names[-1], keys, writers)
    except RevokedWriter:
        revoked = True
    except ObjectMissing:
        pass  # removed this moment, hence ended; it is waited for once more
    except (IntegrityError, FormatError):
        pass
    moment = stored_at(store, names[-1])
    return AnnouncedWriter(names=tuple(names), record=record, stored_at=moment, revoked=revoked)

"""Mend what another copy of the repository, or the repository itself, still has; say exactly what stays lost.

A chunk is taken only after it was opened and its id found true. It is stored anew, proven there, and named
by an index object before anything damaged leaves its place; and that is set aside, not deleted.

A repair is a writer: it announces itself by a lease. So a prune beside it deletes nothing that it wrote, and
nothing that it looked at but what was called dead before it began, on which it relies in nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import Clock
from holdfast_common.errors import FormatError, IntegrityError, Refused, RepositoryFailed
from holdfast_common.repository.check import CheckReport, check_data
from holdfast_common.repository.key_objects import newest_generations
from holdfast_common.repository.key_sets import KeyRing, SegmentKeyOpener, WriterKeys
from holdfast_common.repository.layout import is_stray_name
from holdfast_common.repository.lease import WriterLease, acquire_writer_lease
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.repair_content import OtherRepository
from holdfast_common.repository.repair_data import DataRepair
from holdfast_common.repository.repair_objects import (
    found_replacements,
    is_needed,
    put_replacement,
    set_aside,
)
from holdfast_common.repository.repair_packs import ContentPacks
from holdfast_common.repository.writers import load_writers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What a repair did, or with a dry run would do."""

    before: CheckReport
    after: CheckReport  # with a dry run: as before
    replaced: tuple[str, ...] = ()  # objects that a good one was found for
    set_aside: tuple[str, ...] = ()  # damaged objects that are kept under aside/ now
    left: tuple[str, ...] = ()  # damaged objects that stay where they are: nothing better was found
    chunks_found: int = 0
    bytes_found: int = 0  # as stored
    new_packs: tuple[bytes, ...] = ()


def repair_repository(
    store: ObjectStore,
    ring: KeyRing,
    *,
    segment_keys: SegmentKeyOpener,
    signing_key: Ed25519PrivateKey,
    clock: Clock,
    job_id: str = "repair",
    sources: Sequence[ObjectStore] = (),
    others: Sequence[OtherRepository] = (),
    content_keys: WriterKeys | None = None,
    expected_points: Collection[str] = (),
    dry_run: bool = False,
    workers: int = 2,
    randomness: Randomness = SYSTEM_RANDOMNESS,
) -> RepairReport:
    """Check all data, mend what can be, check again.

    ``sources``: other copies of this repository, good in parts; they are only read. Objects are mended first,
    because without an index or a key much looks lost that is not. ``others``: repositories with other keys
    that back the same disks up; what comes from them is sealed with ``content_keys``. ``job_id``: for the lease.
    Raises: LeaseExpired (it stood still for too long), Locked, RepositoryFull, RepositoryFailed; what
    ``segment_keys`` raises. What was done until then holds.
    """
    assert content_keys is not None or not others, "what is found there must be sealed"
    for source in sources:
        _check_source(source, ring)

    def checked() -> CheckReport:
        return check_data(
            store,
            ring,
            segment_keys=segment_keys,
            workers=workers,
            expected_points=expected_points,
        )

    before = after = checked()
    if before.is_clean:
        return RepairReport(before=before, after=after)
    announcing = _Announcing(store, ring, signing_key, clock, job_id, randomness)
    aside: list[str] = []
    new_packs: list[bytes] = []
    if dry_run:
        replacements = _found(store, ring, before, sources, expected_points)
        mending = DataRepair(store, ring, segment_keys, sources, others)
        mending.look(expected_points, workers=workers)
    else:
        with announcing.announced() as lease:
            replacements = _found(store, ring, before, sources, expected_points)
            announcing.check(lease)
            aside += _replace_objects(store, _objects(before), replacements)
        # Announced anew: a fence may be back, and with it another epoch.
        with announcing.announced() as lease:
            mending = DataRepair(store, ring, segment_keys, sources, others)
            if content_keys is not None:
                mending.content = ContentPacks(store, content_keys, randomness=randomness)
            mending.look(expected_points, workers=workers, lease=lease)
            announcing.check(lease)
            new_packs = mending.mend(signing_key, randomness)
            announcing.check(lease)
            aside += mending.tidy_up(lease.renew_when_due)
        after = checked()
    return RepairReport(
        before=before,
        after=after,
        replaced=tuple(sorted(replacements)),
        set_aside=tuple(sorted(aside)),
        left=tuple(item.name for item in after.damaged),
        chunks_found=len(mending.found) + mending.content_chunks,
        bytes_found=sum(blob.place.stored_length for blob in mending.found) + mending.content_bytes,
        new_packs=tuple(new_packs),
    )


@dataclass(frozen=True, slots=True)
class _Announcing:
    """How this repair says that it writes."""

    store: ObjectStore
    ring: KeyRing
    signing_key: Ed25519PrivateKey
    clock: Clock
    job_id: str
    randomness: Randomness

    @contextmanager
    def announced(self) -> Iterator[WriterLease]:
        """Raises: Locked, RepositoryFull, RepositoryFailed."""
        lease = acquire_writer_lease(
            self.store,
            self.ring.common,
            writers=load_writers(self.store, self.ring.common),
            signing_key=self.signing_key,
            job_id=self.job_id,
            attempt=1,
            clock=self.clock,
            randomness=self.randomness,
        )
        try:
            yield lease
        finally:
            lease.release_quietly()

    def check(self, lease: WriterLease) -> None:
        """Before anything is written: prune still waits for this repair. Raises: LeaseExpired."""
        lease.renew_when_due()
        lease.check_epoch(load_writers(self.store, self.ring.common))


def _objects(report: CheckReport) -> list[str]:
    """Damaged ones that stand only under their own name."""
    return [
        item.name
        for item in report.damaged
        if not item.name.startswith("packs/")
        and not item.name.endswith("/")
        and not is_stray_name(item.name)
    ]


def _found(
    store: ObjectStore,
    ring: KeyRing,
    report: CheckReport,
    sources: Sequence[ObjectStore],
    expected_points: Collection[str],
) -> dict[str, bytes]:
    return found_replacements(
        store, ring, _objects(report), sources=sources, expected_points=expected_points
    )


def _check_source(source: ObjectStore, ring: KeyRing) -> None:
    """Whether that is a copy of this repository, as far as it tells. Raises: Refused."""
    try:
        head = newest_generations(source)[0].head
    except (IntegrityError, FormatError, RepositoryFailed):
        return  # what is taken from it is proven, piece by piece
    if head.repository_id != ring.common.repository_id:
        raise Refused(
            "that is another repository, not a copy of this one; nothing was changed",
            found=head.repository_id.hex(),
            wanted=ring.common.repository_id.hex(),
            advice="name a folder that was copied from this repository",
        )


def _replace_objects(
    store: ObjectStore, damaged: Iterable[str], replacements: Mapping[str, bytes]
) -> list[str]:
    """The names of what is kept aside now."""
    aside = []
    for name in sorted(damaged):
        if name in replacements:
            aside += [name] if put_replacement(store, name, replacements[name]) else []
            log.info("object replaced", extra={"object": name})
        elif not is_needed(name):
            aside += [name] if set_aside(store, name) else []
    return aside


def describe(report: RepairReport) -> list[str]:
    """For people: what was done, and what stays lost, each point and range by itself."""
    lines = describe_done(report)
    lines += [f"still damaged: {name}" for name in report.left]
    lines += [f"lost: all of {name}" for name in report.after.lost_points]
    lines += [
        f"lost: point {item.point_id} disk {item.device_key}"
        f" offset {item.extent.offset} length {item.extent.length}"
        for item in report.after.lost_ranges
    ]
    lines += [
        f"lost: point {item.point_id} disk {item.device_key}"
        f" and {item.ranges} more ranges, together {item.length} bytes"
        for item in report.after.unlisted
    ]
    lines += [f"lost: point {item.point_id} {item.kind}" for item in report.after.lost_blobs]
    return lines


def describe_done(report: RepairReport) -> list[str]:
    """For people: only what was done, or with a dry run would be."""
    lines = []
    if report.chunks_found:
        lines.append(f"{report.chunks_found} chunks found elsewhere ({report.bytes_found} bytes)")
    lines += [f"put back: {name}" for name in report.replaced]
    lines += [f"set aside: {name}" for name in report.set_aside]
    return lines

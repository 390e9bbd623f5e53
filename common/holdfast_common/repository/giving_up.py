"""Giving up restore points whose manifest is damaged: nobody knows what they need, so nothing could be pruned.

Only what was read, and is not what was stored, can be given up, and what somebody signed who never was a writer.
What cannot be read just now, or is of a format that is not known here, may count another day.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast_common.errors import (
    FormatError,
    IntegrityError,
    ObjectMissing,
    Refused,
    RepositoryFailed,
    RepositoryFull,
)
from holdfast_common.repository.derivation import lineage_tag
from holdfast_common.repository.forget import FENCE_UNKNOWN, HELD, PointName
from holdfast_common.repository.holds import held_points
from holdfast_common.repository.key_sets import GRANT_BYTES, KeyRing, ReaderKeys
from holdfast_common.repository.layout import ObjectKind, manifest_name, manifest_tag, numbered
from holdfast_common.repository.lease_survey import survey_leases
from holdfast_common.repository.manifest import MANIFEST_BYTES_MAX, Manifest
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import PointJudge
from holdfast_common.repository.repair_objects import set_aside
from holdfast_common.repository.repair_staging import replacement_name
from holdfast_common.repository.reserve import give_back_reserve
from holdfast_common.repository.sealed_object import OpenedObject, with_known_format
from holdfast_common.repository.storage_time import storage_time
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import ROLE_WRITE, read_list

AT_WORK: Final = "a writer is at work, which may have read it before: try again when no job runs"
REPAIR_WAITS: Final = "a repair that was cut off has a good one: run `holdfast repo repair` again"
NOT_DAMAGED: Final = "its manifest is not damaged, but cannot be used now"


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUpPlan:
    """``given_up`` and ``kept``: with why the manifest cannot be read, and why it stays."""

    given_up: tuple[tuple[PointName, str], ...] = ()
    kept: tuple[tuple[PointName, str], ...] = ()


def plan_give_up(
    store: ObjectStore, ring: KeyRing, names: Iterable[str], *, now: datetime
) -> GiveUpPlan:
    """Which of these manifests can be given up; changes nothing. ``now``: where the storage has no clock.

    A writer that is at work may build on what it read before the damage; a repair is one, too.
    What the storage does not read stays. Raises: IntegrityError (list of writers), RepositoryFailed.
    """
    judge = PointJudge.load(store, ring.common)
    held = held_points(store)
    storage_now = storage_time(store)
    is_busy = any(
        lease.is_at_work(now=now, storage_now=storage_now)
        for lease in survey_leases(store, ring.common, judge.writers)
    )
    given_up, kept = [], []
    for name in names:
        point = PointName(name=name, digest=b"")
        try:
            reason = "" if name in held else _damage(store, ring, judge, name)
        except RepositoryFailed as error:
            kept.append((point, f"the storage cannot read it now: {error}"))
            continue
        if problem := _problem(store, judge, name, held=held, reason=reason, is_busy=is_busy):
            kept.append((point, problem))
        else:
            given_up.append((point, reason))
    return GiveUpPlan(given_up=tuple(given_up), kept=tuple(kept))


def give_up_point(
    store: ObjectStore, ring: KeyRing, name: str, *, check: Callable[[], None] = lambda: None
) -> bool:
    """Move a damaged manifest out of its name, to be kept aside; False: it was gone.

    On a full repository the room that is kept for prunes is given back for it, piece by piece: they wait for this.
    ``check``: called right before; raises when nothing is to be changed any more.
    Raises: Refused when it is held or was mended meanwhile; IntegrityError, RepositoryFull, RepositoryFailed:
    then it is still there.
    """
    if name in held_points(store):
        raise Refused("the point is held", point=name)
    if store.head(name) is None:
        return False
    if store.head(replacement_name(name)) is not None:
        raise Refused(REPAIR_WAITS, point=name)
    if not _damage(store, ring, PointJudge.load(store, ring.common), name):
        raise Refused("the manifest is not damaged any more", point=name)
    check()
    is_kept = _set_aside(store, name)
    if not is_kept and store.head(name) is not None:
        raise RepositoryFailed("a damaged manifest cannot be read just now", point=name)
    return is_kept


def _set_aside(store: ObjectStore, name: str) -> bool:
    while True:
        try:
            return set_aside(store, name, bulk=False)
        except RepositoryFull as error:
            if not give_back_reserve(store):
                raise RepositoryFull(
                    "the repository has no room to keep a damaged manifest aside, so it stays where it is",
                    point=name,
                    advice="make room on its file system, then try again; or move that file to another disk by hand,"
                    " then let the point go: `holdfast repo forget POINT`",
                ) from error


def _problem(
    store: ObjectStore,
    judge: PointJudge,
    name: str,
    *,
    held: Collection[str],
    reason: str,
    is_busy: bool,
) -> str:
    if name in held:
        return HELD
    if not reason:
        return NOT_DAMAGED
    if judge.fences.unread:
        return FENCE_UNKNOWN
    if store.head(replacement_name(name)) is not None:
        return REPAIR_WAITS
    return AT_WORK if is_busy else ""


def _damage(store: ObjectStore, ring: KeyRing, judge: PointJudge, name: str) -> str:
    """Why a manifest is not what was stored; empty: it is, or nobody can say. Raises: RepositoryFailed."""
    tag = manifest_tag(name)
    keys = None if tag is None else ring.of_tag(tag)
    if keys is None:
        return ""
    try:
        data = store.get(name, length_max=MANIFEST_BYTES_MAX)
        if len(data) <= GRANT_BYTES:
            raise IntegrityError("a manifest is too short", length=len(data))
        found = keys.open(ObjectKind.MANIFEST, memoryview(data)[:-GRANT_BYTES])
    except ObjectMissing:
        return ""
    except FormatError as error:
        return str(error) if _is_of_this_format(keys, data[:-GRANT_BYTES]) else ""
    except IntegrityError as error:
        return str(error)
    try:
        judge.writers.check(found, role=ROLE_WRITE)
    except IntegrityError as error:
        never = _never_counted(store, ring, keys, found, grant=data[-GRANT_BYTES:])
        return str(error) if never else ""
    try:
        manifest = Manifest.decode(found.body)
    except (IntegrityError, FormatError):
        return ""  # it is as its writer stored it
    if manifest_name(lineage_tag(keys.id_key, manifest.lineage_id), manifest.job_id) != name:
        return "a manifest stands under another name"
    try:
        keys.check_grant(
            data[-GRANT_BYTES:],
            job_id=manifest.job_id,
            attempt=manifest.attempt,
            manifest_digest=found.digest,
        )
    except IntegrityError as error:
        return str(error)
    return ""


def _never_counted(
    store: ObjectStore, ring: KeyRing, keys: ReaderKeys, found: OpenedObject, *, grant: bytes
) -> bool:
    """Whether no list of writers ever allowed that signer to write, and the controller did not grant it either.

    All lists that there ever were must tell so. Raises: RepositoryFailed.
    """
    told: set[int] = set()
    names = [info.name for info in stored_objects(store, "writers/")]
    for name in names:
        try:
            listed = read_list(store, name, ring.common)
        except (IntegrityError, FormatError):
            continue  # its copy may tell
        writer = listed.of(found.signer or b"")
        if writer is not None and ROLE_WRITE in writer.roles:
            return False
        told.add(listed.number)
    if told != set(range(1, max(map(numbered, names), default=0) + 1)):
        return False
    try:
        manifest = Manifest.decode(found.body)
        keys.check_grant(
            grant,
            job_id=manifest.job_id,
            attempt=manifest.attempt,
            manifest_digest=found.digest,
        )
    except (IntegrityError, FormatError):
        return True
    return False


def _is_of_this_format(keys: ReaderKeys, data: bytes) -> bool:
    """Whether only the bytes that tell its format are wrong: nothing of another one opens with these put right."""
    try:
        keys.open(ObjectKind.MANIFEST, with_known_format(data))
    except (IntegrityError, FormatError):
        return False
    return True

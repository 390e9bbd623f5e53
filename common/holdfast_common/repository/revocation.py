"""What stays valid when a writer is revoked. Between `points` and `keys`; on the controller only.

A revoked key's objects count only if the list of writers names their digests, so what is left out then is
lost, also when a good copy of it is found later. What is left out is only what came after the revocation,
and what nobody can tell the digest of: about that somebody has to decide first. What the storage does not
read just now is never left out: the revocation stops, and is gone on with when it reads again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from holdfast_common.errors import (
    FormatError,
    IntegrityError,
    NotFound,
    ObjectMissing,
    Refused,
    RepositoryFailed,
)
from holdfast_common.repository.fence import Fences, load_fences
from holdfast_common.repository.key_sets import GRANT_BYTES, KeyRing
from holdfast_common.repository.layout import KEY_BYTES, fence_name, index_name, manifest_tag
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore
from holdfast_common.repository.points import Point, PointJudge
from holdfast_common.repository.sealed_object import SIGNATURE_BYTES, signer_of
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import ROLE_PRUNE, Writer, WriterList, revoked

_NAMES_TOLD: Final = 5


@dataclass(frozen=True, slots=True)
class Revoked:
    """A writer was revoked."""

    writers: WriterList  # the list that is in force now
    given_up: tuple[
        str, ...
    ]  # damaged objects that never count again, also if a good copy is found


@dataclass(slots=True)
class Survey:
    """What one key signed, as far as it can be read."""

    digests: dict[str, bytes] = field(default_factory=dict)  # by name
    damaged: list[str] = field(default_factory=list)  # this key's, for all that can be told
    unread: list[str] = field(default_factory=list)  # the same: the storage failed


@dataclass(frozen=True, slots=True)
class Step:
    """The writers that the next list must have."""

    writers: tuple[Writer, ...]
    given_up: tuple[str, ...] = ()


def next_step(
    store: ObjectStore,
    ring: KeyRing,
    listed: WriterList,
    public_key: bytes,
    *,
    at: str,
    keep_existing: bool,
    give_up_unread: bool,
) -> Step | None:
    """What is left to do until that key is revoked; None: it is.

    A key whose objects stay takes two lists. The first one revokes it; the second one accepts as well what was
    published after the objects had been read and before the first list was there.
    Raises: NotFound, Refused, RepositoryFailed.
    """
    writer = listed.of(public_key)
    if writer is None:
        raise NotFound("no such writer", public_key=public_key.hex())
    if not keep_existing:
        if writer.revoked_at and writer.is_settled and not writer.accepted:
            return None
        at = writer.revoked_at or at
        return Step(revoked(listed, public_key, at=at, accepted=frozenset()))
    if not writer.revoked_at:
        accepted, given_up = accepted_until_now(
            store, ring, listed, public_key, give_up_unread=give_up_unread
        )
        writers = revoked(listed, public_key, at=at, accepted=accepted, is_settled=False)
        return Step(writers, given_up)
    if not writer.is_settled:
        besides, given_up = granted_besides(
            store, ring, listed, public_key, give_up_unread=give_up_unread
        )
        writers = revoked(
            listed, public_key, at=writer.revoked_at, accepted=writer.accepted | besides
        )
        return Step(writers, given_up)
    return None


def accepted_until_now(
    store: ObjectStore,
    ring: KeyRing,
    listed: WriterList,
    public_key: bytes,
    *,
    give_up_unread: bool,
) -> tuple[frozenset[bytes], tuple[str, ...]]:
    """Digests of what this key signed until now, and names of what is given up.

    The newest usable fence's census tells the digests of manifests that are damaged or missing, a manifest
    those of its indexes. Proofs are left out: a revoked verifier vouches for nothing.
    Raises: Refused (something else is damaged, without ``give_up_unread``), RepositoryFailed.
    """
    fences = load_fences(store, ring.common, listed)
    census = _newest_census(fences)
    survey = _surveyed(store, listed, public_key)
    told = {name: digest for name, digest in census.items() if survey.digests.get(name) != digest}
    if any(name.startswith("index/") for name in (*survey.damaged, *survey.unread)):
        for point in _points_of(store, ring, listed, fences, public_key, survey=Survey()):
            told |= {index_name(each.object_id): each.digest for each in point.manifest.indexes}
    lost = Survey(
        damaged=[name for name in survey.damaged if _is_lost(name, told, listed, public_key)],
        unread=[name for name in survey.unread if _is_lost(name, told, listed, public_key)],
    )
    if lost.damaged and fences.unread:  # what it tells may be their digests
        lost.unread += [fence_name(epoch) for epoch in sorted(fences.unread)]
    given_up = _given_up(lost, give_up_unread=give_up_unread)
    return frozenset(survey.digests.values()) | frozenset(told.values()), given_up


def granted_besides(
    store: ObjectStore,
    ring: KeyRing,
    listed: WriterList,
    public_key: bytes,
    *,
    give_up_unread: bool = False,
) -> tuple[frozenset[bytes], tuple[str, ...]]:
    """Digests of this key's points, and of their indexes, that ``listed`` does not accept yet; what is given up.

    Asked for once, right after the list that revoked it was put: whoever published before that list was there
    was told that his point is kept. Only what the controller granted is taken: the key alone is not enough.
    Raises: Refused (a manifest is damaged, without ``give_up_unread``), RepositoryFailed: one cannot be read.
    """
    writer = listed.of(public_key)
    assert writer is not None, "it was revoked just now"
    fences = load_fences(store, ring.common, listed)
    census = _newest_census(fences)
    survey = Survey()
    found: set[bytes] = set()
    for point in _points_of(store, ring, listed, fences, public_key, survey=survey):
        found |= {point.digest, *(each.digest for each in point.manifest.indexes)}
    lost = Survey(
        damaged=[name for name in survey.damaged if census.get(name) not in writer.accepted],
        unread=[name for name in survey.unread if census.get(name) not in writer.accepted],
    )
    return frozenset(found) - writer.accepted, _given_up(lost, give_up_unread=give_up_unread)


def _newest_census(fences: Fences) -> Mapping[str, bytes]:
    return fences.by_epoch[max(fences.by_epoch)].census if fences.by_epoch else {}


def _given_up(lost: Survey, *, give_up_unread: bool) -> tuple[str, ...]:
    """The damaged ones of what would not count any more. Raises: Refused, RepositoryFailed."""
    if lost.unread:
        raise RepositoryFailed(
            f"the revocation is not finished: the storage does not read {_told(lost.unread)} just now, so what"
            " is in there would stop to count for ever",
            objects=len(lost.unread),
            advice="see that the storage is healthy, then revoke again; what it never reads again"
            " `holdfast repo repair --from COPY` replaces",
        )
    if lost.damaged and not give_up_unread:
        raise Refused(
            f"repair first: {_told(lost.damaged)} cannot be read, so what is in there"
            " would stop to count for ever, also if a good copy is found later",
            objects=len(lost.damaged),
            advice="`holdfast repo repair --from COPY`, then revoke again; or `holdfast agent revoke AGENT --give-up-damaged`",
        )
    return tuple(lost.damaged)


def _told(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
    return f"{', '.join(names[:_NAMES_TOLD])}{more}"


def _surveyed(store: ObjectStore, listed: WriterList, public_key: bytes) -> Survey:
    survey = Survey()
    for prefix in ("index/", "points/", "fences/"):
        for info in stored_objects(store, prefix):
            _read_signed(store, info, listed, public_key, survey=survey)
    return survey


def _read_signed(
    store: ObjectStore, info: ObjectInfo, listed: WriterList, public_key: bytes, *, survey: Survey
) -> bytes:
    """An object that this key signed; empty: it did not, or nobody can say. Noted in ``survey``."""
    is_manifest = info.name.startswith("points/")
    signed = data = b""
    try:
        data = store.get(info.name, length_max=info.length)
        signed = data[:-GRANT_BYTES] if is_manifest else data
        found = signer_of(signed)
    except ObjectMissing:
        return b""  # deleted between the listing and now
    except RepositoryFailed:
        survey.unread.append(info.name)
        return b""
    except (FormatError, IntegrityError):
        others = {writer.public_key for writer in listed.writers} - {public_key}
        start = len(signed) - SIGNATURE_BYTES
        if signed[start : start + KEY_BYTES] not in others:
            survey.damaged.append(info.name)
        return b""
    if found.signer != public_key:
        return b""
    survey.digests[info.name] = found.digest
    return data


def _is_lost(name: str, told: dict[str, bytes], listed: WriterList, public_key: bytes) -> bool:
    """Whether a damaged object would be gone for good. Indexes can be made anew from the packs alone."""
    writer = listed.of(public_key)
    if name.startswith("fences/"):
        return writer is not None and ROLE_PRUNE in writer.roles
    return name.startswith("points/") and name not in told


def _points_of(
    store: ObjectStore,
    ring: KeyRing,
    listed: WriterList,
    fences: Fences,
    public_key: bytes,
    *,
    survey: Survey,
) -> Iterator[Point]:
    """Points of this key that would count if it were not revoked: granted, and not fenced off.

    What may be one, and cannot be read, is noted in ``survey``.
    """
    judge = PointJudge(
        replace(
            listed,
            writers=tuple(
                replace(each, revoked_at="") if each.public_key == public_key else each
                for each in listed.writers
            ),
        ),
        fences,
    )
    for info in store.list("points/"):
        tag = manifest_tag(info.name)
        keys = None if tag is None else ring.of_tag(tag)
        if keys is None:
            continue
        data = _read_signed(store, info, listed, public_key, survey=survey)
        if not data:
            continue
        try:
            yield judge.point(data, info.name, keys)
        except FormatError:
            survey.damaged.append(info.name)  # another day it may be known
        except IntegrityError:
            continue  # nobody granted it, or it was fenced off: it never counted

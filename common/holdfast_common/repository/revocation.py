"""What stays valid when a writer is revoked. Between `points` and `keys`; on the controller only.

A revoked key's objects count only if the list of writers names their digests, so what is left out then is
lost, also when a good copy of it is found later. What is left out is only what came after the revocation,
and what nobody can tell the digest of: about that somebody has to decide first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    IntegrityError,
    NotFound,
    ObjectMissing,
    Refused,
    RepositoryFailed,
)
from holdfast_common.repository.fence import Fences, load_fences
from holdfast_common.repository.key_sets import GRANT_BYTES, KeyRing
from holdfast_common.repository.layout import KEY_BYTES, index_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import Point, PointJudge
from holdfast_common.repository.sealed_object import SIGNATURE_BYTES, signer_of
from holdfast_common.repository.writers import ROLE_PRUNE, Writer, WriterList, revoked

_UNREADABLE: Final = (FormatError, IntegrityError, RepositoryFailed)
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
    unread: list[str] = field(default_factory=list)  # this key's, for all that can be told


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
        accepted = writer.accepted | granted_besides(store, ring, listed, public_key)
        return Step(revoked(listed, public_key, at=writer.revoked_at, accepted=accepted))
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
    census = fences.by_epoch[max(fences.by_epoch)].census if fences.by_epoch else {}
    survey = _surveyed(store, listed, public_key)
    told = {name: digest for name, digest in census.items() if survey.digests.get(name) != digest}
    if any(name.startswith("index/") for name in survey.unread):
        for point in _points_of(store, ring, listed, fences, public_key):
            told |= {index_name(each.object_id): each.digest for each in point.manifest.indexes}
    given_up = tuple(name for name in survey.unread if _is_lost(name, told, listed, public_key))
    if given_up and not give_up_unread:
        more = f" and {len(given_up) - _NAMES_TOLD} more" if len(given_up) > _NAMES_TOLD else ""
        raise Refused(
            f"repair first: {', '.join(given_up[:_NAMES_TOLD])}{more} cannot be read, so what is in there"
            " would stop to count for ever, also if a good copy is found later",
            objects=len(given_up),
            advice="`holdfast repo repair --from COPY`, then revoke again; or `holdfast agent revoke AGENT --give-up-damaged`",
        )
    return frozenset(survey.digests.values()) | frozenset(told.values()), given_up


def granted_besides(
    store: ObjectStore, ring: KeyRing, listed: WriterList, public_key: bytes
) -> frozenset[bytes]:
    """Digests of this key's points, and of their indexes, that ``listed`` does not accept yet.

    Asked for once, right after the list that revoked it was put: whoever published before that list was there
    was told that his point is kept. Only what the controller granted is taken: the key alone is not enough.
    """
    writer = listed.of(public_key)
    assert writer is not None, "it was revoked just now"
    fences = load_fences(store, ring.common, listed)
    found: set[bytes] = set()
    for point in _points_of(store, ring, listed, fences, public_key):
        found |= {point.digest, *(each.digest for each in point.manifest.indexes)}
    return frozenset(found) - writer.accepted


def _surveyed(store: ObjectStore, listed: WriterList, public_key: bytes) -> Survey:
    others = {writer.public_key for writer in listed.writers} - {public_key}
    survey = Survey()
    for prefix in ("index/", "points/", "fences/"):
        for info in store.list(prefix):
            signed = b""
            try:
                data = store.get(info.name, length_max=info.length)
                signed = data[:-GRANT_BYTES] if prefix == "points/" else data
                found = signer_of(signed)
            except ObjectMissing:
                continue  # deleted between the listing and now
            except _UNREADABLE:
                start = len(signed) - SIGNATURE_BYTES
                if signed[start : start + KEY_BYTES] not in others:
                    survey.unread.append(info.name)
                continue
            if found.signer == public_key:
                survey.digests[info.name] = found.digest
    return survey


def _is_lost(name: str, told: dict[str, bytes], listed: WriterList, public_key: bytes) -> bool:
    """Whether a damaged object would be gone for good. Indexes can be made anew from the packs alone."""
    writer = listed.of(public_key)
    if name.startswith("fences/"):
        return writer is not None and ROLE_PRUNE in writer.roles
    return name.startswith("points/") and name not in told


def _points_of(
    store: ObjectStore, ring: KeyRing, listed: WriterList, fences: Fences, public_key: bytes
) -> Iterator[Point]:
    """Points of this key that would count if it were not revoked: granted, and not fenced off."""
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
        try:
            data = store.get(info.name, length_max=info.length)
            if signer_of(data[:-GRANT_BYTES]).signer != public_key:
                continue
            keys = ring.of_tag(bytes.fromhex(info.name.split("/")[1]))
            if keys is not None:
                yield judge.point(data, info.name, keys)
        except (HoldfastError, ValueError):
            continue  # it counts for nothing anyway, or `check` reports it

"""Points that are held: never forgotten, whatever a plan says, until somebody lets go of them.

A hold is an object of its own in the repository, so it outlives the controller's database. Its name is
the point's: a hold that is damaged holds all the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import IntegrityError, ObjectMissing
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import METADATA_BYTES_MAX, UNREADABLE, ObjectKind, hold_name
from holdfast_common.repository.object_store import ObjectStore, put_or_confirm
from holdfast_common.repository.points import Point
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.writers import ROLE_PRUNE, WriterList


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Who held which point, when and why."""

    point_name: str
    point_digest: bytes
    held_at: str
    reason: str


def hold_point(
    store: ObjectStore,
    point: Point,
    *,
    held_at: str,
    reason: str,
    keys: ReaderKeys,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness = SYSTEM_RANDOMNESS,
) -> None:
    """Hold it; harmless when it is held already. Raises: RepositoryFull, RepositoryFailed."""
    document = {
        "point": point.name,
        "digest": point.digest.hex(),
        "held_at": held_at,
        "reason": reason,
    }
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    data = keys.seal(ObjectKind.HOLD, body, signing_key=signing_key, randomness=randomness)
    put_or_confirm(store, hold_name(point.name), data)


def unhold_point(store: ObjectStore, point_name: str) -> bool:
    """Let go of a point; whether it was held. Raises: RepositoryFailed."""
    try:
        store.delete(hold_name(point_name))
    except ObjectMissing:
        return False
    return True


def held_points(store: ObjectStore) -> frozenset[str]:
    """Names of the points that are held, by the names of their holds alone. Raises: RepositoryFailed."""
    return frozenset(
        f"points/{info.name.removeprefix('holds/')}" for info in stored_objects(store, "holds/")
    )


def read_hold(store: ObjectStore, name: str, keys: ReaderKeys, writers: WriterList) -> Hold:
    """One hold. Raises: IntegrityError, ObjectMissing, RepositoryFailed."""
    found = keys.open(ObjectKind.HOLD, store.get(name, length_max=METADATA_BYTES_MAX))
    writers.check(found, role=ROLE_PRUNE)
    try:
        document = json.loads(found.body)
        hold = Hold(
            point_name=str(document["point"]),
            point_digest=bytes.fromhex(document["digest"]),
            held_at=str(document["held_at"]),
            reason=str(document["reason"]),
        )
    except UNREADABLE as error:
        raise IntegrityError("a hold cannot be read") from error
    if hold_name(hold.point_name) != name:
        raise IntegrityError("a hold stands under another name", name=name)
    return hold

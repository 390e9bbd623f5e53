"""Who may sign what in this repository: numbered lists of public keys, signed by the authority key.

The highest number counts. A reader is told the number that it must find at least, so an old list
cannot be put back unnoticed.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import (
    FormatError,
    IntegrityError,
    NotFound,
    ObjectExists,
    ObjectMissing,
    RepositoryFailed,
    RevokedWriter,
)
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    UNREADABLE,
    ObjectKind,
    copy_name,
    numbered,
    writers_name,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.sealed_object import OpenedObject
from holdfast_common.repository.stored_objects import stored_objects

log = logging.getLogger(__name__)

ROLE_WRITE: Final = "write"  # indexes, manifests, leases
ROLE_VERIFY: Final = "verify"  # proofs
ROLE_PRUNE: Final = "prune"  # fences, merged indexes
ROLES: Final = frozenset({ROLE_WRITE, ROLE_VERIFY, ROLE_PRUNE})
WRITERS_BYTES_MAX: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """One public key and what it may sign."""

    agent_id: str
    public_key: bytes
    roles: tuple[str, ...]
    added_at: str
    revoked_at: str = ""  # empty: not revoked
    accepted: frozenset[bytes] = frozenset()  # digests that stay valid after the revocation
    is_settled: bool = (
        True  # False: revoked, and what it published in that moment is not yet accepted
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterList:
    """The newest list that can be used; number 0 is the empty one of a new repository."""

    number: int  # the highest in the repository, also when that list is damaged
    writers: tuple[Writer, ...]
    damaged: tuple[
        tuple[str, str], ...
    ] = ()  # names of newer lists and copies that cannot be used, and why

    def check(self, found: OpenedObject, *, role: str) -> Writer:
        """The writer who signed ``found`` in that role.

        Raises: IntegrityError when it is not listed or lacks the role, or a revocation stopped half way;
        RevokedWriter when it was revoked and the object is not among those accepted then.
        """
        writer = self.of(found.signer or b"")
        if writer is None or role not in writer.roles:
            raise IntegrityError(
                "an object is signed by nobody who may",
                kind=found.header.kind.name,
                signer=(found.signer or b"").hex(),
            )
        if writer.revoked_at and found.digest not in writer.accepted:
            if not writer.is_settled and found.header.kind is ObjectKind.MANIFEST:
                raise IntegrityError(
                    "whether a point counts is not known: the revocation of its writer was not finished",
                    agent=writer.agent_id,
                    advice="revoke that agent again",
                )
            raise RevokedWriter(
                "an object is signed by a revoked writer",
                kind=found.header.kind.name,
                agent=writer.agent_id,
            )
        return writer

    def of(self, public_key: bytes) -> Writer | None:
        """The entry of a public key."""
        return next((writer for writer in self.writers if writer.public_key == public_key), None)


def load_writers(store: ObjectStore, keys: ReaderKeys) -> WriterList:
    """The newest usable list. One that is damaged in both copies leaves the one before it in force.

    Raises: IntegrityError (the newest one is older than it was), RepositoryFailed.
    """
    names = sorted(
        (info.name for info in stored_objects(store, "writers/")), key=lambda n: (-numbered(n), n)
    )
    highest = numbered(names[0]) if names else 0
    if highest < keys.writers_number_min:
        raise IntegrityError(
            "the list of writers is older than it was",
            found=highest,
            wanted=keys.writers_number_min,
        )
    damaged = []
    unread: RepositoryFailed | None = None
    for name in names:
        if unread is not None and numbered(name) != highest:
            raise unread  # an older list counts only when the newer is known to be damaged
        try:
            listed = read_list(store, name, keys)
        except (FormatError, IntegrityError, RepositoryFailed) as error:
            log.warning("list of writers refused", extra={"object": name, "reason": str(error)})
            damaged.append((name, str(error)))
            unread = error if isinstance(error, RepositoryFailed) else unread
            continue
        return replace(listed, number=highest, damaged=tuple(damaged))
    if unread is not None:
        raise unread
    return WriterList(number=highest, writers=(), damaged=tuple(damaged))


def store_writers(
    store: ObjectStore,
    writers: tuple[Writer, ...],
    *,
    number: int,
    keys: ReaderKeys,
    authority: Ed25519PrivateKey,
    randomness: Randomness,
) -> WriterList:
    """Put list ``number``. Raises: ObjectExists when somebody else was first."""
    listed = WriterList(number=number, writers=writers)
    data = keys.seal(
        ObjectKind.WRITERS, _to_json(listed), signing_key=authority, randomness=randomness
    )
    store.put(writers_name(number), data)
    store.put(copy_name(writers_name(number)), data)
    return listed


def store_missing_copy(store: ObjectStore, number: int) -> None:
    """Put the second copy of list ``number`` if a crash came between the two, and make both durable.

    Raises: RepositoryFull, RepositoryFailed.
    """
    names = (writers_name(number), copy_name(writers_name(number)))
    if number and store.head(names[1]) is None:
        with contextlib.suppress(ObjectExists, ObjectMissing):
            store.put(names[1], store.get(names[0], length_max=WRITERS_BYTES_MAX))
    # whoever put them may have died before they were on the disk
    store.confirm([name for name in names if store.head(name) is not None])


def revoked(
    writers: WriterList,
    public_key: bytes,
    *,
    at: str,
    accepted: frozenset[bytes],
    is_settled: bool = True,
) -> tuple[Writer, ...]:
    """The writers with one of them revoked. Raises: NotFound."""
    if writers.of(public_key) is None:
        raise NotFound("no such writer", public_key=public_key.hex())
    return tuple(
        replace(writer, revoked_at=at, accepted=accepted, is_settled=is_settled)
        if writer.public_key == public_key
        else writer
        for writer in writers.writers
    )


def read_list(store: ObjectStore, name: str, keys: ReaderKeys) -> WriterList:
    """One list, under its name. Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed."""
    found = keys.open(ObjectKind.WRITERS, store.get(name, length_max=WRITERS_BYTES_MAX))
    if not keys.may_list_writers(found.signer, number=numbered(name)):
        raise IntegrityError("the list of writers is not signed by the authority", name=name)
    try:
        listed = decoded_list(found.body)
    except UNREADABLE as error:
        raise IntegrityError("the list of writers cannot be read", name=name) from error
    if listed.number != numbered(name) or not listed.number:
        raise IntegrityError("a list of writers stands under another number", name=name)
    return listed


def decoded_list(body: bytes) -> WriterList:
    """A list from an opened object's body. Raises: one of `UNREADABLE`."""
    document = json.loads(body)
    return WriterList(
        number=int(document["number"]),
        writers=tuple(_writer_from_json(entry) for entry in document["writers"]),
    )


def _writer_from_json(entry: dict[str, object]) -> Writer:
    roles = entry["roles"]
    accepted = entry.get("accepted", [])
    if not isinstance(roles, list) or not isinstance(accepted, list):
        raise TypeError("roles and accepted are lists")
    return Writer(
        agent_id=str(entry["agent_id"]),
        public_key=bytes.fromhex(str(entry["public_key"])),
        roles=tuple(str(role) for role in roles),
        added_at=str(entry["added_at"]),
        revoked_at=str(entry.get("revoked_at", "")),
        accepted=frozenset(bytes.fromhex(str(digest)) for digest in accepted),
        is_settled=bool(entry.get("settled", True)),
    )


def _to_json(listed: WriterList) -> bytes:
    entries = []
    for writer in listed.writers:
        entry: dict[str, object] = {
            "agent_id": writer.agent_id,
            "public_key": writer.public_key.hex(),
            "roles": list(writer.roles),
            "added_at": writer.added_at,
        }
        if writer.revoked_at:
            entry["revoked_at"] = writer.revoked_at
            entry["accepted"] = sorted(digest.hex() for digest in writer.accepted)
        if not writer.is_settled:
            entry["settled"] = False
        entries.append(entry)
    document = {"number": listed.number, "writers": entries}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

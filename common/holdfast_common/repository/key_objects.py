"""The key generations that lie in a store: which one counts, and what is put and removed when it changes.

Between `keys` and the store; here nothing is opened, so nobody needs a secret for it.
"""

from __future__ import annotations

import contextlib
import logging

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from holdfast_common.errors import (
    FormatError,
    HoldfastError,
    Immutable,
    IntegrityError,
    NoRepository,
    ObjectExists,
    ObjectMissing,
    RepositoryFailed,
)
from holdfast_common.repository.key_generation import (
    KEYS_BYTES_MAX,
    EpochSecrets,
    StoredGeneration,
    decoded_generation,
)
from holdfast_common.repository.layout import KEY_BYTES, copy_name, keys_name, numbered
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.stored_objects import stored_objects

log = logging.getLogger(__name__)


def newest_generation(store: ObjectStore, *, authority: bytes = b"") -> StoredGeneration:
    """The highest complete key generation, unopened. As `newest_generations`."""
    return newest_generations(store, authority=authority)[0]


def newest_generations(store: ObjectStore, *, authority: bytes = b"") -> list[StoredGeneration]:
    """The highest complete key generation in each of its usable copies, unopened; one of them at least.

    ``authority``: a public key that signed it once; a generation that does not descend from it is
    somebody else's and does not count. Empty: whoever signed it.
    Raises: NoRepository, IntegrityError, FormatError, RepositoryFailed (no copy can be read).
    """
    names = sorted(
        (info.name for info in stored_objects(store, "keys/")), key=lambda n: (-numbered(n), n)
    )
    if not names:
        raise NoRepository("there is no repository in this store")
    failure: FormatError | IntegrityError | RepositoryFailed | None = None
    found: list[StoredGeneration] = []
    number = numbered(names[0])
    for name in names:
        if numbered(name) != number and (found or isinstance(failure, RepositoryFailed)):
            break  # an older one counts only when the newer is known to be damaged
        number = numbered(name)
        try:
            found.append(generation_named(store, name, authority=authority))
        except (FormatError, IntegrityError, RepositoryFailed) as error:
            log.warning("key generation unusable", extra={"object": name, "reason": str(error)})
            failure = failure or error
    if found:
        return found
    if isinstance(failure, FormatError | RepositoryFailed):
        raise failure  # of a newer Holdfast, most likely; or the storage fails
    raise IntegrityError(
        "no key generation can be used", newest=names[0], reason=str(failure)
    ) from failure


def generation_named(store: ObjectStore, name: str, *, authority: bytes = b"") -> StoredGeneration:
    """The generation in that object. Raises: FormatError, IntegrityError, RepositoryFailed."""
    stored = decoded_generation(store.get(name, length_max=KEYS_BYTES_MAX))
    if stored.head.generation != numbered(name):
        raise IntegrityError("a key generation stands under another number", name=name)
    if authority and not stored.head.descends_from(authority):
        raise IntegrityError("the keys are older than they were, or somebody else's", name=name)
    return stored


def next_generation(store: ObjectStore) -> int:
    """A number that no generation has, not even an unusable one."""
    return 1 + max((numbered(info.name) for info in stored_objects(store, "keys/")), default=0)


def put_generation(store: ObjectStore, number: int, data: bytes) -> None:
    """Put it twice. From the first put on, it counts. Raises: ObjectExists, RepositoryFull, RepositoryFailed."""
    store.put(keys_name(number), data)
    store.put(copy_name(keys_name(number)), data)


def complete_generation(store: ObjectStore, number: int) -> None:
    """Put the second copy of a generation, if a crash came between the two, and make both durable."""
    name = keys_name(number)
    for present, missing in ((name, copy_name(name)), (copy_name(name), name)):
        if store.head(missing) is None and store.head(present) is not None:
            with contextlib.suppress(ObjectExists):
                store.put(missing, store.get(present, length_max=KEYS_BYTES_MAX))
    # whoever put them may have died before they were on the disk; older ones go next
    store.confirm([each for each in (name, copy_name(name)) if store.head(each) is not None])


def remove_older_generations(store: ObjectStore, number: int) -> list[str]:
    """Delete all generations before ``number``, so that who was removed finds nothing to open.

    Only when ``number`` stands in two good copies. What a store does not let go is returned.
    Raises: IntegrityError, RepositoryFailed.
    """
    for name in (keys_name(number), copy_name(keys_name(number))):
        generation_named(store, name)
    kept = []
    for name in [
        info.name for info in stored_objects(store, "keys/") if numbered(info.name) < number
    ]:
        try:
            store.delete(name)
        except ObjectMissing:
            continue
        except Immutable:
            kept.append(name)
    return kept


def withdraw_generation(store: ObjectStore, number: int) -> None:
    """Take back a generation whose secrets nobody was told. Raises: what the store raises."""
    failure: HoldfastError | None = None
    for name in (keys_name(number), copy_name(keys_name(number))):
        try:
            store.delete(name)
        except ObjectMissing:
            continue
        except HoldfastError as error:
            failure = error  # the other copy goes all the same
    if failure is not None:
        raise failure


def new_epoch(number: int, randomness: Randomness) -> EpochSecrets:
    """Fresh keys of an epoch."""
    private = randomness.draw(KEY_BYTES)
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    return EpochSecrets(
        epoch=number,
        index_key=randomness.draw(KEY_BYTES),
        meta_key=randomness.draw(KEY_BYTES),
        content_private=private,
        content_public=public,
    )

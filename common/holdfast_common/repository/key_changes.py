"""Changing who can open a repository: add, remove, rotate. Every change is a new key generation.

After `keys`, on the controller only. The new generation counts from the moment its first copy is stored;
whatever comes after it (second copy, list of writers, removal of older generations) `settle` makes good
after a crash. So at each moment the repository opens with the old keys or with the new ones.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import IntegrityError, NotFound, Refused, UsageError
from holdfast_common.repository.key_generation import (
    EarlierAuthority,
    KeySecrets,
    decoded_generation,
    encoded_generation,
    handed_on,
)
from holdfast_common.repository.key_objects import (
    complete_generation,
    generation_named,
    new_epoch,
    newest_generation,
    next_generation,
    put_generation,
    remove_older_generations,
)
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.layout import KEY_BYTES, copy_name, keys_name, writers_name
from holdfast_common.repository.object_store import ObjectStore, get_range
from holdfast_common.repository.recipients import (
    RECOVERY_SHEET,
    NewRecipient,
    RecipientEntry,
    rewrapped,
    wrapped_for,
)
from holdfast_common.repository.sealed_object import HEADER, ObjectHeader
from holdfast_common.repository.writers import store_missing_copy

log = logging.getLogger(__name__)

RECIPIENTS_MAX = 256  # a generation has at most 1 MiB
LABEL_LENGTH_MAX = 100


def recipients_of(store: ObjectStore, keys: RepositoryKeys) -> tuple[RecipientEntry, ...]:
    """Who can open the repository. Raises: Refused when ``keys`` are not the newest any more."""
    head = newest_generation(store, authority=keys.authority_public).head
    if head.generation != keys.generation:
        raise Refused("somebody else changed the keys", found=head.generation)
    return head.recipients


def add_recipient(
    store: ObjectStore, keys: RepositoryKeys, recipient: NewRecipient, *, clock: Clock
) -> RepositoryKeys:
    """Let one more recipient open everything, old and new. Nothing else changes: no epoch, no authority.

    Raises: UsageError, Refused, RepositoryFull, RepositoryFailed. After the last nobody knows: open again.
    """
    entries = recipients_of(store, keys)
    check_addition(entries, recipient)
    number = next_generation(store)
    root = keys.randomness.draw(KEY_BYTES)
    added = wrapped_for(
        recipient,
        root=root,
        repository_id=keys.secrets.repository_id,
        generation=number,
        created_at=utc_text(clock.now()),
        randomness=keys.randomness,
    )
    return _changed(store, keys, (*entries, added), root=root, number=number)


def remove_recipient(
    store: ObjectStore,
    keys: RepositoryKeys,
    recipient_id: bytes,
    *,
    leave_no_sheet: bool = False,
) -> RepositoryKeys:
    """Shut a recipient out, and rotate, so that nothing it may have kept opens what comes after.

    Raises: NotFound, Refused (the last one; the last sheet without ``leave_no_sheet``), and as above.
    """
    entries = recipients_of(store, keys)
    entry = found_recipient(entries, recipient_id.hex())
    rest = check_removal(entries, entry, leave_no_sheet=leave_no_sheet)
    return rotate(store, keys, recipients=rest)


def rotate(
    store: ObjectStore,
    keys: RepositoryKeys,
    *,
    recipients: tuple[RecipientEntry, ...] | None = None,
) -> RepositoryKeys:
    """New root, new epoch for all that is written from now on, new authority key.

    ``recipients``: who can open it afterwards; None: the same ones. Old epochs stay inside.
    Raises: Refused, RepositoryFull, RepositoryFailed; after the last nobody knows: open again.
    """
    entries = recipients_of(store, keys) if recipients is None else recipients
    number = next_generation(store)
    secrets = keys.secrets
    authority = keys.randomness.draw(KEY_BYTES)
    public = Ed25519PrivateKey.from_private_bytes(authority).public_key().public_bytes_raw()
    closed = handed_on(
        secrets.authority_private,
        repository_id=secrets.repository_id,
        next_generation=number,
        successor=public,
        writers_number=keys.writers(store).number,
    )
    changed = replace(
        secrets,
        authority_private=authority,
        earlier_authorities=(*secrets.earlier_authorities, secrets.authority_private),
        epochs=(*secrets.epochs, new_epoch(secrets.current.epoch + 1, keys.randomness)),
    )
    return _changed(
        store,
        keys,
        entries,
        root=keys.randomness.draw(KEY_BYTES),
        number=number,
        secrets=changed,
        earlier=(*keys.earlier, closed),
    )


def settle(store: ObjectStore, keys: RepositoryKeys) -> list[str]:
    """Finish what a change began: second copy, list of writers under the new keys, no older generation.

    Harmless when there is nothing to do. Returns older generations that the store does not let go.
    Raises: IntegrityError, RepositoryFull, RepositoryFailed.
    """
    complete_generation(store, keys.generation)
    for name in (keys_name(keys.generation), copy_name(keys_name(keys.generation))):
        if generation_named(store, name).head.authority_public != keys.authority_public:
            raise IntegrityError("a copy of the keys is another one", name=name)
    number = keys.writers(store).number
    if number and _key_epoch(store, writers_name(number)) != keys.secrets.current.epoch:
        keys.restate_writers(store)
    else:
        store_missing_copy(store, number)
    return remove_older_generations(store, keys.generation)


def found_recipient(entries: tuple[RecipientEntry, ...], named: str) -> RecipientEntry:
    """The one with that id or label. Raises: NotFound."""
    for entry in entries:
        if named and named in (entry.recipient_id.hex(), entry.label):
            return entry
    raise NotFound("there is no such recipient", recipient=named[:LABEL_LENGTH_MAX])


def check_addition(entries: tuple[RecipientEntry, ...], recipient: NewRecipient) -> None:
    """Whether it can join them. Raises: UsageError, Refused."""
    check_label(recipient.label)
    for entry in entries:
        if entry.public_key == recipient.public_key:
            raise Refused("this recipient is there already", recipient=entry.recipient_id.hex())
        if entry.label == recipient.label:
            raise Refused("another recipient has this label", label=recipient.label)
    if len(entries) >= RECIPIENTS_MAX:
        raise Refused("a repository has no more recipients than this", recipients=RECIPIENTS_MAX)


def check_removal(
    entries: tuple[RecipientEntry, ...], entry: RecipientEntry, *, leave_no_sheet: bool
) -> tuple[RecipientEntry, ...]:
    """Who remains without ``entry``. Raises: Refused."""
    rest = tuple(each for each in entries if each.recipient_id != entry.recipient_id)
    if not rest:
        raise Refused("the last recipient stays: nobody could open the repository again")
    sheets = [each for each in rest if each.kind == RECOVERY_SHEET]
    if entry.kind == RECOVERY_SHEET and not sheets and not leave_no_sheet:
        raise Refused(
            "this is the last recovery sheet: without one, losing the controller loses every backup",
            advice="add a new sheet first: `holdfast key add recovery-sheet`",
        )
    return rest


def check_label(label: str) -> None:
    """Raises: UsageError."""
    if not label or len(label) > LABEL_LENGTH_MAX or not label.isprintable():
        raise UsageError("a recipient needs a label of printable characters", label=label[:20])


def _changed(
    store: ObjectStore,
    keys: RepositoryKeys,
    entries: tuple[RecipientEntry, ...],
    *,
    root: bytes,
    number: int,
    secrets: KeySecrets | None = None,
    earlier: tuple[EarlierAuthority, ...] | None = None,
) -> RepositoryKeys:
    secrets = secrets or keys.secrets
    earlier = keys.earlier if earlier is None else earlier
    wrapped = tuple(
        rewrapped(
            entry,
            root=root,
            repository_id=secrets.repository_id,
            generation=number,
            randomness=keys.randomness,
        )
        for entry in entries
    )
    data = encoded_generation(
        secrets,
        root=root,
        generation=number,
        salt=keys.randomness.draw(32),
        recipients=wrapped,
        earlier=earlier,
    )
    # What would lock everybody out must not be stored: it is read back before, as a reader would.
    if decoded_generation(data).open(root) != secrets:
        raise IntegrityError("the new keys could not be read back; nothing was changed")
    changed = RepositoryKeys(
        secrets, generation=number, randomness=keys.randomness, earlier=earlier
    )
    changed.writers_number_min = keys.writers_number_min
    put_generation(store, number, data)
    log.info("keys changed", extra={"generation": number, "recipients": len(entries)})
    return changed


def _key_epoch(store: ObjectStore, name: str) -> int:
    """0 when it cannot be told: then the list is put again."""
    try:
        return ObjectHeader.decode(get_range(store, name, offset=0, length=HEADER.size)).key_epoch
    except IntegrityError:
        return 0

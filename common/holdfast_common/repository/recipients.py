"""Who can open a repository: passphrase, key file, public key, recovery sheet.

Every recipient has an X25519 key pair, whatever its secret looks like, so the root can be wrapped again
for all that remain (rotation, removal) without asking any of them for a secret.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from holdfast_common.errors import FormatError, UsageError, WrongKey
from holdfast_common.repository.derivation import derived_key, opened_with_private_key
from holdfast_common.repository.layout import KEY_BYTES
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.recovery_sheet import RecoverySheet

PASSPHRASE: Final = "passphrase"  # noqa: S105 - the name of a kind, not a secret
KEY_FILE: Final = "key-file"
PUBLIC_KEY: Final = "public-key"
RECOVERY_SHEET: Final = "recovery-sheet"
KINDS: Final = frozenset({PASSPHRASE, KEY_FILE, PUBLIC_KEY, RECOVERY_SHEET})

_KEY_FILE_PREFIX: Final = "holdfast-key-1:"
_PRIVATE_PREFIX: Final = "holdfast-private-1:"
_PUBLIC_PREFIX: Final = "holdfast-public-1:"
_ARGON2_MEMORY_KIB_MAX: Final = 1024 * 1024  # a hostile key object must not exhaust memory
_ARGON2_ITERATIONS_MAX: Final = 32
_ARGON2_LANES_MAX: Final = 16
_RECIPIENT_INFO: Final = b"holdfast 1 recipient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2Cost:
    """How expensive one guess at a passphrase is. The default is RFC 9106's second recommendation."""

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        if not (
            8 * self.lanes <= self.memory_kib <= _ARGON2_MEMORY_KIB_MAX
            and 1 <= self.iterations <= _ARGON2_ITERATIONS_MAX
            and 1 <= self.lanes <= _ARGON2_LANES_MAX
        ):
            raise FormatError("Argon2id's cost is out of bounds", memory_kib=self.memory_kib)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientEntry:
    """A recipient as it stands in plain in a key generation."""

    recipient_id: bytes  # 8 random bytes
    kind: str
    label: str
    created_at: str
    public_key: bytes
    argon2_salt: bytes  # empty unless the kind is passphrase
    argon2: Argon2Cost | None  # None unless the kind is passphrase
    wrapped_root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRecipient:
    """A recipient to be added: its key pair's public half and how the private half is found again."""

    kind: str
    label: str
    public_key: bytes
    argon2_salt: bytes = b""
    argon2: Argon2Cost | None = None


class Unlock(Protocol):
    """A secret that may open a repository."""

    def private_key(self, entry: RecipientEntry) -> bytes | None:
        """The private key for that entry; None when this secret is of another kind."""
        ...


@dataclass(frozen=True, slots=True)
class PassphraseUnlock:
    """A passphrase."""

    passphrase: str = field(repr=False)

    def private_key(self, entry: RecipientEntry) -> bytes | None:
        """By Argon2id."""
        if entry.kind != PASSPHRASE or entry.argon2 is None:
            return None
        return _passphrase_private(self.passphrase, salt=entry.argon2_salt, cost=entry.argon2)


@dataclass(frozen=True, slots=True)
class KeyFileUnlock:
    """The content of a key file."""

    content: bytes = field(repr=False)

    def private_key(self, entry: RecipientEntry) -> bytes | None:
        """From the file's secret. Raises: WrongKey when the file is no key file."""
        if entry.kind != KEY_FILE:
            return None
        return _key_file_private(self.content)


@dataclass(frozen=True, slots=True)
class PrivateKeyUnlock:
    """An X25519 private key, 32 bytes."""

    key: bytes = field(repr=False)

    def private_key(self, entry: RecipientEntry) -> bytes | None:
        """The key itself."""
        return self.key if entry.kind == PUBLIC_KEY else None


@dataclass(frozen=True, slots=True)
class RecoveryUnlock:
    """A recovery sheet."""

    sheet: RecoverySheet

    def private_key(self, entry: RecipientEntry) -> bytes | None:
        """From the sheet's secret."""
        return _sheet_private(self.sheet) if entry.kind == RECOVERY_SHEET else None


def passphrase_recipient(
    passphrase: str, *, label: str, randomness: Randomness, cost: Argon2Cost | None = None
) -> NewRecipient:
    """A recipient who knows a passphrase. Raises: UsageError when it is empty."""
    if not passphrase:
        raise UsageError("an empty passphrase protects nothing")
    cost = cost or Argon2Cost()
    salt = randomness.draw(16)
    private = _passphrase_private(passphrase, salt=salt, cost=cost)
    return NewRecipient(
        kind=PASSPHRASE, label=label, public_key=_public(private), argon2_salt=salt, argon2=cost
    )


def new_key_file(randomness: Randomness) -> bytes:
    """The content of a new key file: one line."""
    return f"{_KEY_FILE_PREFIX}{randomness.draw(KEY_BYTES).hex()}\n".encode()


def key_file_recipient(content: bytes, *, label: str) -> NewRecipient:
    """A recipient who holds that key file. Raises: WrongKey when it is no key file."""
    return NewRecipient(kind=KEY_FILE, label=label, public_key=_public(_key_file_private(content)))


def public_key_recipient(public_key: bytes, *, label: str) -> NewRecipient:
    """A recipient of whom only the X25519 public key is known here."""
    if len(public_key) != KEY_BYTES:
        raise UsageError("an X25519 public key has 32 bytes", length=len(public_key))
    return NewRecipient(kind=PUBLIC_KEY, label=label, public_key=public_key)


def new_private_key_text(randomness: Randomness) -> str:
    """A new private key as its owner keeps it: one line."""
    return f"{_PRIVATE_PREFIX}{randomness.draw(KEY_BYTES).hex()}\n"


def private_key_of_text(content: bytes) -> bytes:
    """The inverse. Raises: WrongKey."""
    return _key_of_text(content, prefix=_PRIVATE_PREFIX, what="private key")


def public_key_text(private_key: bytes) -> str:
    """What the owner of a private key hands out."""
    return f"{_PUBLIC_PREFIX}{_public(private_key).hex()}"


def public_key_of_text(content: bytes) -> bytes:
    """The public key in such a text. Raises: WrongKey."""
    return _key_of_text(content, prefix=_PUBLIC_PREFIX, what="public key")


def recovery_recipient(sheet: RecoverySheet) -> NewRecipient:
    """The recipient on paper."""
    return NewRecipient(
        kind=RECOVERY_SHEET, label="recovery sheet", public_key=_public(_sheet_private(sheet))
    )


def wrapped_for(
    recipient: NewRecipient,
    *,
    root: bytes,
    repository_id: bytes,
    generation: int,
    created_at: str,
    randomness: Randomness,
) -> RecipientEntry:
    """The entry that lets ``recipient`` open ``root``."""
    recipient_id = randomness.draw(8)
    info = recipient_info(
        repository_id=repository_id,
        generation=generation,
        recipient_id=recipient_id,
        kind=recipient.kind,
    )
    return RecipientEntry(
        recipient_id=recipient_id,
        kind=recipient.kind,
        label=recipient.label,
        created_at=created_at,
        public_key=recipient.public_key,
        argon2_salt=recipient.argon2_salt,
        argon2=recipient.argon2,
        wrapped_root=randomness.seal_to(recipient.public_key, plain=root, info=info),
    )


def rewrapped(
    entry: RecipientEntry,
    *,
    root: bytes,
    repository_id: bytes,
    generation: int,
    randomness: Randomness,
) -> RecipientEntry:
    """The same recipient, opening another root; its secret is not needed for that."""
    info = recipient_info(
        repository_id=repository_id,
        generation=generation,
        recipient_id=entry.recipient_id,
        kind=entry.kind,
    )
    sealed = randomness.seal_to(entry.public_key, plain=root, info=info)
    return replace(entry, wrapped_root=sealed)


def unlocks(unlock: Unlock, entry: RecipientEntry) -> bool:
    """Whether that secret is this recipient's. Raises: WrongKey when it is no secret of its kind at all."""
    private = unlock.private_key(entry)
    return private is not None and _public(private) == entry.public_key


def unwrapped_root(
    entry: RecipientEntry, *, unlock: Unlock, repository_id: bytes, generation: int
) -> bytes | None:
    """The root, or None when ``unlock`` does not belong to this entry."""
    private = unlock.private_key(entry)
    if private is None or _public(private) != entry.public_key:
        return None
    info = recipient_info(
        repository_id=repository_id,
        generation=generation,
        recipient_id=entry.recipient_id,
        kind=entry.kind,
    )
    return opened_with_private_key(private, sealed=entry.wrapped_root, info=info)


def recipient_info(
    *, repository_id: bytes, generation: int, recipient_id: bytes, kind: str
) -> bytes:
    """What HPKE binds a wrapped root to."""
    return (
        _RECIPIENT_INFO
        + repository_id
        + generation.to_bytes(4, "little")
        + recipient_id
        + kind.encode()
    )


def _public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _passphrase_private(passphrase: str, *, salt: bytes, cost: Argon2Cost) -> bytes:
    return Argon2id(
        salt=salt,
        length=KEY_BYTES,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive(passphrase.encode())


def _key_file_private(content: bytes) -> bytes:
    secret = _key_of_text(content, prefix=_KEY_FILE_PREFIX, what="key file")
    return derived_key(secret, salt=b"", info=b"holdfast 1 key file")


def _key_of_text(content: bytes, *, prefix: str, what: str) -> bytes:
    text = content.decode("ascii", "replace").strip()
    if not text.startswith(prefix):
        raise WrongKey(f"this is not a {what} of Holdfast")
    try:
        key = binascii.unhexlify(text.removeprefix(prefix))
    except (binascii.Error, ValueError) as error:
        raise WrongKey(f"this {what} is damaged") from error
    if len(key) != KEY_BYTES:
        raise WrongKey(f"this {what} is damaged", length=len(key))
    return key


def _sheet_private(sheet: RecoverySheet) -> bytes:
    return derived_key(sheet.secret, salt=b"", info=b"holdfast 1 recovery sheet")

"""One key generation as bytes: who may open it in plain, and under the root everything else.

File: magic 8 | format u16 | head length u32 | head | sealed length u32 | sealed | signature 64.
Head and sealed part are JSON. The sealed part's associated data is everything before it; the authority
key signs everything before the signature.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.repository.derivation import derived_key
from holdfast_common.repository.layout import FORMAT_VERSION, ID_BYTES, KEY_BYTES, UNREADABLE
from holdfast_common.repository.recipients import KINDS, Argon2Cost, RecipientEntry

KEYS_BYTES_MAX: Final = 1 << 20
_MAGIC: Final = b"HFKEYS\x00\x00"
_START: Final = struct.Struct("<8sHI")
_LENGTH: Final = struct.Struct("<I")
_SIGNED: Final = b"holdfast 1 keys signature\x00"
_SUCCESSION: Final = b"holdfast 1 authority\x00"
_SEALED_KEY: Final = b"holdfast 1 keys"
_SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSecrets:
    """What one key epoch seals with. Old epochs stay, because old objects do."""

    epoch: int
    index_key: bytes = field(repr=False)
    meta_key: bytes = field(repr=False)
    content_private: bytes = field(repr=False)
    content_public: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierAuthority:
    """An authority key that a rotation replaced: what it signed before stays valid, and no more."""

    public_key: bytes
    next_generation: int  # the first that its successor signed
    writers_number: int  # the highest list of writers that it may have signed
    signature: bytes  # its own, under its successor; see `succession_message`


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySecrets:
    """What the root seals."""

    repository_id: bytes
    domain_id: bytes
    id_key: bytes = field(repr=False)
    authority_private: bytes = field(repr=False)
    epochs: tuple[EpochSecrets, ...]
    earlier_authorities: tuple[bytes, ...] = field(default=(), repr=False)  # private, oldest first

    @property
    def current(self) -> EpochSecrets:
        """The epoch that new objects are sealed with."""
        return self.epochs[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGenerationHead:
    """What anyone can read of a key generation."""

    repository_id: bytes
    domain_id: bytes
    generation: int
    authority_public: bytes
    content_public: dict[int, bytes]
    salt: bytes
    recipients: tuple[RecipientEntry, ...]
    earlier: tuple[EarlierAuthority, ...] = ()  # oldest first

    def descends_from(self, authority: bytes) -> bool:
        """Whether that public key signed this generation, or handed on to the key that did."""
        known = {self.authority_public, *(each.public_key for each in self.earlier)}
        return authority in known


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGeneration:
    """A key generation that is complete and signed, not yet opened."""

    head: KeyGenerationHead
    associated: bytes
    sealed: bytes
    encoded: bytes  # the whole object

    def open(self, root: bytes) -> KeySecrets:
        """Raises: IntegrityError."""
        key = _sealing_key(root, self.head)
        try:
            plain = AESGCM(key).decrypt(bytes(12), self.sealed, self.associated)
        except InvalidTag as error:
            raise IntegrityError("a key generation was damaged or forged") from error
        secrets = _secrets_from_json(plain)
        authority = Ed25519PrivateKey.from_private_bytes(secrets.authority_private)
        public = {epoch.epoch: epoch.content_public for epoch in secrets.epochs}
        earlier = tuple(_public_of(private) for private in secrets.earlier_authorities)
        if (
            secrets.repository_id != self.head.repository_id
            or secrets.domain_id != self.head.domain_id
            or authority.public_key().public_bytes_raw() != self.head.authority_public
            or public != self.head.content_public
            or earlier != tuple(each.public_key for each in self.head.earlier)
        ):
            raise IntegrityError("a key generation's two halves do not belong together")
        return secrets


def encoded_generation(
    secrets: KeySecrets,
    *,
    root: bytes,
    generation: int,
    salt: bytes,
    recipients: tuple[RecipientEntry, ...],
    earlier: tuple[EarlierAuthority, ...] = (),
) -> bytes:
    """The bytes of the object ``keys/<generation>``."""
    authority = Ed25519PrivateKey.from_private_bytes(secrets.authority_private)
    head = KeyGenerationHead(
        repository_id=secrets.repository_id,
        domain_id=secrets.domain_id,
        generation=generation,
        authority_public=authority.public_key().public_bytes_raw(),
        content_public={epoch.epoch: epoch.content_public for epoch in secrets.epochs},
        salt=salt,
        recipients=recipients,
        earlier=earlier,
    )
    plain_head = _head_to_json(head)
    associated = _START.pack(_MAGIC, FORMAT_VERSION, len(plain_head)) + plain_head
    sealed = AESGCM(_sealing_key(root, head)).encrypt(
        bytes(12), _secrets_to_json(secrets), associated
    )
    unsigned = associated + _LENGTH.pack(len(sealed)) + sealed
    return unsigned + authority.sign(_SIGNED + unsigned)


def decoded_generation(data: bytes) -> StoredGeneration:
    """Raises: FormatError, IntegrityError."""
    if len(data) < _START.size:
        raise IntegrityError("key generation ends in its header", length=len(data))
    magic, version, head_length = _START.unpack_from(data)
    if magic != _MAGIC:
        raise IntegrityError("not a key generation")
    if version != FORMAT_VERSION:
        raise FormatError("unknown format of repository", format=version)
    head_end = _START.size + head_length
    if len(data) < head_end + _LENGTH.size:
        raise IntegrityError("key generation ends in its head", length=len(data))
    (sealed_length,) = _LENGTH.unpack_from(data, head_end)
    sealed_end = head_end + _LENGTH.size + sealed_length
    if len(data) != sealed_end + _SIGNATURE_BYTES:
        raise IntegrityError("key generation has a wrong length", length=len(data))
    head = _head_from_json(data[_START.size : head_end])
    try:
        Ed25519PublicKey.from_public_bytes(head.authority_public).verify(
            data[sealed_end:], _SIGNED + data[:sealed_end]
        )
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError("the signature of a key generation is wrong") from error
    _check_succession(head)
    return StoredGeneration(
        head=head,
        associated=data[:head_end],
        sealed=data[head_end + _LENGTH.size : sealed_end],
        encoded=data,
    )


def handed_on(
    private_key: bytes,
    *,
    repository_id: bytes,
    next_generation: int,
    successor: bytes,
    writers_number: int,
) -> EarlierAuthority:
    """An authority's last act: it names its successor, and how far its own word goes."""
    message = succession_message(
        repository_id,
        next_generation=next_generation,
        successor=successor,
        writers_number=writers_number,
    )
    return EarlierAuthority(
        public_key=_public_of(private_key),
        next_generation=next_generation,
        writers_number=writers_number,
        signature=Ed25519PrivateKey.from_private_bytes(private_key).sign(message),
    )


def succession_message(
    repository_id: bytes, *, next_generation: int, successor: bytes, writers_number: int
) -> bytes:
    """What an authority signs when it is replaced."""
    numbers = next_generation.to_bytes(4, "little") + writers_number.to_bytes(8, "little")
    return _SUCCESSION + repository_id + numbers + successor


def _check_succession(head: KeyGenerationHead) -> None:
    """Every earlier authority named the one after it. Raises: IntegrityError."""
    authorities = [each.public_key for each in head.earlier] + [head.authority_public]
    for each, successor in zip(head.earlier, authorities[1:], strict=True):
        message = succession_message(
            head.repository_id,
            next_generation=each.next_generation,
            successor=successor,
            writers_number=each.writers_number,
        )
        try:
            Ed25519PublicKey.from_public_bytes(each.public_key).verify(each.signature, message)
        except (InvalidSignature, ValueError) as error:
            raise IntegrityError("an authority did not name its successor") from error


def _public_of(private_key: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def _sealing_key(root: bytes, head: KeyGenerationHead) -> bytes:
    info = _SEALED_KEY + head.repository_id + head.generation.to_bytes(4, "little")
    return derived_key(root, salt=head.salt, info=info)


def _head_to_json(head: KeyGenerationHead) -> bytes:
    entries = []
    for entry in head.recipients:
        fields: dict[str, object] = {
            "id": entry.recipient_id.hex(),
            "kind": entry.kind,
            "label": entry.label,
            "created_at": entry.created_at,
            "public_key": entry.public_key.hex(),
            "wrapped_root": entry.wrapped_root.hex(),
        }
        if entry.argon2 is not None:
            fields["argon2id"] = {
                "salt": entry.argon2_salt.hex(),
                "memory_kib": entry.argon2.memory_kib,
                "iterations": entry.argon2.iterations,
                "lanes": entry.argon2.lanes,
            }
        entries.append(fields)
    document: dict[str, object] = {
        "repository_id": head.repository_id.hex(),
        "domain_id": head.domain_id.hex(),
        "generation": head.generation,
        "authority_public": head.authority_public.hex(),
        "content_public": {str(epoch): key.hex() for epoch, key in head.content_public.items()},
        "salt": head.salt.hex(),
        "recipients": entries,
    }
    if head.earlier:
        document["earlier_authorities"] = [
            {
                "public_key": each.public_key.hex(),
                "next_generation": each.next_generation,
                "writers_number": each.writers_number,
                "signature": each.signature.hex(),
            }
            for each in head.earlier
        ]
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _head_from_json(data: bytes) -> KeyGenerationHead:
    try:
        document = json.loads(data)
        recipients = tuple(_entry_from_json(entry) for entry in document["recipients"])
        content = {
            int(epoch): bytes.fromhex(key) for epoch, key in document["content_public"].items()
        }
        head = KeyGenerationHead(
            repository_id=bytes.fromhex(document["repository_id"]),
            domain_id=bytes.fromhex(document["domain_id"]),
            generation=int(document["generation"]),
            authority_public=bytes.fromhex(document["authority_public"]),
            content_public=content,
            salt=bytes.fromhex(document["salt"]),
            recipients=recipients,
            earlier=tuple(
                EarlierAuthority(
                    public_key=bytes.fromhex(each["public_key"]),
                    next_generation=_unsigned(each["next_generation"], bits=32),
                    writers_number=_unsigned(each["writers_number"], bits=64),
                    signature=bytes.fromhex(each["signature"]),
                )
                for each in document.get("earlier_authorities", [])
            ),
        )
    except UNREADABLE as error:
        raise IntegrityError("a key generation's head cannot be read") from error
    if len(head.repository_id) != ID_BYTES or len(head.domain_id) != ID_BYTES or not content:
        raise IntegrityError("a key generation's head cannot be read")
    return head


def _unsigned(value: object, *, bits: int) -> int:
    number = int(str(value))
    if not 0 <= number < 1 << bits:
        raise ValueError(f"out of bounds: {number}")
    return number


def _entry_from_json(entry: dict[str, object]) -> RecipientEntry:
    kind = str(entry["kind"])
    if kind not in KINDS:
        raise IntegrityError("unknown kind of recipient", kind=kind[:40])
    cost = None
    salt = b""
    parameters = entry.get("argon2id")
    if isinstance(parameters, dict):
        salt = bytes.fromhex(parameters["salt"])
        cost = Argon2Cost(
            memory_kib=int(parameters["memory_kib"]),
            iterations=int(parameters["iterations"]),
            lanes=int(parameters["lanes"]),
        )
    return RecipientEntry(
        recipient_id=bytes.fromhex(str(entry["id"])),
        kind=kind,
        label=str(entry["label"]),
        created_at=str(entry["created_at"]),
        public_key=bytes.fromhex(str(entry["public_key"])),
        argon2_salt=salt,
        argon2=cost,
        wrapped_root=bytes.fromhex(str(entry["wrapped_root"])),
    )


def _secrets_to_json(secrets: KeySecrets) -> bytes:
    document: dict[str, object] = {
        "repository_id": secrets.repository_id.hex(),
        "domain_id": secrets.domain_id.hex(),
        "id_key": secrets.id_key.hex(),
        "authority_private": secrets.authority_private.hex(),
        "epochs": [
            {
                "epoch": epoch.epoch,
                "index_key": epoch.index_key.hex(),
                "meta_key": epoch.meta_key.hex(),
                "content_private": epoch.content_private.hex(),
                "content_public": epoch.content_public.hex(),
            }
            for epoch in secrets.epochs
        ],
    }
    if secrets.earlier_authorities:
        document["earlier_authorities"] = [key.hex() for key in secrets.earlier_authorities]
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _secrets_from_json(data: bytes) -> KeySecrets:
    try:
        document = json.loads(data)
        epochs = tuple(
            EpochSecrets(
                epoch=int(epoch["epoch"]),
                index_key=bytes.fromhex(epoch["index_key"]),
                meta_key=bytes.fromhex(epoch["meta_key"]),
                content_private=bytes.fromhex(epoch["content_private"]),
                content_public=bytes.fromhex(epoch["content_public"]),
            )
            for epoch in document["epochs"]
        )
        secrets = KeySecrets(
            repository_id=bytes.fromhex(document["repository_id"]),
            domain_id=bytes.fromhex(document["domain_id"]),
            id_key=bytes.fromhex(document["id_key"]),
            authority_private=bytes.fromhex(document["authority_private"]),
            epochs=epochs,
            earlier_authorities=tuple(
                bytes.fromhex(key) for key in document.get("earlier_authorities", [])
            ),
        )
    except UNREADABLE as error:
        raise IntegrityError("a key generation's secrets cannot be read") from error
    if not epochs or len(secrets.id_key) != KEY_BYTES:
        raise IntegrityError("a key generation's secrets cannot be read")
    return secrets

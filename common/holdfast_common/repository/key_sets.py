"""The keys that a job gets: everything a writer or a reader of one lineage needs, and no more.

They travel in StartJob and live in memory only; their secrets never show in a repr.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.layout import (
    ID_BYTES,
    KEY_BYTES,
    LINEAGE_KINDS,
    NO_LINEAGE,
    ObjectKind,
)
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.sealed_object import (
    Expected,
    ObjectHeader,
    OpenedObject,
    SealedStream,
    opened,
)

WRAPPED_KEY_BYTES_MAX = 1024  # an HPKE-wrapped key of today has 80
GRANT_BYTES = 8 + 64  # controller epoch u64, signature
_GRANT = b"holdfast 1 commit grant\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochKeys:
    """The class keys of one key epoch, as far as one lineage goes."""

    epoch: int
    index_key: bytes = field(repr=False)
    lineage_key: bytes = field(repr=False)  # empty in a set that belongs to no lineage
    copy_key: bytes = field(
        default=b"", repr=False
    )  # empty in every set that leaves the controller


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedAuthority:
    """An authority key of before a rotation: its grants stay good, and its lists of writers up to a number."""

    public_key: bytes
    writers_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderKeys:
    """What opens the metadata of one lineage (or, without a lineage, what all of them share)."""

    repository_id: bytes
    domain_id: bytes
    lineage_id: str
    lineage_tag: bytes
    id_key: bytes = field(repr=False)
    epochs: tuple[EpochKeys, ...]  # ascending; the last one is the current one
    authority_public: bytes
    writers_number_min: int = 0  # an older list of writers than this one is a replay
    replaced_authorities: tuple[ReplacedAuthority, ...] = ()

    def may_list_writers(self, signer: bytes | None, *, number: int) -> bool:
        """Whether list ``number`` counts when that key signed it."""
        return signer == self.authority_public or any(
            each.public_key == signer and number <= each.writers_number
            for each in self.replaced_authorities
        )

    def class_key(self, kind: ObjectKind, epoch: int) -> bytes:
        """The class key of that kind and epoch. Raises: IntegrityError when there is none."""
        for keys in self.epochs:
            if keys.epoch == epoch:
                key = keys.lineage_key if kind in LINEAGE_KINDS else keys.index_key
                if kind is ObjectKind.CONTROLLER_COPY:
                    key = keys.copy_key
                if key:
                    return key
        raise IntegrityError(
            "an object names keys that are not known here: it is damaged, or newer than these keys",
            kind=kind.name,
            epoch=epoch,
        )

    @property
    def current_epoch(self) -> int:
        """The key epoch that new objects carry."""
        return self.epochs[-1].epoch

    def expected(self, kind: ObjectKind, object_id: bytes | None = None) -> Expected:
        """What an object of this kind must say of itself."""
        return Expected(
            kind=kind,
            repository_id=self.repository_id,
            domain_id=self.domain_id,
            lineage_tag=self.lineage_tag if kind in LINEAGE_KINDS else NO_LINEAGE,
            object_id=object_id,
        )

    def new_header(self, kind: ObjectKind, randomness: Randomness) -> ObjectHeader:
        """The header of a new object, in the current key epoch."""
        return ObjectHeader(
            kind=kind,
            key_epoch=self.current_epoch,
            repository_id=self.repository_id,
            domain_id=self.domain_id,
            object_id=randomness.draw(ID_BYTES),
            lineage_tag=self.lineage_tag if kind in LINEAGE_KINDS else NO_LINEAGE,
            salt=randomness.draw(KEY_BYTES),
        )

    def stream(
        self,
        kind: ObjectKind,
        *,
        signing_key: Ed25519PrivateKey | None,
        randomness: Randomness,
        write: Callable[[bytes], None],
    ) -> SealedStream:
        """Seal a new object piece by piece."""
        header = self.new_header(kind, randomness)
        class_key = self.class_key(kind, header.key_epoch)
        return SealedStream(header, class_key=class_key, signing_key=signing_key, write=write)

    def seal(
        self,
        kind: ObjectKind,
        body: bytes,
        *,
        signing_key: Ed25519PrivateKey | None,
        randomness: Randomness,
    ) -> bytes:
        """A new object's bytes."""
        pieces: list[bytes] = []
        stream = self.stream(
            kind, signing_key=signing_key, randomness=randomness, write=pieces.append
        )
        stream.write(body)
        stream.finish()
        return b"".join(pieces)

    def open(
        self, kind: ObjectKind, data: bytes | memoryview, *, object_id: bytes | None = None
    ) -> OpenedObject:
        """Check and open a whole object. Raises: FormatError, IntegrityError."""
        return opened(data, expected=self.expected(kind, object_id), class_key=self.class_key)

    def hasher(self) -> Hasher:
        """The keyed hashes of the repository."""
        return Hasher.from_id_key(self.id_key)

    def check_grant(
        self, grant: bytes, *, job_id: str, attempt: int, manifest_digest: bytes
    ) -> int:
        """The controller epoch of a commit grant for exactly that manifest. Raises: IntegrityError."""
        if len(grant) != GRANT_BYTES:
            raise IntegrityError("a commit grant has a wrong length", length=len(grant))
        epoch = int.from_bytes(grant[:8], "little")
        message = grant_message(
            self.repository_id,
            job_id=job_id,
            attempt=attempt,
            manifest_digest=manifest_digest,
            epoch=epoch,
        )
        authorities = (self.authority_public, *(a.public_key for a in self.replaced_authorities))
        for authority in authorities:
            try:
                Ed25519PublicKey.from_public_bytes(authority).verify(grant[8:], message)
            except (InvalidSignature, ValueError):
                continue
            return epoch
        raise IntegrityError("a commit grant is not the controller's", job_id=job_id)

    def to_bytes(self) -> bytes:
        """For a message; secret."""
        return json.dumps(_reader_fields(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ReaderKeys:
        """The inverse of `to_bytes`. Raises: FormatError."""
        return _reader_from_fields(_fields(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterKeys:
    """A reader's keys of one lineage, and the public key that new content is sealed to."""

    reader: ReaderKeys
    content_epoch: int
    content_public: bytes

    def to_bytes(self) -> bytes:
        """For a message; secret."""
        fields = _reader_fields(self.reader)
        fields["content_epoch"] = self.content_epoch
        fields["content_public"] = self.content_public.hex()
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> WriterKeys:
        """The inverse of `to_bytes`. Raises: FormatError."""
        fields = _fields(data)
        try:
            return cls(
                reader=_reader_from_fields(fields),
                content_epoch=int(str(fields["content_epoch"])),
                content_public=bytes.fromhex(str(fields["content_public"])),
            )
        except (KeyError, ValueError) as error:
            raise FormatError("a writer's keys cannot be read") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentKeyRequest:
    """A pack segment whose key is wanted; all of it stands in plain in pack and index."""

    origin_id: bytes
    content_epoch: int
    wrapped_key: bytes

    def to_bytes(self) -> bytes:
        """For a message: content epoch as u32 little-endian, the 16 bytes of the origin, the wrapped key."""
        return self.content_epoch.to_bytes(4, "little") + self.origin_id + self.wrapped_key

    @classmethod
    def from_bytes(cls, data: bytes) -> SegmentKeyRequest:
        """The inverse of `to_bytes`. Raises: FormatError."""
        if not 4 + ID_BYTES < len(data) <= 4 + ID_BYTES + WRAPPED_KEY_BYTES_MAX:
            raise FormatError("a request for a segment key has a wrong length", length=len(data))
        return cls(
            content_epoch=int.from_bytes(data[:4], "little"),
            origin_id=data[4 : 4 + ID_BYTES],
            wrapped_key=data[4 + ID_BYTES :],
        )


class SegmentKeyOpener(Protocol):
    """Opens segment keys: locally with the root, or by asking the controller."""

    def open_segment_keys(self, requests: list[SegmentKeyRequest]) -> list[bytes]:
        """The keys in the requests' order. Raises: WrongKey, Refused, ControllerUnreachable."""
        ...


class KeyRing(Protocol):
    """Keys of many lineages, for listing and checking a whole repository."""

    @property
    def common(self) -> ReaderKeys:
        """Keys of what no lineage owns: index, writers, fences."""
        ...

    def of_tag(self, lineage_tag: bytes) -> ReaderKeys | None:
        """Keys of the lineage with that tag; None: not among these keys. Its ``lineage_id`` may be empty."""
        ...


@dataclass(frozen=True, slots=True)
class LineageKeyRing:
    """A key ring of a few lineages: what an agent gets for a check."""

    members: tuple[ReaderKeys, ...]

    @property
    def common(self) -> ReaderKeys:
        """The first lineage's: they agree on what is common."""
        return self.members[0]

    def of_tag(self, lineage_tag: bytes) -> ReaderKeys | None:
        """The member of that lineage."""
        return next((keys for keys in self.members if keys.lineage_tag == lineage_tag), None)


def segment_info(*, repository_id: bytes, domain_id: bytes, origin_id: bytes, epoch: int) -> bytes:
    """What HPKE binds a segment key to."""
    return (
        b"holdfast 1 segment" + repository_id + domain_id + origin_id + epoch.to_bytes(4, "little")
    )


def grant_message(
    repository_id: bytes, *, job_id: str, attempt: int, manifest_digest: bytes, epoch: int
) -> bytes:
    """What the authority key signs when it grants a commit."""
    numbers = epoch.to_bytes(8, "little") + attempt.to_bytes(4, "little")
    return _GRANT + repository_id + numbers + manifest_digest + job_id.encode()


def _reader_fields(keys: ReaderKeys) -> dict[str, object]:
    return {
        "repository_id": keys.repository_id.hex(),
        "domain_id": keys.domain_id.hex(),
        "lineage_id": keys.lineage_id,
        "lineage_tag": keys.lineage_tag.hex(),
        "id_key": keys.id_key.hex(),
        "epochs": [[e.epoch, e.index_key.hex(), e.lineage_key.hex()] for e in keys.epochs],
        "authority_public": keys.authority_public.hex(),
        "writers_number_min": keys.writers_number_min,
        "replaced_authorities": [
            [each.public_key.hex(), each.writers_number] for each in keys.replaced_authorities
        ],
    }


def _fields(data: bytes) -> dict[str, object]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise FormatError("keys cannot be read") from error
    if not isinstance(fields, dict):
        raise FormatError("keys cannot be read")
    return fields


def _reader_from_fields(fields: dict[str, object]) -> ReaderKeys:
    try:
        epochs = fields["epochs"]
        replaced = fields.get("replaced_authorities", [])
        assert isinstance(epochs, list)
        assert isinstance(replaced, list)
        return ReaderKeys(
            repository_id=bytes.fromhex(str(fields["repository_id"])),
            domain_id=bytes.fromhex(str(fields["domain_id"])),
            lineage_id=str(fields["lineage_id"]),
            lineage_tag=bytes.fromhex(str(fields["lineage_tag"])),
            id_key=bytes.fromhex(str(fields["id_key"])),
            epochs=tuple(
                EpochKeys(
                    epoch=int(epoch),
                    index_key=bytes.fromhex(index),
                    lineage_key=bytes.fromhex(lineage),
                )
                for epoch, index, lineage in epochs
            ),
            authority_public=bytes.fromhex(str(fields["authority_public"])),
            writers_number_min=int(str(fields["writers_number_min"])),
            replaced_authorities=tuple(
                ReplacedAuthority(public_key=bytes.fromhex(key), writers_number=int(number))
                for key, number in replaced
            ),
        )
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise FormatError("keys cannot be read") from error

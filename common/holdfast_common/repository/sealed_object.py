"""Metadata objects: sealed with AES-256-GCM in segments of 1 MiB, some of them signed.

File: header, segments, and for signed kinds a trailer of public key and signature. Every object has a
key of its own, made from its class key, its salt, its kind and its id. The header stands in the
associated data of each segment, so an object cannot pass for another kind, repository or lineage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.repository.derivation import derived_key
from holdfast_common.repository.layout import (
    ALGORITHM,
    FORMAT_VERSION,
    KEY_BYTES,
    LINEAGE_KINDS,
    NO_LINEAGE,
    SIGNED_KINDS,
    TAG_BYTES,
    ObjectKind,
)
from holdfast_common.repository.object_store import ObjectStore, RangeStore, get_range
from holdfast_common.units import MIB

# magic 8 | format u16 | algorithm u8 | kind u8 | key epoch u32 | repository 16 | domain 16 | object 16
# | lineage 16 | salt 32
HEADER: Final = struct.Struct("<8sHBBI16s16s16s16s32s")
MAGIC: Final = b"HFOBJECT"
SEGMENT_BYTES: Final = MIB
_STORED_SEGMENT_BYTES: Final = SEGMENT_BYTES + TAG_BYTES
_COUNTER: Final = struct.Struct("<QB")  # segment number, 1 for the last one
_AES_BLOCK: Final = 16
_FIRST_COUNTER: Final = (
    2  # GCM, NIST SP 800-38D: the nonce and a counter of 32 bits; 1 is the tag's
)
SIGNATURE_BYTES: Final = 32 + 64
_SIGNED: Final = b"holdfast 1 object signature\x00"
_OBJECT_KEY: Final = b"holdfast 1 object key"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectHeader:
    """What stands in plain at the start of every sealed object."""

    kind: ObjectKind
    key_epoch: int
    repository_id: bytes
    domain_id: bytes
    object_id: bytes
    lineage_tag: bytes
    salt: bytes

    def encode(self) -> bytes:
        """The header's 112 bytes."""
        return HEADER.pack(
            MAGIC, FORMAT_VERSION, ALGORITHM, self.kind, self.key_epoch, self.repository_id, self.domain_id,
            self.object_id, self.lineage_tag, self.salt,
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes | memoryview) -> ObjectHeader:
        """Raises: FormatError."""
        if len(data) < HEADER.size:
            raise IntegrityError("sealed object ends in its header", length=len(data))
        magic, version, algorithm, kind, epoch, repository, domain, object_id, lineage, salt = (
            HEADER.unpack_from(data)
        )
        if magic != MAGIC:
            raise IntegrityError("not a sealed object")
        if version != FORMAT_VERSION or algorithm != ALGORITHM:
            raise FormatError(
                "unknown format of a sealed object", format=version, algorithm=algorithm
            )
        try:
            known = ObjectKind(kind)
        except ValueError as error:
            raise IntegrityError("unknown kind of sealed object", kind=kind) from error
        return cls(
            kind=known, key_epoch=epoch, repository_id=repository, domain_id=domain, object_id=object_id,
            lineage_tag=lineage, salt=salt,
        )  # fmt: skip

    def object_key(self, class_key: bytes) -> bytes:
        """The key of this one object."""
        info = _OBJECT_KEY + bytes([self.kind]) + self.object_id
        return derived_key(class_key, salt=self.salt, info=info)


def with_known_format(data: bytes) -> bytes:
    """The same object with the format and the algorithm that are known here in its header."""
    fields = list(HEADER.unpack_from(data))
    fields[1:3] = FORMAT_VERSION, ALGORITHM
    return HEADER.pack(*fields) + data[HEADER.size :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a reader knows of an object before it opens it; everything else is refused."""

    kind: ObjectKind
    repository_id: bytes
    domain_id: bytes
    lineage_tag: bytes = NO_LINEAGE
    object_id: bytes | None = None  # None: the name did not tell

    def check(self, header: ObjectHeader) -> None:
        """Raises: IntegrityError."""
        assert (self.kind in LINEAGE_KINDS) == (self.lineage_tag != NO_LINEAGE)
        wanted = (self.kind, self.repository_id, self.domain_id, self.lineage_tag)
        found = (header.kind, header.repository_id, header.domain_id, header.lineage_tag)
        if wanted != found:
            raise IntegrityError(
                "an object stands where another belongs",
                wanted=self.kind.name,
                found=header.kind.name,
            )
        if self.object_id is not None and self.object_id != header.object_id:
            raise IntegrityError(
                "an object stands where another belongs",
                wanted=self.object_id.hex(),
                found=header.object_id.hex(),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedObject:
    """An object whose seal, and signature if its kind has one, were right."""

    header: ObjectHeader
    body: bytes
    digest: bytes  # BLAKE3 of the whole object
    signer: bytes | None  # public key; whether it may sign is `writers`' question


class SealedStream:
    """Seals a body that is written in pieces; memory: one segment. One thread; `finish` ends it."""

    def __init__(
        self,
        header: ObjectHeader,
        *,
        class_key: bytes,
        signing_key: Ed25519PrivateKey | None,
        write: Callable[[bytes], None],
    ) -> None:
        assert (signing_key is not None) == (header.kind in SIGNED_KINDS)
        self.header = header
        self._encoded = header.encode()
        self._cipher = AESGCM(header.object_key(class_key))
        self._signing_key = signing_key
        self._write = write
        self._hash = blake3()
        self._pending = bytearray()
        self._segment = 0
        self.body_length = 0
        self._emit(self._encoded)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append; the offset in the body at which ``data`` begins."""
        offset = self.body_length
        self._pending += data
        self.body_length += len(data)
        while len(self._pending) > SEGMENT_BYTES:
            self._seal(bytes(self._pending[:SEGMENT_BYTES]), last=False)
            del self._pending[:SEGMENT_BYTES]
        return offset

    def finish(self) -> bytes:
        """Seal the rest, sign; the BLAKE3 of the whole object."""
        self._seal(bytes(self._pending), last=True)
        self._pending.clear()
        if self._signing_key is not None:
            public = self._signing_key.public_key().public_bytes_raw()
            self._emit(public)
            self._emit(self._signing_key.sign(_SIGNED + self._hash.digest()))
        return self._hash.digest()

    def _seal(self, plain: bytes, *, last: bool) -> None:
        nonce = self._segment.to_bytes(12, "big")
        associated = self._encoded + _COUNTER.pack(self._segment, last)
        self._emit(self._cipher.encrypt(nonce, plain, associated))
        self._segment += 1

    def _emit(self, data: bytes) -> None:
        self._hash.update(data)
        self._write(data)


def opened(
    data: bytes | memoryview, *, expected: Expected, class_key: Callable[[ObjectKind, int], bytes]
) -> OpenedObject:
    """Check and open a whole object. ``class_key`` gives the key of a kind and epoch.

    Raises: FormatError, IntegrityError.
    """
    view = memoryview(data)
    header = ObjectHeader.decode(view)
    expected.check(header)
    signer = None
    end = len(view)
    if header.kind in SIGNED_KINDS:
        end -= SIGNATURE_BYTES
        signer = _checked_signer(view, end)
    length = body_length(len(view), kind=header.kind)
    cipher = AESGCM(header.object_key(class_key(header.kind, header.key_epoch)))
    pieces = []
    for number in range(_segment_count(length)):
        start = HEADER.size + number * _STORED_SEGMENT_BYTES
        stored = view[start : min(start + _STORED_SEGMENT_BYTES, end)]
        pieces.append(_opened_segment(cipher, header, stored, number=number, body=length))
    return OpenedObject(
        header=header, body=b"".join(pieces), digest=blake3(view).digest(), signer=signer
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Who signed an object, as anyone can see without a key, and the object's digest."""

    header: ObjectHeader
    signer: bytes
    digest: bytes


def signer_of(data: bytes | memoryview) -> Signer:
    """Check an object's signature without opening it. Raises: FormatError, IntegrityError."""
    view = memoryview(data)
    header = ObjectHeader.decode(view)
    if header.kind not in SIGNED_KINDS:
        raise IntegrityError("objects of this kind are not signed", kind=header.kind.name)
    signer = _checked_signer(view, len(view) - SIGNATURE_BYTES)
    return Signer(header=header, signer=signer, digest=blake3(view).digest())


def stored_signer(store: ObjectStore, name: str, *, length: int) -> Signer:
    """As `signer_of`, of a stored object of that length, which is read piece by piece.

    Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed.
    """
    signed_end = length - (SIGNATURE_BYTES - KEY_BYTES)
    if signed_end - KEY_BYTES < HEADER.size:
        raise IntegrityError("signed object has no signature", length=length)
    header = ObjectHeader.decode(get_range(store, name, offset=0, length=HEADER.size))
    whole = blake3()
    for start in range(0, signed_end, 4 * SEGMENT_BYTES):
        piece = get_range(
            store, name, offset=start, length=min(4 * SEGMENT_BYTES, signed_end - start)
        )
        whole.update(piece)
    signed = whole.digest()
    tail = get_range(store, name, offset=signed_end - KEY_BYTES, length=SIGNATURE_BYTES)
    _check_signature(tail[:KEY_BYTES], tail[KEY_BYTES:], signed)
    whole.update(tail[KEY_BYTES:])
    return Signer(header=header, signer=tail[:KEY_BYTES], digest=whole.digest())


def body_length(stored_length: int, *, kind: ObjectKind) -> int:
    """The length of the body of an object of ``stored_length`` bytes. Raises: FormatError."""
    inner = stored_length - HEADER.size - (SIGNATURE_BYTES if kind in SIGNED_KINDS else 0)
    whole, rest = divmod(inner, _STORED_SEGMENT_BYTES)
    if inner < TAG_BYTES or 0 < rest < TAG_BYTES or (rest == TAG_BYTES and whole):
        raise IntegrityError("sealed object has an impossible length", length=stored_length)
    return whole * SEGMENT_BYTES + (rest - TAG_BYTES if rest else 0)


def stored_length(body: int, *, kind: ObjectKind) -> int:
    """The length of the object that seals ``body`` bytes; the inverse of `body_length`."""
    signature = SIGNATURE_BYTES if kind in SIGNED_KINDS else 0
    return HEADER.size + body + _segment_count(body) * TAG_BYTES + signature


class SealedRanges:
    """Opens single segments of one stored object, so that a page costs one segment and not the object.

    The body's length comes from a trusted reference, so a truncated object cannot pass: its last
    segment would not open as an inner one, nor an inner one as the last.
    """

    def __init__(
        self,
        store: RangeStore,
        name: str,
        *,
        expected: Expected,
        body: int,
        class_key: Callable[[ObjectKind, int], bytes],
    ) -> None:
        self._store = store
        self._name = name
        self._body = body
        self._header = ObjectHeader.decode(get_range(store, name, offset=0, length=HEADER.size))
        expected.check(self._header)
        key = class_key(self._header.kind, self._header.key_epoch)
        self._key = self._header.object_key(key)
        self._cipher: AESGCM | None = None  # made when a whole segment is asked for
        self._counting: CipherContext | None = None

    def unproven(self, offset: int, length: int) -> bytes:
        """Bytes of the body without the rest of their segment, so without its tag: they may be anything.

        For who holds a keyed digest of exactly these bytes and compares it before he looks at them.
        Raises: IntegrityError (the object is too short), ObjectMissing, RepositoryFailed.
        """
        number, start = divmod(offset, SEGMENT_BYTES)
        if 0 < length <= SEGMENT_BYTES - start:  # as nearly all pages lie
            return self._decrypted(number, start, length)
        pieces = []
        while length > 0:
            number, start = divmod(offset, SEGMENT_BYTES)
            count = min(length, SEGMENT_BYTES - start)
            pieces.append(self._decrypted(number, start, count))
            offset += count
            length -= count
        return b"".join(pieces)

    def _decrypted(self, number: int, start: int, count: int) -> bytes:
        block, skipped = divmod(start, _AES_BLOCK)
        stored = bytearray(skipped + count)
        offset = HEADER.size + number * _STORED_SEGMENT_BYTES + start - skipped
        self._store.read_into(self._name, offset, memoryview(stored))
        counter = number.to_bytes(12, "big") + (_FIRST_COUNTER + block).to_bytes(4, "big")
        if self._counting is None:
            self._counting = Cipher(algorithms.AES(self._key), modes.CTR(counter)).decryptor()
        else:
            self._counting.reset_nonce(counter)
        return self._counting.update(stored)[skipped:]

    def segment_length(self, number: int) -> int:
        """How many bytes of the body one segment has."""
        return min(SEGMENT_BYTES, self._body - number * SEGMENT_BYTES)

    def segment(self, number: int) -> bytes:
        """One segment of the body. Raises: IntegrityError, ObjectMissing, RepositoryFailed."""
        stored = bytearray(self.segment_length(number) + TAG_BYTES)
        offset = HEADER.size + number * _STORED_SEGMENT_BYTES
        self._store.read_into(self._name, offset, memoryview(stored))
        if self._cipher is None:
            self._cipher = AESGCM(self._key)
        return _opened_segment(self._cipher, self._header, stored, number=number, body=self._body)


def _segment_count(body: int) -> int:
    return max(1, -(-body // SEGMENT_BYTES))


def _opened_segment(
    cipher: AESGCM,
    header: ObjectHeader,
    stored: bytes | bytearray | memoryview,
    *,
    number: int,
    body: int,
) -> bytes:
    last = number == _segment_count(body) - 1
    try:
        associated = header.encode() + _COUNTER.pack(number, last)
        return cipher.decrypt(number.to_bytes(12, "big"), stored, associated)
    except InvalidTag as error:
        raise IntegrityError(
            "a sealed object was damaged or forged",
            kind=header.kind.name,
            object=header.object_id.hex(),
            segment=number,
        ) from error


def _checked_signer(view: memoryview, end: int) -> bytes:
    if end < HEADER.size:
        raise IntegrityError("signed object has no signature", length=len(view))
    public = bytes(view[end : end + 32])
    # The signature covers everything before itself, its public key too.
    _check_signature(public, bytes(view[end + 32 :]), blake3(view[: end + 32]).digest())
    return public


def _check_signature(public: bytes, signature: bytes, signed: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _SIGNED + signed)
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError("the signature of an object is wrong", signer=public.hex()) from error

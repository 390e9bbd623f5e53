"""Copies of the controller's own database and keys, in the repository: what brings a lost controller back.

Before `init --from-repository`; written by the controller alone, hourly. The class key is made from the content
epoch's private key, which never leaves the controller and which every recipient of the repository can open: a
proxy, or whoever reads the storage, sees a length. An authority key signs it, so anybody can tell that it is whole.

    body: head length u32 | head, JSON | the database, one zstd frame
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Final

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import parse_utc
from holdfast_common.errors import FormatError, IntegrityError, ObjectMissing, RepositoryFailed
from holdfast_common.repository.derivation import derived_key
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.layout import (
    METADATA_BYTES_MAX,
    UNREADABLE,
    ObjectKind,
    controller_copy_name,
)
from holdfast_common.repository.object_store import ObjectStore, get_range
from holdfast_common.repository.sealed_object import (
    HEADER,
    SEGMENT_BYTES,
    ObjectHeader,
    SealedRanges,
    SealedStream,
    body_length,
    stored_signer,
)
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.units import KIB, MIB

FOLDER: Final = "controller/"
HEAD_BYTES_MAX: Final = SEGMENT_BYTES - 4  # it ends in the first segment, so that it is read alone
NUMBER_MAX: Final = 10**10 - 1
HOURLY_KEPT: Final = 24
DAILY_KEPT: Final = 7
_LENGTH: Final = struct.Struct("<I")
_COPY_KEY: Final = b"holdfast 1 controller copy"
_PIECE_BYTES: Final = MIB
_STEP_BYTES: Final = 16 * KIB  # decompressed at once: databases shrink thirtyfold, so half a MiB


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CopyPlace:
    """Where a copy lies: of which life of the controller it is, and which copy of that life. They are ordered."""

    controller_epoch: int
    number: int

    @property
    def name(self) -> str:
        """Of the object."""
        return controller_copy_name(self.controller_epoch, self.number)

    @property
    def object_id(self) -> bytes:
        """What the header says: so a copy cannot stand in the place of another one."""
        return self.controller_epoch.to_bytes(8, "big") + self.number.to_bytes(8, "big")

    @classmethod
    def of_name(cls, name: str) -> CopyPlace:
        """The inverse of `name`, of a name that `stored_objects` listed."""
        _, epoch, number = name.split("/")
        return cls(controller_epoch=int(epoch), number=int(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyHead:
    """What a copy says of itself, and the small files that belong to the database."""

    place: CopyPlace
    controller_id: str
    made_at: str
    release: str
    key_epoch: int
    database_bytes: int
    database_digest: bytes
    files: Mapping[str, bytes] = field(repr=False)  # secrets among them


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCopy:
    """What is to be copied: a whole SQLite file, and small files by name."""

    place: CopyPlace
    controller_id: str
    made_at: str
    release: str
    files: Mapping[str, bytes] = field(repr=False)


def copy_keys(keys: RepositoryKeys) -> ReaderKeys:
    """The controller's keys with those of its own copies; they never leave it."""
    private = {epoch.epoch: epoch.content_private for epoch in keys.secrets.epochs}
    common = keys.common
    epochs = tuple(
        replace(each, copy_key=derived_key(private[each.epoch], salt=b"", info=_COPY_KEY))
        for each in common.epochs
    )
    return replace(common, epochs=epochs)


def stored_copies(store: ObjectStore) -> list[CopyPlace]:
    """All of them by their names, the last one last. Raises: RepositoryFailed."""
    return sorted(CopyPlace.of_name(info.name) for info in stored_objects(store, FOLDER))


def copies_by_age(store: ObjectStore) -> list[CopyPlace]:
    """The last one first: by key epoch, then by place. One without a header is the last. Raises: RepositoryFailed.

    Who kept keys of before a rotation can forge copies of older key epochs, and none of a later one.
    """

    def key_epoch(place: CopyPlace) -> int:
        try:
            header = get_range(store, place.name, offset=0, length=HEADER.size)
            return ObjectHeader.decode(header).key_epoch
        except (FormatError, IntegrityError, ObjectMissing):
            return -1

    return sorted(stored_copies(store), key=lambda each: (key_epoch(each), each), reverse=True)


def put_copy(
    store: ObjectStore,
    new: NewCopy,
    database: BinaryIO,
    *,
    keys: RepositoryKeys,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Seal and store a copy; ``database`` is read twice, from its start. ``check`` raises when it is to stop.

    Raises: ObjectExists (somebody else put one at this place), RepositoryFull, RepositoryFailed.
    """
    length, digest = _measured(database, check)
    head = _encoded_head(new, length=length, digest=digest)
    reader = copy_keys(keys)
    kind = ObjectKind.CONTROLLER_COPY
    header = replace(reader.new_header(kind, keys.randomness), object_id=new.place.object_id)
    upload = store.begin()
    try:
        stream = SealedStream(
            header,
            class_key=reader.class_key(kind, header.key_epoch),
            signing_key=Ed25519PrivateKey.from_private_bytes(keys.secrets.authority_private),
            write=upload.write,
        )
        stream.write(_LENGTH.pack(len(head)) + head)
        compressor = zstandard.ZstdCompressor(level=3).compressobj(size=length)
        for piece in _pieces(database, check):
            stream.write(compressor.compress(piece))
        stream.write(compressor.flush())
        stream.finish()
        upload.commit(new.place.name)
    finally:
        upload.abort()


def read_copy_head(store: ObjectStore, place: CopyPlace, keys: RepositoryKeys) -> CopyHead:
    """What a copy says of itself; its first segment alone is read.

    Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed.
    """
    ranges, length, key_epoch = _opened(store, place, copy_keys(keys))
    return _decoded_head(ranges.segment(0), place, body=length, key_epoch=key_epoch)


def extract_copy(
    store: ObjectStore,
    place: CopyPlace,
    keys: RepositoryKeys,
    write: Callable[[bytes], object],
) -> CopyHead:
    """Give the database to ``write``, after the object was proven to be whole and the authority's.

    Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed; ``write`` got anything then.
    """
    check_copy(store, place, keys.common)
    ranges, length, key_epoch = _opened(store, place, copy_keys(keys))
    first = ranges.segment(0)
    head = _decoded_head(first, place, body=length, key_epoch=key_epoch)
    digest, written = blake3(), 0
    for piece in _decompressed(_after_head(ranges, first, length), place):
        written += len(piece)
        if written > head.database_bytes:
            break
        digest.update(piece)
        write(piece)
    if written != head.database_bytes or digest.digest() != head.database_digest:
        raise IntegrityError("a copy of the controller is not what it says", name=place.name)
    return head


def check_copy(
    store: ObjectStore, place: CopyPlace, keys: ReaderKeys, *, successors: Iterable[bytes] = ()
) -> ObjectHeader:
    """Whole, of this repository, under its own name, and signed by an authority key: needs no key of copies.

    ``successors``: authority keys that came after those that ``keys`` know of. Raises: FormatError, IntegrityError, ObjectMissing, RepositoryFailed.
    """
    found = stored_signer(store, place.name, length=_length(store, place))
    keys.expected(ObjectKind.CONTROLLER_COPY, place.object_id).check(found.header)
    replaced = (each.public_key for each in keys.replaced_authorities)
    authorities = {keys.authority_public, *replaced, *successors}
    if found.signer not in authorities:
        raise IntegrityError(
            "a copy of the controller is not signed by the authority", name=place.name
        )
    return found.header


def copies_to_drop(heads: Iterable[CopyHead]) -> list[CopyPlace]:
    """Those beyond the last 24, and the last one of each of the last seven days that have any. Pure."""
    ordered = sorted(heads, key=lambda head: head.place, reverse=True)
    kept = {head.place for head in ordered[:HOURLY_KEPT]}
    days: dict[object, CopyPlace] = {}
    for head in ordered:
        days.setdefault(parse_utc(head.made_at).date(), head.place)
    kept |= set(list(days.values())[:DAILY_KEPT])
    return [head.place for head in reversed(ordered) if head.place not in kept]


def _length(store: ObjectStore, place: CopyPlace) -> int:
    info = store.head(place.name)
    if info is None:
        raise ObjectMissing("there is no such copy of the controller", name=place.name)
    length = info.length
    if not HEADER.size < length <= METADATA_BYTES_MAX:
        raise IntegrityError("a copy of the controller has an impossible length", name=place.name)
    return length


def _opened(
    store: ObjectStore, place: CopyPlace, keys: ReaderKeys
) -> tuple[SealedRanges, int, int]:
    """Its segments, the length of its body, and its key epoch."""
    kind = ObjectKind.CONTROLLER_COPY
    length = body_length(_length(store, place), kind=kind)
    header = ObjectHeader.decode(get_range(store, place.name, offset=0, length=HEADER.size))
    ranges = SealedRanges(
        store,
        place.name,
        expected=keys.expected(kind, place.object_id),
        body=length,
        class_key=keys.class_key,
    )
    return ranges, length, header.key_epoch


def _after_head(ranges: SealedRanges, first: bytes, length: int) -> Iterator[bytes]:
    (head,) = _LENGTH.unpack_from(first)
    yield first[_LENGTH.size + head :]
    for number in range(1, -(-length // SEGMENT_BYTES)):
        yield ranges.segment(number)


def _decompressed(pieces: Iterable[bytes], place: CopyPlace) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    try:
        for piece in pieces:
            for start in range(0, len(piece), _STEP_BYTES):
                yield decompressor.decompress(piece[start : start + _STEP_BYTES])
    except zstandard.ZstdError as error:
        raise IntegrityError(
            "a copy of the controller cannot be decompressed", name=place.name
        ) from error


def _measured(database: BinaryIO, check: Callable[[], None]) -> tuple[int, bytes]:
    digest, length = blake3(), 0
    for piece in _pieces(database, check):
        digest.update(piece)
        length += len(piece)
    return length, digest.digest()


def _pieces(database: BinaryIO, check: Callable[[], None]) -> Iterator[bytes]:
    try:
        database.seek(0)
        while piece := database.read(_PIECE_BYTES):
            check()
            yield piece
    except OSError as error:
        raise RepositoryFailed(
            f"the controller's database could not be read: {error.strerror}"
        ) from error


def _encoded_head(new: NewCopy, *, length: int, digest: bytes) -> bytes:
    document = {
        "controller_epoch": new.place.controller_epoch,
        "number": new.place.number,
        "controller_id": new.controller_id,
        "made_at": new.made_at,
        "release": new.release,
        "database": {"length": length, "blake3": digest.hex()},
        "files": {name: content.hex() for name, content in sorted(new.files.items())},
    }
    head = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    if len(head) > HEAD_BYTES_MAX:
        raise FormatError("the controller's small files are too large to be copied")
    return head


def _decoded_head(first: bytes, place: CopyPlace, *, body: int, key_epoch: int) -> CopyHead:
    """Raises: IntegrityError."""
    try:
        (length,) = _LENGTH.unpack_from(first)
        if _LENGTH.size + length > min(body, len(first)):
            raise ValueError("it ends beyond the first segment")
        document = json.loads(first[_LENGTH.size : _LENGTH.size + length])
        found = CopyHead(
            place=CopyPlace(
                controller_epoch=int(document["controller_epoch"]), number=int(document["number"])
            ),
            controller_id=str(document["controller_id"]),
            made_at=str(document["made_at"]),
            release=str(document["release"]),
            key_epoch=key_epoch,
            database_bytes=int(document["database"]["length"]),
            database_digest=bytes.fromhex(document["database"]["blake3"]),
            files={str(k): bytes.fromhex(v) for k, v in document["files"].items()},
        )
        parse_utc(found.made_at)
    except (struct.error, *UNREADABLE) as error:
        raise IntegrityError(
            "the head of a copy of the controller cannot be read", name=place.name
        ) from error
    if found.place != place:
        raise IntegrityError("a copy of the controller stands under another name", name=place.name)
    return found

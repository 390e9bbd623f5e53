"""One file of the index on this machine: the hot columns of one index object. Below `index_cache`.

Only prefixes, filter and pack rows (which say nothing to who has no key) are plain; each entry is
enciphered with a key made from the repository's index key, so a stolen disk of a proxy tells nothing. The
file's start is sealed; each row carries a check word, so a damaged file is noticed when it is opened or asked.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.derivation import derived_key
from holdfast_common.repository.index import LOCATION_ROW, ORIGIN_ROW, PACK_ROW, Array
from holdfast_common.repository.index_table import LOCATED_ROW, TAIL_WORDS
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import ID_BYTES, ObjectKind
from holdfast_common.repository.sealed_object import ObjectHeader, OpenedObject

MAGIC: Final = b"HFCACHE1"
PAGE_BYTES: Final = 4096
HEAD_BYTES_MAX: Final = 1 << 22
SMALL_BYTES: Final = 4 << 20  # smaller files are read and compared with their digest as a whole
ENTRY_WORDS: Final = 8  # tail 3, location 3.5 and zero, check
_BLOCKS_PER_ENTRY: Final = ENTRY_WORDS * 8 // 16
CHECKED_PACK: Final = np.dtype([*PACK_ROW.descr, ("check", "<u8")])
CHECKED_ORIGIN: Final = np.dtype([*ORIGIN_ROW.descr, ("zero2", "<u4"), ("check", "<u8")])
_INFO: Final = b"holdfast index cache"


class RowCipher:
    """Enciphers entries by their position, and makes the check words. Safe for several threads."""

    def __init__(self, index_key: bytes, salt: bytes) -> None:
        self._source = index_key, salt
        self._lock = threading.Lock()

    # All made when asked for: of a segment that is in memory a job mostly needs neither start nor rows.
    @cached_property
    def head(self) -> AESGCM:
        """For the start."""
        index_key, salt = self._source
        return AESGCM(derived_key(index_key, salt=salt, info=_INFO + b" head"))

    @cached_property
    def _rows(self) -> bytes:
        index_key, salt = self._source
        return derived_key(index_key, salt=salt, info=_INFO + b" rows")

    @cached_property
    def _blocks(self) -> CipherContext:
        # One block per counter value, never the same twice below one salt: counter mode at any position.
        return Cipher(AES256(self._rows), ECB()).encryptor()  # noqa: S305 - see the line above

    @cached_property
    def _factors(self) -> Array:
        words = blake3(b"check words", key=self._rows).digest(32 * 8)
        factors: Array = np.frombuffer(words, "<u8") | np.uint64(1)
        return factors

    def keystream(self, positions: Array) -> Array:
        """What entries at these positions are combined with."""
        counters = np.zeros((len(positions), _BLOCKS_PER_ENTRY, 2), "<u8")
        counters[:, :, 0] = np.asarray(positions, "<u8")[:, None]
        counters[:, :, 1] = np.arange(_BLOCKS_PER_ENTRY, dtype="<u8")
        with self._lock:
            data = self._blocks.update(counters.tobytes())
        return np.frombuffer(data, "<u8").reshape(-1, ENTRY_WORDS)

    def checks(self, words: Array, positions: Array, prefixes: Array | None = None) -> Array:
        """The check word of each row; ``words``: a matrix of its 64-bit words."""
        result: Array = np.asarray(positions, "<u8") * self._factors[31]
        if prefixes is not None:
            result = result + prefixes * self._factors[30]
        for column in range(words.shape[1]):
            word = words[:, column]
            result = result + (word ^ (word >> np.uint64(32))) * self._factors[column]
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHead:
    """What the sealed start of a file says."""

    object: OpenedObject  # without a body
    stored_length: int  # of the index object
    chunks: int
    filter_bytes: int
    packs: int
    origins: int
    writers: tuple[bytes, ...]
    supersedes: int  # how many object ids follow
    supersedes_digest: bytes
    digests_offset: int  # in the object's body
    digests_length: int
    rest_digest: bytes  # of all that follows in a small file; empty in a large one

    def lengths(self) -> tuple[int, ...]:
        """Prefixes, entries, filter, packs, origins, superseded objects: each begins at a whole page."""
        return (
            self.chunks * 8,
            self.chunks * ENTRY_WORDS * 8,
            self.filter_bytes,
            self.packs * CHECKED_PACK.itemsize,
            self.origins * CHECKED_ORIGIN.itemsize,
            self.supersedes * ID_BYTES,
        )

    def rest_bytes(self) -> int:
        """All of that."""
        return sum(whole_pages(length) for length in self.lengths())


class CachedSegment:
    """One index segment in a mapped or small file; a `ChunkTable`. Safe for several threads."""

    def __init__(self, head: SegmentHead, buffer: memoryview, cipher: RowCipher) -> None:
        """``buffer``: what follows the start."""
        self.head = head
        self.number = 0  # among the segments of a `RepositoryIndex`
        self._cipher = cipher
        offsets = [0]
        for length in head.lengths():
            offsets.append(offsets[-1] + whole_pages(length))
        self.prefixes: Array = np.frombuffer(buffer, "<u8", head.chunks, offsets[0])
        entries = np.frombuffer(buffer, "<u8", head.chunks * ENTRY_WORDS, offsets[1])
        self._entries = entries.reshape(-1, ENTRY_WORDS)
        self.filter: Array | None = None
        if head.filter_bytes:
            self.filter = np.frombuffer(buffer, np.uint8, head.filter_bytes, offsets[2])
        self._packs = np.frombuffer(buffer, CHECKED_PACK, head.packs, offsets[3])
        self._origins = np.frombuffer(buffer, CHECKED_ORIGIN, head.origins, offsets[4])
        superseded = buffer[offsets[5] : offsets[5] + head.supersedes * ID_BYTES]
        if blake3(superseded).digest() != head.supersedes_digest:
            raise DamagedCache("a file of the index on this machine is damaged")
        self.supersedes: Array = np.frombuffer(superseded, f"V{ID_BYTES}")

    def rows_at(self, positions: Array) -> tuple[Array, Array]:
        """Tails and locations. Raises: IntegrityError (the file is damaged)."""
        entries = self._entries[positions] ^ self._cipher.keystream(positions)
        words = entries[:, : ENTRY_WORDS - 1]
        wanted = self._cipher.checks(words, positions, self.prefixes[positions])
        rows = np.zeros(len(entries), LOCATED_ROW)
        located = np.ascontiguousarray(entries[:, TAIL_WORDS : ENTRY_WORDS - 1]).view(np.uint8)
        rows.view(np.uint8).reshape(len(rows), -1)[:, : LOCATION_ROW.itemsize] = located.reshape(
            len(rows), -1
        )[:, : LOCATION_ROW.itemsize]
        rows["segment"] = self.number
        if (wanted != entries[:, -1]).any():
            raise DamagedCache("a file of the index on this machine is damaged")
        return words[:, :TAIL_WORDS], rows

    def pack_rows(self, positions: Array | slice) -> Array:
        """Packs by their numbers. Raises: IntegrityError."""
        return self._checked(self._packs, positions)

    def origin_rows(self, positions: Array | slice) -> Array:
        """Origins by their numbers. Raises: IntegrityError."""
        return self._checked(self._origins, positions)

    def verify(self) -> None:
        """Compare everything with its check words. Raises: IntegrityError."""
        step = 1 << 16
        for start in range(0, self.head.chunks, step):
            self.rows_at(np.arange(start, min(start + step, self.head.chunks)))
        if (self.prefixes[1:] < self.prefixes[:-1]).any():
            raise DamagedCache("a file of the index on this machine is not sorted")
        self.pack_rows(slice(None))
        self.origin_rows(slice(None))

    def _checked(self, table: Array, positions: Array | slice) -> Array:
        rows = np.atleast_1d(table[positions])
        numbers = np.arange(len(table))[positions] if isinstance(positions, slice) else positions
        if (checked_rows(rows, numbers, self._cipher) != rows["check"]).any():
            raise DamagedCache("a file of the index on this machine is damaged")
        return rows


class DamagedCache(IntegrityError):
    """A file of the local index is not what was written; the repository itself may be whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenFile:
    """A file whose start was opened and, when it is small, whose rest has its digest. Holds no key."""

    head: SegmentHead
    rest: memoryview
    salt: bytes
    key_print: bytes  # of the index key that opened it

    def opened(self, keys: ReaderKeys) -> CachedSegment | None:
        """With the keys of a job; None: another key opened it. Raises: IntegrityError, FormatError."""
        index_key = keys.class_key(ObjectKind.INDEX, self.head.object.header.key_epoch)
        if _key_print(index_key) != self.key_print:
            return None
        keys.expected(ObjectKind.INDEX).check(self.head.object.header)
        return CachedSegment(self.head, self.rest, RowCipher(index_key, self.salt))


def whole_pages(length: int) -> int:
    """Rounded up to whole pages."""
    return -(-length // PAGE_BYTES) * PAGE_BYTES


def checked_rows(rows: Array, numbers: Array, cipher: RowCipher) -> Array:
    """The check words of pack or origin rows."""
    words = np.frombuffer(rows.tobytes(), "<u8").reshape(len(rows), -1)[:, :-1]
    return cipher.checks(words, numbers)


def sealed_start(head: SegmentHead, *, cipher: RowCipher, salt: bytes) -> bytes:
    """The start of a file: magic, length, key epoch and salt in plain, then the sealed facts."""
    found = head.object
    facts = {
        "object": found.header.encode().hex(),
        "digest": found.digest.hex(),
        "signer": (found.signer or b"").hex(),
        "writers": [item.hex() for item in head.writers],
        "supersedes_digest": head.supersedes_digest.hex(),
        "rest_digest": head.rest_digest.hex(),
    }
    numbers = ("stored_length", "chunks", "filter_bytes", "packs", "origins", "supersedes", "digests_offset", "digests_length")  # fmt: skip
    body = json.dumps(facts | {name: getattr(head, name) for name in numbers}).encode()
    epoch = found.header.key_epoch
    # the salt is new for each file, so the one nonce of its key is used once
    sealed = cipher.head.encrypt(bytes(12), body, MAGIC)
    plain = MAGIC + len(sealed).to_bytes(4, "little") + epoch.to_bytes(4, "little") + salt
    return (plain + sealed).ljust(whole_pages(len(plain) + len(sealed)), b"\0")


def proven_file(descriptor: int, keys: ReaderKeys) -> ProvenFile:
    """Raises: IntegrityError, FormatError, OSError, ValueError."""
    start = os.pread(descriptor, PAGE_BYTES, 0)
    length = int.from_bytes(start[8:12], "little")
    if start[:8] != MAGIC or length > HEAD_BYTES_MAX:
        raise DamagedCache("not a file of a local index")
    begin = whole_pages(48 + length)
    if begin > len(start):
        start = os.pread(descriptor, begin, 0)
    index_key = keys.class_key(ObjectKind.INDEX, int.from_bytes(start[12:16], "little"))
    salt = start[16:48]
    cipher = RowCipher(index_key, salt)
    try:
        facts = json.loads(cipher.head.decrypt(bytes(12), start[48 : 48 + length], MAGIC))
    except InvalidTag as error:
        raise DamagedCache("the start of a local index is damaged") from error
    head = _head(facts)
    if os.fstat(descriptor).st_size != begin + head.rest_bytes():
        raise DamagedCache("a file of a local index has another length than it says")
    if head.rest_digest:
        rest = memoryview(os.pread(descriptor, head.rest_bytes(), begin))
        if blake3(rest).digest() != head.rest_digest:
            raise DamagedCache("a file of a local index is damaged")
    else:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        rest = memoryview(mapped)[begin:]
    return ProvenFile(head=head, rest=rest, salt=salt, key_print=_key_print(index_key))


def _key_print(index_key: bytes) -> bytes:
    """Tells two keys apart, and says nothing of either."""
    return blake3(index_key, derive_key_context="local index file in memory").digest()


def _head(facts: dict[str, object]) -> SegmentHead:
    def number(name: str) -> int:
        return int(str(facts[name]))

    def ids(name: str) -> tuple[bytes, ...]:
        listed = facts[name]
        assert isinstance(listed, list)
        return tuple(bytes.fromhex(item) for item in listed)

    return SegmentHead(
        object=OpenedObject(
            header=ObjectHeader.decode(bytes.fromhex(str(facts["object"]))),
            body=b"",
            digest=bytes.fromhex(str(facts["digest"])),
            signer=bytes.fromhex(str(facts["signer"])),
        ),
        stored_length=number("stored_length"),
        chunks=number("chunks"),
        filter_bytes=number("filter_bytes"),
        packs=number("packs"),
        origins=number("origins"),
        writers=ids("writers"),
        supersedes=number("supersedes"),
        supersedes_digest=bytes.fromhex(str(facts["supersedes_digest"])),
        digests_offset=number("digests_offset"),
        digests_length=number("digests_length"),
        rest_digest=bytes.fromhex(str(facts["rest_digest"])),
    )

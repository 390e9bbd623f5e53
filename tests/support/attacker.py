"""An attacker who took over a backup proxy: what he holds, and every key that he can try with it.

Nothing of the product is imported: `cryptography`, zstd, and what FORMAT.md says. He is given the bytes of
the jobs, a dump of the process's memory, its files and the whole repository, and looks for secrets by their
shape: 32-byte objects of Python, living and freed; key schedules of AES; text in hex; random-looking words
on the heap. Each is tried as the key of every segment, as private key of the repository and of its
recipients, as the root, and as the secret of a recipient.
"""

from __future__ import annotations

import hmac
import json
import random
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SEGMENT = struct.Struct("<8sHBBI16s16s16s80s")
DISTINCT_BYTES_MIN = 22  # of 32 random bytes all but one in 100,000 have more distinct values
_IS_HEX = np.isin(np.arange(256), np.frombuffer(b"0123456789abcdefABCDEF", np.uint8))
SHEET_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True)
class Segment:
    """One segment of a pack: to whom it is sealed, and its blobs' stored bytes by number."""

    epoch: int
    repository: bytes
    domain: bytes
    origin: bytes
    wrapped: bytes
    blobs: dict[int, bytes]

    @property
    def info(self) -> bytes:
        """What HPKE binds the segment's key to."""
        bound = self.repository + self.domain + self.origin
        return b"holdfast 1 segment" + bound + struct.pack("<I", self.epoch)

    def opened(self, key: bytes) -> bytes:
        """All blobs, without asking whether they are authentic: an attacker does not care."""
        found = []
        for number, stored in self.blobs.items():
            plain = Cipher(AES256(key), CTR(_counter(number))).decryptor().update(stored[:-16])
            if plain.startswith(ZSTD_MAGIC):
                plain = zstandard.ZstdDecompressor().decompress(plain, max_output_size=1 << 24)
            found.append(plain)
        return b"".join(found)


@dataclass
class Loot:
    """What was opened, and by which kind of key."""

    plain: list[bytes] = field(default_factory=list)
    by: Counter[str] = field(default_factory=Counter)

    def canaries(self) -> set[bytes]:
        return canaries_in(self.plain)


CANARY_BYTES = 48
_CANARY_MARK = b"\xc4\x4e\x52"  # too short for zstd to make a reference of it
_MARK_AT = 12


def new_canary(seed: str) -> bytes:
    """Random bytes with a mark in their middle, so that hundreds are found in one pass, compressed or not."""
    drawn = random.Random(seed).randbytes(CANARY_BYTES)
    return drawn[:_MARK_AT] + _CANARY_MARK + drawn[_MARK_AT + len(_CANARY_MARK) :]


def canaries_in(pieces: Iterable[bytes]) -> set[bytes]:
    """All canaries (and some bytes that look like one)."""
    found = set()
    for data in pieces:
        at = data.find(_CANARY_MARK)
        while at >= 0:
            found.add(data[at - _MARK_AT : at - _MARK_AT + CANARY_BYTES])
            at = data.find(_CANARY_MARK, at + 1)
    return found


class Attacker:
    """Has the repository's folder; `attack` gives him candidates for keys."""

    def __init__(self, repository: Path) -> None:
        self.segments = [
            segment
            for path in sorted((repository / "packs").rglob("*"))
            if path.is_file()
            for segment in _segments(path.read_bytes())
        ]
        self.heads = [
            _generation(path.read_bytes()) for path in sorted((repository / "keys").iterdir())
        ]

    def attack(
        self,
        small: set[bytes],
        large: set[bytes],
        *,
        few: set[bytes] = frozenset(),  # type: ignore[assignment]  # empty
    ) -> Loot:
        """``small``: tried as everything. ``large``: too many for that, tried as keys of segments.

        ``few``: tried as what a sender of HPKE has in hand for a moment, with every segment.
        """
        loot = Loot()
        for segment, key in self._segment_keys(small | large):
            self._open(loot, key, segment, "a segment's key")
        for candidate in few:
            self._as_sender(loot, candidate)
        publics = self._public_keys()
        privates = []
        for candidate in small:
            for private in (candidate, *_derived(candidate)):
                key_pair = X25519PrivateKey.from_private_bytes(private)
                owner = publics.get(key_pair.public_key().public_bytes_raw())
                if owner is not None:
                    loot.by[owner] += 1
                    privates.append(private)
        for private in {*privates, *self._content_keys(loot, privates, small)}:
            self._unwrap_segments(loot, private)
        return loot

    def _as_sender(self, loot: Loot, candidate: bytes) -> None:
        """Whoever sealed a segment's key had its ephemeral key, what X25519 made of it, and KEM's secret."""
        publics = {
            epoch: bytes.fromhex(public)
            for _, head, _ in self.heads
            for epoch, public in head["content_public"].items()
        }
        private = X25519PrivateKey.from_private_bytes(candidate)
        mine = private.public_key().public_bytes_raw()
        for segment in self.segments:
            receiver = publics[str(segment.epoch)]
            secrets = [candidate, _kem_secret(candidate, segment.wrapped[:32] + receiver)]
            if mine == segment.wrapped[:32]:
                agreed = private.exchange(X25519PublicKey.from_public_bytes(receiver))
                secrets.append(_kem_secret(agreed, mine + receiver))
            for secret in secrets:
                for key in _hpke_opened(secret, segment.wrapped[32:], segment.info):
                    self._open(loot, key, segment, "what a sender of HPKE had in hand")

    def _segment_keys(self, candidates: Iterable[bytes]) -> Iterator[tuple[Segment, bytes]]:
        """The nonce of a segment's first blob is always the same: one block of AES tells for all segments."""
        wanted = {
            bytes(a ^ b for a, b in zip(segment.blobs[0], ZSTD_MAGIC, strict=False)): segment
            for segment in self.segments
            if 0 in segment.blobs
        }
        mode = CTR(_counter(0))
        for key in candidates:
            segment = wanted.get(Cipher(AES256(key), mode).encryptor().update(bytes(4)))
            if segment is not None:
                yield segment, key

    def _public_keys(self) -> dict[bytes, str]:
        found = {}
        for _, head, _ in self.heads:
            for epoch, public in head["content_public"].items():
                found[bytes.fromhex(public)] = f"the private key of epoch {epoch}"
            for entry in head["recipients"]:
                found[bytes.fromhex(entry["public_key"])] = f"the recipient {entry['label']}"
        return found

    def _content_keys(
        self, loot: Loot, privates: list[bytes], candidates: set[bytes]
    ) -> Iterator[bytes]:
        """What the root seals; the root is a candidate itself, or a recipient's key opens it."""
        for start, head, sealed in self.heads:
            bound = bytes.fromhex(head["repository_id"]) + struct.pack("<I", head["generation"])
            salt = bytes.fromhex(head["salt"])
            for root in (*_roots(head, bound, privates), *candidates):
                key = _hkdf(root, salt, b"holdfast 1 keys" + bound)
                try:
                    secrets = json.loads(AESGCM(key).decrypt(bytes(12), sealed, start))
                except InvalidTag:
                    continue
                loot.by["the root"] += 1
                yield from (bytes.fromhex(each["content_private"]) for each in secrets["epochs"])

    def _unwrap_segments(self, loot: Loot, private: bytes) -> None:
        for segment in self.segments:
            for key in _hpke(private, segment.wrapped, segment.info):
                self._open(loot, key, segment, f"the content key of epoch {segment.epoch}")

    def _open(self, loot: Loot, key: bytes, segment: Segment, by: str) -> None:
        try:
            loot.plain.append(segment.opened(key))
        except zstandard.ZstdError:
            return  # four bytes looked right by chance
        loot.by[by] += 1


def sheet_secret(text: str) -> bytes:
    """The 32 bytes on a recovery sheet."""
    secret = b""
    for group in text.split()[:8]:
        value = 0
        for character in group:
            value = value * 32 + SHEET_ALPHABET.index(character)
        secret += value.to_bytes(5, "big")[:4]
    return secret


def windows(data: bytes) -> set[bytes]:
    """Every 32 bytes at every offset, and every key written in hex: for what is small."""
    every = {data[at : at + 32] for at in range(max(0, len(data) - 31))}
    return {each for each in every if looks_random(each)} | hex_keys(data)


def hex_keys(data: bytes) -> set[bytes]:
    """32 bytes in 64 hex digits: runs of digits, their starts and their ends."""
    digits = np.concatenate(([False], _IS_HEX[np.frombuffer(data, np.uint8)], [False]))
    edges = np.flatnonzero(digits[1:] != digits[:-1])
    starts, ends = edges[::2], edges[1::2]
    long = ends - starts >= 64
    pieces = zip(starts[long].tolist(), ends[long].tolist(), strict=True)
    return {
        bytes.fromhex(data[at : at + 64].decode())
        for start, end in pieces
        for at in (start, end - 64)
    }


def looks_random(data: bytes) -> bool:
    return len(data) == 32 and len(set(data)) >= DISTINCT_BYTES_MIN


@dataclass(frozen=True)
class MemoryKeys:
    """Candidates from a dump. ``objects``: by a clear mark of their kind; ``words``: by their looks alone."""

    objects: set[bytes]
    words: set[bytes]


def memory_keys(mappings: Iterable[bytes]) -> MemoryKeys:
    """32-byte objects of Python, keys of AES schedules, hex texts; and what looks random on a heap."""
    objects: set[bytes] = set()
    words: set[bytes] = set()
    for data in mappings:
        objects |= _python_bytes(data) | _aes_schedules(data) | hex_keys(data)
        words |= _heap_words(data)
    return MemoryKeys(objects, words - objects)


def _python_bytes(data: bytes) -> set[bytes]:
    """Bytes objects of length 32, freed ones too: freeing overwrites the count of references only."""
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    found = {data[at * 8 + 16 : at * 8 + 48] for at in np.flatnonzero(words == 32).tolist()}
    return {each for each in found if looks_random(each)}


def _aes_schedules(data: bytes) -> set[bytes]:
    """Keys whose expanded form stands in memory, as OpenSSL keeps it while a cipher lives."""
    words = np.frombuffer(data, np.uint32, len(data) // 4)
    if len(words) < 60:
        return set()
    # word n of a schedule is word n-8 xor word n-1, but for every fourth; it stands at a multiple of eight
    last = len(words) - 12
    ninth = words[9 : last + 9 : 2]
    hits = (words[1 : last + 1 : 2] ^ words[8 : last + 8 : 2]) == ninth
    hits &= ninth != 0
    places = np.flatnonzero(hits) * 2
    for step in (1, 2):
        wanted = words[places + 1 + step] ^ words[places + 8 + step]
        places = places[wanted == words[places + 9 + step]]
    found = {data[at * 4 : at * 4 + 32] for at in places.tolist()}
    return {each for each in found if looks_random(each)}


def _heap_words(data: bytes) -> set[bytes]:
    """32 random-looking bytes, at eight, after a word of a heap's own: a length, a pointer, zero."""
    words = np.frombuffer(data, np.uint64, len(data) // 8)
    if len(words) < 5:
        return set()
    own = words < 1 << 48
    heads = own[:-4] & ~own[1:-3] & ~own[2:-2] & ~own[3:-1] & ~own[4:]
    found = {data[at * 8 + 8 : at * 8 + 40] for at in np.flatnonzero(heads).tolist()}
    return {each for each in found if looks_random(each)}


def readable_memory(pid: int) -> list[bytes]:
    """All readable mappings of a process that stands still, but for programs' code, which the disk has too."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            start, end = (int(text, 16) for text in fields[0].split("-"))
            is_file = len(fields) > 5 and fields[5].startswith("/")
            if not fields[1].startswith("r") or (is_file and "w" not in fields[1]):
                continue
            try:
                memory.seek(start)
                found.append(memory.read(end - start))
            except (OSError, OverflowError):
                continue  # a device's, the kernel's own, or beyond the end of its file
    return found


def _counter(number: int) -> bytes:
    return number.to_bytes(12, "big") + (2).to_bytes(4, "big")


def _segments(data: bytes) -> list[Segment]:
    offset, length, _, _, magic = struct.unpack_from("<IIII8s", data, len(data) - 24)
    assert magic == b"HFPACKEN"
    footer = data[offset : offset + length]
    _, _, _, segments, blobs = struct.unpack_from("<8sHHII", footer)
    found = []
    for number in range(segments):
        fields = SEGMENT.unpack_from(footer, 20 + number * 148 + 4)
        found.append(Segment(fields[4], fields[5], fields[6], fields[7], fields[8], {}))
    for number in range(blobs):
        at = 20 + segments * 148 + number * 48
        segment, index, place, stored = struct.unpack_from("<IIII", footer, at)
        found[segment].blobs[index] = data[place : place + stored]
    return found


def _generation(data: bytes) -> tuple[bytes, dict[str, Any], bytes]:
    end = 14 + struct.unpack_from("<I", data, 10)[0]
    return data[:end], json.loads(data[14:end]), data[end + 4 : -64]


def _roots(head: dict[str, Any], bound: bytes, privates: list[bytes]) -> Iterator[bytes]:
    for private in privates:
        for entry in head["recipients"]:
            about = bytes.fromhex(entry["id"]) + entry["kind"].encode()
            info = b"holdfast 1 recipient" + bound + about
            yield from _hpke(private, bytes.fromhex(entry["wrapped_root"]), info)


def _kem_secret(agreed: bytes, context: bytes) -> bytes:
    """RFC 9180's ExtractAndExpand for X25519 with HKDF-SHA256."""
    suite = b"KEM\x00\x20"
    prk = _extract(suite, b"", b"eae_prk", agreed)
    return _expand(suite, prk, b"shared_secret", context, 32)


def _hpke_opened(secret: bytes, ciphertext: bytes, info: bytes) -> Iterator[bytes]:
    """RFC 9180's key schedule in base mode, from the KEM's secret."""
    suite = b"HPKE\x00\x20\x00\x01\x00\x02"
    hashes = (_extract(suite, b"", b"psk_id_hash", b""), _extract(suite, b"", b"info_hash", info))
    context = b"\x00" + b"".join(hashes)
    root = _extract(suite, secret, b"secret", b"")
    key = _expand(suite, root, b"key", context, 32)
    nonce = _expand(suite, root, b"base_nonce", context, 12)
    try:
        yield AESGCM(key).decrypt(nonce, ciphertext, b"")
    except InvalidTag:
        return


def _extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")


def _expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, labelled + b"\x01", "sha256")[:length]


def _derived(secret: bytes) -> tuple[bytes, bytes]:
    """A recipient's private key from what is in a key file or on a recovery sheet."""
    uses = (b"holdfast 1 key file", b"holdfast 1 recovery sheet")
    return _hkdf(secret, b"", uses[0]), _hkdf(secret, b"", uses[1])


def _hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def _hpke(private: bytes, sealed: bytes, info: bytes) -> Iterator[bytes]:
    try:
        yield SUITE.decrypt(sealed, X25519PrivateKey.from_private_bytes(private), info=info)
    except (InvalidTag, ValueError):
        return

#!/usr/bin/env python3
"""Restore virtual machines from a Holdfast repository without Holdfast.

You need: this file, Python 3.9 or newer, the Python package "cryptography", the repository (a folder), and one
of its recovery keys: the recovery sheet, a passphrase, a key file, or the private key of a public-key recipient.

    python3 -I rescue.py FOLDER list                                        which points are there?
    python3 -I rescue.py FOLDER check                                       is everything there?
    python3 -I rescue.py FOLDER restore POINT --disk 2000 --to web.vmdk     one disk of one point, as a VMDK
    python3 -I rescue.py FOLDER extract POINT --to web-files                the VM's own files (.vmx, NVRAM, .ovf)

Nothing in the repository is ever written, and no file is ever overwritten. The packages "zstandard" and "blake3"
make it faster (a hundred times for the first); it works without them. FORMAT.md, which lies beside this file in
the repository, says what every byte means; this file was written from that page alone and shares no code
with Holdfast. Its parts, in order: limits - BLAKE3 - zstd - cryptography - recipients - the folder - sealed
objects - keys, writers, fences, points - where chunks lie - maps of disks - output files - commands.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import hashlib
import hmac
import json
import os
import re
import shutil
import sqlite3
import struct
import sys
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

try:
    from cryptography.exceptions import InvalidSignature, InvalidTag
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )
except ImportError as missing:
    raise SystemExit(
        "rescue.py needs the Python package 'cryptography' (any version since 3.0):\n"
        "    apt install python3-cryptography    or    dnf install python3-cryptography\n"
        "    or    python3 -m venv v && v/bin/pip install cryptography && v/bin/python -I rescue.py ...\n"
        f"({missing})"
    ) from missing

FAST_BLAKE3: Any
try:
    from blake3 import blake3 as FAST_BLAKE3  # noqa: N812  # a class under a constant's name: it may be None
except ImportError:
    FAST_BLAKE3 = None

NEW_ZSTD_DECOMPRESSOR: Callable[[], Any] | None
try:
    import zstandard

    def _zstandard_decompressor() -> Any:  # noqa: ANN401  # of a package that may be absent
        return zstandard.ZstdDecompressor().decompressobj()

    NEW_ZSTD_DECOMPRESSOR = _zstandard_decompressor
except ImportError:
    NEW_ZSTD_DECOMPRESSOR = None

# ---------------------------------------------------------------------------------------------------------
# Limits and numbers of format 1
# ---------------------------------------------------------------------------------------------------------

# Counts up with every change of this file or of FORMAT.md; repositories keep the newer one. On one line: it is read.
RESCUE_RELEASE = 4

MIB = 1024 * 1024
BLOCK_BYTES = 64 * 1024
LEAF_BLOCKS = 256
LEAF_BYTES = LEAF_BLOCKS * BLOCK_BYTES
KEYS_BYTES_MAX = MIB
MANIFEST_BYTES_MAX = 64 * MIB
OBJECT_BYTES_MAX = 4096 * MIB
PACK_BYTES_MAX = 256 * MIB
PACK_BLOBS_MAX = 2**20
PACK_SEGMENTS_MAX = 2**16
PAGE_BYTES_MAX = 64 * 1024
TREE_LEVELS_MAX = 4
CAPACITY_BYTES_MAX = 2**52
PLAIN_BYTES_MAX = 16 * MIB
ARGON2_MEMORY_KIB_MAX = MIB
ARGON2_ITERATIONS_MAX = 32
ARGON2_LANES_MAX = 16

KIND_WRITERS, KIND_INDEX, KIND_MAP, KIND_MANIFEST, KIND_PROOF = 1, 2, 3, 4, 5
KIND_FENCE, KIND_PACK_FOOTER, KIND_LEASE, KIND_FILE_TREE, KIND_HOLD = 6, 7, 8, 9, 10
KIND_CONTROLLER_COPY = 11
UNSIGNED_KINDS = (KIND_MAP, KIND_PACK_FOOTER, KIND_FILE_TREE)
LINEAGE_KINDS = (KIND_MAP, KIND_MANIFEST, KIND_FILE_TREE)
BLOB_DISK_FRAME = 1

EXIT_GOOD, EXIT_DAMAGE, EXIT_USAGE, EXIT_NOT_OPENED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class RescueError(Exception):
    """Nothing can go on; the message is for the person at the keyboard."""

    def __init__(self, message: str, exit_status: int = EXIT_NOT_OPENED) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class DamagedError(Exception):
    """One object, page or blob cannot be used; the rest may be."""


class ShutOutError(DamagedError):
    """The object was shut out on purpose: it does not count, which is no damage unless a point needs it."""


def say(text: str = "") -> None:
    """One line of results, to standard output."""
    sys.stdout.write(text + "\n")


def tell(text: str) -> None:
    """One line for the person, to standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


# ---------------------------------------------------------------------------------------------------------
# BLAKE3 without the package: many chunks of 1024 bytes at once, one 64-bit lane of a long integer for each
# ---------------------------------------------------------------------------------------------------------

_B3_IV = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
_B3_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_B3_CHUNK_START, _B3_CHUNK_END, _B3_PARENT, _B3_ROOT, _B3_KEYED = 1, 2, 4, 8, 16
_B3_LANES_MAX = 1024
_B3_MIXES = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


def _b3_words(values: array[int]) -> int:
    """32-bit words, one per lane, as one long integer."""
    return int.from_bytes(_little(array("Q", values)), "little")


def _little(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values = array(values.typecode, values)
        values.byteswap()
    return values.tobytes()


def _u32_array(data: bytes) -> array[int]:
    words = array("I")
    words.frombytes(data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


@dataclass(frozen=True)
class _Lanes:
    """How many lanes, and the masks that keep each one 32 bits wide."""

    count: int
    ones: int
    mask: int

    @classmethod
    def of(cls, count: int) -> _Lanes:
        ones = int.from_bytes(b"\x01\0\0\0\0\0\0\0" * count, "little")
        return cls(count, ones, ones * 0xFFFFFFFF)

    def spread(self, word: int) -> int:
        return self.ones * word

    def words(self, packed: int) -> array[int]:
        wide = array("Q")
        wide.frombytes(packed.to_bytes(8 * self.count, "little"))
        if sys.byteorder == "big":
            wide.byteswap()
        return array("I", wide)


def _b3_compress(
    lanes: _Lanes,
    chaining: list[int],
    message: list[int],
    counter: tuple[int, int],
    length_and_flags: tuple[int, int],
) -> list[int]:
    """BLAKE3's compression of one block in every lane; returns the new chaining values."""
    mask = lanes.mask
    v = [
        *chaining,
        *(lanes.spread(word) for word in _B3_IV[:4]),
        *counter,
        lanes.spread(length_and_flags[0]),
        lanes.spread(length_and_flags[1]),
    ]
    m = message
    for round_number in range(7):
        if round_number:
            m = [m[index] for index in _B3_PERMUTATION]
        for mix, (ia, ib, ic, id_) in enumerate(_B3_MIXES):
            a, b, c, d = v[ia], v[ib], v[ic], v[id_]
            a = (a + b + m[2 * mix]) & mask
            d ^= a
            d = ((d >> 16) | (d << 16)) & mask
            c = (c + d) & mask
            b ^= c
            b = ((b >> 12) | (b << 20)) & mask
            a = (a + b + m[2 * mix + 1]) & mask
            d ^= a
            d = ((d >> 8) | (d << 24)) & mask
            c = (c + d) & mask
            b ^= c
            b = ((b >> 7) | (b << 25)) & mask
            v[ia], v[ib], v[ic], v[id_] = a, b, c, d
    return [v[i] ^ v[i + 8] for i in range(8)]


class SlowBlake3:
    """BLAKE3-256, plain or keyed: the same calls as the package's class."""

    def __init__(self, data: bytes = b"", *, key: bytes | None = None) -> None:
        self._key = _B3_IV if key is None else struct.unpack("<8I", key)
        self._flags = 0 if key is None else _B3_KEYED
        self._rest = bytearray()
        self._chunks = 0
        self._values = [
            array("I") for _ in range(8)
        ]  # the chaining values of all whole chunks so far
        self.update(data)

    def update(self, data: bytes | memoryview) -> None:
        self._rest += data
        while len(self._rest) > 1024:  # the last chunk stays: it may be the root
            count = min((len(self._rest) - 1) // 1024, _B3_LANES_MAX)
            self._add(bytes(self._rest[: count * 1024]), count)
            del self._rest[: count * 1024]

    def _add(self, data: bytes, count: int) -> None:
        for words, more in _pairs(self._values, self._chunk_values(data, count, self._chunks, 0)):
            words.extend(more)
        self._chunks += count

    def _chunk_values(self, data: bytes, count: int, first: int, root: int) -> list[array[int]]:
        """Chaining values of ``count`` chunks; only a single one may be shorter than 1024 bytes."""
        length = len(data) if count == 1 else 1024
        blocks = max(1, (length + 63) // 64)
        words = _u32_array(data + bytes(count * blocks * 64 - len(data)))
        lanes = _Lanes.of(count)
        numbers = range(first, first + count)
        counter = (
            _b3_words(array("I", (number & 0xFFFFFFFF for number in numbers))),
            _b3_words(array("I", (number >> 32 for number in numbers))),
        )
        chaining = [lanes.spread(word) for word in self._key]
        for block in range(blocks):
            is_last = block == blocks - 1
            message = [_b3_words(words[block * 16 + word :: blocks * 16]) for word in range(16)]
            flags = self._flags | (_B3_CHUNK_START if block == 0 else 0)
            flags |= (_B3_CHUNK_END | root) if is_last else 0
            block_length = length - block * 64 if is_last else 64
            chaining = _b3_compress(lanes, chaining, message, counter, (block_length, flags))
        return [lanes.words(value) for value in chaining]

    def digest(self) -> bytes:
        is_single = self._chunks == 0
        last = self._chunk_values(bytes(self._rest), 1, self._chunks, _B3_ROOT if is_single else 0)
        if is_single:
            return b"".join(_little(words) for words in last)
        values = [words + more for words, more in _pairs(self._values, last)]
        while len(values[0]) > 1:
            values = self._parents(values)
        return b"".join(_little(words) for words in values)

    def _parents(self, values: list[array[int]]) -> list[array[int]]:
        """The next level of the tree: neighbours are paired, an odd last one is carried up as it is."""
        pairs = len(values[0]) // 2
        flags = self._flags | _B3_PARENT | (_B3_ROOT if len(values[0]) == 2 else 0)
        above = [array("I") for _ in range(8)]
        for start in range(0, pairs, _B3_LANES_MAX):
            end = min(pairs, start + _B3_LANES_MAX)
            lanes = _Lanes.of(end - start)
            message = [
                _b3_words(words[2 * start + side : 2 * end : 2])
                for side in (0, 1)
                for words in values
            ]
            key = [lanes.spread(word) for word in self._key]
            for words, value in _pairs(
                above, _b3_compress(lanes, key, message, (0, 0), (64, flags))
            ):
                words.extend(lanes.words(value))
        if len(values[0]) % 2:
            for words, before in _pairs(above, values):
                words.append(before[-1])
        return above


def _pairs(left: list[Any], right: list[Any]) -> list[tuple[Any, Any]]:
    return [(left[i], right[i]) for i in range(len(left))]


def new_blake3(key: bytes | None = None) -> Any:  # noqa: ANN401  # the package's class or ours
    """A BLAKE3 with ``update`` and ``digest``."""
    if FAST_BLAKE3 is None:
        return SlowBlake3(key=key)
    return FAST_BLAKE3() if key is None else FAST_BLAKE3(key=key)


def blake3_of(data: bytes | memoryview, key: bytes | None = None) -> bytes:
    """The 32 bytes of BLAKE3-256 over ``data``."""
    hasher = new_blake3(key)
    hasher.update(data)
    return bytes(hasher.digest())


# ---------------------------------------------------------------------------------------------------------
# zstd without the package (RFC 8878; no dictionaries, checksums are skipped: everything here is sealed)
# ---------------------------------------------------------------------------------------------------------

_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_BLOCK_BYTES_MAX = 128 * 1024
_LITERAL_LENGTHS = tuple([(n, 0) for n in range(16)] + [
    (16, 1), (18, 1), (20, 1), (22, 1), (24, 2), (28, 2), (32, 3), (40, 3), (48, 4), (64, 6), (128, 7), (256, 8),
    (512, 9), (1024, 10), (2048, 11), (4096, 12), (8192, 13), (16384, 14), (32768, 15), (65536, 16),
])  # fmt: skip
_MATCH_LENGTHS = tuple([(n + 3, 0) for n in range(32)] + [
    (35, 1), (37, 1), (39, 1), (41, 1), (43, 2), (47, 2), (51, 3), (59, 3), (67, 4), (83, 4), (99, 5), (131, 7),
    (259, 8), (515, 9), (1027, 10), (2051, 11), (4099, 12), (8195, 13), (16387, 14), (32771, 15), (65539, 16),
])  # fmt: skip
_LITERAL_LENGTH_DEFAULTS = (
    6,
    [4, 3, *[2] * 11, 1, 1, 1, *[2] * 9, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1],
)
_MATCH_LENGTH_DEFAULTS = (6, [1, 4, 3, 2, 2, 2, 2, 2, 2, *[1] * 37, *[-1] * 7])
_OFFSET_DEFAULTS = (5, [1, 1, 1, 1, 1, 1, 2, 2, 2, *[1] * 15, *[-1] * 5])

# An FSE table is its accuracy and one row per state: symbol, bits to read for the next state, what to add to them.


class _BackwardBits:
    """Bits from the end of a byte string to its start; the highest set bit of the last byte marks the end."""

    def __init__(self, data: bytes) -> None:
        if not data or not data[-1]:
            raise DamagedError("zstd: a bit stream has no end mark")
        self._data = data
        self._position = len(data) - 1  # bytes that were not taken yet
        self._count = data[-1].bit_length() - 1
        self._bits = data[-1] & ((1 << self._count) - 1)
        self._beyond = 0

    @property
    def left(self) -> int:
        """How many bits were not read; negative if more were read than there are."""
        return self._count + 8 * self._position - self._beyond

    def read(self, count: int) -> int:
        """The next ``count`` bits; zeros beyond the start (callers look at ``left``)."""
        while self._count < count:
            step = min(32, self._position)
            if not step:
                self._beyond += count - self._count
                value = self._bits << (count - self._count)
                self._bits, self._count = 0, 0
                return value
            taken = self._data[self._position - step : self._position]
            self._bits = (self._bits << (8 * step)) | int.from_bytes(taken, "little")
            self._count += 8 * step
            self._position -= step
        self._count -= count
        value = self._bits >> self._count
        self._bits &= (1 << self._count) - 1
        return value


def _fse_table(accuracy: int, probabilities: list[int]) -> tuple[int, list[tuple[int, int, int]]]:
    size = 1 << accuracy
    symbols = [0] * size
    following = [0] * len(probabilities)
    high = size
    for symbol, probability in enumerate(probabilities):
        if probability == -1:
            high -= 1
            symbols[high] = symbol
            following[symbol] = 1
    step, position = (size >> 1) + (size >> 3) + 3, 0
    for symbol, probability in enumerate(probabilities):
        if probability > 0:
            following[symbol] = probability
        for _ in range(probability):
            symbols[position] = symbol
            position = (position + step) & (size - 1)
            while position >= high:
                position = (position + step) & (size - 1)
    if position:
        raise DamagedError("zstd: an FSE table does not add up")
    rows = []
    for symbol in symbols:
        state = following[symbol]
        following[symbol] += 1
        bits = accuracy - state.bit_length() + 1
        rows.append((symbol, bits, (state << bits) - size))
    return accuracy, rows


def _fse_description(
    data: bytes, accuracy_max: int, symbols_max: int
) -> tuple[int, list[int], int]:
    """Accuracy, probabilities, and how many bytes described them."""
    stream, position = int.from_bytes(data[:512], "little"), 4
    accuracy = (stream & 15) + 5
    if accuracy > accuracy_max:
        raise DamagedError("zstd: an FSE table is too large")
    remaining = 1 << accuracy
    probabilities: list[int] = []
    while remaining > 0:
        if len(probabilities) >= symbols_max:
            raise DamagedError("zstd: an FSE table has too many symbols")
        bits = (remaining + 1).bit_length()
        value = (stream >> position) & ((1 << bits) - 1)
        low = value & ((1 << (bits - 1)) - 1)
        threshold = (1 << bits) - 1 - (remaining + 1)
        if low < threshold:
            value = low
            position += bits - 1
        else:
            position += bits
            if value >= 1 << (bits - 1):
                value -= threshold
        probability = value - 1
        remaining -= abs(probability)
        probabilities.append(probability)
        while probability == 0:
            repeat = (stream >> position) & 3
            position += 2
            probabilities.extend([0] * repeat)
            if repeat != 3:
                break
    used = (position + 7) // 8
    if remaining or used > len(data) or len(probabilities) > symbols_max:
        raise DamagedError("zstd: an FSE table does not add up")
    return accuracy, probabilities, used


def _huffman_weights(data: bytes) -> list[int]:
    """Weights that are themselves FSE compressed: two states take turns."""
    accuracy, probabilities, used = _fse_description(data, 6, 256)
    _, rows = _fse_table(accuracy, probabilities)
    bits = _BackwardBits(data[used:])
    states = [bits.read(accuracy), bits.read(accuracy)]
    weights: list[int] = []
    if bits.left < 0:
        raise DamagedError("zstd: Huffman weights are cut off")
    turn = 0
    while len(weights) <= 255:
        symbol, count, base = rows[states[turn]]
        weights.append(symbol)
        if bits.left < count:
            weights.append(rows[states[1 - turn]][0])
            return weights
        states[turn] = base + bits.read(count)
        turn = 1 - turn
    raise DamagedError("zstd: too many Huffman weights")


def _huffman_table(data: bytes) -> tuple[int, list[tuple[int, int]], int]:
    """The longest code's bits, a row (symbol, bits) per prefix, and how many bytes described them."""
    if not data:
        raise DamagedError("zstd: a Huffman table is cut off")
    head = data[0]
    if head < 128:
        used = 1 + head
        weights = _huffman_weights(data[1:used])
    else:
        count = head - 127
        used = 1 + (count + 1) // 2
        weights = [nibble for byte in data[1:used] for nibble in (byte >> 4, byte & 15)][:count]
        if len(weights) < count:
            raise DamagedError("zstd: a Huffman table is cut off")
    total = sum(1 << (weight - 1) for weight in weights if weight)
    if used > len(data) or not total or max(weights) > 11 or len(weights) > 255:
        raise DamagedError("zstd: a Huffman table does not add up")
    bits_max = total.bit_length()
    left = (1 << bits_max) - total
    if bits_max > 11 or left & (left - 1):
        raise DamagedError("zstd: a Huffman table does not add up")
    weights.append(left.bit_length())
    rows: list[tuple[int, int]] = []
    for weight in range(1, bits_max + 1):
        row_bits = bits_max + 1 - weight
        for symbol, its_weight in enumerate(weights):
            if its_weight == weight:
                rows.extend([(symbol, row_bits)] * (1 << (weight - 1)))
    return bits_max, rows, used


def _huffman_stream(data: bytes, table: tuple[int, list[tuple[int, int]]], length: int) -> bytes:
    bits_max, rows = table
    if not data or not data[-1]:
        raise DamagedError("zstd: a Huffman stream has no end mark")
    position = len(data) - 1
    count = data[-1].bit_length() - 1
    bits = data[-1] & ((1 << count) - 1)
    out = bytearray()
    mask = (1 << bits_max) - 1
    for _ in range(length):
        if count < bits_max:
            if position:
                step = min(16, position)
                bits = (bits & ((1 << count) - 1)) << (8 * step)
                bits |= int.from_bytes(data[position - step : position], "little")
                position -= step
                count += 8 * step
            if count < bits_max:
                symbol, used = rows[(bits << (bits_max - count)) & mask]
            else:
                symbol, used = rows[(bits >> (count - bits_max)) & mask]
        else:
            symbol, used = rows[(bits >> (count - bits_max)) & mask]
        out.append(symbol)
        count -= used
        if count < 0:
            raise DamagedError("zstd: a Huffman stream is cut off")
    if count or position:
        raise DamagedError("zstd: a Huffman stream is too long")
    return bytes(out)


class _ZstdFrame:
    """Decodes the blocks of one frame."""

    def __init__(self, window: int, limit: int) -> None:
        self.out = bytearray()
        self._limit = limit
        self._block_max = min(window, _ZSTD_BLOCK_BYTES_MAX)
        self._huffman: tuple[int, list[tuple[int, int]]] | None = None
        self._tables: dict[str, tuple[int, list[tuple[int, int, int]]]] = {}
        self._offsets = [1, 4, 8]

    def block(self, kind: int, data: bytes, size: int) -> None:
        before = len(self.out)
        if kind == 0:
            self.out += data
        elif kind == 1:
            self.out += data * size
        elif kind == 2:
            self._compressed(data)
        else:
            raise DamagedError("zstd: an unknown kind of block")
        if len(self.out) > self._limit or len(self.out) - before > self._block_max:
            raise DamagedError("zstd: more bytes than were announced")

    def _compressed(self, data: bytes) -> None:
        literals, position = self._literals(data)
        count, position = self._sequence_count(data, position)
        if not count:
            self.out += literals
            if position != len(data):
                raise DamagedError("zstd: a block is too long")
            return
        if position >= len(data):
            raise DamagedError("zstd: a block is cut off")
        modes = data[position]
        position += 1
        for name, mode, defaults, accuracy, symbols in (
            ("literals", modes >> 6, _LITERAL_LENGTH_DEFAULTS, 9, 36),
            ("offsets", (modes >> 4) & 3, _OFFSET_DEFAULTS, 8, 32),
            ("matches", (modes >> 2) & 3, _MATCH_LENGTH_DEFAULTS, 9, 53),
        ):
            if mode == 0:
                self._tables[name] = _fse_table(*defaults)
            elif mode == 1:
                if position >= len(data) or data[position] >= symbols:
                    raise DamagedError("zstd: a repeated code is out of range")
                self._tables[name] = (0, [(data[position], 0, 0)])
                position += 1
            elif mode == 2:
                log, probabilities, used = _fse_description(data[position:], accuracy, symbols)
                self._tables[name] = _fse_table(log, probabilities)
                position += used
            elif name not in self._tables:
                raise DamagedError("zstd: a table is repeated that was never given")
        self._sequences(data[position:], count, literals)

    def _literals(self, data: bytes) -> tuple[bytes, int]:
        """The literals of a block, and where its sequences begin."""
        if not data:
            raise DamagedError("zstd: an empty block")
        kind, form = data[0] & 3, (data[0] >> 2) & 3
        if kind < 2:
            head = (1, 2, 1, 3)[form]
            size = int.from_bytes(data[:head], "little") >> (3 if head == 1 else 4)
            length = size if kind == 0 else 1
            raw = data[head : head + length]
            if len(raw) < length or size > _ZSTD_BLOCK_BYTES_MAX:
                raise DamagedError("zstd: literals are cut off")
            return (raw if kind == 0 else raw * size), head + length
        head, bits = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
        sizes = int.from_bytes(data[:head], "little") >> 4
        size, stored = sizes & ((1 << bits) - 1), sizes >> bits
        body = data[head : head + stored]
        if len(body) < stored or size > _ZSTD_BLOCK_BYTES_MAX:
            raise DamagedError("zstd: literals are cut off")
        if kind == 2:
            bits_max, rows, used = _huffman_table(body)
            self._huffman = (bits_max, rows)
            body = body[used:]
        if self._huffman is None:
            raise DamagedError("zstd: a Huffman table is repeated that was never given")
        if form == 0:
            return _huffman_stream(body, self._huffman, size), head + stored
        if len(body) < 6:
            raise DamagedError("zstd: literals are cut off")
        ends = [6]
        for length in struct.unpack("<3H", body[:6]):
            ends.append(ends[-1] + length)
        part = (size + 3) // 4
        if ends[-1] > len(body) or size < 3 * part:
            raise DamagedError("zstd: literals are cut off")
        ends.append(len(body))
        literals = b"".join(
            _huffman_stream(
                body[ends[n] : ends[n + 1]], self._huffman, part if n < 3 else size - 3 * part
            )
            for n in range(4)
        )
        return literals, head + stored

    @staticmethod
    def _sequence_count(data: bytes, position: int) -> tuple[int, int]:
        head = data[position : position + 3]
        if not head:
            raise DamagedError("zstd: a block is cut off")
        if head[0] < 128:
            return head[0], position + 1
        if head[0] < 255 and len(head) >= 2:
            return ((head[0] - 128) << 8) + head[1], position + 2
        if len(head) == 3:
            return head[1] + (head[2] << 8) + 0x7F00, position + 3
        raise DamagedError("zstd: a block is cut off")

    def _sequences(self, data: bytes, count: int, literals: bytes) -> None:
        (log_l, rows_l), (log_o, rows_o) = self._tables["literals"], self._tables["offsets"]
        log_m, rows_m = self._tables["matches"]
        bits = _BackwardBits(data)
        read = bits.read
        state_l, state_o, state_m = read(log_l), read(log_o), read(log_m)
        out, used = self.out, 0
        for number in range(count):
            code, bits_o, base_o = rows_o[state_o]
            offset_value = (1 << code) + read(code)
            symbol, bits_m, base_m = rows_m[state_m]
            base, extra = _MATCH_LENGTHS[symbol]
            match_length = base + read(extra)
            symbol, bits_l, base_l = rows_l[state_l]
            base, extra = _LITERAL_LENGTHS[symbol]
            literal_length = base + read(extra)
            if number < count - 1:
                state_l = base_l + read(bits_l)
                state_m = base_m + read(bits_m)
                state_o = base_o + read(bits_o)
            offset = self._offset(offset_value, literal_length)
            out += literals[used : used + literal_length]
            used += literal_length
            if (
                not 0 < offset <= len(out)
                or len(out) + match_length > self._limit
                or used > len(literals)
            ):
                raise DamagedError("zstd: a match lies outside")
            if offset >= match_length:
                start = len(out) - offset
                out += out[start : start + match_length]
            else:
                out += (out[-offset:] * (match_length // offset + 1))[:match_length]
        if bits.left != 0:
            raise DamagedError("zstd: sequences are cut off or too long")
        out += literals[used:]

    def _offset(self, value: int, literal_length: int) -> int:
        first, second, third = self._offsets
        if value > 3:
            offset = value - 3
            self._offsets = [offset, first, second]
            return offset
        index = value - 1 if literal_length else value
        if index == 0:
            return first
        if index == 1:
            self._offsets = [second, first, third]
            return second
        offset = third if index == 2 else first - 1
        self._offsets = [offset, first, second]
        return offset


def _zstd_header(data: bytes) -> tuple[int, int, int, bool]:
    """Content size, window, where blocks begin, whether a checksum follows; the size must be there."""
    if len(data) < 6 or int.from_bytes(data[:4], "little") != _ZSTD_MAGIC:
        raise DamagedError("zstd: not a frame")
    descriptor = data[4]
    is_single = bool(descriptor & 32)
    if descriptor & 8 or descriptor & 3:
        raise DamagedError("zstd: a reserved bit or a dictionary")
    position = 5
    window = 0
    if not is_single:
        exponent, mantissa = data[5] >> 3, data[5] & 7
        window = (1 << (10 + exponent)) * (8 + mantissa) // 8
        position = 6
    form = descriptor >> 6
    length = (1 if is_single else 0, 2, 4, 8)[form]
    if not length or len(data) < position + length:
        raise DamagedError("zstd: no content size")
    size = int.from_bytes(data[position : position + length], "little") + (256 if form == 1 else 0)
    return size, window or size, position + length, bool(descriptor & 4)


def slow_zstd(data: bytes, size: int) -> bytes:
    """Decode exactly one frame that says that it holds ``size`` bytes."""
    announced, window, position, has_checksum = _zstd_header(data)
    if announced != size:
        raise DamagedError("zstd: another content size than expected")
    frame = _ZstdFrame(window, size)
    is_last = False
    while not is_last:
        header = int.from_bytes(data[position : position + 3], "little")
        if position + 3 > len(data):
            raise DamagedError("zstd: a frame is cut off")
        position += 3
        is_last, kind, length = bool(header & 1), (header >> 1) & 3, header >> 3
        stored = 1 if kind == 1 else length
        if length > _ZSTD_BLOCK_BYTES_MAX or position + stored > len(data):
            raise DamagedError("zstd: a frame is cut off")
        frame.block(kind, data[position : position + stored], length)
        position += stored
    if position + (4 if has_checksum else 0) != len(data) or len(frame.out) != size:
        raise DamagedError("zstd: another length than announced")
    return bytes(frame.out)


def zstd_of(data: bytes, size: int) -> bytes:
    """The ``size`` plain bytes of one zstd frame, with the package if it is there."""
    if NEW_ZSTD_DECOMPRESSOR is None:
        try:
            return slow_zstd(data, size)
        except (IndexError, struct.error) as error:
            raise DamagedError(f"zstd: {error}") from error
    if _zstd_header(data)[0] != size:
        raise DamagedError("zstd: another content size than expected")
    decompressor = NEW_ZSTD_DECOMPRESSOR()
    try:
        plain = bytes(decompressor.decompress(data))
    except Exception as error:  # the package's error class has changed its place before
        raise DamagedError(f"zstd: {error}") from error
    if not decompressor.eof or decompressor.unused_data or len(plain) != size:
        raise DamagedError("zstd: another length than announced")
    return plain


# ---------------------------------------------------------------------------------------------------------
# Cryptography: HKDF, HPKE, AES-GCM, Argon2id
# ---------------------------------------------------------------------------------------------------------


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()


def hkdf_expand(pseudo_random_key: bytes, info: bytes, length: int) -> bytes:
    out, block, number = b"", b"", 1
    while len(out) < length:
        block = hmac.new(pseudo_random_key, block + info + bytes([number]), hashlib.sha256).digest()
        out += block
        number += 1
    return out[:length]


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes of HKDF-SHA256."""
    return hkdf_expand(hkdf_extract(salt, secret), info, 32)


def hpke_open(private: bytes, sealed: bytes, info: bytes) -> bytes:
    """RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM: one message, no associated data."""
    kem_suite = b"KEM" + (0x0020).to_bytes(2, "big")
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x0020, 0x0001, 0x0002))

    def extract(suite_id: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hkdf_extract(salt, b"HPKE-v1" + suite_id + label + secret)

    def expand(suite_id: bytes, key: bytes, label: bytes, context: bytes, length: int) -> bytes:
        return hkdf_expand(
            key, length.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + context, length
        )

    if len(sealed) < 48:
        raise DamagedError("a wrapped key is too short")
    encapsulated = sealed[:32]
    try:
        own = X25519PrivateKey.from_private_bytes(private)
        shared = own.exchange(X25519PublicKey.from_public_bytes(encapsulated))
        context = encapsulated + raw_public(own)
        secret = expand(
            kem_suite, extract(kem_suite, b"", b"eae_prk", shared), b"shared_secret", context, 32
        )
        schedule = (
            b"\0"
            + extract(suite, b"", b"psk_id_hash", b"")
            + extract(suite, b"", b"info_hash", info)
        )
        key_secret = extract(suite, secret, b"secret", b"")
        key = expand(suite, key_secret, b"key", schedule, 32)
        nonce = expand(suite, key_secret, b"base_nonce", schedule, 12)
        return AESGCM(key).decrypt(nonce, sealed[32:], b"")
    except (InvalidTag, ValueError) as error:
        raise DamagedError("a wrapped key does not open") from error


def raw_public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def aes_open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Raises: DamagedError."""
    try:
        return AESGCM(key).decrypt(nonce, sealed, associated)
    except (InvalidTag, ValueError) as error:
        raise DamagedError(
            "it does not open: other bytes than were written, or another key"
        ) from error


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Argon2Cost:
    """Argon2id's parameters in a recipient's entry."""

    salt: bytes
    memory_kib: int
    iterations: int
    lanes: int


def argon2id(passphrase: bytes, cost: Argon2Cost) -> bytes:
    """32 bytes of Argon2id; slow (minutes) if this cryptography or its OpenSSL has none."""
    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        kdf = Argon2id(
            salt=cost.salt,
            length=32,
            iterations=cost.iterations,
            lanes=cost.lanes,
            memory_cost=cost.memory_kib,
        )
        return bytes(kdf.derive(passphrase))
    except Exception as error:  # noqa: BLE001  # absent, or refused by its OpenSSL in one of several ways
        tell(
            f"This cryptography has no Argon2id ({error}); computing it slowly: this takes minutes ..."
        )
        return slow_argon2id(passphrase, cost)


_U64 = 0xFFFFFFFFFFFFFFFF


def _argon2_hash(data: bytes, length: int) -> bytes:
    """RFC 9106's H': BLAKE2b of any length."""
    prefix = struct.pack("<I", length)
    if length <= 64:
        return hashlib.blake2b(prefix + data, digest_size=length).digest()
    block = hashlib.blake2b(prefix + data).digest()
    out = block[:32]
    while length - len(out) > 64:
        block = hashlib.blake2b(block).digest()
        out += block[:32]
    return out + hashlib.blake2b(block, digest_size=length - len(out)).digest()


def _argon2_permute(v: list[int], at: tuple[int, ...]) -> None:
    """BLAKE2b's round with multiplications, over the sixteen words of ``v`` that ``at`` names."""
    for mix in _B3_MIXES:
        ia, ib, ic, id_ = at[mix[0]], at[mix[1]], at[mix[2]], at[mix[3]]
        a, b, c, d = v[ia], v[ib], v[ic], v[id_]
        for first, second in ((32, 24), (16, 63)):
            a = (a + b + 2 * (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF)) & _U64
            d ^= a
            d = (d >> first | d << (64 - first)) & _U64
            c = (c + d + 2 * (c & 0xFFFFFFFF) * (d & 0xFFFFFFFF)) & _U64
            b ^= c
            b = (b >> second | b << (64 - second)) & _U64
        v[ia], v[ib], v[ic], v[id_] = a, b, c, d


_ARGON2_ROWS = [tuple(range(16 * row, 16 * row + 16)) for row in range(8)]
_ARGON2_COLUMNS = [tuple(2 * c + 16 * (n // 2) + n % 2 for n in range(16)) for c in range(8)]


def _argon2_compress(left: list[int], right: list[int]) -> list[int]:
    mixed = [a ^ b for a, b in _pairs(left, right)]
    v = list(mixed)
    for at in _ARGON2_ROWS:
        _argon2_permute(v, at)
    for at in _ARGON2_COLUMNS:
        _argon2_permute(v, at)
    return [a ^ b for a, b in _pairs(mixed, v)]


@dataclass
class _Argon2Memory:
    """RFC 9106's matrix: ``lanes`` rows of ``columns`` blocks of 128 words."""

    cost: Argon2Cost
    columns: int
    rows: list[list[list[int]]]

    def fill(self, position: tuple[int, int, int]) -> None:
        """Fill one segment: a quarter of one lane in one pass."""
        passed, lane, part = position
        quarter = self.columns // 4
        row = self.rows[lane]
        addresses: list[int] = []
        is_independent = passed == 0 and part < 2
        start = 2 if passed == 0 and part == 0 else 0
        for index in range(start, quarter):
            column = part * quarter + index
            previous = row[column - 1]  # column 0 follows the last one
            if is_independent:
                if not addresses or index % 128 == 0:
                    head = [
                        passed,
                        lane,
                        part,
                        self.cost.lanes * self.columns,
                        self.cost.iterations,
                        2,
                    ]
                    head += [index // 128 + 1, *[0] * 121]
                    zero = [0] * 128
                    addresses = _argon2_compress(zero, _argon2_compress(zero, head))
                chosen = addresses[index % 128]
            else:
                chosen = previous[0]
            other = self._reference(position, index, chosen)
            block = _argon2_compress(previous, other)
            row[column] = block if passed == 0 else [a ^ b for a, b in _pairs(row[column], block)]

    def _reference(self, position: tuple[int, int, int], index: int, chosen: int) -> list[int]:
        passed, lane, part = position
        quarter = self.columns // 4
        other = lane if passed == 0 and part == 0 else (chosen >> 32) % self.cost.lanes
        size = part * quarter if passed == 0 else self.columns - quarter
        if other == lane:
            size += index - 1
        elif index == 0:
            size -= 1
        low = chosen & 0xFFFFFFFF
        relative = size - 1 - (size * (low * low >> 32) >> 32)
        start = 0 if passed == 0 or part == 3 else (part + 1) * quarter
        return self.rows[other][(start + relative) % self.columns]


def slow_argon2id(passphrase: bytes, cost: Argon2Cost) -> bytes:
    """Argon2id (RFC 9106, version 0x13) in Python alone."""
    columns = 4 * (cost.memory_kib // (4 * cost.lanes))
    head = struct.pack("<6I", cost.lanes, 32, cost.memory_kib, cost.iterations, 0x13, 2)
    for text in (passphrase, cost.salt, b"", b""):
        head += struct.pack("<I", len(text)) + text
    seed = hashlib.blake2b(head).digest()
    empty: list[int] = []
    memory = _Argon2Memory(cost, columns, [[empty] * columns for _ in range(cost.lanes)])
    for lane in range(cost.lanes):
        for column in (0, 1):
            first = _argon2_hash(seed + struct.pack("<II", column, lane), 1024)
            memory.rows[lane][column] = list(struct.unpack("<128Q", first))
    for passed in range(cost.iterations):
        for part in range(4):
            for lane in range(cost.lanes):
                memory.fill((passed, lane, part))
    final = memory.rows[0][-1]
    for row in memory.rows[1:]:
        final = [a ^ b for a, b in _pairs(final, row[-1])]
    return _argon2_hash(struct.pack("<128Q", *final), 32)


# ---------------------------------------------------------------------------------------------------------
# Recipients: what opens a repository
# ---------------------------------------------------------------------------------------------------------

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SHEET_GROUPS = 9


def sheet_group(text: str, number: int) -> bytes:
    """The five bytes of one typed group of eight characters. Raises: ValueError with what is wrong."""
    value = 0
    for character in text:
        digit = _CROCKFORD.find(character)
        if digit < 0:
            raise ValueError(f"group {number}: the sheet never has the character '{character}'")
        value = value << 5 | digit
    if len(text) != 8:
        raise ValueError(f"group {number}: it has {len(text)} characters, not 8")
    group = value.to_bytes(5, "big")
    if number < _SHEET_GROUPS:
        check = blake3_of(b"holdfast 1 recovery sheet" + bytes([number]) + group[:4])
        if group[4] != check[0]:
            raise ValueError(f"group {number}: {text} is mistyped, its check does not fit")
    return group


def sheet_groups(text: str) -> list[str]:
    """What was typed, cut into groups of eight."""
    plain = re.sub(r"[\s-]", "", text).upper().translate(str.maketrans("OIL", "011"))
    return [plain[at : at + 8] for at in range(0, len(plain), 8)]


def sheet_secret(text: str) -> bytes:
    """The secret of a whole recovery sheet. Raises: RescueError with every group that is wrong."""
    groups = sheet_groups(text)
    problems = (
        []
        if len(groups) == _SHEET_GROUPS
        else [f"a sheet has 9 groups of 8, this has {len(groups)}"]
    )
    parts = []
    for number, group in enumerate(groups[:_SHEET_GROUPS], 1):
        try:
            parts.append(sheet_group(group, number))
        except ValueError as error:
            problems.append(str(error))
    if not problems:
        secret = b"".join(part[:4] for part in parts[:8])
        if blake3_of(b"holdfast 1 recovery sheet" + secret)[:5] == parts[8]:
            return secret
        problems.append("group 9 does not fit the others: is the order of the groups right?")
    raise RescueError("The recovery sheet is not right:\n  " + "\n  ".join(problems))


def typed_sheet() -> bytes:
    """Ask for the sheet group by group, and for a wrong group again."""
    tell("Type the recovery sheet: nine groups of eight characters, one group a line or several.")
    tell("(Case, blanks and dashes do not matter; O is read as 0, I and L as 1.)")
    groups: list[str] = []
    while len(groups) < _SHEET_GROUPS:
        sys.stderr.write(f"  group {len(groups) + 1} of {_SHEET_GROUPS}: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise RescueError("The recovery sheet ended early.", EXIT_USAGE)
        for group in sheet_groups(line):
            try:
                sheet_group(group, len(groups) + 1)
            except ValueError as error:
                tell(f"  {error}; type it again")
                break
            groups.append(group)
    return sheet_secret("".join(groups[:_SHEET_GROUPS]))


@dataclass(frozen=True)
class Secret:
    """One thing that may open the repository."""

    kind: str
    value: bytes = field(repr=False)

    def private_key(self, recipient: dict[str, Any]) -> bytes:
        """The X25519 private key that this secret gives for a recipient's entry."""
        if self.kind == "passphrase":
            entry = recipient["argon2id"]
            cost = Argon2Cost(
                bytes.fromhex(entry["salt"]),
                entry["memory_kib"],
                entry["iterations"],
                entry["lanes"],
            )
            if (
                not 1 <= cost.lanes <= ARGON2_LANES_MAX
                or not 1 <= cost.iterations <= ARGON2_ITERATIONS_MAX
                or not 8 * cost.lanes <= cost.memory_kib <= ARGON2_MEMORY_KIB_MAX
            ):
                raise DamagedError("Argon2id parameters beyond format 1's limits")
            return argon2id(self.value, cost)
        if self.kind == "key-file":
            return hkdf(self.value, b"", b"holdfast 1 key file")
        if self.kind == "recovery-sheet":
            return hkdf(self.value, b"", b"holdfast 1 recovery sheet")
        return self.value


def read_secret_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # "-" and /dev/fd/N work as well
            return file.read(MIB)
    except OSError as error:
        raise RescueError(f"{path}: {error.strerror}", EXIT_USAGE) from error


def key_file_secret(data: bytes) -> bytes:
    match = re.fullmatch(rb"\s*holdfast-key-1:([0-9a-fA-F]{64})\s*", data)
    if not match:
        raise RescueError("A key file is one line: holdfast-key-1: and 64 hex digits.", EXIT_USAGE)
    return bytes.fromhex(match[1].decode())


def private_key_secret(data: bytes) -> bytes:
    """An X25519 private key: Holdfast's own file, 32 bytes, 64 hex digits, or PEM."""
    if len(data) == 32:
        return data
    text = data.strip().removeprefix(b"holdfast-private-1:")
    if re.fullmatch(rb"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text.decode())
    try:
        key = load_pem_private_key(text, password=None)
        if isinstance(key, X25519PrivateKey):
            from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

            return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    except (ValueError, TypeError):
        pass
    raise RescueError(
        "The private key must be X25519: holdfast-private-1: and 64 hex digits, 32 bytes, or PEM without a password.",
        EXIT_USAGE,
    )


def secret_of(options: argparse.Namespace) -> Secret:
    """What the command line names, or what is typed."""
    if options.passphrase_file:
        return Secret("passphrase", read_secret_file(options.passphrase_file).rstrip(b"\r\n"))
    if options.key_file:
        return Secret("key-file", key_file_secret(read_secret_file(options.key_file)))
    if options.private_key_file:
        return Secret("public-key", private_key_secret(read_secret_file(options.private_key_file)))
    if options.recovery_sheet_file:
        text = read_secret_file(options.recovery_sheet_file).decode("utf-8", "replace")
        return Secret("recovery-sheet", sheet_secret(text))
    if options.passphrase:
        return Secret("passphrase", getpass.getpass("Passphrase: ").encode())
    return Secret("recovery-sheet", typed_sheet())


# ---------------------------------------------------------------------------------------------------------
# The folder: objects are files, read only
# ---------------------------------------------------------------------------------------------------------

_HEX32 = r"[0-9a-f]{32}"
_JOB = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
NAMES = {
    "keys": re.compile(r"keys/([0-9]{10})(?:-copy)?"),
    "writers": re.compile(r"writers/([0-9]{10})(?:-copy)?"),
    "packs": re.compile(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{62})"),
    "index": re.compile(rf"index/({_HEX32})"),
    "maps": re.compile(rf"maps/({_HEX32})/({_HEX32})"),
    "points": re.compile(rf"points/({_HEX32})/({_JOB})"),
    "fences": re.compile(r"fences/([0-9]{10})"),
    "leases": re.compile(rf"leases/({_HEX32})/([0-9]{{6}})"),
    "proofs": re.compile(rf"proofs/({_HEX32})"),
    "holds": re.compile(rf"holds/({_HEX32})/({_JOB})"),
    "controller": re.compile(r"controller/([0-9]{10})/([0-9]{10})"),
}


class Folder:
    """A repository as it lies in a directory. Never writes."""

    def __init__(self, path: str) -> None:
        self.root = Path(path)
        if not self.root.is_dir():
            raise RescueError(f"{path} is not a folder (is the share mounted?)", EXIT_USAGE)

    def names(self, kind: str) -> list[str]:
        """The names of all objects of one kind; other files are left alone."""
        found = []
        top = self.root / kind
        if not top.is_dir():
            return []

        def failed(error: OSError) -> None:
            tell(f"warning: {error.filename}: {error.strerror}")

        for directory, _, files in os.walk(top, onerror=failed):
            prefix = Path(directory).relative_to(self.root).as_posix()
            found += [
                name
                for name in (f"{prefix}/{file}" for file in files)
                if NAMES[kind].fullmatch(name)
            ]
        return sorted(found)

    def size(self, name: str) -> int:
        try:
            return (self.root / name).stat().st_size
        except OSError as error:
            raise DamagedError(f"{name}: {error.strerror}") from error

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str, size_max: int) -> bytes:
        size = self.size(name)
        if size > size_max:
            raise DamagedError(f"{name}: {size} bytes are beyond format 1's limit")
        return self.read_at(name, 0, size)

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes. Raises: DamagedError."""
        try:
            with (self.root / name).open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise DamagedError(f"{name}: {error.strerror} at byte {offset}") from error
        if len(data) != length:
            raise DamagedError(
                f"{name}: it ends at byte {offset + len(data)}, {offset + length} were wanted"
            )
        return data


# ---------------------------------------------------------------------------------------------------------
# Key generations
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """The keys of one key epoch."""

    index_key: bytes = field(repr=False)
    meta_key: bytes = field(repr=False)
    content_private: bytes = field(repr=False)


@dataclass(frozen=True)
class Authority:
    """A key that grants commits and signs lists of writers, up to a number if it was replaced."""

    public_key: bytes
    writers_number_max: int | None = None


@dataclass(frozen=True)
class Keys:
    """All that a repository's key generation holds, and what is derived from it."""

    generation: int
    repository_id: bytes
    domain_id: bytes
    authorities: tuple[Authority, ...]
    id_key: bytes = field(repr=False)
    epochs: dict[int, Epoch] = field(repr=False)

    def is_granted(self, signature: bytes, message: bytes) -> bool:
        return any(is_signed(key.public_key, signature, message) for key in self.authorities)

    def signs_writers(self, public: bytes, number: int) -> bool:
        """Whether a list of writers of this number may be signed by this key."""
        return any(
            key.public_key == public
            and (key.writers_number_max is None or number <= key.writers_number_max)
            for key in self.authorities
        )

    def derived(self, label: bytes) -> bytes:
        return hkdf(self.id_key, b"", label)

    def epoch(self, number: int) -> Epoch:
        if number not in self.epochs:
            raise DamagedError(
                f"it was sealed in key epoch {number}, which this key generation does not hold"
            )
        return self.epochs[number]

    def lineage_tag(self, lineage_id: str) -> bytes:
        return blake3_of(lineage_id.encode(), self.derived(b"holdfast 1 lineage tag"))[:16]

    def class_key(self, kind: int, epoch: int, lineage_tag: bytes) -> bytes:
        keys = self.epoch(epoch)
        if kind in LINEAGE_KINDS:
            return hkdf(keys.meta_key, b"", b"holdfast 1 lineage key" + lineage_tag)
        if kind == KIND_CONTROLLER_COPY:
            return hkdf(keys.content_private, b"", b"holdfast 1 controller copy")
        return keys.index_key


@dataclass(frozen=True)
class Generation:
    """A key generation whose signature is right; its sealed part is still shut."""

    name: str
    number: int
    head: dict[str, Any]
    authorities: tuple[Authority, ...]
    bound: bytes
    sealed: bytes

    @classmethod
    def parse(cls, name: str, data: bytes) -> Generation:
        """Raises: DamagedError."""
        try:
            magic, version, head_length = struct.unpack_from("<8sHI", data)
            if magic != b"HFKEYS\0\0" or version != 1:
                raise DamagedError("not a key generation of format 1")
            bound = data[: 14 + head_length]
            head = json.loads(bound[14:])
            (sealed_length,) = struct.unpack_from("<I", data, len(bound))
            sealed = data[len(bound) + 4 : len(bound) + 4 + sealed_length]
            if len(data) != len(bound) + 4 + sealed_length + 64:
                raise DamagedError("its length is wrong")
            message = b"holdfast 1 keys signature\0" + data[:-64]
            if not is_signed(bytes.fromhex(head["authority_public"]), data[-64:], message):
                raise DamagedError("its signature is wrong")
            if head["generation"] != int(name[5:15]):
                raise DamagedError("it says that it is another generation")
            return cls(name, head["generation"], head, _authorities(head), bound, sealed)
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"it cannot be parsed: {error}") from error

    def unwrapped(self, secret: Secret) -> bytes | None:
        """The root, if the secret is one of this generation's recipients."""
        repository_id = bytes.fromhex(self.head["repository_id"])
        for recipient in self.head["recipients"]:
            if recipient["kind"] != secret.kind:
                continue
            info = b"holdfast 1 recipient" + repository_id + struct.pack("<I", self.number)
            info += bytes.fromhex(recipient["id"]) + recipient["kind"].encode()
            with contextlib.suppress(DamagedError):
                return hpke_open(
                    secret.private_key(recipient), bytes.fromhex(recipient["wrapped_root"]), info
                )
        return None

    def opened(self, root: bytes) -> Keys:
        """Raises: DamagedError."""
        head = self.head
        repository_id = bytes.fromhex(head["repository_id"])
        info = b"holdfast 1 keys" + repository_id + struct.pack("<I", self.number)
        key = hkdf(root, bytes.fromhex(head["salt"]), info)
        body = json.loads(aes_open(key, bytes(12), self.sealed, self.bound))
        if body["repository_id"] != head["repository_id"] or body["domain_id"] != head["domain_id"]:
            raise DamagedError("its sealed part belongs to another repository")
        epochs = {}
        for entry in body["epochs"]:
            if head["content_public"].get(str(entry["epoch"])) != entry["content_public"]:
                raise DamagedError("its sealed part and its head name different content keys")
            epochs[entry["epoch"]] = Epoch(
                bytes.fromhex(entry["index_key"]),
                bytes.fromhex(entry["meta_key"]),
                bytes.fromhex(entry["content_private"]),
            )
        return Keys(
            generation=self.number,
            repository_id=repository_id,
            domain_id=bytes.fromhex(head["domain_id"]),
            authorities=self.authorities,
            id_key=bytes.fromhex(body["id_key"]),
            epochs=epochs,
        )


def _authorities(head: dict[str, Any]) -> tuple[Authority, ...]:
    """The authority key of a head, and those before it: each of them signed its successor."""
    found = [Authority(bytes.fromhex(head["authority_public"]))]
    for entry in reversed(head.get("earlier_authorities") or []):
        public = bytes.fromhex(entry["public_key"])
        message = b"holdfast 1 authority\0" + bytes.fromhex(head["repository_id"])
        message += struct.pack("<IQ", entry["next_generation"], entry["writers_number"])
        if not is_signed(public, bytes.fromhex(entry["signature"]), message + found[-1].public_key):
            raise DamagedError("an earlier authority key did not sign its successor")
        found.append(Authority(public, entry["writers_number"]))
    return tuple(found)


def read_generations(folder: Folder, findings: Findings) -> list[Generation]:
    """Every key generation that is whole, the newest first; two of one number if its copies differ."""
    names = folder.names("keys")
    if not names:
        raise RescueError(
            f"{folder.root} holds no key generation (no files keys/0000000001 ...): it is no repository, or they were "
            "lost. Without one of them nothing can be read by anybody; look for a copy of the folder keys/."
        )
    generations: list[Generation] = []
    for name in names:
        try:
            found = Generation.parse(name, folder.read(name, KEYS_BYTES_MAX))
        except DamagedError as error:
            findings.add(name, str(error))
            continue
        if all((found.bound, found.sealed) != (each.bound, each.sealed) for each in generations):
            generations.append(found)
    if not generations:
        raise RescueError(
            "Every key generation is damaged: nothing can be read. Look for a copy of the folder keys/."
        )
    newest = f"keys/{max(found.number for found in generations):010}"
    for name in (newest, f"{newest}-copy"):
        if not folder.exists(name):
            findings.add(name, "it is missing (the other copy is there)")
    return sorted(generations, key=lambda found: -found.number)


def open_keys(generations: list[Generation], secret: Secret, findings: Findings) -> Keys:
    """Open the newest generation; an older one, loudly, if the secret opens only that."""
    for generation in generations:
        root = generation.unwrapped(secret)
        if root is None:
            continue
        try:
            keys = generation.opened(root)
        except (DamagedError, ValueError, KeyError, TypeError) as error:
            findings.add(generation.name, f"it cannot be used: {error}")
            continue
        if generation.number != generations[0].number:
            findings.add(
                generations[0].name,
                f"this key opens only the older generation {generation.number}: points of later key epochs cannot be read",
            )
        for other in generations:
            if other.number == generation.number and other is not generation:
                findings.add(other.name, "it is whole, but another one than its other copy")
        return keys
    lines = [
        f"  {entry['kind']}: {entry['label']} (since {entry['created_at']})"
        for entry in generations[0].head["recipients"]
    ]
    raise RescueError(
        f"This {secret.kind} does not open the repository (a typing error? the wrong key?). What opens it:\n"
        + "\n".join(lines)
    )


@dataclass
class Findings:
    """What is wrong, object by object."""

    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, problem: str) -> None:
        row = {"object": name, "problem": problem}
        if row not in self.rows:
            self.rows.append(row)


# ---------------------------------------------------------------------------------------------------------
# Sealed objects
# ---------------------------------------------------------------------------------------------------------

_HEADER = struct.Struct("<8sHBBI16s16s16s16s32s")
_SEGMENT_BYTES = MIB
_TAG_BYTES = 16


@dataclass(frozen=True)
class Part:
    """A byte range of one object: what a sealed object is read from."""

    folder: Folder
    name: str
    offset: int
    length: int

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.length:
            raise DamagedError(f"{self.name}: it is too short")
        return self.folder.read_at(self.name, self.offset + offset, length)


@dataclass(frozen=True)
class Wanted:
    """What a sealed object must be: whatever its name or a reference tells."""

    kind: int
    lineage_tag: bytes = bytes(16)
    object_id: bytes | None = None


class SealedObject:
    """One sealed object, opened segment by segment, so that large ones need no memory."""

    def __init__(self, part: Part, keys: Keys, wanted: Wanted) -> None:
        raw = part.read(0, _HEADER.size)
        magic, version, algorithm, kind, epoch, repository, domain, object_id, tag, salt = (
            _HEADER.unpack(raw)
        )
        if magic != b"HFOBJECT" or version != 1 or algorithm != 1:
            raise DamagedError(f"{part.name}: not a sealed object of format 1")
        if kind != wanted.kind:
            raise DamagedError(f"{part.name}: it is of kind {kind}, not {wanted.kind}")
        if repository != keys.repository_id or domain != keys.domain_id:
            raise DamagedError(f"{part.name}: it belongs to another repository")
        if tag != wanted.lineage_tag:
            raise DamagedError(f"{part.name}: it belongs to another lineage")
        if wanted.object_id is not None and object_id != wanted.object_id:
            raise DamagedError(f"{part.name}: it is another object than its name says")
        self.object_id = object_id
        self._part, self._raw = part, raw
        info = b"holdfast 1 object key" + bytes([kind]) + object_id
        self._key = hkdf(keys.class_key(kind, epoch, tag), salt, info)
        self._tail = 0 if kind in UNSIGNED_KINDS else 96
        self._sealed_length = part.length - _HEADER.size - self._tail
        self.segments = max(1, -(-self._sealed_length // (_SEGMENT_BYTES + _TAG_BYTES)))
        self.body_length = self._sealed_length - _TAG_BYTES * self.segments
        if part.length > OBJECT_BYTES_MAX or self.body_length < 0:
            raise DamagedError(f"{part.name}: its length is wrong")
        self._cache: OrderedDict[int, bytes] = OrderedDict()

    def _segment(self, number: int, is_last: bool) -> bytes:
        start = number * (_SEGMENT_BYTES + _TAG_BYTES)
        length = min(_SEGMENT_BYTES + _TAG_BYTES, self._sealed_length - start)
        sealed = self._part.read(_HEADER.size + start, length)
        associated = self._raw + struct.pack("<QB", number, int(is_last))
        try:
            return aes_open(self._key, number.to_bytes(12, "big"), sealed, associated)
        except DamagedError as error:
            raise DamagedError(f"{self._part.name}: segment {number}: {error}") from error

    def segment(self, number: int) -> bytes:
        """The plain bytes of one segment, cached."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        is_last = number == self.segments - 1
        try:
            plain = self._segment(number, is_last)
        except DamagedError:
            if not is_last or self._tail:
                raise
            plain = self._segment(
                number, is_last=False
            )  # of a map that was cut off; pages have digests of their own
        self._cache[number] = plain
        if len(self._cache) > 4:
            self._cache.popitem(last=False)
        return plain

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the body."""
        if offset < 0 or length < 0 or offset + length > self.body_length:
            raise DamagedError(f"{self._part.name}: its body is too short")
        parts = []
        while length:
            number, at = divmod(offset, _SEGMENT_BYTES)
            piece = self.segment(number)[at : at + length]
            if not piece:
                raise DamagedError(f"{self._part.name}: its body is too short")
            parts.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(parts)

    def body(self) -> bytes:
        """The whole body; every segment must be right."""
        return b"".join(
            self._segment(number, number == self.segments - 1) for number in range(self.segments)
        )

    def verify_segments(self) -> None:
        for number in range(self.segments):
            self._segment(number, number == self.segments - 1)

    def signer(self) -> tuple[bytes, bytes]:
        """The public key that signed the object, and the object's digest. Raises: DamagedError."""
        hasher = new_blake3()
        end = self._part.length - 64
        for offset in range(0, end, 4 * MIB):
            hasher.update(self._part.read(offset, min(4 * MIB, end - offset)))
        message = b"holdfast 1 object signature\0" + bytes(hasher.digest())
        signature = self._part.read(end, 64)
        public = self._part.read(end - 32, 32)
        if not is_signed(public, signature, message):
            raise DamagedError(f"{self._part.name}: its signature is wrong")
        hasher.update(signature)
        return public, bytes(hasher.digest())


# what reading a document of any shape may raise: a listed writer can sign whatever he likes
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    struct.error,
)


def parsed(name: str, body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name}: its JSON cannot be parsed") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{name}: its JSON is no object")
    return value


# ---------------------------------------------------------------------------------------------------------
# Writers, fences and points
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """Why an object does not count. ``is_expected``: it was shut out on purpose, which is no damage.

    ``is_in_doubt``: nobody knows whether it counts, which is damage; it is used only if that is asked for.
    """

    reason: str
    is_expected: bool = False
    is_in_doubt: bool = False

    def told(self) -> str:
        return f"{'is in doubt' if self.is_in_doubt else 'does not count'}: {self.reason}"


@dataclass(frozen=True)
class Writers:
    """The list of writers that counts."""

    number: int
    entries: tuple[dict[str, Any], ...]

    def refusal(
        self, public: bytes, role: str, digest: bytes, *, is_manifest: bool = False
    ) -> Refusal | None:
        """Why an object of this signer does not count; None: it does."""
        mine = [entry for entry in self.entries if entry["public_key"] == public.hex()]
        if not mine:
            return Refusal("its signer is not in the list of writers")
        refusal = Refusal(f"its signer has not the role '{role}'")
        for entry in mine:
            if role not in entry["roles"]:
                continue
            if not entry.get("revoked_at") or digest.hex() in (entry.get("accepted") or ()):
                return None
            if is_manifest and not entry.get("settled", True):
                return Refusal(
                    f"nobody knows whether it counts: its signer was revoked at {entry['revoked_at']}, and that was not "
                    "finished: revoke that agent again. Until then --accept-unverified shows it",
                    is_in_doubt=True,
                )
            reason = f"its signer was revoked at {entry['revoked_at']}, and it is not among what was accepted"
            refusal = Refusal(reason, is_expected=True)
        return refusal


def read_writers(folder: Folder, keys: Keys, findings: Findings) -> Writers:
    """The highest number of which a copy is whole; an empty list, with a finding, if there is none."""
    names = folder.names("writers")
    for number in sorted({int(name[8:18]) for name in names}, reverse=True):
        chosen: Writers | None = None
        for name in (f"writers/{number:010}", f"writers/{number:010}-copy"):
            try:
                part = Part(folder, name, 0, folder.size(name))
                sealed = SealedObject(part, keys, Wanted(KIND_WRITERS))
                body = parsed(name, sealed.body())
                if not keys.signs_writers(sealed.signer()[0], number):
                    raise DamagedError(f"{name}: it was not signed by the authority")
                shapes = [(entry["public_key"], entry["roles"]) for entry in body["writers"]]
                if body["number"] != number or not all(
                    isinstance(roles, list) for _, roles in shapes
                ):
                    raise DamagedError(f"{name}: it is another list than its name says")
                chosen = chosen or Writers(number, tuple(body["writers"]))
            except (DamagedError, *_UNREADABLE) as error:
                findings.add(name, str(error))
        if chosen:
            return chosen
    findings.add(
        "writers/", "no list of writers is whole: no point can be trusted (see --accept-unverified)"
    )
    return Writers(0, ())


def signed_body(
    folder: Folder, name: str, keys: Keys, wanted: Wanted, trust: tuple[Writers, str]
) -> dict[str, Any]:
    """The JSON of a signed object of a listed writer. Raises: DamagedError."""
    sealed = SealedObject(Part(folder, name, 0, folder.size(name)), keys, wanted)
    refusal = trust[0].refusal(*_signer_in_role(sealed, trust[1]))
    if refusal:
        raise DamagedError(f"{name}: {refusal.reason}")
    return parsed(name, sealed.body())


def _signer_in_role(sealed: SealedObject, role: str) -> tuple[bytes, str, bytes]:
    public, digest = sealed.signer()
    return public, role, digest


@dataclass(frozen=True)
class Fence:
    """A closed epoch: up to which epoch it decides, and which manifests count there."""

    closed_epoch: int
    decided_epoch: int
    first_kept: int
    census: dict[str, str]


@dataclass(frozen=True)
class Fences:
    """All fences that can be used, the newest first."""

    fences: tuple[Fence, ...]

    def refusal(self, epoch: int, name: str, digest: bytes) -> Refusal | None:
        """Why a manifest of this epoch does not count; None: it does, as far as fences decide it."""
        for fence in self.fences:
            if epoch <= fence.decided_epoch:
                if fence.census.get(name) == digest.hex():
                    return None
                reason = f"it is not among the points that fence {fence.closed_epoch} counted (its epoch: {epoch})"
                return Refusal(reason, is_expected=True)
        return None


def read_fences(folder: Folder, keys: Keys, writers: Writers, findings: Findings) -> Fences:
    fences: list[Fence] = []
    names = folder.names("fences")
    for name in names:
        try:
            body = signed_body(folder, name, keys, Wanted(KIND_FENCE), (writers, "prune"))
            closed = body["closed_epoch"]
            decided, first_kept = body.get("decided_epoch", closed), body.get("first_kept", 1)
            if (
                closed != int(name[7:])
                or not isinstance(body["census"], dict)
                or not 0 <= decided <= closed
            ):
                raise DamagedError(f"{name}: it is another fence than its name says")
            fences.append(Fence(closed, int(decided), int(first_kept), body["census"]))
        except (DamagedError, *_UNREADABLE) as error:
            findings.add(name, f"{error} (the other fences decide)")
    fences.sort(key=lambda fence: fence.closed_epoch, reverse=True)
    there = {int(name[7:]) for name in names}
    for epoch in range(fences[0].first_kept if fences else 1, max(there, default=0)):
        if epoch not in there:
            findings.add(f"fences/{epoch:010}", "it is missing (the other fences decide)")
    return Fences(tuple(fences))


@dataclass(frozen=True)
class Point:
    """A manifest that could be opened. ``refusal``: why it does not count, or None."""

    name: str
    digest: bytes
    body: dict[str, Any]
    refusal: Refusal | None

    @property
    def tag(self) -> bytes:
        return bytes.fromhex(self.name.split("/")[1])

    @property
    def job_id(self) -> str:
        return self.name.split("/")[2]

    @property
    def point_id(self) -> str:
        return str(self.body["point_id"])

    @property
    def created_at(self) -> str:
        return str(self.body["created_at"])

    @property
    def order(self) -> int:
        order = self.facts.get("order")
        return order if isinstance(order, int) else 0

    @property
    def facts(self) -> dict[str, Any]:
        facts = self.body.get("facts")
        return facts if isinstance(facts, dict) else {}

    @property
    def lineage_id(self) -> str:
        return str(self.body["lineage_id"])

    @property
    def vm_name(self) -> str:
        """The VM's name; without one the lineage's id."""
        vm = self.facts.get("vm")
        return str((vm.get("name") if isinstance(vm, dict) else None) or self.lineage_id)

    @property
    def disks(self) -> list[dict[str, Any]]:
        return list(self.body["disks"])


def read_point(folder: Folder, name: str, keys: Keys, rules: tuple[Writers, Fences]) -> Point:
    """Raises: DamagedError if the manifest cannot be opened at all; ShutOutError if it never counts and says nonsense."""
    size = folder.size(name)
    if size > MANIFEST_BYTES_MAX or size < 72:
        raise DamagedError(f"{name}: its length is wrong")
    tag = bytes.fromhex(name.split("/")[1])
    job_id = name.split("/")[2]
    sealed = SealedObject(
        Part(folder, name, 0, size - 72), keys, Wanted(KIND_MANIFEST, lineage_tag=tag)
    )
    plain = sealed.body()
    public, digest = sealed.signer()
    grant = folder.read_at(name, size - 72, 72)
    writers, fences = rules
    refusal = writers.refusal(public, "write", digest, is_manifest=True)
    try:
        body = parsed(name, plain)
        message = b"holdfast 1 commit grant\0" + keys.repository_id + grant[:8]
        message += struct.pack("<I", body["attempt"]) + digest + job_id.encode()
        _check_shape(body)
        if keys.lineage_tag(body["lineage_id"]) != tag or body["job_id"] != job_id:
            raise DamagedError(f"{name}: it is another point than its name says")
    except (DamagedError, *_UNREADABLE) as error:
        if refusal and refusal.is_expected:  # whatever it says
            raise ShutOutError(f"{name}: {refusal.reason}") from error
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{name}: its JSON lacks or mistypes a field: {error}") from error
    if refusal is None and not keys.is_granted(grant[8:], message):
        refusal = Refusal("its commit grant is wrong")
    if refusal is None:
        refusal = fences.refusal(body["writer_epoch"], name, digest)
    return Point(name, digest, body, refusal)


def _check_shape(body: dict[str, Any]) -> None:
    """The fields that are used later have their types. Raises: KeyError, TypeError, ValueError."""
    for name, kind in (
        ("point_id", str),
        ("created_at", str),
        ("writer_epoch", int),
        ("disks", list),
        ("blobs", list),
    ):
        if not isinstance(body[name], kind):
            raise TypeError(name)
    for disk in body["disks"]:
        header, root = disk["header"], disk["root"]
        if not 0 <= int(header["capacity_bytes"]) <= CAPACITY_BYTES_MAX:
            raise ValueError("capacity_bytes")
        str(header["device_key"])
        if root is not None:
            bytes.fromhex(root["object_id"]), bytes.fromhex(root["digest"])
            if (
                not 0 < int(root["length"]) <= PAGE_BYTES_MAX
                or int(root["offset"]) < 0
                or int(root["blocks"]) < 0
            ):
                raise ValueError("root")
    for blob in body["blobs"]:
        if not isinstance(blob["kind"], str) or int(blob["length"]) < 0:
            raise ValueError("blob")
        for chunk_id, length in blob["chunks"]:
            bytes.fromhex(chunk_id), int(length)


def read_points(
    folder: Folder, keys: Keys, rules: tuple[Writers, Fences], findings: Findings
) -> list[Point]:
    points = []
    for name in folder.names("points"):
        try:
            points.append(read_point(folder, name, keys, rules))
        except ShutOutError:
            continue
        except DamagedError as error:
            findings.add(name, str(error))
    return sorted(points, key=lambda point: (point.created_at, point.order, point.name))


# ---------------------------------------------------------------------------------------------------------
# Packs, and where chunks lie: a temporary database, filled from the indexes and from packs' sealed footers
# ---------------------------------------------------------------------------------------------------------

_SEGMENT_HEADER = struct.Struct("<8sHBBI16s16s16s80s")
_PLAIN_HEAD = struct.Struct("<8sHHII")
_PLAIN_SEGMENT = struct.Struct("<I144s")
_PLAIN_BLOB = struct.Struct("<IIII32s")
_SEALED_BLOB = struct.Struct("<32sBBHI")
_TRAILER = struct.Struct("<IIII8s")


@dataclass(frozen=True)
class Origin:
    """The segment that a blob was sealed in first: who opens it needs these."""

    origin_id: bytes
    epoch: int
    wrapped: bytes


@dataclass(frozen=True)
class Location:
    """One place where a chunk lies."""

    chunk_id: bytes
    pack: bytes
    origin: Origin
    number: int
    offset: int
    stored_length: int
    plain_length: int
    kind: int
    blocks: int
    presence: int
    digests: bytes | None  # only of hollow frames: a whole one's follow from its bytes

    @property
    def pack_name(self) -> str:
        return pack_name(self.pack)


def pack_name(digest: bytes) -> str:
    return f"packs/{digest.hex()[:2]}/{digest.hex()}"


@dataclass(frozen=True)
class PackFooter:
    """What a pack says about itself: its blobs, and the digests of their stored bytes."""

    locations: list[Location]
    stored_digests: list[bytes]


def read_footer(folder: Folder, name: str, keys: Keys) -> PackFooter:
    """Both footers of a pack, through its trailer, or by searching if that is lost. Raises: DamagedError."""
    size = folder.size(name)
    if size > PACK_BYTES_MAX or size < _TRAILER.size:
        raise DamagedError(f"{name}: its length is wrong")
    offset, length, sealed_length, _, magic = _TRAILER.unpack(
        folder.read_at(name, size - _TRAILER.size, _TRAILER.size)
    )
    if magic == b"HFPACKEN" and offset + length + sealed_length + _TRAILER.size == size:
        return _parse_footer(folder, name, keys, (offset, length, sealed_length))
    raise DamagedError(f"{name}: its trailer is damaged")


def search_footer(folder: Folder, name: str, keys: Keys) -> PackFooter:
    """The footers of a pack whose trailer is lost. Raises: DamagedError."""
    data = folder.read(name, PACK_BYTES_MAX)
    offset = data.rfind(b"HFPACKFT")
    if offset < 0 or offset + _PLAIN_HEAD.size > len(data):
        raise DamagedError(f"{name}: no footer was found")
    _, _, _, segments, blobs = _PLAIN_HEAD.unpack_from(data, offset)
    length = _PLAIN_HEAD.size + segments * _PLAIN_SEGMENT.size + blobs * _PLAIN_BLOB.size
    for trailer in range(_TRAILER.size, -1, -1):  # it may be cut off anywhere
        with contextlib.suppress(DamagedError):
            return _parse_footer(
                folder, name, keys, (offset, length, len(data) - trailer - offset - length)
            )
    raise DamagedError(f"{name}: its footers are damaged")


def _parse_footer(folder: Folder, name: str, keys: Keys, place: tuple[int, int, int]) -> PackFooter:
    offset, length, sealed_length = place
    plain = folder.read_at(name, offset, length)
    sealed = SealedObject(
        Part(folder, name, offset + length, sealed_length), keys, Wanted(KIND_PACK_FOOTER)
    )
    body = sealed.body()
    if body[:32] != blake3_of(plain):
        raise DamagedError(f"{name}: its plain footer is damaged")
    try:
        magic, version, _, segment_count, blob_count = _PLAIN_HEAD.unpack_from(plain)
        if (
            magic != b"HFPACKFT"
            or version != 1
            or segment_count > PACK_SEGMENTS_MAX
            or blob_count > PACK_BLOBS_MAX
        ):
            raise DamagedError(f"{name}: its plain footer is not of format 1")
        origins = []
        for n in range(segment_count):
            _, header = _PLAIN_SEGMENT.unpack_from(
                plain, _PLAIN_HEAD.size + n * _PLAIN_SEGMENT.size
            )
            _, _, _, _, epoch, _, _, origin_id, wrapped = _SEGMENT_HEADER.unpack(header)
            origins.append(Origin(origin_id, epoch, wrapped))
        at = _PLAIN_HEAD.size + segment_count * _PLAIN_SEGMENT.size
        pack, sealed_at = bytes.fromhex(name[-64:]), 32
        footer = PackFooter([], [])
        for n in range(blob_count):
            segment, number, start, stored, digest = _PLAIN_BLOB.unpack_from(
                plain, at + n * _PLAIN_BLOB.size
            )
            chunk_id, kind, blocks, presence, plain_length = _SEALED_BLOB.unpack_from(
                body, sealed_at
            )
            sealed_at += _SEALED_BLOB.size
            digests = body[sealed_at : sealed_at + 16 * blocks]
            sealed_at += 16 * blocks
            footer.locations.append(
                Location(
                    chunk_id,
                    pack,
                    origins[segment],
                    number,
                    start,
                    stored,
                    plain_length,
                    kind,
                    blocks,
                    presence,
                    digests,
                )
            )
            footer.stored_digests.append(digest)
    except (struct.error, IndexError) as error:
        raise DamagedError(f"{name}: its footers do not agree") from error
    if sealed_at != len(body) or at + blob_count * _PLAIN_BLOB.size != len(plain):
        raise DamagedError(f"{name}: its footers do not agree")
    return footer


_INDEX_HEAD = struct.Struct("<8sII")
_INDEX_SECTION = struct.Struct("<IIQQ")
_INDEX_PACK = struct.Struct("<32sQ")
_INDEX_ORIGIN = struct.Struct("<16sIIHH80s")
_INDEX_LOCATION = struct.Struct("<IIIIIIBBH")
_SECTION_PACKS, _SECTION_ORIGINS, _SECTION_WRITERS, _SECTION_PREFIXES, _SECTION_TAILS = (
    1,
    2,
    3,
    4,
    5,
)
_SECTION_LOCATIONS, _SECTION_DIGESTS, _SECTION_SUPERSEDES = 6, 7, 9
_ROWS_AT_ONCE = 32768


class IndexSegment:
    """One index segment whose signature and signer are right."""

    def __init__(self, folder: Folder, name: str, keys: Keys, writers: Writers) -> None:
        self.name = name
        wanted = Wanted(KIND_INDEX, object_id=bytes.fromhex(name.split("/")[1]))
        self._sealed = SealedObject(Part(folder, name, 0, folder.size(name)), keys, wanted)
        public, digest = self._sealed.signer()
        magic, count, _ = _INDEX_HEAD.unpack(self._sealed.read(0, _INDEX_HEAD.size))
        if magic != b"HFINDEX1" or count > 1024:
            raise DamagedError(f"{name}: not an index of format 1")
        self._sections: dict[int, tuple[int, int]] = {}
        for n in range(count):
            row = self._sealed.read(_INDEX_HEAD.size + n * _INDEX_SECTION.size, _INDEX_SECTION.size)
            section, _, offset, length = _INDEX_SECTION.unpack(row)
            self._sections[section] = (offset, length)
        signers = self._rows(_SECTION_WRITERS, 32)
        superseded = self._rows(_SECTION_SUPERSEDES, 16)
        self.supersedes = {row.hex() for row in superseded}
        is_merged = bool(superseded) or any(row != public for row in signers)
        refusal = writers.refusal(public, "prune" if is_merged else "write", digest)
        if refusal:
            error = ShutOutError if refusal.is_expected else DamagedError
            raise error(f"{name}: {refusal.reason}")

    def _rows(self, section: int, size: int) -> list[bytes]:
        offset, length = self._sections.get(section, (0, 0))
        if length % size:
            raise DamagedError(f"{self.name}: section {section} has a wrong length")
        data = self._sealed.read(offset, length)
        return [data[at : at + size] for at in range(0, length, size)]

    def _part(self, section: int, size: int, rows: tuple[int, int]) -> bytes:
        offset, length = self._sections.get(section, (0, 0))
        if rows[1] * size > length:
            raise DamagedError(f"{self.name}: section {section} has a wrong length")
        return self._sealed.read(offset + rows[0] * size, (rows[1] - rows[0]) * size)

    def locations(self) -> Iterator[Location]:
        """Every row, a part at a time. Raises: DamagedError, maybe after some."""
        packs = [_INDEX_PACK.unpack(row)[0] for row in self._rows(_SECTION_PACKS, _INDEX_PACK.size)]
        origins = []
        for row in self._rows(_SECTION_ORIGINS, _INDEX_ORIGIN.size):
            origin_id, epoch, pack, _, _, wrapped = _INDEX_ORIGIN.unpack(row)
            origins.append((Origin(origin_id, epoch, wrapped), packs[pack]))
        count = self._sections.get(_SECTION_PREFIXES, (0, 0))[1] // 8
        for start in range(0, count, _ROWS_AT_ONCE):
            rows = (start, min(count, start + _ROWS_AT_ONCE))
            prefixes = self._part(_SECTION_PREFIXES, 8, rows)
            tails = self._part(_SECTION_TAILS, 24, rows)
            places = self._part(_SECTION_LOCATIONS, _INDEX_LOCATION.size, rows)
            for n in range(rows[1] - rows[0]):
                chunk_id = prefixes[8 * n : 8 * n + 8][::-1] + tails[24 * n : 24 * n + 24]
                place = _INDEX_LOCATION.unpack_from(places, n * _INDEX_LOCATION.size)
                origin, number, offset, stored, plain, first_digest, kind, blocks, presence = place
                digests = None
                if kind == BLOB_DISK_FRAME and presence != (1 << blocks) - 1:
                    digests = self._part(
                        _SECTION_DIGESTS, 16, (first_digest, first_digest + blocks)
                    )
                yield Location(
                    chunk_id,
                    origins[origin][1],
                    origins[origin][0],
                    number,
                    offset,
                    stored,
                    plain,
                    kind,
                    blocks,
                    presence,
                    digests,
                )

    def packs(self) -> Iterator[tuple[bytes, int]]:
        """Digest and length of every pack that it covers."""
        for row in self._rows(_SECTION_PACKS, _INDEX_PACK.size):
            digest, length = _INDEX_PACK.unpack(row)
            yield digest, length


class Locations:
    """Where every chunk lies. On disk when it grows (in $TMPDIR or --work-folder), gone when the program ends."""

    def __init__(self, folder: Folder, keys: Keys) -> None:
        self._folder, self._keys = folder, keys
        self._origins: list[Origin] = []
        self._origin_numbers: dict[Origin, int] = {}
        self._packs: list[bytes] = []
        self._pack_numbers: dict[bytes, int] = {}
        self.searched_packs: set[str] = set()
        self._is_exhausted = False
        self._database = sqlite3.connect("")  # a temporary file of SQLite's own
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -131072;"
            "CREATE TABLE locations (chunk BLOB, pack INTEGER, origin INTEGER, number INTEGER, start INTEGER,"
            " stored INTEGER, plain INTEGER, kind INTEGER, blocks INTEGER, presence INTEGER, digests BLOB);"
            "CREATE TABLE bad (chunk BLOB, pack INTEGER, start INTEGER, PRIMARY KEY (chunk, pack, start)) WITHOUT ROWID;"
        )

    def load(self, writers: Writers, needed: set[str], findings: Findings) -> None:
        """From all indexes that count; packs that none of them covers are asked themselves.

        ``needed``: object ids of indexes that points name: these are missed, also when they were shut out on purpose.
        """
        segments: list[IndexSegment] = []
        shut_out: dict[str, str] = {}
        for name in self._folder.names("index"):
            try:
                segments.append(IndexSegment(self._folder, name, self._keys, writers))
            except ShutOutError as error:
                shut_out[name] = str(error)
            except DamagedError as error:
                findings.add(name, f"{error} (its packs' own footers are read instead)")
        superseded = set().union(*(segment.supersedes for segment in segments))
        for name, reason in shut_out.items():
            if name.split("/")[1] in needed - superseded:
                findings.add(
                    name, f"{reason}, but points name it (its packs' own footers are read instead)"
                )
        covered: set[bytes] = set()
        for segment in segments:
            if segment.name.split("/")[1] in superseded:
                continue
            try:
                self._insert(segment.locations())
                covered.update(digest for digest, _ in segment.packs())
            except (DamagedError, IndexError, struct.error) as error:
                findings.add(segment.name, f"{error} (its packs' own footers are read instead)")
        for name in self._folder.names("packs"):
            if bytes.fromhex(name[-64:]) not in covered:
                self._search(name, findings)
        self._database.execute("CREATE INDEX by_chunk ON locations (chunk)")

    def _search(self, name: str, findings: Findings | None) -> None:
        self.searched_packs.add(name)
        try:
            footer = read_footer(self._folder, name, self._keys)
        except DamagedError as error:
            if findings:
                findings.add(name, f"{error}, and no index covers it")
            try:
                footer = search_footer(self._folder, name, self._keys)
            except DamagedError:
                return
        self._insert(iter(footer.locations))

    def _insert(self, locations: Iterator[Location]) -> None:
        self._database.executemany(
            "INSERT INTO locations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    place.chunk_id, self._pack_number(place.pack), self._origin_number(place.origin), place.number,
                    place.offset, place.stored_length, place.plain_length, place.kind, place.blocks, place.presence,
                    place.digests,
                )
                for place in locations
            ),
        )  # fmt: skip

    def _pack_number(self, pack: bytes) -> int:
        if pack not in self._pack_numbers:
            self._pack_numbers[pack] = len(self._packs)
            self._packs.append(pack)
        return self._pack_numbers[pack]

    def _origin_number(self, origin: Origin) -> int:
        if origin not in self._origin_numbers:
            self._origin_numbers[origin] = len(self._origins)
            self._origins.append(origin)
        return self._origin_numbers[origin]

    _COLUMNS = "chunk, pack, origin, number, start, stored, plain, kind, blocks, presence, digests"

    def _location(self, row: tuple[Any, ...]) -> Location:
        return Location(row[0], self._packs[row[1]], self._origins[row[2]], *row[3:])

    def of(self, chunk_id: bytes) -> list[Location]:
        """Every place of a chunk, whole frames before hollow ones."""
        rows = self._database.execute(
            f"SELECT DISTINCT {self._COLUMNS} FROM locations AS l WHERE chunk = ? AND NOT EXISTS"  # noqa: S608  # a constant
            " (SELECT 1 FROM bad AS b WHERE b.chunk = l.chunk AND b.pack = l.pack AND b.start = l.start)"
            " ORDER BY plain DESC, pack",
            (chunk_id,),
        )
        return [self._location(row) for row in rows]

    def in_pack(self, name: str) -> list[Location]:
        """Everything that is known to lie in a pack, in its order."""
        self._database.execute("CREATE INDEX IF NOT EXISTS by_pack ON locations (pack)")
        number = self._pack_numbers.get(bytes.fromhex(name[-64:]), -1)
        rows = self._database.execute(
            f"SELECT DISTINCT {self._COLUMNS} FROM locations WHERE pack = ? ORDER BY start",  # noqa: S608  # a constant
            (number,),
        )
        return [self._location(row) for row in rows]

    def mark_bad(self, place: Location) -> None:
        row = (place.chunk_id, self._pack_number(place.pack), place.offset)
        self._database.execute("INSERT OR IGNORE INTO bad VALUES (?, ?, ?)", row)

    def search_everywhere(self) -> bool:
        """The last resort for a chunk that is nowhere: the footers of all packs. True if it was worth a try."""
        if self._is_exhausted:
            return False
        self._is_exhausted = True
        names = [name for name in self._folder.names("packs") if name not in self.searched_packs]
        for name in names:
            self._search(name, None)
        return bool(names)


class Chunks:
    """Chunks by their ids: read, opened, decompressed, and compared with the id. Wrong bytes never leave here."""

    def __init__(self, folder: Folder, keys: Keys, locations: Locations) -> None:
        self._folder, self._keys, self.locations = folder, keys, locations
        self._block_key = keys.derived(b"holdfast 1 block digest")
        self._frame_key = keys.derived(b"holdfast 1 frame id")
        self._chunk_key = keys.derived(b"holdfast 1 chunk id")
        self._segment_keys: OrderedDict[Origin, bytes] = OrderedDict()
        self._frames: OrderedDict[bytes, dict[int, bytes]] = OrderedDict()

    def _segment_key(self, origin: Origin) -> bytes:
        key = self._segment_keys.get(origin)
        if key is None:
            info = (
                b"holdfast 1 segment"
                + self._keys.repository_id
                + self._keys.domain_id
                + origin.origin_id
            )
            private = self._keys.epoch(origin.epoch).content_private
            key = hpke_open(private, origin.wrapped, info + struct.pack("<I", origin.epoch))
            self._segment_keys[origin] = key
            if len(self._segment_keys) > 4096:
                self._segment_keys.popitem(last=False)
        return key

    def plain(self, place: Location) -> bytes:
        """The plain bytes at one place; not yet compared with the id. Raises: DamagedError."""
        if (
            place.plain_length > PLAIN_BYTES_MAX
            or place.stored_length > PLAIN_BYTES_MAX + _TAG_BYTES
        ):
            raise DamagedError(f"{place.pack_name}: a blob beyond format 1's limits")
        sealed = self._folder.read_at(place.pack_name, place.offset, place.stored_length)
        associated = (
            struct.pack("<HBB", 1, 1, place.kind) + self._keys.repository_id + self._keys.domain_id
        )
        associated += place.origin.origin_id + struct.pack("<I", place.number) + place.chunk_id
        associated += struct.pack("<I", place.plain_length)
        nonce = place.number.to_bytes(12, "big")
        try:
            plain = aes_open(self._segment_key(place.origin), nonce, sealed, associated)
            return plain if len(plain) == place.plain_length else zstd_of(plain, place.plain_length)
        except DamagedError as error:
            raise DamagedError(
                f"{place.pack_name}: blob at byte {place.offset}: {error}"
            ) from error

    def verified(self, place: Location) -> dict[int, bytes]:
        """The blocks at one place by their number in the frame ({0: all} for other chunks). Raises: DamagedError."""
        plain = self.plain(place)
        if place.kind != BLOB_DISK_FRAME:
            if blake3_of(plain, self._chunk_key) != place.chunk_id:
                raise DamagedError(
                    f"{place.pack_name}: blob at byte {place.offset} is another chunk than its id says"
                )
            return {0: plain}
        blocks: dict[int, bytes] = {}
        digests = b""
        at = 0
        for number in range(place.blocks):
            if place.presence >> number & 1:
                blocks[number] = plain[at : at + BLOCK_BYTES]
                at += len(blocks[number])
                if len(blocks[number]) < BLOCK_BYTES and number != place.blocks - 1:
                    raise DamagedError(
                        f"{place.pack_name}: frame at byte {place.offset} is too short"
                    )
                digests += blake3_of(blocks[number], self._block_key)[:16]
            else:
                digests += (place.digests or b"")[16 * number : 16 * number + 16]
        if at != len(plain) or blake3_of(digests, self._frame_key) != place.chunk_id:
            raise DamagedError(
                f"{place.pack_name}: frame at byte {place.offset} is another than its id says"
            )
        return blocks

    def frame(self, chunk_id: bytes, needed: set[int]) -> tuple[dict[int, bytes], str]:
        """The blocks of a frame as far as they can be had, and why others cannot."""
        known = self._frames.get(chunk_id)
        if known is not None and needed <= known.keys():
            self._frames.move_to_end(chunk_id)
            return known, ""
        blocks, why = self._gathered(chunk_id, needed)
        if not needed <= blocks.keys() and self.locations.search_everywhere():
            blocks, why = self._gathered(chunk_id, needed)
        self._frames[chunk_id] = blocks
        if len(self._frames) > 32:
            self._frames.popitem(last=False)
        return blocks, why

    def _gathered(self, chunk_id: bytes, needed: set[int]) -> tuple[dict[int, bytes], str]:
        blocks: dict[int, bytes] = {}
        why = f"chunk {chunk_id.hex()} is in no pack"
        for place in self.locations.of(chunk_id):
            try:
                blocks.update(self.verified(place))
                why = f"{place.pack_name}: a hollow frame does not hold the block"
            except DamagedError as error:
                why = str(error)
            if needed <= blocks.keys():
                break
        return blocks, why

    def whole(self, chunk_id: bytes) -> bytes:
        """A chunk of another kind than a disk frame. Raises: DamagedError."""
        blocks, why = self.frame(chunk_id, {0})
        if 0 not in blocks:
            raise DamagedError(why)
        return blocks[0]


# ---------------------------------------------------------------------------------------------------------
# Maps: which chunk holds which bytes of a disk
# ---------------------------------------------------------------------------------------------------------

_PAGE_HEAD = struct.Struct("<BBHHHQ")
_PAGE_CHILD = struct.Struct("<BBHIQQ32s")


@dataclass(frozen=True)
class Gap:
    """Bytes ``[start, end)`` of a disk that cannot be had."""

    start: int
    end: int
    why: str


@dataclass(frozen=True)
class Run:
    """Blocks of a disk that lie in one frame: block ``disk_block + i`` is the frame's ``frame_block + i``."""

    disk_block: int
    blocks: int
    chunk_id: bytes
    frame_block: int


@dataclass(frozen=True)
class PageReference:
    """Where a page lies, and what it must be."""

    object_id: bytes
    offset: int
    length: int
    digest: bytes
    blocks: int


class DiskMap:
    """The tree of one disk of one point, in disk order."""

    def __init__(self, folder: Folder, keys: Keys, point: Point, disk: dict[str, Any]) -> None:
        self._folder, self._keys, self._tag = folder, keys, point.tag
        self._page_key = keys.derived(b"holdfast 1 page digest")
        self.capacity = int(disk["header"]["capacity_bytes"])
        self._root = disk["root"]
        self._objects: OrderedDict[bytes, SealedObject] = OrderedDict()

    @property
    def mapped_bytes(self) -> int:
        return int(self._root["blocks"]) * BLOCK_BYTES if self._root else 0

    def leaves(self) -> Iterator[list[Run] | Gap]:
        """The runs of each leaf, or what is lost because a page is."""
        if self._root is None:
            return
        leaves, level = -(-self.capacity // LEAF_BYTES), 0
        while 256**level < leaves:
            level += 1
        root = PageReference(
            bytes.fromhex(self._root["object_id"]),
            int(self._root["offset"]),
            int(self._root["length"]),
            bytes.fromhex(self._root["digest"]),
            int(self._root["blocks"]),
        )
        if level > TREE_LEVELS_MAX:
            yield Gap(0, self.capacity, "the disk is larger than format 1 allows")
            return
        yield from self._walk(level, 0, root)

    def _walk(self, level: int, number: int, reference: PageReference) -> Iterator[list[Run] | Gap]:
        span = 256**level * LEAF_BYTES
        start, end = number * span, min((number + 1) * span, self.capacity)
        try:
            page = self._page(level, number, reference)
            children = self._children(page, number) if level else []
            runs = [] if level else self._runs(page, number, reference.blocks)
        except (DamagedError, struct.error, IndexError) as error:
            yield Gap(start, end, f"map page: {error}")
            return
        if not level:
            yield runs
        for child, child_reference in children:
            yield from self._walk(level - 1, child, child_reference)

    def _page(self, level: int, number: int, reference: PageReference) -> bytes:
        if not 0 < reference.length <= PAGE_BYTES_MAX:
            raise DamagedError("a page beyond format 1's limits")
        sealed = self._objects.get(reference.object_id)
        if sealed is None:
            name = f"maps/{self._tag.hex()}/{reference.object_id.hex()}"
            wanted = Wanted(KIND_MAP, self._tag, reference.object_id)
            sealed = SealedObject(
                Part(self._folder, name, 0, self._folder.size(name)), self._keys, wanted
            )
            self._objects[reference.object_id] = sealed
            if len(self._objects) > 16:
                self._objects.popitem(last=False)
        else:
            self._objects.move_to_end(reference.object_id)
        page = sealed.read(reference.offset, reference.length)
        if blake3_of(page, self._page_key) != reference.digest:
            raise DamagedError(
                f"maps/{self._tag.hex()}/{reference.object_id.hex()}: a page has other bytes than were written"
            )
        its_level, _, _, _, _, its_number = _PAGE_HEAD.unpack_from(page)
        if (its_level, its_number) != (level, number):
            raise DamagedError("a page of another place")
        return page

    def _children(self, page: bytes, number: int) -> list[tuple[int, PageReference]]:
        _, _, count, objects, _, _ = _PAGE_HEAD.unpack_from(page)
        ids = [
            page[at : at + 16] for at in range(_PAGE_HEAD.size, _PAGE_HEAD.size + 16 * objects, 16)
        ]
        at = _PAGE_HEAD.size + 16 * objects
        children = []
        for n in range(count):
            slot, _, which, length, offset, blocks, digest = _PAGE_CHILD.unpack_from(
                page, at + n * _PAGE_CHILD.size
            )
            children.append(
                (256 * number + slot, PageReference(ids[which], offset, length, digest, blocks))
            )
        if sorted({child for child, _ in children}) != [child for child, _ in children]:
            raise DamagedError("the children of a page are not in order")
        return children

    def _runs(self, page: bytes, number: int, blocks: int) -> list[Run]:
        _, _, count, frames, _, _ = _PAGE_HEAD.unpack_from(page)
        at = _PAGE_HEAD.size + 4 * count
        ids = [page[at + 32 * n : at + 32 * n + 32] for n in range(frames)]
        runs = []
        end = 0
        for n in range(count):
            first, more, frame, frame_block = page[
                _PAGE_HEAD.size + 4 * n : _PAGE_HEAD.size + 4 * n + 4
            ]
            runs.append(Run(LEAF_BLOCKS * number + first, more + 1, ids[frame], frame_block))
            if first < end:
                raise DamagedError("the runs of a leaf overlap")
            end = first + more + 1
        if end > LEAF_BLOCKS or (LEAF_BLOCKS * number + end - 1) * BLOCK_BYTES >= self.capacity:
            raise DamagedError("a leaf maps more than the disk has")
        if sum(run.blocks for run in runs) != blocks:
            raise DamagedError("a leaf maps another number of blocks than is said above it")
        return runs


def disk_pieces(disk_map: DiskMap, chunks: Chunks) -> Iterator[tuple[int, bytes] | Gap]:
    """Every mapped block of a disk as (offset, bytes), in order, or the gap where it should be."""
    for leaf in disk_map.leaves():
        if isinstance(leaf, Gap):
            yield leaf
            continue
        needed: dict[bytes, set[int]] = {}
        for run in leaf:
            needed.setdefault(run.chunk_id, set()).update(
                range(run.frame_block, run.frame_block + run.blocks)
            )
        for run in leaf:
            blocks, why = chunks.frame(run.chunk_id, needed[run.chunk_id])
            for n in range(run.blocks):
                start = (run.disk_block + n) * BLOCK_BYTES
                length = min(BLOCK_BYTES, disk_map.capacity - start)
                data = blocks.get(run.frame_block + n)
                if data is None:
                    yield Gap(start, start + length, why)
                elif len(data) != length:
                    yield Gap(
                        start,
                        start + length,
                        f"chunk {run.chunk_id.hex()}: a block of another length than is mapped",
                    )
                else:
                    yield start, data


def joined(gaps: list[Gap]) -> list[Gap]:
    """Gaps in order, neighbours of the same cause as one."""
    merged: list[Gap] = []
    for gap in sorted(gaps, key=lambda gap: gap.start):
        if merged and merged[-1].end == gap.start and merged[-1].why == gap.why:
            merged[-1] = Gap(merged[-1].start, gap.end, gap.why)
        else:
            merged.append(gap)
    return merged


# ---------------------------------------------------------------------------------------------------------
# Output files: made beside their place as NAME.partial, and put there only when they are whole
# ---------------------------------------------------------------------------------------------------------

SECTOR_BYTES = 512
_GRAIN_SECTORS = BLOCK_BYTES // SECTOR_BYTES
_TABLE_ENTRIES = 512
_TABLE_SECTORS = _TABLE_ENTRIES * 4 // SECTOR_BYTES
_DESCRIPTOR_SECTORS = 20
_SPARSE_HEADER = struct.Struct("<4sIIQQQQIQQQBccccH")


class NewFile:
    """One file that does not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        if os.path.lexists(path):
            raise RescueError(
                f"{path} exists; nothing is overwritten: choose another name", EXIT_USAGE
            )
        try:
            self.file: BinaryIO = self._partial.open("xb")
        except FileExistsError as error:
            raise RescueError(
                f"{self._partial} exists, maybe of an earlier try: remove it first", EXIT_USAGE
            ) from error
        except OSError as error:
            raise RescueError(f"{self._partial}: {error.strerror}", EXIT_USAGE) from error

    def write_at(self, offset: int, data: bytes) -> None:
        self.file.seek(offset)
        self.file.write(data)

    def finish(self, length: int) -> None:
        """Make it durable and give it its name."""
        self.file.truncate(length)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        try:
            os.link(self._partial, self.path)  # unlike a rename it never replaces another file
        except FileExistsError as error:
            raise RescueError(
                f"{self.path} appeared in the meantime; the result is {self._partial}", EXIT_USAGE
            ) from error
        except OSError:  # this file system has no hard links
            if os.path.lexists(self.path):
                raise RescueError(
                    f"{self.path} appeared in the meantime; the result is {self._partial}",
                    EXIT_USAGE,
                ) from None
            self._partial.rename(self.path)
        else:
            self._partial.unlink()

    def discard(self) -> None:
        self.file.close()
        with contextlib.suppress(OSError):
            self._partial.unlink()


class RawImage:
    """The disk's bytes, with holes where it is zero."""

    def __init__(self, path: Path, capacity: int) -> None:
        self._capacity = capacity
        self._file = NewFile(path)

    def write(self, offset: int, data: bytes) -> None:
        self._file.write_at(offset, data)

    def finish(self) -> None:
        self._file.finish(self._capacity)

    def discard(self) -> None:
        self._file.discard()


def _descriptor(create_type: str, extent: str, capacity: int) -> bytes:
    sectors = -(-capacity // SECTOR_BYTES)
    cylinders = min(max(1, sectors // (255 * 63)), 2**31)
    return (
        '# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\n'
        f"CID={os.urandom(4).hex()}\nparentCID=ffffffff\n"
        f'createType="{create_type}"\n\n# Extent description\n{extent}\n\n# The Disk Data Base\n#DDB\n\n'
        'ddb.virtualHWVersion = "8"\n'
        f'ddb.geometry.cylinders = "{cylinders}"\nddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
        'ddb.adapterType = "lsilogic"\n'
    ).encode()


def _check_extent_name(name: str) -> None:
    if '"' in name or "\n" in name:
        raise RescueError("A VMDK's name must not have quotation marks", EXIT_USAGE)


class FlatVmdk:
    """A small descriptor NAME.vmdk and the bytes in NAME-flat.vmdk."""

    def __init__(self, path: Path, capacity: int) -> None:
        _check_extent_name(path.name)
        self._capacity = capacity
        stem = path.name[:-5] if path.name.lower().endswith(".vmdk") else path.name
        self._descriptor = NewFile(path)
        try:
            self._flat = NewFile(path.with_name(f"{stem}-flat.vmdk"))
        except RescueError:
            self._descriptor.discard()
            raise

    def write(self, offset: int, data: bytes) -> None:
        self._flat.write_at(offset, data)

    def finish(self) -> None:
        sectors = -(-self._capacity // SECTOR_BYTES)
        self._flat.finish(sectors * SECTOR_BYTES)
        text = _descriptor(
            "monolithicFlat", f'RW {sectors} FLAT "{self._flat.path.name}" 0', self._capacity
        )
        self._descriptor.write_at(0, text)
        self._descriptor.finish(len(text))

    def discard(self) -> None:
        self._flat.discard()
        self._descriptor.discard()


class SparseVmdk:
    """One growable file (monolithicSparse), as VMware's desktop products and qemu know it; at most 2 TiB."""

    def __init__(self, path: Path, capacity: int) -> None:
        _check_extent_name(path.name)
        self._capacity = capacity
        self._sectors = -(-capacity // SECTOR_BYTES)
        tables = -(-self._sectors // (_GRAIN_SECTORS * _TABLE_ENTRIES))
        directory_sectors = -(-tables * 4 // SECTOR_BYTES)
        self._directories = [
            1 + _DESCRIPTOR_SECTORS,
            1 + _DESCRIPTOR_SECTORS + directory_sectors + tables * _TABLE_SECTORS,
        ]
        self._first_tables = [start + directory_sectors for start in self._directories]
        end = self._first_tables[1] + tables * _TABLE_SECTORS
        self._overhead = -(-end // _GRAIN_SECTORS) * _GRAIN_SECTORS
        if capacity > 2**41 - 2**32:
            raise RescueError(
                "A sparse VMDK ends at 2 TiB: use --format vmdk-flat or raw", EXIT_USAGE
            )
        self._tables = tables
        self._next = self._overhead
        self._table_number = -1
        self._table = [0] * _TABLE_ENTRIES
        self._file = NewFile(path)

    def write(self, offset: int, data: bytes) -> None:
        """Blocks come in ascending order, so one table at a time is enough."""
        table, entry = divmod(offset // BLOCK_BYTES, _TABLE_ENTRIES)
        if table != self._table_number:
            self._write_table()
            self._table_number, self._table = table, [0] * _TABLE_ENTRIES
        self._table[entry] = self._next
        self._file.write_at(self._next * SECTOR_BYTES, data.ljust(BLOCK_BYTES, b"\0"))
        self._next += _GRAIN_SECTORS

    def _write_table(self) -> None:
        if self._table_number >= 0:
            packed = struct.pack(f"<{_TABLE_ENTRIES}I", *self._table)
            for first in self._first_tables:
                self._file.write_at(
                    (first + self._table_number * _TABLE_SECTORS) * SECTOR_BYTES, packed
                )

    def finish(self) -> None:
        self._write_table()
        header = _SPARSE_HEADER.pack(
            b"KDMV", 1, 3, self._sectors, _GRAIN_SECTORS, 1, _DESCRIPTOR_SECTORS, _TABLE_ENTRIES,
            *self._directories, self._overhead, 0, b"\n", b" ", b"\r", b"\n", 0,
        )  # fmt: skip
        self._file.write_at(0, header)
        extent = f'RW {self._sectors} SPARSE "{self._file.path.name}"'
        self._file.write_at(SECTOR_BYTES, _descriptor("monolithicSparse", extent, self._capacity))
        for directory, first in _pairs(self._directories, self._first_tables):
            numbers = [first + n * _TABLE_SECTORS for n in range(self._tables)]
            self._file.write_at(
                directory * SECTOR_BYTES, struct.pack(f"<{len(numbers)}I", *numbers)
            )
        self._file.finish(self._next * SECTOR_BYTES)

    def discard(self) -> None:
        self._file.discard()


IMAGES: dict[str, Callable[[Path, int], RawImage | FlatVmdk | SparseVmdk]] = {}
IMAGES.update({"raw": RawImage, "vmdk": SparseVmdk, "vmdk-flat": FlatVmdk})


# ---------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------


class Progress:
    """A line on the terminal every few seconds, none in a log."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, max(1, total), 0
        self._is_shown = sys.stderr.isatty()
        self._next = time.monotonic() + 2

    def add(self, count: int) -> None:
        self._done += count
        if self._is_shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + 2
            percent = min(100, 100 * self._done // self._total)
            sys.stderr.write(f"\r{self._what}: {percent} % of {sized(self._total)} ")
            sys.stderr.flush()

    def end(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r" + " " * 70 + "\r")


def sized(count: int) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def printable(value: object) -> str:
    """Text of a repository on a terminal: control characters do nothing."""
    return "".join(character if character.isprintable() else "?" for character in str(value))


class Rescue:
    """An opened repository: what all commands work on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder = Folder(options.folder)
        self.findings = Findings()
        generations = read_generations(self.folder, self.findings)
        self.keys = open_keys(generations, secret_of(options), self.findings)
        self.writers = read_writers(self.folder, self.keys, self.findings)
        self.fences = read_fences(self.folder, self.keys, self.writers, self.findings)
        rules = (self.writers, self.fences)
        self.points = read_points(self.folder, self.keys, rules, self.findings)
        self._miss_newest_fences()
        self.is_unverified_accepted: bool = options.accept_unverified
        self._chunks: Chunks | None = None

    def is_usable(self, point: Point) -> bool:
        return point.refusal is None or self.is_unverified_accepted

    @property
    def chunks(self) -> Chunks:
        """Opened at the first use: it reads all indexes."""
        if self._chunks is None:
            locations = Locations(self.folder, self.keys)
            locations.load(self.writers, self._named_indexes(), self.findings)
            self._chunks = Chunks(self.folder, self.keys, locations)
        return self._chunks

    def _miss_newest_fences(self) -> None:
        """Epochs are closed in order: a point of a later one than the current tells of fences that were lost."""
        closed = max((int(name[7:]) for name in self.folder.names("fences")), default=0)
        epochs = [point.body["writer_epoch"] for point in self.points if point.refusal is None]
        highest = max(epochs, default=0)
        if highest - closed > 1:
            last = f" to fences/{highest - 1:010}" if highest - closed > 2 else ""
            self.findings.add(
                f"fences/{closed + 1:010}{last}", "it is missing (the other fences decide)"
            )

    def _named_indexes(self) -> set[str]:
        """Object ids of the indexes that the attempts of points that count wrote."""
        named: set[str] = set()
        for point in self.points:
            with contextlib.suppress(*_UNREADABLE):
                if point.refusal is None:
                    named.update(str(row["object_id"]) for row in point.body["indexes"])
        return named

    def point(self, wanted: str) -> Point:
        """By point id, job id, the start of either, or a VM's name (its newest point). Raises: RescueError."""
        usable = [point for point in self.points if self.is_usable(point)]
        exact = [point for point in usable if wanted in (point.point_id, point.job_id)]
        started = [
            point
            for point in usable
            if point.point_id.startswith(wanted) or point.job_id.startswith(wanted)
        ]
        named = [point for point in usable if point.vm_name == wanted][-1:]
        found = exact or named or started
        if len(found) == 1:
            return found[0]
        if found:
            raise RescueError(
                f"'{wanted}' is the start of {len(found)} points: give more of it", EXIT_USAGE
            )
        refused = [
            point
            for point in self.points
            if wanted in (point.point_id, point.job_id) and point.refusal
        ]
        if refused and refused[0].refusal:
            raise RescueError(
                f"Point {wanted} {refused[0].refusal.told()}. If you trust it nevertheless: --accept-unverified",
                EXIT_USAGE,
            )
        raise RescueError(f"No point '{wanted}': see 'list'", EXIT_USAGE)

    def tell_findings(self) -> None:
        for row in self.findings.rows:
            tell(f"damage: {printable(row['object'])}: {printable(row['problem'])}")


def disk_of(point: Point, key: str | None) -> dict[str, Any]:
    """A disk by its device key or label. Raises: RescueError."""
    disks = point.disks
    if key is None and len(disks) == 1:
        return dict(disks[0])
    for disk in disks:
        if key in (str(disk["header"]["device_key"]), disk["header"].get("label")):
            return dict(disk)
    known = ", ".join(
        f"{disk['header']['device_key']} ({disk['header'].get('label') or '-'})" for disk in disks
    )
    raise RescueError(
        f"Choose one of the point's disks with --disk: {printable(known)}", EXIT_USAGE
    )


def point_summary(point: Point) -> dict[str, Any]:
    return {
        "point_id": point.point_id,
        "job_id": point.job_id,
        "vm": point.vm_name,
        "created_at": point.created_at,
        "lineage_id": point.lineage_id,
        "level": point.facts.get("level_done"),
        "counts": point.refusal is None,
        "in_doubt": point.refusal is not None and point.refusal.is_in_doubt,
        "refusal": point.refusal.reason if point.refusal else None,
        "disks": [
            {
                "device_key": disk["header"]["device_key"],
                "label": disk["header"].get("label"),
                "capacity_bytes": int(disk["header"]["capacity_bytes"]),
                "mapped_bytes": int(disk["root"]["blocks"]) * BLOCK_BYTES if disk["root"] else 0,
            }
            for disk in point.disks
        ],
        "blobs": [blob["kind"] for blob in point.body["blobs"]],
    }


def run_list(rescue: Rescue, options: argparse.Namespace) -> int:
    """Which points are there."""
    rows = [point_summary(point) for point in rescue.points]
    if options.json:
        head = {
            "repository_id": rescue.keys.repository_id.hex(),
            "key_generation": rescue.keys.generation,
        }
        say(json.dumps({**head, "points": rows, "damage": rescue.findings.rows}, indent=1))
        return EXIT_DAMAGE if rescue.findings.rows else EXIT_GOOD
    say(
        f"Repository {rescue.keys.repository_id.hex()}, key generation {rescue.keys.generation}, {len(rows)} points"
    )
    newest_names = {point.lineage_id: point.vm_name for point in rescue.points}
    newest_names.update(
        {
            point.lineage_id: point.vm_name
            for point in rescue.points
            if point.vm_name != point.lineage_id
        }
    )
    for lineage_id, vm in sorted(newest_names.items(), key=lambda item: (item[1], item[0])):
        say(f"\n{printable(vm)}")
        for row in rows:
            if row["lineage_id"] != lineage_id:
                continue
            say(
                f"  {printable(row['created_at'][:19]):19}  {printable(row['point_id'])}  {printable(row['level'] or '')}"
            )
            for disk in row["disks"]:
                size = f"{sized(disk['capacity_bytes'])}, {sized(disk['mapped_bytes'])} in use"
                say(
                    f"      --disk {printable(disk['device_key'])}   {printable(disk['label'] or '')}   {size}"
                )
            if row["blobs"]:
                say(f"      files of the VM: {printable(', '.join(row['blobs']))}")
            if row["refusal"]:
                what = "IN DOUBT" if row["in_doubt"] else "DOES NOT COUNT"
                say(f"      {what}: {printable(row['refusal'])}")
    rescue.tell_findings()
    return EXIT_DAMAGE if rescue.findings.rows else EXIT_GOOD


def run_points(rescue: Rescue, options: argparse.Namespace) -> int:
    """The whole list of points, rebuilt from the manifests, as JSON."""
    del options
    points = [
        {
            "name": point.name,
            "digest": point.digest.hex(),
            "counts": point.refusal is None,
            "refusal": point.refusal.reason if point.refusal else None,
            "manifest": point.body,
        }
        for point in rescue.points
    ]
    say(
        json.dumps(
            {
                "repository_id": rescue.keys.repository_id.hex(),
                "points": points,
                "damage": rescue.findings.rows,
            },
            indent=1,
        )
    )
    return EXIT_DAMAGE if rescue.findings.rows else EXIT_GOOD


# --- check ---


def check_small_objects(rescue: Rescue) -> None:
    """Leases, proofs and holds: no point needs them, so they are only named."""
    for kind, number, role in (
        ("leases", KIND_LEASE, "write"),
        ("proofs", KIND_PROOF, "verify"),
        ("holds", KIND_HOLD, "prune"),
    ):
        for name in rescue.folder.names(kind):
            try:
                part = Part(rescue.folder, name, 0, rescue.folder.size(name))
                sealed = SealedObject(part, rescue.keys, Wanted(number))
                plain = sealed.body()
                public, digest = sealed.signer()
                refusal = rescue.writers.refusal(public, role, digest)
                if refusal and refusal.is_expected:
                    continue
                if refusal:
                    raise DamagedError(f"{name}: {refusal.reason}")
                parsed(name, plain)
            except DamagedError as error:
                rescue.findings.add(name, f"{error} (no point needs it)")
    check_controller_copies(rescue)


def check_controller_copies(rescue: Rescue) -> None:
    """Copies of the controller's database: whole, and signed by an authority key."""
    for name in rescue.folder.names("controller"):
        try:
            _, epoch, number = name.split("/")
            object_id = struct.pack(">QQ", int(epoch), int(number))
            part = Part(rescue.folder, name, 0, rescue.folder.size(name))
            sealed = SealedObject(
                part, rescue.keys, Wanted(KIND_CONTROLLER_COPY, object_id=object_id)
            )
            sealed.verify_segments()
            if sealed.signer()[0] not in {key.public_key for key in rescue.keys.authorities}:
                raise DamagedError(f"{name}: it was not signed by the authority")
        except DamagedError as error:
            rescue.findings.add(name, f"{error} (no point needs it)")


def check_maps(rescue: Rescue) -> None:
    """Every segment of every map object opens."""
    for name in rescue.folder.names("maps"):
        _, tag, object_id = name.split("/")
        try:
            wanted = Wanted(KIND_MAP, bytes.fromhex(tag), bytes.fromhex(object_id))
            SealedObject(
                Part(rescue.folder, name, 0, rescue.folder.size(name)), rescue.keys, wanted
            ).verify_segments()
        except DamagedError as error:
            rescue.findings.add(name, str(error))


def check_packs(rescue: Rescue, is_data_read: bool) -> None:
    """Footers and segment headers of every pack; with ``is_data_read`` every byte and every blob."""
    names = rescue.folder.names("packs")
    progress = Progress("checking packs", sum(_size_or_zero(rescue.folder, name) for name in names))
    for name in names:
        try:
            footer = read_footer(rescue.folder, name, rescue.keys)
            for place in footer.locations:
                if place.offset + place.stored_length > rescue.folder.size(name):
                    raise DamagedError(f"{name}: a blob lies beyond its end")
        except DamagedError as error:
            rescue.findings.add(name, str(error))
            footer = None
        if is_data_read:
            _check_pack_data(rescue, name, footer)
        progress.add(_size_or_zero(rescue.folder, name))
    progress.end()


def _size_or_zero(folder: Folder, name: str) -> int:
    with contextlib.suppress(DamagedError):
        return folder.size(name)
    return 0


def _check_pack_data(rescue: Rescue, name: str, footer: PackFooter | None) -> None:
    try:
        data = rescue.folder.read(name, PACK_BYTES_MAX)
        if blake3_of(data).hex() != name[-64:]:
            rescue.findings.add(name, "it has other bytes than were written")
    except DamagedError as error:
        rescue.findings.add(name, str(error))
    places = {
        (place.chunk_id, place.offset): place for place in rescue.chunks.locations.in_pack(name)
    }
    for place in footer.locations if footer else []:
        places.setdefault((place.chunk_id, place.offset), place)
    for place in places.values():
        try:
            rescue.chunks.verified(place)
        except DamagedError as error:
            rescue.findings.add(name, str(error).removeprefix(f"{name}: "))
            rescue.chunks.locations.mark_bad(place)


class Availability:
    """Which blocks of a frame can be had, without reading them (what was read and found bad does not count)."""

    def __init__(self, rescue: Rescue) -> None:
        self._locations = rescue.chunks.locations
        self._sizes = {
            name: _size_or_zero(rescue.folder, name) for name in rescue.folder.names("packs")
        }
        self._known: dict[bytes, int] = {}

    def presence(self, chunk_id: bytes) -> int:
        """A bit for each block that some pack holds; bit 0 for chunks of other kinds."""
        if chunk_id not in self._known:
            if len(self._known) > 1_000_000:
                self._known.clear()
            bits = self._bits(chunk_id)
            if not bits and self._locations.search_everywhere():
                bits = self._bits(chunk_id)
            self._known[chunk_id] = bits
        return self._known[chunk_id]

    def _bits(self, chunk_id: bytes) -> int:
        bits = 0
        for place in self._locations.of(chunk_id):
            if place.offset + place.stored_length <= self._sizes.get(place.pack_name, 0):
                bits |= place.presence if place.kind == BLOB_DISK_FRAME else 1
        return bits


def lost_of_disk(
    rescue: Rescue, available: Availability, point: Point, disk: dict[str, Any]
) -> list[Gap]:
    """The byte ranges of a disk that cannot be restored."""
    disk_map = DiskMap(rescue.folder, rescue.keys, point, disk)
    gaps: list[Gap] = []
    for leaf in disk_map.leaves():
        if isinstance(leaf, Gap):
            gaps.append(leaf)
            continue
        for run in leaf:
            wanted = ((1 << run.blocks) - 1) << run.frame_block
            missing = wanted & ~available.presence(run.chunk_id)
            for n in range(run.blocks):
                if missing >> (run.frame_block + n) & 1:
                    start = (run.disk_block + n) * BLOCK_BYTES
                    end = min(start + BLOCK_BYTES, disk_map.capacity)
                    gaps.append(Gap(start, end, f"no good copy of chunk {run.chunk_id.hex()}"))
    return joined(gaps)


def run_check(rescue: Rescue, options: argparse.Namespace) -> int:
    """Is everything there; what is lost, point by point."""
    check_small_objects(rescue)
    check_maps(rescue)
    _ = rescue.chunks
    check_packs(rescue, options.read_data)
    available = Availability(rescue)
    rows: list[dict[str, Any]] = []
    for point in rescue.points:
        lost_disks: dict[str, list[list[Any]]] = {}
        if not rescue.is_usable(point):
            if point.refusal and not point.refusal.is_expected:
                rescue.findings.add(point.name, point.refusal.reason)
            continue
        for disk in point.disks:
            gaps = lost_of_disk(rescue, available, point, disk)
            if gaps:
                lost_disks[str(disk["header"]["device_key"])] = [
                    [gap.start, gap.end, gap.why] for gap in gaps
                ]
        lost_blobs = [
            blob["kind"]
            for blob in point.body["blobs"]
            if not all(
                available.presence(bytes.fromhex(chunk_id)) for chunk_id, _ in blob["chunks"]
            )
        ]
        rows.append(
            {
                "point_id": point.point_id,
                "vm": point.vm_name,
                "lost": lost_disks,
                "lost_blobs": lost_blobs,
            }
        )
    is_clean = not rescue.findings.rows and not any(
        row["lost"] or row["lost_blobs"] for row in rows
    )
    if options.json:
        say(
            json.dumps(
                {"clean": is_clean, "damage": rescue.findings.rows, "points": rows}, indent=1
            )
        )
        return EXIT_GOOD if is_clean else EXIT_DAMAGE
    rescue.tell_findings()
    for row in rows:
        state = "incomplete" if row["lost"] or row["lost_blobs"] else "whole"
        say(f"{printable(row['point_id'])}  {printable(row['vm'])}: {state}")
        for key, ranges in row["lost"].items():
            for start, end, why in ranges:
                say(
                    f"    disk {printable(key)}: bytes {start} to {end} are lost ({printable(why)})"
                )
        for kind in row["lost_blobs"]:
            say(f"    file {printable(kind)} is lost")
    read = "and every byte of data " if options.read_data else "(not the data: --read-data) "
    say(
        f"\n{len(rows)} points, structure {read}checked: "
        + ("no damage" if is_clean else "DAMAGE, see above")
    )
    return EXIT_GOOD if is_clean else EXIT_DAMAGE


# --- restore and extract ---


def run_restore(rescue: Rescue, options: argparse.Namespace) -> int:
    """One disk of one point into a new file."""
    point = rescue.point(options.point)
    disk = disk_of(point, options.disk)
    disk_map = DiskMap(rescue.folder, rescue.keys, point, disk)
    path = Path(options.to)
    planned = lost_of_disk(rescue, Availability(rescue), point, disk)
    if planned and not options.despite_damage:
        _tell_gaps(planned)
        raise RescueError("The disk is incomplete, nothing was written. " + _DESPITE, EXIT_DAMAGE)
    free = shutil.disk_usage(path.parent if path.parent.is_dir() else Path()).free
    if free < disk_map.mapped_bytes:
        tell(
            f"warning: {sized(disk_map.mapped_bytes)} will be written, {sized(free)} are free there"
        )
    image = IMAGES[options.format](path, disk_map.capacity)
    progress = Progress("restoring", disk_map.mapped_bytes)
    gaps: list[Gap] = []
    try:
        for piece in disk_pieces(disk_map, rescue.chunks):
            if isinstance(piece, Gap):
                gaps.append(piece)
            elif not gaps or options.despite_damage:
                image.write(*piece)
            progress.add(BLOCK_BYTES)
        gaps = joined(gaps)
        progress.end()
        if gaps and not options.despite_damage:
            _tell_gaps(gaps)
            raise RescueError(
                "The disk is incomplete, its file was removed again. " + _DESPITE, EXIT_DAMAGE
            )
        image.finish()
    except BaseException:
        image.discard()
        raise
    say(
        f"{path}: {sized(disk_map.capacity)}, point {printable(point.point_id)} of {printable(point.vm_name)}"
    )
    if options.json:
        say(
            json.dumps(
                {"to": str(path), "missing": [[gap.start, gap.end, gap.why] for gap in gaps]},
                indent=1,
            )
        )
    if gaps:
        _tell_gaps(gaps)
        tell("Those bytes are ZERO in the file; everything else is as it was saved.")
        return EXIT_DAMAGE
    return EXIT_GOOD


_DESPITE = "With --despite-damage the rest is written, with zeros in these ranges."


def _tell_gaps(gaps: list[Gap]) -> None:
    for gap in gaps:
        tell(
            f"missing: bytes {gap.start} to {gap.end} ({gap.end - gap.start} bytes): {printable(gap.why)}"
        )


def blob_bytes(rescue: Rescue, blob: dict[str, Any]) -> tuple[bytes, list[Gap]]:
    """A file of the VM, zeros where it is lost, and what is."""
    data = bytearray()
    gaps = []
    for chunk_id, length in blob["chunks"]:
        try:
            chunk = rescue.chunks.whole(bytes.fromhex(chunk_id))
            if len(chunk) != length:
                raise DamagedError(f"chunk {chunk_id} has another length than the manifest says")
            data += chunk
        except DamagedError as error:
            gaps.append(Gap(len(data), len(data) + length, str(error)))
            data += bytes(length)
    if len(data) != blob["length"]:
        gaps.append(
            Gap(0, int(blob["length"]), "its chunks have another length than the manifest says")
        )
    return bytes(data), gaps


def run_extract(rescue: Rescue, options: argparse.Namespace) -> int:
    """The VM's own files of one point: one into a file, or all into a new folder."""
    point = rescue.point(options.point)
    blobs = [blob for blob in point.body["blobs"] if options.kind in (None, blob["kind"])]
    if not blobs:
        kinds = ", ".join(blob["kind"] for blob in point.body["blobs"]) or "none"
        raise RescueError(f"The point has no such file; it has: {printable(kinds)}", EXIT_USAGE)
    target = Path(options.to)
    if options.kind is None:
        try:
            target.mkdir()
        except OSError as error:
            raise RescueError(
                f"{target}: {error.strerror}: a new folder is wanted", EXIT_USAGE
            ) from error
    status = EXIT_GOOD
    for blob in blobs:
        data, gaps = blob_bytes(rescue, blob)
        _tell_gaps(gaps)
        if gaps:
            status = EXIT_DAMAGE
            if not options.despite_damage:
                tell(f"{printable(blob['kind'])} was not written. " + _DESPITE)
                continue
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", point.vm_name).lstrip(".")[:100] or "vm"
        extension = re.sub(r"[^A-Za-z0-9_-]", "_", str(blob["kind"]))
        path = target / f"{stem}.{extension}" if options.kind is None else target
        file = NewFile(path)
        try:
            file.write_at(0, data)
            file.finish(len(data))
        except BaseException:
            file.discard()
            raise
        say(f"{path}: {len(data)} bytes")
    return status


# --- the command line ---

_EPILOG = """\
first steps:
  1. python3 -I rescue.py /mnt/repository list          (asks for the recovery sheet)
  2. python3 -I rescue.py /mnt/repository restore POINT --disk 2000 --to /big/web.vmdk
  3. python3 -I rescue.py /mnt/repository extract POINT --to /big/web-files

POINT is an id that 'list' shows, the start of one, or a VM's name (its newest point).

formats: raw        the bytes of the disk, with holes
         vmdk       one sparse file: VMware Workstation, VirtualBox, qemu; for ESXi: vmkfstools -i web.vmdk new.vmdk -d thin
         vmdk-flat  a descriptor and a -flat file, of any size

exit status: 0 all is well, 1 damage was found (all else was done), 2 usage, 3 the repository could not be opened.
Nothing in the repository is changed, no file is overwritten. Copy the repository's folder keys/ to a safe place.
"""


def command_line() -> argparse.ArgumentParser:
    unlock = argparse.ArgumentParser(add_help=False)
    group = unlock.add_argument_group(
        "what opens the repository (without any: the recovery sheet is asked for)"
    )
    group.add_argument(
        "--recovery-sheet-file",
        metavar="FILE",
        help="the nine groups of the recovery sheet in a file",
    )
    group.add_argument("--passphrase", action="store_true", help="ask for a passphrase")
    group.add_argument("--passphrase-file", metavar="FILE", help="a passphrase in a file")
    group.add_argument("--key-file", metavar="FILE", help="a key file (holdfast-key-1:...)")
    group.add_argument(
        "--private-key-file",
        metavar="FILE",
        help="the private X25519 key of a public-key recipient",
    )
    group.add_argument(
        "--accept-unverified",
        action="store_true",
        help="use points too that do not count (see 'list')",
    )
    group.add_argument(
        "--work-folder", metavar="FOLDER", help="where a large index is put for the time being"
    )
    parser = argparse.ArgumentParser(
        prog="rescue.py",
        description="Restore virtual machines from a Holdfast repository without Holdfast.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="the repository: the folder that has keys/, packs/, points/ ...",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text, run in (
        ("list", "which points are there", run_list),
        ("check", "is everything there; what is lost", run_check),
        ("points", "the list of all points, rebuilt, as JSON", run_points),
        ("restore", "write one disk of a point into a new file", run_restore),
        ("extract", "write the VM's own files (.vmx, NVRAM, .ovf) of a point", run_extract),
    ):
        command = commands.add_parser(name, help=text, description=text, parents=[unlock])
        command.set_defaults(run=run)
        if name in ("list", "check", "restore"):
            command.add_argument("--json", action="store_true", help="as JSON")
        if name == "check":
            command.add_argument(
                "--read-data", action="store_true", help="read, open and compare every byte"
            )
        if name in ("restore", "extract"):
            command.add_argument(
                "point", metavar="POINT", help="an id of 'list', its start, or a VM's name"
            )
            command.add_argument(
                "--despite-damage",
                action="store_true",
                help="write what is left, zeros for the rest",
            )
        if name == "restore":
            command.add_argument("--disk", metavar="KEY", help="which disk, as 'list' shows it")
            command.add_argument("--to", metavar="FILE", required=True, help="the new file")
            command.add_argument(
                "--format",
                choices=sorted(IMAGES),
                default=None,
                help="as the name of FILE ends, else raw",
            )
        if name == "extract":
            command.add_argument(
                "--kind", help="vmx, nvram, ovf ...: only this one, into the file --to"
            )
            command.add_argument(
                "--to", metavar="PATH", required=True, help="a new folder; with --kind a new file"
            )
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = command_line().parse_args(arguments)
    if options.command == "restore" and options.format is None:
        options.format = "vmdk" if options.to.lower().endswith(".vmdk") else "raw"
    if options.work_folder:
        os.environ["SQLITE_TMPDIR"] = options.work_folder
    if FAST_BLAKE3 is None or NEW_ZSTD_DECOMPRESSOR is None:
        tell("note: without the packages 'blake3' and 'zstandard' this is slow, but right")
    try:
        status: int = options.run(Rescue(options), options)
        sys.stdout.flush()
        return status
    except RescueError as error:
        tell(f"rescue.py: {error}")
        return error.exit_status
    except OSError as error:
        tell(f"rescue.py: {error.filename or ''}: {error.strerror}")
        return EXIT_NOT_OPENED
    except KeyboardInterrupt:
        tell("rescue.py: interrupted")
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

"""The slow ways of `rescue.py` give what the packages give: zstd, BLAKE3, Argon2id, HPKE."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import blake3
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.repository import rescue
from support.repositories import SeededRandomness

LEVELS = (1, 2, 3, 5, 7, 9, 12, 16, 19)


def program_text(length: int) -> bytes:
    return Path(rescue.__file__).read_bytes()[:length]


def binary(length: int) -> bytes:
    """Machine code."""
    code = next(Path(str(blake3.__file__)).parent.glob("*.so"))
    return code.read_bytes()[4096 : 4096 + length]


def few_symbols(length: int) -> bytes:
    return bytes(random.Random(1).choices(b"abcd", weights=(80, 15, 4, 1), k=length))


def noise(length: int) -> bytes:
    return hashlib.shake_256(b"noise").digest(length)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("made", [program_text, binary, few_symbols, noise])
def test_frames_of_every_level_are_decoded(level: int, made: object) -> None:
    assert callable(made)
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=level % 2 == 0)
    for length in (0, 1, 300, 70_000):
        plain = made(length)
        assert rescue.slow_zstd(compressor.compress(plain), len(plain)) == plain


def test_a_frame_of_several_blocks_with_repeated_tables_is_decoded() -> None:
    plain = program_text(120_000) * 3
    sealed = zstandard.ZstdCompressor(level=3).compress(plain)
    assert rescue.slow_zstd(sealed, len(plain)) == plain
    assert rescue.slow_zstd(zstandard.compress(bytes(1 << 20)), 1 << 20) == bytes(1 << 20)


pieces = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.binary(min_size=1, max_size=12), st.integers(1, 400)).map(
            lambda p: p[0] * p[1]
        ),
        st.integers(0, 40_000).map(program_text),
    ),
    max_size=6,
).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(plain=pieces, level=st.sampled_from(LEVELS))
def test_whatever_the_library_compresses_is_decoded(plain: bytes, level: int) -> None:
    assert rescue.slow_zstd(zstandard.compress(plain, level), len(plain)) == plain


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_frames_are_refused_or_decoded_to_the_announced_length(data: st.DataObject) -> None:
    plain = data.draw(pieces)
    sealed = bytearray(zstandard.compress(plain))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    cut = bytes(sealed[: data.draw(st.sampled_from((len(sealed), at)))])
    try:
        decoded = rescue.zstd_of(cut, len(plain))
        slow = rescue.slow_zstd(cut, len(plain))
    except (rescue.DamagedError, IndexError):
        return
    assert len(decoded) == len(slow) == len(plain)


def test_another_content_size_than_expected_is_refused() -> None:
    sealed = zstandard.compress(b"abc" * 100)
    for decode in (rescue.slow_zstd, rescue.zstd_of):
        with pytest.raises(rescue.DamagedError, match="content size"):
            decode(sealed, 299)
        with pytest.raises(rescue.DamagedError):
            decode(sealed + b"x", 300)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=5000), key=st.none() | st.binary(min_size=32, max_size=32))
def test_blake3_of_anything(data: bytes, key: bytes | None) -> None:
    fast = blake3.blake3(data, key=key) if key else blake3.blake3(data)
    assert rescue.SlowBlake3(data, key=key).digest() == fast.digest()


@pytest.mark.parametrize(
    "length", [0, 1, 64, 65, 1023, 1024, 1025, 2048, 2049, 65536, 65537, (1 << 20) + 1, 3_000_001]
)
def test_blake3_at_the_edges_of_its_tree(length: int) -> None:
    data = noise(length)
    hasher = rescue.SlowBlake3(key=b"k" * 32)
    for start in range(0, length, 300_000):
        hasher.update(data[start : start + 300_000])
    assert hasher.digest() == blake3.blake3(data, key=b"k" * 32).digest()


@pytest.mark.parametrize(
    ("memory_kib", "iterations", "lanes"), [(8, 1, 1), (64, 1, 1), (70, 2, 2), (256, 3, 4)]
)
def test_argon2id(memory_kib: int, iterations: int, lanes: int) -> None:
    cost = rescue.Argon2Cost(b"salt" * 4, memory_kib, iterations, lanes)
    fast = Argon2id(
        salt=cost.salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib
    ).derive("pässword".encode())
    assert (
        rescue.slow_argon2id("pässword".encode(), cost)
        == fast
        == rescue.argon2id("pässword".encode(), cost)
    )


def test_hpke_opens_what_was_sealed_to_it_and_nothing_else() -> None:
    private = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = private.public_key().public_bytes_raw()
    sealed = SeededRandomness("x").seal_to(public, plain=b"k" * 32, info=b"info")
    assert rescue.hpke_open(bytes(range(32)), sealed, b"info") == b"k" * 32
    for wrong in (sealed[:-1], sealed[:-1] + b"\0", bytes(32) + sealed[32:], b""):
        with pytest.raises(rescue.DamagedError):
            rescue.hpke_open(bytes(range(32)), wrong, b"info")
    with pytest.raises(rescue.DamagedError):
        rescue.hpke_open(bytes(range(32)), sealed, b"other")

"""`rescue.py`'s own zstd decoder before frames of which bits were changed: refused in its own words, or as the library."""

from __future__ import annotations

import hashlib
import random
import re

import pytest
import zstandard

from holdfast_common.repository import rescue

WORDS = b" ".join(hashlib.sha256(bytes([n])).hexdigest()[:7].encode() for n in range(9))


def skewed(length: int) -> bytes:
    """Two hundred symbols, of which some come often: its weights are told in full."""
    chance = random.Random(2)
    symbols = range(40, 240)
    return bytes(chance.choices(symbols, [1 + (n % 7) ** 3 for n in symbols], k=length))


PLAINS = {
    "sequences": WORDS * 3 + b"and so on " * 9 + WORDS,
    "literals": bytes(random.Random(1).choices(b"abcdefgh", (40, 20, 10, 8, 4, 3, 2, 1), k=400)),
    "four streams": skewed(1500),
    "runs": b"a" * 700 + b"ab" * 200 + b"c" * 900,
    "as it is": hashlib.shake_256(b"noise").digest(300),
}


@pytest.fixture(autouse=True)
def _without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescue, "NEW_ZSTD_DECOMPRESSOR", None)


def answer(stored: bytes, size: int) -> bytes | str:
    """The plain bytes, or why not. Nothing but `DamagedError` may come out."""
    try:
        return rescue.zstd_of(stored, size)
    except rescue.DamagedError as error:
        return str(error)


def of_the_library(stored: bytes, size: int) -> bytes | None:
    try:
        plain = zstandard.ZstdDecompressor().decompress(stored, max_output_size=size)
    except zstandard.ZstdError:
        return None
    return plain if len(plain) == size else None


@pytest.mark.parametrize("name", PLAINS)
def test_a_changed_bit_is_refused_or_decoded_as_the_library_does(name: str) -> None:
    plain = PLAINS[name]
    stored = zstandard.compress(plain, 19)
    assert answer(stored, len(plain)) == plain
    reasons = set()
    places = range(8 * len(stored))  # of a long one: the tables at its start, and a choice
    chosen = random.Random(name).sample(places, min(150, len(places)))
    for place in {*places[: 8 * 40], *chosen}:
        changed = bytearray(stored)
        changed[place // 8] ^= 1 << place % 8
        found = answer(bytes(changed), len(plain))
        if isinstance(found, bytes):
            assert of_the_library(bytes(changed), len(plain)) in (None, found), place
        else:
            reasons.add(re.sub(r"\d+", "N", found))
    assert len(reasons) > (1 if name == "as it is" else 3), reasons


@pytest.mark.parametrize("name", PLAINS)
def test_a_frame_that_is_cut_anywhere_is_refused(name: str) -> None:
    plain = PLAINS[name]
    stored = zstandard.compress(plain, 3)
    for length in range(0, len(stored), 1 + len(stored) // 200):
        assert isinstance(answer(stored[:length], len(plain)), str), length


def test_two_flips_at_a_time_end_no_other_way() -> None:
    chance = random.Random(3)
    reasons = set()
    for _ in range(1500):
        plain = PLAINS[chance.choice(list(PLAINS))]
        changed = bytearray(zstandard.compress(plain, chance.choice((1, 3, 19))))
        for _ in range(chance.choice((1, 2, 4))):
            changed[chance.randrange(9, min(len(changed), 80))] = chance.randrange(256)
        found = answer(bytes(changed), len(plain))
        if isinstance(found, bytes):
            library = of_the_library(bytes(changed), len(plain))
            assert library in (None, found)
        else:
            reasons.add(re.sub(r"\d+", "N", found))
    assert len(reasons) > 10, reasons

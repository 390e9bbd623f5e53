from __future__ import annotations

import random
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import FormatError, HoldfastError, IntegrityError
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import SIGNED_KINDS, ObjectKind, map_name
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.sealed_object import (
    HEADER,
    SEGMENT_BYTES,
    SealedRanges,
    body_length,
    signer_of,
    stored_length,
)
from support.controller_copies import with_copy_keys
from support.memory_store import MemoryStore
from support.repositories import Repository, new_repository

SIGNER = Ed25519PrivateKey.generate()
NOISE_KEYS = new_repository(MemoryStore()).keys.common
LENGTHS = [
    0,
    1,
    1000,
    SEGMENT_BYTES - 1,
    SEGMENT_BYTES,
    SEGMENT_BYTES + 1,
    2 * SEGMENT_BYTES,
    2 * SEGMENT_BYTES + 5,
]


@pytest.fixture(scope="module")
def repository() -> Repository:
    return new_repository(MemoryStore())


@pytest.fixture(scope="module")
def keys(repository: Repository) -> ReaderKeys:
    return with_copy_keys(repository.keys.reader_keys("vm-1"), repository.keys)


def sealed(keys: ReaderKeys, kind: ObjectKind, body: bytes) -> bytes:
    signer = SIGNER if kind in SIGNED_KINDS else None
    return keys.seal(kind, body, signing_key=signer, randomness=SYSTEM_RANDOMNESS)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", [ObjectKind.MAP, ObjectKind.INDEX])
def test_what_was_sealed_opens_again(keys: ReaderKeys, kind: ObjectKind, length: int) -> None:
    body = bytes(range(256)) * (length // 256) + bytes(length % 256)
    data = sealed(keys, kind, body)
    assert len(data) == stored_length(length, kind=kind)
    assert body_length(len(data), kind=kind) == length
    found = keys.open(kind, data)
    assert found.body == body
    assert found.signer == (
        SIGNER.public_key().public_bytes_raw() if kind in SIGNED_KINDS else None
    )


def test_every_flipped_bit_is_found(keys: ReaderKeys) -> None:
    data = sealed(keys, ObjectKind.MANIFEST, b"a manifest")
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(HoldfastError) as caught:
            keys.open(ObjectKind.MANIFEST, bytes(damaged))
        assert isinstance(caught.value, IntegrityError | FormatError)


def test_every_truncation_is_found(keys: ReaderKeys) -> None:
    for kind in (ObjectKind.MAP, ObjectKind.MANIFEST):
        data = sealed(keys, kind, b"some bytes")
        for length in range(len(data)):
            with pytest.raises((IntegrityError, FormatError)):
                keys.open(kind, data[:length])


def test_segments_cannot_be_left_out_added_or_swapped(keys: ReaderKeys) -> None:
    stored = SEGMENT_BYTES + 16
    body = b"".join(bytes([number]) * SEGMENT_BYTES for number in range(3))
    data = sealed(keys, ObjectKind.MAP, body)
    header, segments = data[: HEADER.size], data[HEADER.size :]
    first, second, third = (segments[n * stored : (n + 1) * stored] for n in range(3))
    for wrong in (
        first + second,  # the end is missing
        first + third + second,
        second + third,
        first + second + third + third,
    ):
        with pytest.raises((IntegrityError, FormatError)):
            keys.open(ObjectKind.MAP, header + wrong)


@pytest.mark.parametrize("kind", list(ObjectKind))
@pytest.mark.parametrize("other", list(ObjectKind))
def test_no_kind_passes_for_another(keys: ReaderKeys, kind: ObjectKind, other: ObjectKind) -> None:
    if kind is other:
        return
    data = bytearray(sealed(keys, kind, b"body"))
    with pytest.raises((IntegrityError, FormatError)):
        keys.open(other, bytes(data))
    data[11] = other  # the header says so, too
    with pytest.raises((IntegrityError, FormatError)):
        keys.open(other, bytes(data))


def test_an_object_of_another_lineage_is_refused(repository: Repository, keys: ReaderKeys) -> None:
    data = sealed(keys, ObjectKind.MAP, b"body")
    other = repository.keys.reader_keys("vm-2")
    with pytest.raises(IntegrityError):
        other.open(ObjectKind.MAP, data)
    renamed = bytearray(data)
    renamed[HEADER.size - 48 : HEADER.size - 32] = other.lineage_tag
    with pytest.raises(IntegrityError):
        other.open(ObjectKind.MAP, bytes(renamed))


def test_an_object_of_another_repository_or_domain_is_refused(keys: ReaderKeys) -> None:
    data = sealed(keys, ObjectKind.INDEX, b"body")
    for changed in (replace(keys, repository_id=bytes(16)), replace(keys, domain_id=bytes(16))):
        with pytest.raises(IntegrityError):
            changed.open(ObjectKind.INDEX, data)


def test_an_object_that_a_reference_does_not_mean_is_refused(keys: ReaderKeys) -> None:
    data = sealed(keys, ObjectKind.MAP, b"body")
    with pytest.raises(IntegrityError):
        keys.open(ObjectKind.MAP, data, object_id=bytes(16))


def test_an_unknown_key_epoch_is_damage(keys: ReaderKeys) -> None:
    data = bytearray(sealed(keys, ObjectKind.MAP, b"body"))
    data[12] = 9
    with pytest.raises(IntegrityError):
        keys.open(ObjectKind.MAP, bytes(data))


def test_another_signature_than_the_writers_is_told_apart(keys: ReaderKeys) -> None:
    data = sealed(keys, ObjectKind.INDEX, b"body")
    assert signer_of(data).signer == SIGNER.public_key().public_bytes_raw()
    signed_by_another = keys.seal(
        ObjectKind.INDEX,
        b"body",
        signing_key=Ed25519PrivateKey.generate(),
        randomness=SYSTEM_RANDOMNESS,
    )
    transplanted = data[:-96] + signed_by_another[-96:]
    with pytest.raises(IntegrityError):
        signer_of(transplanted)
    with pytest.raises(IntegrityError):
        signer_of(sealed(keys, ObjectKind.MAP, b"body"))


@settings(max_examples=30, deadline=None)
@given(length=st.integers(0, 3 * SEGMENT_BYTES))
def test_lengths_tell_each_other(length: int) -> None:
    for kind in (ObjectKind.MAP, ObjectKind.INDEX):
        assert body_length(stored_length(length, kind=kind), kind=kind) == length


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises((FormatError, IntegrityError)):
        NOISE_KEYS.open(ObjectKind.INDEX, data)


class TestRanges:
    def ranges(self, keys: ReaderKeys, store: MemoryStore, data: bytes) -> SealedRanges:
        header = data[: HEADER.size]
        name = map_name(keys.lineage_tag, header[-64 - 16 : -64])
        store.objects[name] = data
        return SealedRanges(
            store,
            name,
            expected=keys.expected(ObjectKind.MAP),
            body=body_length(len(data), kind=ObjectKind.MAP),
            class_key=keys.class_key,
        )

    def test_single_segments_open(self, keys: ReaderKeys) -> None:
        body = bytes(SEGMENT_BYTES) + b"second" * 1000
        ranges = self.ranges(keys, MemoryStore(), sealed(keys, ObjectKind.MAP, body))
        assert ranges.segment(1) == b"second" * 1000
        assert ranges.segment(0) == bytes(SEGMENT_BYTES)

    @pytest.mark.parametrize("body_bytes", [1, 1000, SEGMENT_BYTES, 2 * SEGMENT_BYTES + 5])
    def test_any_bytes_can_be_had_without_their_segment(
        self, keys: ReaderKeys, body_bytes: int
    ) -> None:
        body = random.Random(1).randbytes(body_bytes)
        ranges = self.ranges(keys, MemoryStore(), sealed(keys, ObjectKind.MAP, body))
        starts = {0, 1, 15, 16, 17, 300, SEGMENT_BYTES - 40, SEGMENT_BYTES, body_bytes - 1}
        for start in sorted(start for start in starts if 0 <= start < body_bytes):
            rest = body_bytes - start
            for length in {0, 1, min(16, rest), min(100, rest), rest}:
                assert ranges.unproven(start, length) == body[start : start + length]

    def test_bytes_past_the_end_of_a_truncated_object_are_not_there(self, keys: ReaderKeys) -> None:
        data = sealed(keys, ObjectKind.MAP, bytes(3000))
        with pytest.raises(IntegrityError):
            self.ranges(keys, MemoryStore(), data[:2000]).unproven(1900, 200)

    def test_a_truncated_object_does_not_pass_for_a_shorter_one(self, keys: ReaderKeys) -> None:
        data = sealed(keys, ObjectKind.MAP, bytes(2 * SEGMENT_BYTES))
        cut = data[: HEADER.size + SEGMENT_BYTES + 16]
        with pytest.raises(IntegrityError):
            self.ranges(keys, MemoryStore(), cut).segment(0)

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.repository import frame_worker
from holdfast_common.repository.chunk_codec import (
    PLAIN_BYTES_MAX,
    BlobBinding,
    Compressor,
    Decompressor,
    SegmentHeader,
    SegmentSealer,
    payload_length,
)
from holdfast_common.repository.layout import BlobKind
from holdfast_common.repository.points import list_points
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.units import MIB
from support.memory_store import MemoryStore
from support.repositories import LINEAGE, Repository, new_repository, patterned

KEYS = new_repository(MemoryStore()).keys.writer_keys(LINEAGE)
SEALER = SegmentSealer(KEYS, SYSTEM_RANDOMNESS)


def sealed(payload: bytes, binding: BlobBinding) -> bytes:
    target = bytearray(len(payload) + 16)
    SEALER.cipher.seal_into(payload, binding, memoryview(target))
    return bytes(target)


def opened(stored: bytes, binding: BlobBinding) -> bytes:
    target = bytearray(len(stored) - 16)
    SEALER.cipher.open_into(stored, binding, memoryview(target))
    return bytes(target)


@settings(max_examples=50, deadline=None)
@given(plain=st.binary(min_size=1, max_size=5000), repeats=st.integers(1, 50))
def test_what_was_compressed_and_sealed_comes_back(plain: bytes, repeats: int) -> None:
    plain *= repeats
    binding = SEALER.next_binding(kind=BlobKind.OPAQUE, chunk_id=bytes(32), plain_length=len(plain))
    payload = Compressor(3).payload(plain)
    assert len(payload) <= len(plain)
    stored = sealed(bytes(payload), binding)
    assert Decompressor().plain(opened(stored, binding), plain_length=len(plain)) == plain


@pytest.mark.parametrize("level", [-1, 1, 2, 3, 9, 19])
@pytest.mark.parametrize("length", [1, 65536, 65537, MIB])
def test_every_level_makes_frames_that_come_back(level: int, length: int) -> None:
    plain = machine_code()[:length]
    payload = Compressor(level).payload(plain)
    assert Decompressor().plain(payload, plain_length=length) == plain


@pytest.mark.parametrize(("level", "longer"), [(3, 1.01), (1, 1.0)])
def test_the_levels_of_our_own_parameters_find_as_much_as_zstds(level: int, longer: float) -> None:
    plain = machine_code()
    theirs = len(zstandard.ZstdCompressor(level=level).compress(plain))
    assert len(plain) / 5 < len(Compressor(level).payload(plain)) < theirs * longer


def machine_code() -> bytes:
    """1 MiB such as disks hold."""
    (path,) = Path(zstandard.__file__).parent.glob("backend_c*.so")
    code = path.read_bytes()
    assert len(code) >= MIB
    return code[:MIB]


def test_incompressible_bytes_are_stored_as_they_are() -> None:
    plain = os.urandom(10_000)
    assert Compressor(3).payload(plain) is plain


@pytest.mark.parametrize(
    "change",
    [
        {"kind": BlobKind.DISK_FRAME},
        {"origin_id": bytes(16)},
        {"number": 9},
        {"chunk_id": bytes([1]) * 32},
        {"plain_length": 4},
    ],
    ids=str,
)
def test_a_blob_opens_only_as_what_it_was_sealed_as(change: dict[str, object]) -> None:
    binding = SEALER.next_binding(kind=BlobKind.OPAQUE, chunk_id=bytes(32), plain_length=5)
    stored = sealed(b"12345", binding)
    assert opened(stored, binding) == b"12345"
    with pytest.raises(IntegrityError):
        opened(stored, replace(binding, **change))  # type: ignore[arg-type]  # one field at a time


def test_a_number_is_given_once() -> None:
    numbers = [
        SEALER.next_binding(kind=BlobKind.OPAQUE, chunk_id=bytes(32), plain_length=1).number
        for _ in range(5)
    ]
    assert len(set(numbers)) == 5


def test_a_segments_header_comes_back() -> None:
    assert SegmentHeader.decode(SEALER.header.encode()) == SEALER.header


@pytest.mark.parametrize("position", [0, 8, 10, 11])
def test_a_damaged_header_is_refused(position: int) -> None:
    data = bytearray(SEALER.header.encode())
    data[position] ^= 0xFF
    with pytest.raises((IntegrityError, FormatError)):
        SegmentHeader.decode(bytes(data))
    with pytest.raises(IntegrityError):
        SegmentHeader.decode(bytes(data[:50]))


class TestHostilePayloads:
    def test_a_bomb_is_refused_before_anything_is_allocated(self) -> None:
        bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
        assert len(bomb) < 200_000
        with pytest.raises(IntegrityError):
            Decompressor().plain(bomb, plain_length=1 << 20)

    def test_a_length_beyond_all_kinds_is_refused(self) -> None:
        for length in (0, -1, PLAIN_BYTES_MAX + 1):
            with pytest.raises(IntegrityError):
                Decompressor().plain(b"x", plain_length=length)
        for length in (0, 16, PLAIN_BYTES_MAX + 17):
            with pytest.raises(IntegrityError):
                payload_length(length)

    def test_another_length_than_promised_is_refused(self) -> None:
        payload = zstandard.ZstdCompressor().compress(bytes(1000))
        with pytest.raises(IntegrityError):
            Decompressor().plain(payload, plain_length=999)

    def test_frames_without_a_length_are_refused(self) -> None:
        payload = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
        with pytest.raises(IntegrityError):
            Decompressor().plain(payload, plain_length=1000)

    def test_two_frames_are_refused(self) -> None:
        payload = zstandard.ZstdCompressor().compress(bytes(1000))
        with pytest.raises(IntegrityError):
            Decompressor().plain(payload * 2, plain_length=1000)

    @settings(max_examples=300, deadline=None)
    @given(payload=st.binary(max_size=200))
    def test_noise_is_refused(self, payload: bytes) -> None:
        with pytest.raises(IntegrityError):
            Decompressor().plain(payload, plain_length=1000)


def test_an_encoders_fault_never_becomes_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit flips after compression, now and then: either the run fails, or it was not hit."""

    class Faulty(Compressor):
        calls = 0

        def payload(self, plain: bytes | memoryview) -> bytes | memoryview:
            good = bytearray(super().payload(plain))
            Faulty.calls += 1
            if Faulty.calls % 5 == 0:
                good[len(good) // 2] ^= 1
            return bytes(good)

    repository: Repository = new_repository(MemoryStore())
    image = patterned(8 << 20, "faulty")
    monkeypatch.setattr(frame_worker, "Compressor", Faulty)
    with pytest.raises(IntegrityError):
        repository.backup(image)
    assert not list_points(repository.store, repository.keys).points


def test_memory_that_changes_under_the_encoder_never_becomes_a_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Faulty(Compressor):
        def payload(self, plain: bytes | memoryview) -> bytes | memoryview:
            assert isinstance(plain, memoryview)
            plain[1000] ^= 1
            return super().payload(plain)

    repository = new_repository(MemoryStore())
    monkeypatch.setattr(frame_worker, "Compressor", Faulty)
    with pytest.raises(IntegrityError):
        repository.backup(patterned(1 << 20, "memory"))
    assert not list_points(repository.store, repository.keys).points


@pytest.mark.parametrize("wanted", [-1, 0, PLAIN_BYTES_MAX + 1])
def test_a_length_that_no_blob_has_is_refused_before_anything_is_decompressed(wanted: int) -> None:
    with pytest.raises(IntegrityError, match="out of bounds"):
        Decompressor().plain(b"x", plain_length=wanted)


def test_what_decompresses_to_another_length_than_was_said_is_refused() -> None:
    plain = b"a" * 1000
    payload = zstandard.compress(plain)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(plain)
    target = bytearray(1000)
    Decompressor().decompress_into(payload, memoryview(target))
    assert target == plain
    for wrong, length in ((payload, 999), (payload, 1001), (unsized, 1000), (payload * 2, 1000)):
        with pytest.raises(IntegrityError, match="another length"):
            Decompressor().decompress_into(wrong, memoryview(bytearray(length)))
    for wrong, length in ((payload, 999), (unsized, 1000)):
        with pytest.raises(IntegrityError, match="another length"):
            Decompressor().plain(wrong, plain_length=length)
    with pytest.raises(IntegrityError, match="cannot be decompressed"):
        Decompressor().plain(payload[:-3], plain_length=1000)

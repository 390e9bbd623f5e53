from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import HoldfastError
from holdfast_common.repository.chunk_codec import SegmentSealer
from holdfast_common.repository.layout import BlobKind, pack_name
from holdfast_common.repository.pack import (
    PackBlob,
    PackContents,
    PackSegment,
    decoded_plain_footer,
    encoded_footers,
    read_contents,
    read_plain_footer,
)
from holdfast_common.repository.pack_writer import CompletePack, PackWriter
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from support.memory_store import MemoryStore
from support.repositories import LINEAGE, new_repository, patterned

KEYS = new_repository(MemoryStore()).keys.writer_keys(LINEAGE)


def written(
    store: MemoryStore, blobs: list[bytes], *, pack_bytes: int = 1 << 20
) -> list[PackContents]:
    """Packs of opaque blobs, through the pack writer."""
    done: list[CompletePack] = []
    writer = PackWriter(
        store, KEYS, randomness=SYSTEM_RANDOMNESS, finished=done.append, pack_bytes=pack_bytes
    )
    for blob in blobs:
        stored = len(blob) + 16
        sealer = writer.sealer(stored)
        binding = sealer.next_binding(
            kind=BlobKind.OPAQUE, chunk_id=blake3(blob).digest(), plain_length=len(blob)
        )
        sealer.cipher.seal_into(blob, binding, writer.room(stored))
        writer.append(
            number=binding.number,
            stored_length=stored,
            chunk_id=binding.chunk_id,
            kind=binding.kind,
            plain_length=len(blob),
        )
    writer.close()
    return [pack.commit() for pack in done]


@settings(max_examples=25, deadline=None)
@given(blobs=st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=20))
def test_a_pack_describes_itself(blobs: list[bytes]) -> None:
    store = MemoryStore()
    (pack,) = written(store, blobs)
    data = store.objects[pack_name(pack.digest)]
    assert blake3(data).digest() == pack.digest
    assert len(data) == pack.length
    assert read_contents(store, pack.digest, length=pack.length, keys=KEYS.reader) == pack
    footer, _, _ = read_plain_footer(store, pack.digest, length=pack.length)
    for blob in footer.blobs:
        stored = data[blob.offset : blob.offset + blob.stored_length]
        assert blake3(stored).digest() == blob.ciphertext_digest


def test_a_full_pack_is_closed_and_another_one_begun() -> None:
    store = MemoryStore()
    packs = written(store, [bytes([n]) * 100_000 for n in range(25)], pack_bytes=1 << 20)
    assert len(packs) == 3
    assert sum(len(pack.blobs) for pack in packs) == 25
    origins = {pack.segments[0].header.origin_id for pack in packs}
    assert len(origins) == 3, "every segment has a key of its own"


def test_every_flipped_byte_of_a_pack_is_found_by_its_name() -> None:
    store = MemoryStore()
    (pack,) = written(store, [b"one", b"two"])
    data = store.objects[pack_name(pack.digest)]
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 4
        assert blake3(damaged).digest() != pack.digest


def test_every_flipped_byte_of_the_footers_is_found() -> None:
    store = MemoryStore()
    (pack,) = written(store, [b"one", b"two"])
    name = pack_name(pack.digest)
    data = store.objects[name]
    blobs_end = pack.blobs[-1].offset + pack.blobs[-1].stored_length
    for position in range(blobs_end, len(data)):
        if len(data) - 12 <= position < len(data) - 8:
            continue  # reserved, read by nobody
        damaged = bytearray(data)
        damaged[position] ^= 0x20
        store.objects[name] = bytes(damaged)
        with pytest.raises(HoldfastError):
            read_contents(store, pack.digest, length=pack.length, keys=KEYS.reader)


def test_every_truncation_is_found() -> None:
    store = MemoryStore()
    (pack,) = written(store, [b"one", b"two"])
    name = pack_name(pack.digest)
    data = store.objects[name]
    for length in range(len(data)):
        store.objects[name] = data[:length]
        with pytest.raises(HoldfastError):
            read_contents(store, pack.digest, length=length, keys=KEYS.reader)


def test_footers_of_two_packs_do_not_mix() -> None:
    store = MemoryStore()
    (first,) = written(store, [b"one"])
    (second,) = written(store, [b"two"])
    data = store.objects[pack_name(first.digest)]
    other = store.objects[pack_name(second.digest)]
    footers = len(data) - (first.blobs[-1].offset + first.blobs[-1].stored_length)
    plain = 24 + 148 + 48
    mixed = data[:-footers] + data[-footers:][:plain] + other[-footers:][plain:]
    store.objects[pack_name(first.digest)] = mixed
    with pytest.raises(HoldfastError):
        read_contents(store, first.digest, length=first.length, keys=KEYS.reader)


def test_segments_of_several_packs_can_lie_in_one() -> None:
    """As after a repack, which copies headers and ciphertexts as they are, without any content key."""
    sources = MemoryStore()
    packs = [*written(sources, [b"a" * 500, b"b" * 500]), *written(sources, [b"c" * 500])]
    body = bytearray()
    segments: list[PackSegment] = []
    blobs: list[PackBlob] = []
    for pack in packs:
        data = sources.objects[pack_name(pack.digest)]
        segments.append(PackSegment(offset=len(body), header=pack.segments[0].header))
        body += pack.segments[0].header.encode()
        kept = pack.blobs[-1]  # the others are dead
        blobs.append(
            PackBlob(
                segment=len(segments) - 1,
                number=kept.number,
                offset=len(body),
                stored_length=kept.stored_length,
                ciphertext_digest=kept.ciphertext_digest,
                chunk_id=kept.chunk_id,
                kind=kept.kind,
                blocks=0,
                presence=0,
                plain_length=kept.plain_length,
                digests=b"",
            )
        )
        body += data[kept.offset : kept.offset + kept.stored_length]
    body += encoded_footers(
        segments, blobs, footer_offset=len(body), keys=KEYS.reader, randomness=SYSTEM_RANDOMNESS
    )
    target = MemoryStore()
    digest = blake3(body).digest()
    target.put(pack_name(digest), body)
    found = read_contents(target, digest, length=len(body), keys=KEYS.reader)
    assert [segment.header for segment in found.segments] == [s.header for s in segments]
    assert [blob.number for blob in found.blobs] == [1, 0]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_noise_is_no_footer(data: bytes) -> None:
    with pytest.raises(HoldfastError):
        decoded_plain_footer(b"HFPACKFT" + data)


def test_an_aborted_pack_leaves_nothing() -> None:
    store = MemoryStore()
    writer = PackWriter(store, KEYS, randomness=SYSTEM_RANDOMNESS, finished=lambda _: None)
    assert isinstance(writer.sealer(100), SegmentSealer)
    writer.abort()
    writer.abort()
    writer.close()
    assert not store.objects


def test_no_plain_byte_stands_in_a_pack() -> None:
    store = MemoryStore()
    canary = bytes(patterned(200, "canary"))
    (pack,) = written(store, [canary])
    assert canary not in store.objects[pack_name(pack.digest)]

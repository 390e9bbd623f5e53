from __future__ import annotations

import random
from dataclasses import replace

import pytest

from holdfast_common.errors import RepositoryFailed
from holdfast_common.repository import pack_decoder
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.frame_reader import FrameReader
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.pack_decoder import DecodedPack, PackDecoder
from holdfast_common.units import KIB, MIB
from support.faulty_store import Fault, FaultyStore
from support.memory_store import MemoryStore
from support.repositories import Repository, new_repository, patterned

BUFFERS = (4 * MIB, 3 * MIB // 2, 300 * KIB)  # of many blobs, of one and a half, of less than one


class Pack:
    """The only pack of a repository, with its blobs."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.repository: Repository = new_repository(self.store)
        image = patterned(5 * MIB, "half")
        image[MIB : 3 * MIB] = random.Random(1).randbytes(2 * MIB)  # stored as they are
        self.repository.backup(image)
        with self.repository.reader() as reader:
            ((self.digest, places),) = reader.index.by_pack(
                [pack.digest for pack in reader.index.packs()]
            ).items()
        self.places: list[ChunkLocation] = places
        self.length = len(self.store.objects[pack_name(self.digest)])

    def decoded(
        self, store: MemoryStore | FaultyStore, places: list[ChunkLocation] | None = None
    ) -> DecodedPack:
        with self.repository.reader() as reader:
            frames = FrameReader(
                store,
                reader._keys,
                index=reader.index,
                segment_keys=self.repository.keys,
            )
            chosen = self.places if places is None else places
            return PackDecoder(store, frames).decode(self.digest, self.length, chosen)

    def damaged_at(self, offset: int) -> MemoryStore:
        copy = self.store.copy()
        data = bytearray(copy.objects[pack_name(self.digest)])
        data[offset] ^= 1
        copy.objects[pack_name(self.digest)] = bytes(data)
        return copy


@pytest.fixture(scope="module")
def pack() -> Pack:
    return Pack()


@pytest.mark.parametrize("buffer_bytes", BUFFERS)
def test_a_whole_pack_has_no_damage(
    pack: Pack, buffer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_decoder, "BUFFER_BYTES", buffer_bytes)
    assert pack.decoded(pack.store) == DecodedPack(reason="", bad=())


@pytest.mark.parametrize("buffer_bytes", BUFFERS)
def test_any_flipped_bit_is_found_and_hits_the_blob_that_it_lies_in(
    pack: Pack, buffer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_decoder, "BUFFER_BYTES", buffer_bytes)
    chance = random.Random(buffer_bytes)
    edges = [place.offset for place in pack.places] + [
        place.offset + place.stored_length - 1 for place in pack.places
    ]
    for at in [*edges, 0, pack.length - 1, *(chance.randrange(pack.length) for _ in range(6))]:
        found = pack.decoded(pack.damaged_at(at))
        hit = [
            place
            for place in pack.places
            if place.offset <= at < place.offset + place.stored_length
        ]
        assert (list(found.bad), found.reason) == (
            hit,
            "the pack's bytes do not match its name",
        )


def test_where_a_part_of_the_file_cannot_be_read_the_other_blobs_are_still_told_apart(
    pack: Pack,
) -> None:
    fault = Fault(call=0, error=RepositoryFailed("a bad sector"))
    found = pack.decoded(FaultyStore(pack.store, fault))
    assert (found.reason, found.bad) == (str(fault.error), ())
    every = Fault(call=0, error=RepositoryFailed("a dead disk"), persistent=True)
    assert pack.decoded(FaultyStore(pack.store, every)).bad == tuple(pack.places)


def test_blobs_that_an_index_puts_over_each_other_or_past_the_end_are_bad_and_others_not(
    pack: Pack,
) -> None:
    right = pack.places[0]
    shifted = replace(right, offset=right.offset + 1)
    beyond = replace(right, offset=pack.length - 20)
    found = pack.decoded(pack.store, [*pack.places, shifted, beyond])
    assert set(found.bad) == {shifted, beyond}
    assert found.reason

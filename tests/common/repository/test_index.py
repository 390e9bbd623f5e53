from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.index import (
    FILTER_PROBES,
    IndexBuilder,
    Section,
    _decoded_sections,
    decoded_segment,
)
from holdfast_common.repository.layout import ObjectKind, index_name
from holdfast_common.repository.sealed_object import ObjectHeader
from support.index_worlds import IndexWorld, chunk_id, pack
from support.memory_store import MemoryStore
from support.repositories import LINEAGE, new_repository, patterned

WRITER = bytes(range(32))


@settings(max_examples=25, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=40), min_size=1, max_size=8)
)
def test_every_chunk_is_found_where_it_was_put_and_no_other(groups: list[list[int]]) -> None:
    world = IndexWorld(MemoryStore())
    places: dict[int, set[tuple[bytes, int]]] = {}
    for number, group in enumerate(groups):
        item = pack(group, name=str(number))
        world.put(item)
        if number % 2:
            world.refresh()
        for position, chunk in enumerate(group):
            places.setdefault(chunk, set()).add((item.digest, 144 + position * 100))
    world.refresh()
    for chunk in range(301):
        found = world.index.find_all(chunk_id(chunk))
        assert {(place.origin.pack.digest, place.offset) for place in found} == places.get(
            chunk, set()
        )
        for location in found:
            wanted = hashlib.shake_128(chunk_id(chunk)).digest((chunk % 16 + 1) * 16)
            assert world.index.digests(location) == wanted
            assert (
                location.origin.writer
                == world.repository.signing_key.public_key().public_bytes_raw()
            )
    assert world.index.chunk_count == sum(len(group) for group in groups)


def test_ids_that_share_their_first_bytes_are_told_apart() -> None:
    world = IndexWorld(MemoryStore())
    first = pack([1, 2], name="x")
    twin = first.blobs[0].chunk_id[:8] + bytes(24)
    from dataclasses import replace

    world.put(replace(first, blobs=(first.blobs[0], replace(first.blobs[1], chunk_id=twin))))
    world.refresh()
    assert [item.number for item in world.index.find_all(chunk_id(1))] == [0]
    assert [item.number for item in world.index.find_all(twin)] == [1]
    assert not world.index.find_all(twin[:-1] + b"\1")


def test_the_stored_filter_forgets_no_chunk_worth_looking_up() -> None:
    builder = IndexBuilder()
    numbers = list(range(2000))
    builder.add(pack(numbers, name="x"))
    body = builder.encode(writer=WRITER)
    offset, length = _decoded_sections(body)[Section.FILTER]
    bits = np.unpackbits(
        np.frombuffer(body, np.uint8, count=length, offset=offset), bitorder="little"
    )

    def in_filter(identity: bytes) -> bool:
        parts = np.frombuffer(identity, ">u8").astype(np.uint64)
        step = parts[2] | np.uint64(1)
        mask = np.uint64(len(bits) - 1)
        with np.errstate(over="ignore"):
            return all(
                bits[int((parts[1] + np.uint64(probe) * step) & mask)]
                for probe in range(FILTER_PROBES)
            )

    assert all(in_filter(chunk_id(number)) for number in numbers if number % 16 + 1 >= 4)
    false = sum(in_filter(chunk_id(number)) for number in range(10_000, 14_000))
    assert false < 4000 * 0.05


def test_digests_stand_in_the_order_of_the_packs() -> None:
    """So that comparing a disk reads the cold part in order."""
    builder = IndexBuilder()
    item = pack(list(range(50)), name="x")
    builder.add(item)
    segment = decoded_segment(builder.encode(writer=WRITER))
    by_number = segment.locations[np.argsort(segment.locations["number"])]
    assert (np.diff(by_number["digest"].astype(int)) > 0).all()


@pytest.mark.parametrize("cut", [0, 3, 16, 40, 200, 400])
def test_a_body_that_ends_early_is_refused(cut: int) -> None:
    builder = IndexBuilder()
    builder.add(pack([1, 2, 3], name="x"))
    with pytest.raises(IntegrityError):
        decoded_segment(builder.encode(writer=WRITER)[:cut])


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 1500), value=st.integers(0, 255))
def test_a_hostile_body_is_refused_or_stays_within_itself(position: int, value: int) -> None:
    """A writer may sign nonsense: reading it must not lead outside of it."""
    builder = IndexBuilder()
    builder.add(pack([1, 2, 3], name="x"))
    body = bytearray(builder.encode(writer=WRITER))
    body[position % len(body)] = value
    try:
        segment = decoded_segment(bytes(body))
    except IntegrityError:
        return
    assert len(segment.prefixes) == len(segment.locations)
    for row in segment.locations:
        assert row["origin"] < len(segment.origins)
        assert (int(row["digest"]) + int(row["blocks"])) * 16 <= segment.digests_length


def test_an_index_under_another_name_is_refused() -> None:
    world = IndexWorld(MemoryStore())
    name = world.put(pack([1], name="x"))
    store = world.repository.store
    assert isinstance(store, MemoryStore)
    store.objects["index/" + "0" * 32] = store.objects.pop(name)
    world.refresh()
    assert len(world.index.refused) == 1
    assert world.index.find(chunk_id(1)) is None


def test_an_index_that_speaks_for_other_writers_needs_the_pruners_role() -> None:
    world = IndexWorld(MemoryStore())
    builder = IndexBuilder()
    builder.add(pack([1], name="x"))
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    world.repository.keys.authorise_writer(
        world.repository.store,
        key.public_key().public_bytes_raw(),
        agent_id="writer-only",
        clock=world.repository.clock,
        roles=["write"],
    )
    data = world.repository.keys.common.seal(
        ObjectKind.INDEX,
        builder.encode(writer=world.repository.signing_key.public_key().public_bytes_raw()),
        signing_key=key,
        randomness=world.repository.randomness,
    )
    world.repository.store.put(index_name(ObjectHeader.decode(data).object_id), data)
    world.refresh()
    assert "nobody who may" in world.index.refused[0].reason


def test_a_damaged_index_is_made_again_from_the_packs() -> None:
    store = MemoryStore()
    repository = new_repository(store)
    image = patterned(5 << 20, "recover")
    point = repository.backup(image)
    for name in [name for name in store.objects if name.startswith("index/")]:
        del store.objects[name]
    with repository.reader(LINEAGE) as reader:
        assert reader.index.chunk_count == 0
    assert repository.restored(point) == image

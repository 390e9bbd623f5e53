"""Merged index segments name what their parts named, and their number stays small."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from holdfast_common.errors import Cancelled, RepositoryFull
from holdfast_common.repository.check import check_structure
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.index_cache import IndexCache
from holdfast_common.repository.index_merge import (
    MERGED_CHUNKS_MAX,
    SEGMENTS_MAX,
    StoredSegment,
    live_segments,
    merge_index,
    merge_while_many,
    plan_merge,
)
from holdfast_common.repository.layout import index_name
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.repository_index import RepositoryIndex
from support.index_worlds import IndexWorld, chunk_id, pack
from support.memory_store import MemoryStore, MemoryUpload
from support.repositories import BLOCK, disk_header, patterned


def merge(world: IndexWorld) -> str | None:
    return merge_index(world.store, world.keys, world.writers, signing_key=world.pruner)


def segment(name: str, chunks: int) -> StoredSegment:
    return StoredSegment(name=name, length=chunks * 340, chunks=chunks)


def places(index: RepositoryIndex, number: int) -> set[tuple[bytes, int, bytes, bytes]]:
    def place(found: ChunkLocation) -> tuple[bytes, int, bytes, bytes]:
        return found.origin.pack.digest, found.offset, found.origin.writer, index.digests(found)

    return {place(found) for found in index.find_all(chunk_id(number))}


@settings(max_examples=4, deadline=None, phases=[Phase.generate])
@given(
    groups=st.lists(
        st.lists(st.integers(0, 400), min_size=1, max_size=30),
        min_size=SEGMENTS_MAX + 1,
        max_size=SEGMENTS_MAX + 8,
    )
)
def test_a_merge_changes_nothing_but_the_number_of_segments(groups: list[list[int]]) -> None:
    world = IndexWorld(MemoryStore())
    parts = [world.put(pack(group, name=str(number))) for number, group in enumerate(groups)]
    before = world.opened()
    wanted = {number: places(before, number) for number in range(0, 410, 3)}
    packs, count = set(before.packs()), before.chunk_count
    assert merge(world) is not None
    for part in parts:
        if part in world.opened().superseded():
            del world.store.objects[part]
    after = world.opened()
    assert not after.refused
    assert after.chunk_count == count
    assert {number: places(after, number) for number in wanted} == wanted
    assert set(after.packs()) == packs
    assert after.current(bytes.fromhex(part[6:]) for part in parts) <= {
        bytes.fromhex(each[6:]) for each in world.store.objects if each.startswith("index/")
    }


def test_few_segments_are_left_alone() -> None:
    world = IndexWorld(MemoryStore())
    for number in range(SEGMENTS_MAX):
        world.put(pack([number], name=str(number)))
    assert merge(world) is None


@given(st.integers(1, 400))
@settings(max_examples=20, deadline=None)
def test_the_number_of_segments_grows_with_the_logarithm(rounds: int) -> None:
    """And each row is moved a logarithmic number of times."""
    live: list[StoredSegment] = []
    moved = 0
    for number in range(rounds * 10):
        live.append(segment(f"index/{number:032x}", 100))
        chosen = plan_merge(live)
        if chosen:
            total = sum(each.chunks for each in chosen)
            moved += total
            live = [each for each in live if each not in chosen]
            live.append(segment(f"index/m{number:031x}", total))
    assert len(live) <= SEGMENTS_MAX + 1
    assert moved <= rounds * 10 * 100 * 14


def test_no_merged_segment_grows_beyond_its_bound() -> None:
    large = [segment(str(number), MERGED_CHUNKS_MAX) for number in range(100)]
    assert plan_merge(large) == []
    chosen = plan_merge([*large, segment("a", 10), segment("b", 20)])
    assert [each.name for each in chosen] == ["a", "b"]


def test_a_merge_that_is_stopped_leaves_nothing_behind() -> None:
    world = IndexWorld(MemoryStore())
    for number in range(SEGMENTS_MAX + 1):
        world.put(pack([number], name=str(number)))
    before = dict(world.store.objects)
    steps = iter(range(40))

    def check() -> None:
        if next(steps) == 39:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        merge_index(world.store, world.keys, world.writers, signing_key=world.pruner, check=check)
    assert world.store.objects == before


def test_a_damaged_segment_is_left_out_of_a_merge() -> None:
    world = IndexWorld(MemoryStore())
    names = [world.put(pack([number], name=str(number))) for number in range(SEGMENTS_MAX + 2)]
    data = bytearray(world.store.objects[names[0]])
    data[-1] ^= 1
    world.store.objects[names[0]] = bytes(data)
    assert merge(world) is not None
    index = world.opened()
    assert names[0] not in index.superseded()
    assert index.find(chunk_id(1)) is not None


def test_who_may_only_write_cannot_merge() -> None:
    world = IndexWorld(MemoryStore())
    for number in range(SEGMENTS_MAX + 1):
        world.put(pack([number], name=str(number)))
    name = merge_index(
        world.store, world.keys, world.writers, signing_key=world.repository.signing_key
    )
    writer = world.writers.of(world.repository.signing_key.public_key().public_bytes_raw())
    assert writer is not None
    refused = [item.name for item in world.opened().refused]
    assert refused == ([] if "prune" in writer.roles else [name])


@pytest.mark.parametrize("cached", [False, True])
def test_incrementals_go_on_over_merges_and_name_the_merged_objects(
    tmp_path: Path, cached: bool
) -> None:
    cache = IndexCache(tmp_path) if cached else None
    world = IndexWorld(MemoryStore(), cache=cache)
    repository = world.repository
    image = patterned(4 << 20, "image")
    point = repository.backup(image)
    doomed: list[str] = []
    for number in range(2 * SEGMENTS_MAX):
        image[:BLOCK] = patterned(BLOCK, str(number))
        index = RepositoryIndex(world.store, world.keys, cache=cache)
        with repository.writer(index=index) as writer:
            disk = writer.begin_disk(disk_header(len(image)), previous=point.disks[0])
            disk.write(0, memoryview(image)[:BLOCK])
            disk.finish()
            prepared = writer.prepare(ManifestFacts(order=number + 2))
            point_id = writer.publish(prepared, repository.grant(prepared))
        with repository.reader() as reader:
            point = reader.load_point(point_id)
        assert point.manifest.used is not None
        assert point.manifest.used.indexes is not None
        for each in point.manifest.used.indexes:
            assert index_name(each) in world.store.objects
        if merge(world) is not None:
            for name in doomed:  # as prune does, in its second phase
                del world.store.objects[name]
            doomed = list(world.opened().superseded())
    assert len(live_segments(world.store, world.keys)) <= SEGMENTS_MAX
    assert point.manifest.used is not None
    assert len(point.manifest.used.indexes or ()) <= SEGMENTS_MAX + 1
    assert repository.restored(point) == image
    assert check_structure(world.store, repository.keys).is_clean


def test_merging_ends_quietly_where_there_is_no_room() -> None:
    """Prune must go on, above all on a full disk."""

    class Full(MemoryStore):
        def begin(self, *, bulk: bool = False) -> MemoryUpload:
            raise RepositoryFull("full")

    world = IndexWorld(MemoryStore())
    for number in range(SEGMENTS_MAX + 1):
        world.put(pack([number], name=str(number)))
    store = Full(world.store.objects)
    assert merge_while_many(store, world.keys, world.writers, signing_key=world.pruner) == 0
    assert merge_while_many(world.store, world.keys, world.writers, signing_key=world.pruner) == 1

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import HoldfastError, IntegrityError
from holdfast_common.repository.disk_map import (
    DiskMap,
    InnerPage,
    Leaf,
    PageReference,
    PageStore,
    level_count,
)
from holdfast_common.repository.layout import BLOCKS_PER_LEAF, LEAF_BYTES, map_name
from holdfast_common.repository.map_object import MapObject
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.units import GIB, TIB
from support.memory_store import MemoryStore
from support.repositories import LINEAGE, new_repository

KEYS = new_repository(MemoryStore()).keys.reader_keys(LINEAGE)
HASHER = KEYS.hasher()


def frame(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


blocks = st.dictionaries(
    st.integers(0, BLOCKS_PER_LEAF - 1),
    st.tuples(st.integers(0, 30), st.integers(0, 15)),
    max_size=120,
)


def leaf_of(number: int, content: dict[int, tuple[int, int]]) -> Leaf:
    leaf = Leaf.empty(number)
    for block, (chunk, place) in content.items():
        leaf.set(block, frame(chunk), place)
    return leaf


def content_of(leaf: Leaf | None) -> dict[int, tuple[bytes, int]]:
    if leaf is None:
        return {}
    return {
        block: (chunk_id, leaf.places[block])
        for block, chunk_id in enumerate(leaf.ids)
        if chunk_id is not None
    }


@settings(max_examples=100, deadline=None)
@given(content=blocks, number=st.integers(0, 1 << 40))
def test_a_leaf_comes_back(content: dict[int, tuple[int, int]], number: int) -> None:
    leaf = leaf_of(number, content)
    found = Leaf.decode(leaf.encode())
    assert content_of(found) == content_of(leaf)
    assert found.number == number
    assert found.mapped_blocks() == len(content)
    assert found.encode() == leaf.encode()


def test_a_freshly_written_leaf_is_small() -> None:
    leaf = leaf_of(0, {block: (block // 16, block % 16) for block in range(256)})
    assert len(leaf.encode()) == 16 + 16 * 4 + 16 * 32


@settings(max_examples=50, deadline=None)
@given(slots=st.lists(st.integers(0, 255), unique=True, min_size=1, max_size=256))
def test_an_inner_page_comes_back(slots: list[int]) -> None:
    children = {
        slot: PageReference(
            object_id=frame(slot % 5)[:16],
            offset=slot * 7,
            length=slot + 16,
            blocks=slot,
            digest=frame(slot),
        )
        for slot in slots
    }
    page = InnerPage(level=2, number=77, children=children)
    assert InnerPage.decode(page.encode()) == page


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_a_hostile_leaf_is_refused_or_stays_within_itself(position: int, value: int) -> None:
    page = bytearray(leaf_of(3, {block: (block % 3, block % 16) for block in range(60)}).encode())
    page[position % len(page)] = value
    try:
        leaf = Leaf.decode(bytes(page))
    except IntegrityError:
        return
    assert len(leaf.ids) == len(leaf.places) == BLOCKS_PER_LEAF
    assert max(leaf.places) < 16


@settings(max_examples=200, deadline=None)
@given(page=st.binary(max_size=300))
def test_noise_is_no_page(page: bytes) -> None:
    for kind in (Leaf, InnerPage):
        try:
            kind.decode(page)
        except IntegrityError:
            continue


@pytest.mark.parametrize(
    ("capacity", "level"),
    [
        (512, 0),
        (LEAF_BYTES, 0),
        (LEAF_BYTES + 512, 1),
        (4 * GIB, 1),
        (4 * GIB + 512, 2),
        (TIB, 2),
        (64 * TIB, 3),
        (1 << 52, 4),
    ],
)
def test_the_roots_level_follows_from_the_capacity(capacity: int, level: int) -> None:
    assert level_count(capacity) == level


class World:
    """Maps of several generations in one store."""

    def __init__(self, capacity_bytes: int) -> None:
        self.store = MemoryStore()
        self.capacity_bytes = capacity_bytes
        self.root: PageReference | None = None
        self.pages: Mapping[bytes, int] | None = {}
        self.written = 0

    def map(self, root: PageReference | None) -> DiskMap:
        return DiskMap(PageStore(self.store, KEYS), root, capacity_bytes=self.capacity_bytes)

    def edit(
        self,
        changes: dict[int, dict[int, tuple[int, int] | None]],
        *,
        cleared: tuple[int, int] | None = None,
    ) -> PageReference | None:
        """One generation; the leaves cleared come after all changed ones."""
        pages = MapObject(self.store, KEYS, SYSTEM_RANDOMNESS)
        editor = pages.editor(self.map(self.root), HASHER, previous_pages=self.pages)
        for number in sorted(changes):
            leaf = editor.previous_leaf(number) or Leaf.empty(number)
            for block, value in changes[number].items():
                if value is None:
                    leaf.set(block, None)
                else:
                    leaf.set(block, frame(value[0]), value[1])
            editor.put(leaf)
        if cleared is not None:
            editor.clear(*cleared)
        self.root = editor.finish()
        self.pages = editor.pages
        reference = pages.finish()
        walked = Counter(page.object_id for page in self.map(self.root).pages())
        assert self.pages == walked, "every generation counts its pages rightly"
        self.written = 0 if reference is None else reference.length
        return self.root


@settings(max_examples=40, deadline=None)
@given(
    generations=st.lists(
        st.dictionaries(
            st.sampled_from([0, 1, 2, 255, 256, 257, 511, 512, 700]),
            st.dictionaries(
                st.integers(0, 255),
                st.none() | st.tuples(st.integers(0, 9), st.integers(0, 15)),
                max_size=5,
            ),
            max_size=5,
        ),
        max_size=5,
    )
)
def test_every_generation_keeps_what_it_mapped(
    generations: list[dict[int, dict[int, tuple[int, int] | None]]],
) -> None:
    world = World(12 * GIB)
    model: dict[int, dict[int, tuple[int, int]]] = {}
    kept: list[tuple[PageReference | None, dict[int, dict[int, tuple[int, int]]]]] = []
    for changes in generations:
        for number, values in changes.items():
            leaf = model.setdefault(number, {})
            for block, value in values.items():
                if value is None:
                    leaf.pop(block, None)
                else:
                    leaf[block] = value
        kept.append((world.edit(changes), {n: dict(leaf) for n, leaf in model.items() if leaf}))
    for root, expected in kept:
        disk_map = world.map(root)
        assert [number for number, _ in disk_map.references()] == sorted(expected)
        for number, content in expected.items():
            wanted = {block: (frame(chunk), place) for block, (chunk, place) in content.items()}
            assert content_of(disk_map.leaf(number)) == wanted
        if root is not None:
            assert root.blocks == sum(len(content) for content in expected.values())
        else:
            assert not expected


def test_an_unchanged_disk_keeps_its_root_and_writes_nothing() -> None:
    world = World(12 * GIB)
    before = world.edit({5: {1: (1, 0)}, 300: {2: (2, 0)}})
    assert world.edit({5: {1: (1, 0)}}) == before
    assert world.written == 0
    assert world.edit({7: {1: None}}) == before
    assert world.edit({}) == before


def test_clearing_ranges_drops_whole_leaves() -> None:
    world = World(12 * GIB)
    world.edit({number: {0: (number, 0)} for number in (0, 3, 256, 600)})
    world.edit({}, cleared=(1, 600))
    assert [number for number, _ in world.map(world.root).references()] == [0, 600]
    assert world.edit({}, cleared=(0, 768)) is None


def test_a_change_on_a_huge_sparse_disk_costs_what_changed() -> None:
    world = World(64 * TIB)
    far = 64 * TIB // LEAF_BYTES - 1
    world.edit({0: {0: (1, 0)}, far // 2: {0: (2, 0)}, far: {255: (3, 5)}})
    assert world.written < 4000
    world.edit({far: {255: (4, 5)}})
    assert world.written < 1500
    world.edit({}, cleared=(1, far))
    assert world.written < 1500
    assert [number for number, _ in world.map(world.root).references()] == [0, far]


class CountingStore(MemoryStore):
    """Counts what is read."""

    reads = 0

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        super().read_into(name, offset, buffer)


def reads_of_two_passes(generations: int) -> tuple[int, int]:
    """Over leaves of which each lies in an object of its own, as after many incrementals."""
    world = World(12 * GIB)
    world.store = store = CountingStore()
    for number in range(generations):
        world.edit({number: {0: (number, 0)}})
    disk_map = world.map(world.root)
    counts = []
    for _ in range(2):
        before = store.reads
        for number in range(generations):
            assert disk_map.leaf(number) is not None
        counts.append(store.reads - before)
    return counts[0], counts[1]


def test_leaves_that_lie_in_many_small_objects_are_read_once() -> None:
    first, second = reads_of_two_passes(60)
    assert first >= 60
    assert second == 0


def test_no_more_opened_segments_are_kept_than_the_bound_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("holdfast_common.repository.disk_map.SEGMENT_CACHE_BYTES", 500)
    _, second = reads_of_two_passes(60)
    assert second >= 50


class TestDamage:
    @pytest.fixture
    def world(self) -> World:
        world = World(12 * GIB)
        world.edit({5: {1: (1, 0)}, 300: {2: (2, 0)}})
        return world

    def test_every_flipped_byte_is_found(self, world: World) -> None:
        assert world.root is not None
        name = map_name(KEYS.lineage_tag, world.root.object_id)
        original = world.store.objects[name]
        for position in range(0, len(original), 5):
            damaged = bytearray(original)
            damaged[position] ^= 2
            world.store.objects[name] = bytes(damaged)
            with pytest.raises(HoldfastError):
                [
                    world.map(world.root).load_leaf(*item)
                    for item in world.map(world.root).references()
                ]

    def test_an_older_page_does_not_pass_for_the_newer_one(self, world: World) -> None:
        assert world.root is not None
        old = world.root
        new = world.edit({5: {1: (9, 0)}})
        assert new is not None
        store = world.store
        store.objects[map_name(KEYS.lineage_tag, new.object_id)] = store.objects[
            map_name(KEYS.lineage_tag, old.object_id)
        ]
        with pytest.raises(IntegrityError):
            list(world.map(new).references())

    def test_a_reference_to_another_page_is_refused(self, world: World) -> None:
        assert world.root is not None
        for wrong in (
            replace(world.root, digest=bytes(32)),
            replace(world.root, offset=0),
            replace(world.root, length=world.root.length - 1),
        ):
            with pytest.raises(IntegrityError):
                list(world.map(wrong).references())

    def test_a_leaf_does_not_stand_in_another_place(self, world: World) -> None:
        disk_map = world.map(world.root)
        (_, reference), _ = disk_map.references()
        with pytest.raises(IntegrityError):
            disk_map.load_leaf(6, reference)
        with pytest.raises(IntegrityError):
            world.map(
                replace(
                    world.root,
                    digest=reference.digest,
                    offset=reference.offset,
                    length=reference.length,
                )
                if world.root
                else None
            ).leaf(5)

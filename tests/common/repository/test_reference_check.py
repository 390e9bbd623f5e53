"""A point is published only when all that it stands on is there: whoever wrote it, and however long ago."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast_common.errors import PreviousLost, RepositoryFailed
from holdfast_common.repository import reference_check
from holdfast_common.repository.check import check_data, check_structure
from holdfast_common.repository.layout import LEAF_BYTES, index_name, map_name, pack_name
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.proof import store_proof
from holdfast_common.repository.sealed_object import HEADER
from holdfast_common.repository.writer import PointWriter
from holdfast_common.units import MIB, TIB
from support.memory_store import MemoryStore
from support.repositories import (
    BLOCK,
    Repository,
    disk_header,
    new_repository,
    patterned,
)

IMAGE = patterned(2 * LEAF_BYTES + MIB, "image")  # three leaves, so that subtrees stay untouched
Damage = Callable[[MemoryStore, Point], None]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    return new_repository(store)


def names(point: Point, kind: str) -> list[str]:
    """The objects of one kind that a point's attempt wrote."""
    manifest = point.manifest
    return {
        "maps": [map_name(point.lineage_tag, item.object_id) for item in manifest.maps],
        "index": [index_name(item.object_id) for item in manifest.indexes],
        "packs": [pack_name(digest) for digest in manifest.packs],
    }[kind]


def names_of(point: Point) -> list[bytes]:
    """The index objects that a point's attempt wrote."""
    return [item.object_id for item in point.manifest.indexes]


def gone(*kinds: str) -> Damage:
    def damage(store: MemoryStore, point: Point) -> None:
        for kind in kinds:
            for name in names(point, kind):
                del store.objects[name]

    return damage


def shorter(kind: str) -> Damage:
    def damage(store: MemoryStore, point: Point) -> None:
        for name in names(point, kind):
            store.objects[name] = store.objects[name][:-1]

    return damage


def longer(kind: str) -> Damage:
    def damage(store: MemoryStore, point: Point) -> None:
        for name in names(point, kind):
            store.objects[name] += bytes(1)

    return damage


def chain(repository: Repository) -> tuple[Point, Point, Point]:
    """A full and two incrementals, each of which changes another leaf."""
    first = repository.backup(IMAGE, blobs={"vmx": b"x" * 3000})
    made = [first]
    for leaf in (1, 2):
        made.append(
            repository.backup(
                _changed(leaf), ranges=[(leaf * LEAF_BYTES, BLOCK)], previous=made[-1].disks[0]
            )
        )
    return first, made[1], made[2]


def _changed(leaf: int) -> bytearray:
    image = bytearray(IMAGE)
    for number in range(1, leaf + 1):
        image[number * LEAF_BYTES : number * LEAF_BYTES + BLOCK] = patterned(BLOCK, f"{number}")
    return image


def unchanged_incremental(repository: Repository, writer: PointWriter, last: Point) -> None:
    disk = writer.begin_disk(disk_header(len(IMAGE)), previous=last.disks[0])
    disk.finish()
    prepared = writer.prepare(ManifestFacts())
    writer.publish(prepared, repository.grant(prepared))


@pytest.mark.parametrize("which", [0, 1, 2], ids=["the full's", "the middle's", "the newest's"])
@pytest.mark.parametrize("when", ["before the attempt", "during the attempt"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(gone("maps"), id="map gone"),
        pytest.param(shorter("maps"), id="map truncated"),
        pytest.param(longer("maps"), id="map longer"),
        pytest.param(gone("packs"), id="packs gone"),
        pytest.param(shorter("packs"), id="packs truncated"),
        pytest.param(gone("packs", "index"), id="packs and index gone"),
    ],
)
def test_an_incremental_is_not_published_when_something_it_stands_on_is_lost(
    repository: Repository, store: MemoryStore, damage: Damage, when: str, which: int
) -> None:
    points = chain(repository)
    if when == "before the attempt":
        damage(store, points[which])
    with repository.writer() as writer:
        if when == "during the attempt":
            damage(store, points[which])
        with pytest.raises(PreviousLost) as caught:
            unchanged_incremental(repository, writer, points[-1])
    assert caught.value.retryable
    assert len(list_points(store, repository.keys).points) == 3
    # nothing of it is needed by a full that builds on nothing
    full = repository.backup(_changed(2), blobs={"vmx": b"x" * 3000})
    assert repository.restored(full) == _changed(2)
    report = check_data(store, repository.keys, segment_keys=repository.keys)
    assert full.point_id not in {lost.point_id for lost in report.lost_ranges}
    assert full.point_id not in {lost.point_id for lost in report.lost_blobs}


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("damage", [gone("index"), shorter("index")], ids=["gone", "truncated"])
def test_data_that_no_index_names_any_more_is_found_by_the_packs_themselves(
    repository: Repository, store: MemoryStore, damage: Damage, which: int
) -> None:
    points = chain(repository)
    damage(store, points[which])
    last = points[-1]
    for _ in range(2):
        last = repository.backup(_changed(2), ranges=[], previous=last.disks[0])
        assert repository.restored(last) == _changed(2)
        assert last.manifest.used is not None
        assert last.manifest.used.indexes is None, "so the next one looks for each chunk again"
    gone("packs")(store, points[which])
    with repository.writer() as writer, pytest.raises(PreviousLost):
        unchanged_incremental(repository, writer, last)


def test_a_pack_of_another_vms_point_counts_when_its_data_is_used(
    repository: Repository, store: MemoryStore
) -> None:
    other = repository.backup(IMAGE, lineage="vcenter-1/other")
    first = repository.backup(IMAGE)
    assert not first.manifest.packs, "all of it was known"
    assert first.manifest.used is not None
    assert first.manifest.used.indexes == frozenset(names_of(other))
    gone("packs", "index")(store, other)
    with repository.writer() as writer, pytest.raises(PreviousLost):
        unchanged_incremental(repository, writer, first)


def test_what_is_no_longer_used_is_no_longer_needed(
    repository: Repository, store: MemoryStore
) -> None:
    first = repository.backup(IMAGE)
    image = patterned(len(IMAGE), "all of it is another")
    second = repository.backup(image, previous=first.disks[0])
    gone("maps", "packs", "index")(store, first)
    third = repository.backup(image, ranges=[], previous=second.disks[0])
    assert repository.restored(third) == image
    assert third.manifest.used is not None
    assert set(third.manifest.used.maps) == {item.object_id for item in second.manifest.maps}
    assert third.manifest.used.indexes == frozenset(names_of(second))


@pytest.mark.parametrize(
    "damage",
    [gone("packs"), gone("packs", "index"), shorter("packs")],
    ids=["packs gone", "packs and index gone", "packs truncated"],
)
def test_a_full_that_compares_stores_anew_what_is_lost(
    repository: Repository, store: MemoryStore, damage: Damage
) -> None:
    """What change tracking cannot tell is read whole and compared; equal is only what is still there."""
    first, _, last = chain(repository)
    damage(store, first)
    full = repository.backup(_changed(2), previous=last.disks[0], compare=True)
    assert repository.restored(full) == _changed(2)
    assert not [
        lost
        for lost in check_structure(store, repository.keys).lost_ranges
        if lost.point_id == full.point_id
    ]


class CountingStore(MemoryStore):
    """Counts what is read."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(objects)
        self.read: list[str] = []
        self.lists: list[str] = []

    def get(self, name: str, *, length_max: int) -> bytes:
        self.read.append(name)
        return super().get(name, length_max=length_max)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self.read.append(name)
        super().read_into(name, offset, buffer)


def test_the_check_of_an_incremental_reads_no_page_of_a_map(
    repository: Repository, store: MemoryStore
) -> None:
    """However large the VM: three listings, and the pages that change anyway."""
    capacity = 10 * TIB
    header = disk_header(capacity)
    with repository.writer() as writer:
        disk = writer.begin_disk(header)
        for number in range(0, capacity // LEAF_BYTES, 700):
            disk.write(number * LEAF_BYTES, patterned(BLOCK, str(number)))
        disk.finish()
        prepared = writer.prepare(ManifestFacts())
        point_id = writer.publish(prepared, repository.grant(prepared))
    with repository.reader() as reader:
        first = reader.load_point(point_id)
    counted = CountingStore(store.objects)
    with repository.writer(store=counted) as writer:
        disk = writer.begin_disk(header, previous=first.disks[0])
        disk.finish()
        counted.read.clear()
        prepared = writer.prepare(ManifestFacts())
    assert counted.read == []
    assert prepared.manifest.disks[0].root == first.manifest.disks[0].root


@pytest.fixture
def of_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each map were larger than what is read at once."""
    monkeypatch.setattr(reference_check, "SMALL_BYTES", 0)


@pytest.mark.parametrize("single_pages", [0, 1, 16])
@pytest.mark.usefixtures("of_large_maps")
def test_points_that_build_on_single_pages_of_large_maps_are_whole(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, single_pages: int
) -> None:
    monkeypatch.setattr(reference_check, "SINGLE_PAGES_MAX", single_pages)
    assert repository.restored(chain(repository)[-1]) == _changed(2)


@pytest.mark.parametrize("byte", [0, 300, 600])  # of the leaf
@pytest.mark.usefixtures("of_large_maps")
def test_nothing_builds_on_a_single_page_that_is_damaged(
    repository: Repository, store: MemoryStore, byte: int
) -> None:
    first = repository.backup(IMAGE)
    (name,) = names(first, "maps")
    damaged = bytearray(store.objects[name])
    damaged[HEADER.size + byte] ^= 1
    store.objects[name] = bytes(damaged)
    with pytest.raises(PreviousLost):
        repository.backup(bytes(IMAGE), ranges=[(0, BLOCK)], previous=first.disks[0])


@pytest.mark.usefixtures("of_large_maps")
def test_damage_beside_the_pages_that_are_read_is_noticed_in_time(
    repository: Repository, store: MemoryStore
) -> None:
    points = chain(repository)
    (name,) = names(points[0], "maps")
    store.objects[name] = store.objects[name][:-1] + b"?"  # the tag of its only segment
    image = _changed(2)
    with pytest.raises(PreviousLost):
        for attempt in range(100):
            start = 2 * LEAF_BYTES
            image[start : start + BLOCK] = patterned(BLOCK, f"attempt {attempt}")
            repository.backup(image, ranges=[(start, BLOCK)], previous=points[-1].disks[0])


class BadSectors(MemoryStore):
    """Some objects are listed and cannot be read."""

    def __init__(self, objects: dict[str, bytes], prefix: str) -> None:
        super().__init__(objects)
        self.prefix = prefix

    def get(self, name: str, *, length_max: int) -> bytes:
        if name.startswith(self.prefix):
            raise RepositoryFailed("the repository's storage failed", name=name)
        return super().get(name, length_max=length_max)


@pytest.mark.parametrize("kind", ["index/", "proofs/"])
def test_an_unreadable_object_below_all_points_stops_no_backup(
    repository: Repository, store: MemoryStore, kind: str
) -> None:
    points = chain(repository)
    store_proof(
        store,
        [],
        proven_at="2026-03-01T12:00:00.000000Z",
        keys=repository.keys.common,
        signing_key=repository.signing_key,
    )
    broken = BadSectors(store.objects, kind)
    with repository.writer(store=broken) as writer:
        disk = writer.begin_disk(disk_header(len(IMAGE)), previous=points[-1].disks[0])
        disk.finish()
        prepared = writer.prepare(ManifestFacts())
        writer.publish(prepared, repository.grant(prepared))
    assert len(list_points(broken, repository.keys).points) == 4
    damaged = {item.name for item in check_structure(broken, repository.keys).damaged}
    assert damaged == {name for name in store.objects if name.startswith(kind)}

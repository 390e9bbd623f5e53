"""What is decided while the newest fence cannot be read, or while a repair is under way: nothing that loses data."""

from __future__ import annotations

from datetime import timedelta

import pytest

from holdfast_common.errors import IntegrityError, RepositoryFailed
from holdfast_common.repository.fence import load_fences
from holdfast_common.repository.forget import FENCE_UNKNOWN, PointName, forget_point, plan_forget
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.repair import repair_repository
from holdfast_common.repository.repair_staging import replacement_name
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import BLOCK, Repository, disk_header, new_repository, patterned

IMAGE = patterned(16 * BLOCK, "stays")
IMAGE_OF_OTHER = patterned(16 * BLOCK, "other")
FENCE = "fences/0000000001"


class Unlucky(MemoryStore):
    """The same objects; the n-th read of one of them fails, once."""

    def __init__(self, inner: MemoryStore, prefix: str, *, which: int = 1) -> None:
        super().__init__(now=inner.now)
        self.objects, self.times = inner.objects, inner.times
        self._prefix = prefix
        self._left = which

    def get(self, name: str, *, length_max: int) -> bytes:
        if name.startswith(self._prefix):
            self._left -= 1
            if self._left == 0:
                raise RepositoryFailed("input/output error", name=name)
        return super().get(name, length_max=length_max)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    made = new_repository(store)
    store.now = made.clock.now
    return made


@pytest.fixture
def pruner(repository: Repository) -> Pruner:
    return Pruner.of(repository)


@pytest.fixture
def point(repository: Repository, pruner: Pruner) -> Point:
    """It stays; another one is forgotten, the first fence calls dead what only that needed, and the grace time is over."""
    stays = repository.backup(IMAGE)
    forget(repository, repository.backup(patterned(16 * BLOCK, "goes")))
    assert pruner.round().doomed
    pass_grace(repository)
    return stays


def pass_grace(repository: Repository) -> None:
    repository.clock.advance(GRACE_SECONDS + 60)


def damage(store: MemoryStore, name: str) -> None:
    data = bytearray(store.objects[name])
    data[len(data) // 2] ^= 1
    store.objects[name] = bytes(data)


@pytest.mark.parametrize("how", ["read fails once", "damaged"])
def test_a_writer_that_cannot_read_the_newest_fence_builds_on_no_pack_that_may_be_dead(
    repository: Repository, store: MemoryStore, pruner: Pruner, how: str
) -> None:
    forget(repository, repository.backup(IMAGE))
    assert pruner.round().fence == 1
    pass_grace(repository)
    kept = store.objects[FENCE]
    if how == "damaged":
        damage(store, FENCE)
        writer = repository.writer()
    else:
        writer = repository.writer(store=Unlucky(store, "fences/"))
    store.objects[FENCE] = kept
    disk = writer.begin_disk(disk_header(len(IMAGE)))
    disk.write(0, IMAGE)
    disk.finish()
    prepared = writer.prepare(ManifestFacts(order=2))
    assert pruner.round().deleted
    writer.publish(prepared, repository.grant(prepared))
    (point,) = list_points(store, repository.keys).points
    assert repository.restored(point) == IMAGE


def test_a_prune_that_cannot_read_a_fence_deletes_nothing_and_closes_no_epoch(
    repository: Repository, store: MemoryStore, pruner: Pruner, point: Point
) -> None:
    before = dict(store.objects)
    with pytest.raises(RepositoryFailed, match="a fence cannot be read"):
        pruner.round(store=Unlucky(store, "fences/"))
    assert store.objects == before
    assert pruner.round(store=Unlucky(store, "fences/", which=2)).deleted
    assert repository.restored(point) == IMAGE


def test_behind_a_damaged_fence_deletion_begins_anew_with_two_others(
    repository: Repository, store: MemoryStore, pruner: Pruner, point: Point
) -> None:
    damage(store, FENCE)
    began_anew = pruner.round()
    assert (began_anew.fence, began_anew.doomed, began_anew.deleted) == (2, 0, 0)
    again = pruner.round(grace=timedelta(0))
    assert (again.fence, again.deleted) == (3, 0)
    assert again.doomed
    pass_grace(repository)
    assert sum(report.deleted for report in pruner.until_done()) == again.doomed
    assert repository.restored(point) == IMAGE


def test_nothing_is_forgotten_while_it_is_not_known_what_the_newest_fence_counted(
    repository: Repository, store: MemoryStore, point: Point
) -> None:
    damage(store, FENCE)
    fences = load_fences(store, repository.keys.common, repository.keys.writers(store))
    named = PointName(name=point.name, digest=point.digest)
    plan = plan_forget([named], held=(), fences=fences)
    assert plan.forgotten == ()
    assert plan.kept == ((named, FENCE_UNKNOWN),)


class CutOff(MemoryStore):
    """The process ends before one object is put."""

    def __init__(self, inner: MemoryStore, name: str) -> None:
        super().__init__(now=inner.now)
        self.objects, self.times = inner.objects, inner.times
        self._name = name

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if name == self._name:
            raise RepositoryFailed("the process was killed here")
        super().put(name, data)


def repair(repository: Repository, store: MemoryStore, good: MemoryStore, *points: Point) -> None:
    repair_repository(
        store,
        repository.keys,
        segment_keys=repository.keys,
        signing_key=repository.signing_key,
        clock=repository.clock,
        sources=[good],
        expected_points=[point.name for point in points],
        workers=0,
    )


def test_a_manifest_that_a_repair_took_out_and_did_not_yet_put_back_is_no_forgotten_one(
    repository: Repository, store: MemoryStore, pruner: Pruner, point: Point
) -> None:
    other = repository.backup(IMAGE_OF_OTHER)
    good = store.copy()
    damage(store, point.name)
    with pytest.raises(RepositoryFailed, match="killed"):
        repair(repository, CutOff(store, point.name), good, point, other)
    assert point.name not in store.objects
    with pytest.raises(IntegrityError, match="a repair was not finished"):
        pruner.round()
    repair(repository, store, good, point, other)
    pruner.until_done()
    assert {each.name for each in list_points(store, repository.keys).points} == {
        point.name,
        other.name,
    }
    assert repository.restored(point) == IMAGE


@pytest.mark.parametrize("kind", ["points/", "maps/", "index/", "fences/", "about/", "keys/"])
def test_a_replacement_that_waits_beside_its_whole_object_stops_no_prune_now_or_later(
    repository: Repository, store: MemoryStore, pruner: Pruner, point: Point, kind: str
) -> None:
    """A repair was cut off after it had put the object and before it took the other one away."""
    for name in [each for each in store.objects if each.startswith(kind)]:
        store.put(replacement_name(name), store.objects[name])
    assert pruner.until_done()
    assert not [name for name in store.objects if name.startswith("aside/")]
    assert repository.restored(point) == IMAGE


def test_a_point_that_is_forgotten_leaves_no_replacement_behind(
    store: MemoryStore, pruner: Pruner, point: Point
) -> None:
    store.put(replacement_name(point.name), store.objects[point.name])
    forget_point(store, PointName(name=point.name, digest=point.digest))
    assert pruner.until_done()


def test_a_replacement_that_differs_from_what_stands_there_is_left_to_its_repair(
    store: MemoryStore, pruner: Pruner, point: Point
) -> None:
    store.put(replacement_name(point.name), b"another")
    pruner.round()
    assert replacement_name(point.name) in store.objects

"""Keys are rotated while a prune is under way: it ends with the keys that it began with, and no point is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.check import check_data
from holdfast_common.repository.key_changes import rotate, settle
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.object_store import ObjectInfo
from holdfast_common.repository.points import list_points
from support.memory_store import MemoryStore, MemoryUpload
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import BLOCK, disk_header, new_repository, patterned

IMAGE = patterned(32 * BLOCK, "first")
LATE_IMAGE = patterned(4 * BLOCK, "late")
BEFORE_THE_CENSUS = "list points/"
AFTER_THE_CENSUS = "put fences/"
IN_A_REPACK = "begin "
BEFORE_DELETION = "delete packs/"
MOMENTS = [  # and how many rounds come before
    pytest.param(0, BEFORE_THE_CENSUS, id="before the census"),
    pytest.param(0, IN_A_REPACK, id="in a repack"),
    pytest.param(0, AFTER_THE_CENSUS, id="between census and fence"),
    pytest.param(1, AFTER_THE_CENSUS, id="before the second fence"),
    pytest.param(1, BEFORE_DELETION, id="between fence and deletion"),
]


class Meanwhile(MemoryStore):
    """The same objects; what happens just before one call, the first of that beginning or of that number."""

    def __init__(self, inner: MemoryStore, call: str | int, happens: Callable[[], None]) -> None:
        super().__init__(now=inner.now)
        self.objects, self.times = inner.objects, inner.times
        self._call = call
        self._happens = happens
        self.calls = 0
        self.happened = False

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._step(f"put {name}")
        super().put(name, data)

    def begin(self, *, bulk: bool = False) -> MemoryUpload:
        self._step("begin ")
        return super().begin(bulk=bulk)

    def get(self, name: str, *, length_max: int) -> bytes:
        self._step(f"get {name}")
        return super().get(name, length_max=length_max)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._step(f"list {prefix}")
        return super().list(prefix)

    def delete(self, name: str) -> None:
        self._step(f"delete {name}")
        super().delete(name)

    def _step(self, call: str) -> None:
        self.calls += 1
        wanted = self._call
        is_it = self.calls == wanted if isinstance(wanted, int) else call.startswith(wanted)
        if is_it and not self.happened:
            self.happened = True
            self._happens()


class Scene:
    """A repository in which a pack is to be repacked and others are dead, before a round of its prune."""

    def __init__(self, rounds: int) -> None:
        self.store = MemoryStore()
        self.repository = new_repository(self.store)
        self.store.now = self.repository.clock.now
        self.pruner = Pruner.of(self.repository)
        first = self.repository.backup(IMAGE)
        self.image = bytearray(IMAGE)
        self.image[: 16 * BLOCK] = patterned(16 * BLOCK, "second")
        self.second = self.repository.backup(
            self.image, ranges=[(0, 16 * BLOCK)], previous=first.disks[0]
        )
        forget(self.repository, first)
        forget(self.repository, self.repository.backup(patterned(4 * BLOCK, "gone")))
        self.images = {self.second.name: bytes(self.image)}
        for _ in range(rounds):
            assert self.pruner.round().fence
            self.repository.clock.advance(GRACE_SECONDS + 60)

    def rotate(self) -> None:
        """As the controller does; who works already keeps the keys that he has."""
        keys = rotate(self.store, self.repository.keys)
        settle(self.store, keys)
        self.repository = replace(self.repository, keys=keys)

    def back_up(self) -> None:
        point = self.repository.backup(LATE_IMAGE)
        self.images[point.name] = bytes(LATE_IMAGE)

    def assert_nothing_is_lost(self) -> None:
        """By the new keys, also after the prunes that follow."""
        self.pruner = Pruner(self.repository, self.pruner.signing_key)
        for _ in range(2):
            points = list_points(self.store, self.repository.keys).points
            assert {point.name for point in points} == self.images.keys()
            for point in points:
                assert self.repository.restored(point) == self.images[point.name]
            report = check_data(self.store, self.repository.keys, segment_keys=self.repository.keys)
            assert report.is_clean, report.damaged
            self.repository.clock.advance(GRACE_SECONDS + 60)
            self.pruner.until_done()
        self.back_up()
        assert self.repository.restored(self.second) == self.image


@pytest.mark.parametrize(("rounds", "moment"), MOMENTS)
def test_a_prune_in_whose_midst_the_keys_are_rotated_goes_on_and_loses_nothing(
    rounds: int, moment: str
) -> None:
    scene = Scene(rounds)
    store = Meanwhile(scene.store, moment, scene.rotate)
    report = scene.pruner.round(store=store)
    assert store.happened
    assert report.fence == rounds + 1
    assert report.repacked == (1 if rounds == 0 else 0)
    assert bool(report.deleted) == bool(rounds)
    scene.assert_nothing_is_lost()


@pytest.mark.parametrize(("rounds", "moment"), MOMENTS)
def test_a_point_made_by_the_new_keys_beside_a_prune_that_has_the_old_ones_is_not_lost(
    rounds: int, moment: str
) -> None:
    """What that prune cannot read it does not decide about: it refuses, and the next one goes on."""
    scene = Scene(rounds)

    def happens() -> None:
        scene.rotate()
        scene.back_up()

    store = Meanwhile(scene.store, moment, happens)
    if moment == BEFORE_THE_CENSUS:
        with pytest.raises(IntegrityError, match="what the points need is not known"):
            scene.pruner.round(store=store)
    else:
        scene.pruner.round(store=store)
    assert store.happened
    scene.assert_nothing_is_lost()


def test_a_writer_that_began_before_a_rotation_publishes_after_the_prune_beside_it() -> None:
    scene = Scene(0)
    began_with = scene.repository
    writer = began_with.writer()
    disk = writer.begin_disk(disk_header(len(LATE_IMAGE)))
    disk.write(0, LATE_IMAGE)
    disk.finish()
    prepared = writer.prepare(ManifestFacts(order=9))
    scene.pruner.round(store=Meanwhile(scene.store, AFTER_THE_CENSUS, scene.rotate))
    grant = scene.repository.keys.commit_grant(
        job_id=prepared.manifest.job_id,
        attempt=prepared.manifest.attempt,
        manifest_digest=prepared.manifest_digest,
        controller_epoch=1,
        authority=began_with.keys.authority_public,
    )
    writer.publish(prepared, grant)
    (name,) = {each for each in scene.store.objects if each.startswith("points/")} - {
        scene.second.name
    }
    scene.images[name] = bytes(LATE_IMAGE)
    scene.assert_nothing_is_lost()


@pytest.mark.long
@pytest.mark.parametrize("is_backed_up", [False, True])
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_rotation_before_any_call_of_a_prune_loses_nothing(
    rounds: int, is_backed_up: bool
) -> None:
    call = 0
    while True:
        call += 1
        scene = Scene(rounds)

        def happens(scene: Scene = scene) -> None:
            scene.rotate()
            if is_backed_up:
                scene.back_up()

        store = Meanwhile(scene.store, call, happens)
        try:
            scene.pruner.round(store=store)
        except IntegrityError:
            if not is_backed_up:
                raise
        if not store.happened:
            break
        scene.assert_nothing_is_lost()
    print(f"rotated before each of {call - 1} calls after {rounds} rounds")
    assert call > 20

"""A prune between any two steps of a repair: neither takes away what the other one relies on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import HoldfastError, LeaseExpired, ObjectMissing
from holdfast_common.repository.fence import Fence, store_fence
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore, Upload
from holdfast_common.repository.repair import RepairReport, repair_repository
from support.damaged_worlds import OTHER, Lost, World
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, LIMITS, Pruner, forget
from support.repositories import BLOCK, authorise, new_repository

NO_GRACE = timedelta(0)
STEPS = 16  # a repair of this world takes fewer


class InterruptedStore:
    """Something else happens before the n-th call that changes the store."""

    def __init__(self, inner: ObjectStore, *, before: int, happens: Callable[[], None]) -> None:
        self._inner = inner
        self._before = before
        self._happens = happens
        self.changes = 0

    def _change(self) -> None:
        number, self.changes = self.changes, self.changes + 1
        if number == self._before:
            self._happens()

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._change()
        self._inner.put(name, data)

    def begin(self, *, bulk: bool = False) -> Upload:
        self._change()
        return self._inner.begin(bulk=bulk)

    def confirm(self, names: Iterable[str]) -> None:
        self._inner.confirm(names)

    def delete(self, name: str) -> None:
        self._change()
        self._inner.delete(name)

    def get(self, name: str, *, length_max: int) -> bytes:
        return self._inner.get(name, length_max=length_max)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self._inner.read_into(name, offset, buffer)

    def head(self, name: str) -> ObjectInfo | None:
        return self._inner.head(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)


def pruned_in_part() -> tuple[World, Pruner, MemoryStore]:
    """A world whose first fence has doomed packs that were repacked, and a whole copy of it; then its newest
    point's pack, the repacked one and a map are damaged."""
    store = MemoryStore()
    world = World(new_repository(store, seed="repair beside prune"), store)
    store.now = world.repository.clock.now
    pruner = Pruner.of(world.repository)
    rng = random.Random(4)
    image = bytearray(rng.randbytes(36 * BLOCK))
    world.back_up(image, blobs={"vmx": b"first"})
    for changed in ([*range(16, 36)], [0, 5]):
        for number in changed:
            image[number * BLOCK : (number + 1) * BLOCK] = rng.randbytes(BLOCK)
        world.back_up(image, changed=changed, blobs={"vmx": b"later"})
    forget(world.repository, world.originals.pop(0).point)
    pruner.round()
    copy = store.copy()
    names = [name for name in store.objects if name.startswith("packs/")]
    for name in (names[-1], pack_name(world.originals[-1].point.manifest.packs[0])):
        data = bytearray(store.objects[name])
        data[400] ^= 1
        store.objects[name] = bytes(data)
    name = next(name for name in reversed(store.objects) if name.startswith("maps/"))
    store.objects[name] = bytes(len(store.objects[name]))
    return world, pruner, copy


def repaired(world: World, store: ObjectStore, copy: MemoryStore) -> RepairReport:
    return repair_repository(
        store,
        world.repository.keys,
        segment_keys=world.repository.keys,
        signing_key=world.repository.signing_key,
        clock=world.repository.clock,
        sources=[copy],
        expected_points=[each.point.name for each in world.originals],
        workers=1,
        randomness=world.repository.randomness,
    )


def test_the_steps_are_fewer_than_what_is_tried() -> None:
    world, _, copy = pruned_in_part()
    assert world.lost(world.store) != Lost()
    store = InterruptedStore(world.store, before=-1, happens=lambda: None)
    assert repaired(world, store, copy).after.is_clean
    assert 8 < store.changes <= STEPS
    assert world.lost(world.store) == Lost()


@pytest.mark.parametrize("step", range(STEPS))
def test_a_prune_before_any_step_of_a_repair_deletes_nothing_that_either_needs(step: int) -> None:
    world, pruner, copy = pruned_in_part()

    def prunes() -> None:
        for _ in range(3):
            try:
                pruner.round(limits=LIMITS, grace=NO_GRACE)
            except HoldfastError:
                return  # with a damaged map nobody knows what is needed
            world.repository.clock.advance(1)

    store = InterruptedStore(world.store, before=step, happens=prunes)
    assert repaired(world, store, copy).after.is_clean
    assert world.lost(world.store) == Lost()
    world.repository.clock.advance(GRACE_SECONDS)
    pruner.until_done()
    assert world.check(world.store).is_clean
    assert world.lost(world.store) == Lost()


@pytest.mark.parametrize("step", range(0, STEPS, 2))
def test_a_repair_that_stood_still_past_its_lease_stops_and_can_be_repeated(step: int) -> None:
    world, pruner, copy = pruned_in_part()

    def time_passes() -> None:
        world.repository.clock.advance(GRACE_SECONDS + 3600)
        for _ in range(2):
            try:
                pruner.round()
            except HoldfastError:
                return
            world.repository.clock.advance(GRACE_SECONDS + 60)

    store = InterruptedStore(world.store, before=step, happens=time_passes)
    try:
        repaired(world, store, copy)
    except (LeaseExpired, ObjectMissing):
        repaired(world, world.store, copy)
    assert world.lost(world.store) == Lost()
    pruner.until_done()
    assert world.check(world.store).is_clean
    assert world.lost(world.store) == Lost()


def test_a_repair_relies_on_no_pack_that_a_prune_under_way_may_delete() -> None:
    """A good chunk of a damaged pack has a copy, but in a pack that the newest fence calls dead."""
    store = MemoryStore()
    world = World(new_repository(store, seed="doomed copy"), store)
    second = Ed25519PrivateKey.from_private_bytes(b"the second writer of this world!")
    authorise(world.repository, second, agent_id="proxy-2")
    image = random.Random(6).randbytes(32 * BLOCK)
    first = world.back_up(image)
    other = world.back_up(image, lineage=OTHER, signing_key=second)
    copy = store.copy()
    doomed = [pack_name(digest) for digest in other.manifest.packs]
    fence = Fence(
        closed_epoch=1,
        closed_at="2026-03-01T13:00:00.000000Z",
        census={each.point.name: each.point.digest for each in world.originals},
        tombstones=doomed,
        decided_epoch=0,
    )
    keys = world.repository.keys.common
    store_fence(store, fence, keys=keys, signing_key=world.repository.signing_key)
    damaged = pack_name(first.manifest.packs[0])
    data = bytearray(store.objects[damaged])
    data[400] ^= 1
    store.objects[damaged] = bytes(data)
    assert repaired(world, store, copy).after.is_clean
    assert damaged not in store.objects
    for name in doomed:
        store.delete(name)
    assert world.lost(store) == Lost()

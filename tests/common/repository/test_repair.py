"""Repair: from a copy, from what is left, from the next backup; what stays lost is said, nothing is thrown away."""

from __future__ import annotations

import pytest

from holdfast_common.errors import HoldfastError, Refused, RepositoryFull
from holdfast_common.repository.layout import aside_name, pack_name
from holdfast_common.repository.repair import RepairReport, describe, repair_repository
from support.damaged_worlds import Lost, World, first_world
from support.damages import KINDS, Damage, drawn, parts_of
from support.faulty_store import Fault, FaultyStore
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import BLOCK, new_repository, patterned

SEED = 1
HELD_TWICE = ("key generation", "its copy", "list of writers", "copy of the list", "index")


def repaired(
    world: World, store: MemoryStore | FaultyStore, *sources: MemoryStore, dry_run: bool = False
) -> RepairReport:
    keys = world.repository.keys
    return repair_repository(
        store,
        keys,
        segment_keys=keys,
        signing_key=world.repository.signing_key,
        clock=world.repository.clock,
        sources=sources,
        expected_points=[each.point.name for each in world.originals],
        dry_run=dry_run,
        workers=1,
    )


def bytes_kept(before: MemoryStore, after: MemoryStore) -> bool:
    """Whether every byte that was stored is still stored, in its place or aside."""
    kept = {*after.objects.values()}
    return all(data in kept for data in before.objects.values())


@pytest.mark.parametrize("damage", Damage)
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_copy_everything_is_mended(kind: str, damage: Damage) -> None:
    damaged = drawn(kind, damage, SEED)
    world, store = damaged.world, damaged.store
    before = store.copy()
    report = repaired(world, store, world.store)
    assert report.after.is_clean, (damaged.told, report.left, describe(report)[:5])
    assert world.check(store).is_clean
    assert world.lost(store) == Lost(), damaged.told
    assert world.opens(store)
    assert bytes_kept(before, store), damaged.told
    assert not [name for name in store.objects if name.startswith("aside/replacements")]


@pytest.mark.parametrize("damage", Damage)
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_copy_nothing_gets_worse_and_what_stays_lost_is_said(
    kind: str, damage: Damage
) -> None:
    damaged = drawn(kind, damage, SEED)
    world, store = damaged.world, damaged.store
    before, lost = store.copy(), world.lost(store)
    report = repaired(world, store)
    assert world.reported(report.after) == world.lost(store) == lost, damaged.told
    assert bytes_kept(before, store), damaged.told
    if kind in HELD_TWICE and damage is not Damage.SWAP:  # that hits a second object
        assert report.after.is_clean, (damaged.told, report.left)


def test_a_second_repair_has_nothing_to_do() -> None:
    damaged = drawn("blob", Damage.FLIP, 3)
    repaired(damaged.world, damaged.store, damaged.world.store)
    names = set(damaged.store.objects)
    report = repaired(damaged.world, damaged.store, damaged.world.store)
    assert report.before.is_clean
    assert not report.new_packs
    assert not report.set_aside
    assert set(damaged.store.objects) == names


def test_a_dry_run_writes_nothing_and_tells_what_is_there_to_find() -> None:
    damaged = drawn("blob", Damage.ZERO, 1)
    objects = dict(damaged.store.objects)
    report = repaired(damaged.world, damaged.store, damaged.world.store, dry_run=True)
    assert damaged.store.objects == objects
    assert report.chunks_found
    assert not report.new_packs


def test_a_source_that_is_damaged_elsewhere_still_serves() -> None:
    """Two copies of a repository, each rotten in other places, are one whole one."""
    world = first_world()
    store, other = world.store.copy(), world.store.copy()
    blobs = parts_of("blob", 0)
    for number, (name, start, _) in enumerate(blobs):
        target = store if number % 2 else other
        data = bytearray(target.objects[name])
        data[start + 5] ^= 1
        target.objects[name] = bytes(data)
    assert world.lost(store) != Lost()
    report = repaired(world, store, other)
    assert report.after.is_clean, describe(report)
    assert world.lost(store) == Lost()


def test_what_both_copies_have_lost_is_told_point_by_point() -> None:
    world = first_world()
    store, other = world.store.copy(), world.store.copy()
    pack = pack_name(world.originals[0].point.manifest.packs[0])
    for target in (store, other):
        data = bytearray(target.objects[pack])
        data[200] ^= 1
        target.objects[pack] = bytes(data)
    report = repaired(world, store, other)
    assert world.reported(report.after) == world.lost(store) != Lost()
    told = [line for line in describe(report) if line.startswith("lost: point")]
    assert len(told) == len(report.after.lost_ranges) + len(report.after.lost_blobs)
    assert pack in store.objects, "what has no replacement stays where it is"


def test_another_repository_is_refused_as_a_source() -> None:
    damaged = drawn("blob", Damage.FLIP, 1)
    foreign = new_repository(MemoryStore(), seed="foreign")
    assert isinstance(foreign.store, MemoryStore)
    objects = dict(damaged.store.objects)
    with pytest.raises(Refused, match="another repository"):
        repaired(damaged.world, damaged.store, foreign.store)
    assert damaged.store.objects == objects


def test_the_next_full_backup_makes_old_points_whole_again() -> None:
    """A chunk of a damaged pack is not known any more, so it is stored anew, and serves the old points too."""
    store = MemoryStore()
    world = World(new_repository(store, seed="next run"), store)
    image = patterned(20 * BLOCK, "image")
    first = world.back_up(image)
    image[BLOCK : 2 * BLOCK] = patterned(BLOCK, "changed")
    world.back_up(image, changed=[1])
    pack = first.manifest.packs[0]
    data = bytearray(store.objects[pack_name(pack)])
    data[len(data) // 2] ^= 1
    store.objects[pack_name(pack)] = bytes(data)
    lost = world.lost(store)
    assert lost != Lost()
    with world.repository.writer(damaged_packs=[pack]) as writer:
        disk = writer.begin_disk(first.disks[0].header)
        disk.write(0, memoryview(bytes(patterned(20 * BLOCK, "image"))))
        disk.finish()
        prepared = writer.prepare(first.manifest.facts)
        writer.publish(prepared, world.repository.grant(prepared))
    assert world.lost(store) == Lost()
    report = repaired(world, store)
    assert report.after.is_clean
    assert report.set_aside == (pack_name(pack),)
    assert aside_name(pack_name(pack)) in store.objects


@pytest.mark.parametrize("call", range(0, 200, 9))
def test_a_repair_that_is_cut_off_loses_nothing_and_is_gone_on_with(call: int) -> None:
    """Every call to the store may be the last one; the next repair ends what this one began."""
    for kind, damage in (("blob", Damage.FLIP), ("manifest", Damage.ZERO)):
        damaged = drawn(kind, damage, 5)
        world, store = damaged.world, damaged.store
        before, lost = store.copy(), world.lost(store)
        faulty = FaultyStore(
            store, Fault(call=300 + call, error=RepositoryFull("no room"), persistent=True)
        )
        try:
            repaired(world, faulty, world.store)
        except HoldfastError:
            now = world.lost(store)
            assert now.blocks <= lost.blocks
            assert now.blobs <= lost.blobs
            assert bytes_kept(before, store)
        assert repaired(world, store, world.store).after.is_clean
        assert world.lost(store) == Lost()


def test_prune_goes_on_behind_a_repair() -> None:
    """Packs that were set aside are named by old index objects; what was stored anew is kept."""
    store = MemoryStore()
    world = World(new_repository(store, seed="prune behind repair"), store)
    store.now = world.repository.clock.now
    image = patterned(20 * BLOCK, "image")
    first = world.back_up(image)
    image[BLOCK : 2 * BLOCK] = patterned(BLOCK, "changed")
    world.back_up(image, changed=[1])
    copy = store.copy()
    pack = pack_name(first.manifest.packs[0])
    data = bytearray(store.objects[pack])
    data[300] ^= 1
    store.objects[pack] = bytes(data)
    assert repaired(world, store, copy).after.is_clean
    pruner = Pruner.of(world.repository)
    forget(world.repository, first)
    world.originals = world.originals[1:]
    for _ in range(3):
        pruner.round()
        world.repository.clock.advance(GRACE_SECONDS + 1)
    assert world.check(store).is_clean, world.check(store).damaged
    assert world.lost(store) == Lost()

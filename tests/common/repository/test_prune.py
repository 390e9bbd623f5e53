from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import IntegrityError, LeaseExpired, RepositoryFull
from holdfast_common.repository.check import check_data
from holdfast_common.repository.lease import LEASE_SECONDS
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.pack_listing import PackListing, PresentPacks
from holdfast_common.repository.points import list_points
from holdfast_common.repository.reserve import RESERVE_BYTES, keep_reserve_quietly
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, LIMITS, Pruner, forget
from support.repositories import (
    BLOCK,
    LINEAGE,
    Repository,
    authorise,
    disk_header,
    new_repository,
    patterned,
)


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


def names(store: MemoryStore, prefix: str) -> set[str]:
    return {name for name in store.objects if name.startswith(prefix)}


def assert_clean(repository: Repository) -> None:
    report = check_data(repository.store, repository.keys, segment_keys=repository.keys)
    assert report.is_clean, report.damaged


def test_what_only_a_forgotten_point_needed_goes_after_two_fences_and_the_grace_time(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    image = patterned(20 * BLOCK, "kept")
    kept = repository.backup(image)
    before = set(store.objects)
    gone = repository.backup(patterned(20 * BLOCK, "gone"))
    dead = {n for n in set(store.objects) - before if n.split("/")[0] in ("packs", "index", "maps")}
    forget(repository, gone)
    first = pruner.round()
    assert (first.fence, first.deleted, first.doomed) == (1, 0, len(dead))
    assert dead <= set(store.objects), "the first fence deletes nothing"
    again = pruner.round()
    assert again.waiting is not None
    assert again.waiting.until is not None
    assert not again.fence
    repository.clock.advance(GRACE_SECONDS + 1)
    second = pruner.round()
    assert second.deleted == len(dead)
    assert not dead & set(store.objects)
    assert repository.restored(kept) == image
    assert_clean(repository)


def test_nothing_to_do_closes_no_epoch(repository: Repository, pruner: Pruner) -> None:
    repository.backup(patterned(4 * BLOCK, "only"))
    report = pruner.round()
    assert not report.fence
    assert not report.names


def test_a_dry_run_is_the_same_plan_and_writes_nothing(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    repository.backup(patterned(4 * BLOCK, "kept"))
    forget(repository, repository.backup(patterned(4 * BLOCK, "gone")))
    before = dict(store.objects)
    planned = pruner.round(dry_run=True)
    assert store.objects == before
    done = pruner.round()
    assert (planned.doomed, planned.doomed_bytes) == (done.doomed, done.doomed_bytes)
    planned = pruner.round(dry_run=True)
    assert planned.waiting is not None
    assert (planned.deleted, pruner.round().deleted) == (0, 0), "not before the grace time ended"
    assert planned.doomed == done.doomed, "what it waits for"
    repository.clock.advance(GRACE_SECONDS + 1)
    planned = pruner.round(dry_run=True)
    done = pruner.round()
    assert planned.deleted == done.deleted > 0
    assert planned.deleted_bytes == done.deleted_bytes


def test_a_writer_at_work_is_waited_for_and_what_it_refers_to_stays(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    image = patterned(16 * BLOCK, "shared")
    forgotten = repository.backup(image)
    writer = repository.writer()  # knows the chunks of the point that is forgotten now
    forget(repository, forgotten)
    assert pruner.round().doomed
    repository.clock.advance(LEASE_SECONDS / 2)
    writer.renew_lease()
    blocked = pruner.round(grace=LIMITS.grace * 0)
    assert blocked.waiting is not None
    assert [lease.writer_epoch for lease in blocked.waiting.writers] == [1]
    disk = writer.begin_disk(disk_header(len(image)))
    disk.write(0, image)
    summary = disk.finish()
    assert summary.known_bytes == len(image), "it took what the fence calls dead"
    prepared = writer.prepare(ManifestFacts())
    point_id = writer.publish(prepared, repository.grant(prepared))
    repository.clock.advance(GRACE_SECONDS + 1)
    pruner.until_done()
    with repository.reader() as reader:
        assert repository.restored(reader.load_point(point_id)) == image
    assert_clean(repository)


def test_a_writer_that_was_suspended_past_its_lease_makes_no_point_visible(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    image = patterned(16 * BLOCK, "shared")
    forgotten = repository.backup(image)
    writer = repository.writer()
    disk = writer.begin_disk(disk_header(len(image)))
    disk.write(0, image)
    disk.finish()
    prepared = writer.prepare(ManifestFacts())
    forget(repository, forgotten)
    pruner.round()
    seconds, repository.clock.seconds = repository.clock.seconds, 0.0
    repository.clock.advance(GRACE_SECONDS + 1)
    pruner.round()
    repository.clock.seconds = seconds  # its own clock stood still
    with pytest.raises(LeaseExpired):
        writer.publish(prepared, repository.grant(prepared))
    assert not list_points(store, repository.keys).points
    writer.abandon()


def test_a_pack_with_a_third_of_it_dead_is_repacked_without_content_keys(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    image = patterned(48 * BLOCK, "first")
    first = repository.backup(image)
    changed = bytearray(image)
    changed[: 16 * BLOCK] = patterned(16 * BLOCK, "second")
    second = repository.backup(changed, ranges=[(0, 16 * BLOCK)], previous=first.disks[0])
    forget(repository, first)
    packs = names(store, "packs/")
    reports = pruner.until_done()
    assert sum(report.repacked for report in reports) == 1
    assert sum(report.moved_bytes for report in reports) < 32 * BLOCK
    assert len(names(store, "packs/") - packs) == 1
    assert len(names(store, "packs/") & packs) == 1, "the old pack is gone, the other one stays"
    assert repository.restored(second) == changed
    assert_clean(repository)
    again = repository.backup(changed, ranges=[(0, BLOCK)], previous=second.disks[0])
    assert repository.restored(again) == changed
    forget(repository, second)
    pruner.until_done()
    assert repository.restored(again) == changed
    assert_clean(repository)


def test_points_do_not_miss_the_index_objects_that_were_merged(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    """The next incremental tells by listings that all it stands on is there, without reading maps."""
    image = patterned(48 * BLOCK, "first")
    first = repository.backup(image)
    changed = bytearray(image)
    changed[: 16 * BLOCK] = patterned(16 * BLOCK, "second")
    second = repository.backup(changed, ranges=[(0, 16 * BLOCK)], previous=first.disks[0])
    forget(repository, first)
    used = second.manifest.used
    assert used is not None
    assert used.indexes is not None
    for _ in range(3):
        index = repository.writer()._index
        listing = PackListing()
        listing.refresh(store)
        present = PresentPacks(listing)
        assert index.is_whole(used.indexes, present=present)
        repository.clock.advance(GRACE_SECONDS + 1)
        pruner.round()


def test_two_writers_and_their_packs_stay(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    other = Ed25519PrivateKey.generate()
    authorise(repository, other, agent_id="proxy-2")
    image = patterned(16 * BLOCK, "both")
    first = repository.backup(image)
    second = repository.backup(image, signing_key=other, lineage="vcenter-1/other")
    pruner.until_done()
    assert repository.restored(first) == image
    assert repository.restored(second, lineage="vcenter-1/other") == image
    forget(repository, first)
    pruner.until_done()
    assert repository.restored(second, lineage="vcenter-1/other") == image
    assert_clean(repository)


def test_what_an_attempt_left_that_never_finished_goes(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    repository.backup(patterned(4 * BLOCK, "kept"))
    before = {n for n in store.objects if n.split("/")[0] in ("packs", "index", "maps")}
    writer = repository.writer()
    disk = writer.begin_disk(disk_header(8 * BLOCK))
    disk.write(0, patterned(8 * BLOCK, "left"))
    disk.finish()
    writer.prepare(ManifestFacts())
    writer.abandon()
    pruner.until_done()
    after = {n for n in store.objects if n.split("/")[0] in ("packs", "index", "maps")}
    assert after == before
    assert not names(store, "leases/")


def test_nothing_is_deleted_while_it_is_not_known_what_a_point_needs(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    point = repository.backup(patterned(4 * BLOCK, "damaged"))
    forget(repository, repository.backup(patterned(4 * BLOCK, "gone")))
    (name,) = {n for n in names(store, "maps/") if point.manifest.maps[0].object_id.hex() in n}
    store.objects[name] = store.objects[name][:-40] + bytes(40)
    before = dict(store.objects)
    with pytest.raises(IntegrityError, match="map"):
        pruner.round()
    assert names(store, "packs/") == {n for n in before if n.startswith("packs/")}


def test_an_index_that_was_lost_costs_nothing(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    image = patterned(16 * BLOCK, "kept")
    kept = repository.backup(image)
    forget(repository, repository.backup(patterned(16 * BLOCK, "gone")))
    for name in names(store, "index/"):
        del store.objects[name]
    pruner.until_done()
    assert repository.restored(kept) == image
    assert len(names(store, "index/")) == 1
    assert len(names(store, "packs/")) == 1


def test_a_full_repository_is_pruned(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    image = patterned(48 * BLOCK, "first")
    first = repository.backup(image)
    changed = bytearray(image)
    changed[: 24 * BLOCK] = patterned(24 * BLOCK, "second")
    second = repository.backup(changed, ranges=[(0, 24 * BLOCK)], previous=first.disks[0])
    pruner.round(reserve_bytes=BLOCK)
    forget(repository, first)
    gone = repository.backup(patterned(16 * BLOCK, "gone"))
    forget(repository, gone)
    store.capacity_bytes = store.used_bytes()
    with pytest.raises(RepositoryFull):
        repository.backup(image)
    first_round = pruner.round(reserve_bytes=BLOCK)
    assert first_round.was_full
    assert first_round.fence
    repository.clock.advance(GRACE_SECONDS + 1)
    second_round = pruner.round(reserve_bytes=BLOCK)
    assert second_round.deleted_bytes > 10 * BLOCK
    assert_clean(repository)
    for _ in range(4):
        repository.clock.advance(GRACE_SECONDS + 1)
        pruner.round(reserve_bytes=BLOCK)
    assert store.used_bytes() < 60 * BLOCK
    assert "reserve/room" in store.objects
    assert repository.restored(second) == changed
    assert_clean(repository)


def test_a_full_repository_is_pruned_although_others_take_what_comes_free(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    kept = repository.backup(patterned(8 * BLOCK, "kept"))
    gone = repository.backup(patterned(48 * BLOCK, "gone"))
    keep_reserve_quietly(store)
    forget(repository, gone)
    freed = 0
    for _ in range(3):
        if not freed:
            store.capacity_bytes = store.used_bytes()
        freed += pruner.round(reserve_bytes=RESERVE_BYTES).deleted_bytes
        repository.clock.advance(GRACE_SECONDS + 1)
    assert freed > 30 * BLOCK
    store.capacity_bytes = 1 << 40
    keep_reserve_quietly(store)
    assert sum(info.length for info in store.list("reserve/")) == RESERVE_BYTES
    assert repository.restored(kept) == patterned(8 * BLOCK, "kept")
    assert_clean(repository)


def test_a_copy_that_went_bad_keeps_its_original(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    image = patterned(48 * BLOCK, "first")
    first = repository.backup(image)
    changed = bytearray(image)
    changed[: 16 * BLOCK] = patterned(16 * BLOCK, "second")
    second = repository.backup(changed, ranges=[(0, 16 * BLOCK)], previous=first.disks[0])
    forget(repository, first)
    packs = names(store, "packs/")
    assert pruner.round().repacked == 1
    (copy,) = names(store, "packs/") - packs
    damaged = bytearray(store.objects[copy])
    damaged[5000] ^= 1
    store.objects[copy] = bytes(damaged)
    repository.clock.advance(GRACE_SECONDS + 1)
    pruner.round()
    assert packs <= names(store, "packs/")
    del store.objects[copy]
    assert repository.restored(second) == changed
    assert LINEAGE

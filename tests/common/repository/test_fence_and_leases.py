from __future__ import annotations

import pytest

from holdfast_common.errors import LeaseExpired, ObjectExists, PreviousLost
from holdfast_common.repository.fence import Fence, load_fences, store_fence
from holdfast_common.repository.layout import manifest_name
from holdfast_common.repository.lease import LEASE_SECONDS, load_leases
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.writer import PointWriter, PreparedPoint
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import LINEAGE, Repository, disk_header, new_repository, patterned

IMAGE = patterned(2 * 65536, "fenced")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    return new_repository(store)


def close_epoch(
    repository: Repository,
    epoch: int,
    census: list[Point],
    *,
    decided: int = -1,
    tombstones: tuple[str, ...] = (),
    first_kept: int = 1,
) -> None:
    store_fence(
        repository.store,
        Fence(
            closed_epoch=epoch,
            closed_at="2026-03-01T12:00:00.000000Z",
            census={point.name: point.digest for point in census},
            tombstones=tombstones,
            decided_epoch=decided,
            first_kept=first_kept,
        ),
        keys=repository.keys.common,
        signing_key=repository.signing_key,
    )


def prepared_point(repository: Repository) -> tuple[PointWriter, PreparedPoint]:
    writer = repository.writer()
    disk = writer.begin_disk(disk_header(len(IMAGE)))
    disk.write(0, IMAGE)
    disk.finish()
    return writer, writer.prepare(ManifestFacts())


def names(repository: Repository) -> list[str]:
    return [point.name for point in list_points(repository.store, repository.keys).points]


def test_points_of_a_closed_epoch_that_were_counted_stay(repository: Repository) -> None:
    first = repository.backup(IMAGE)
    close_epoch(repository, 1, [first])
    second = repository.backup(IMAGE)
    assert second.manifest.writer_epoch == 2
    assert names(repository) == [first.name, second.name]
    close_epoch(repository, 2, [first, second])
    assert names(repository) == [first.name, second.name]
    assert repository.restored(first) == IMAGE


def test_a_suspended_writer_cannot_publish_after_its_epoch_was_closed(
    repository: Repository,
) -> None:
    writer, prepared = prepared_point(repository)
    close_epoch(repository, 1, [])
    with pytest.raises(LeaseExpired):
        writer.publish(prepared, repository.grant(prepared))
    writer.abandon()
    assert names(repository) == []


def test_a_manifest_that_appears_after_its_epoch_was_closed_is_void(
    repository: Repository, store: MemoryStore
) -> None:
    """Its writer was suspended between the last look and the rename: only readers can stop that."""
    _, prepared = prepared_point(repository)
    close_epoch(repository, 1, [])
    tag = repository.keys.reader_keys(LINEAGE).lineage_tag
    name = manifest_name(tag, prepared.manifest.job_id)
    store.put(name, prepared.stored + repository.grant(prepared))
    listed = list_points(store, repository.keys)
    assert not listed.points
    assert listed.unusable[0].code == "point_voided"


def test_another_manifest_under_a_counted_name_is_void(
    repository: Repository, store: MemoryStore
) -> None:
    counted = repository.backup(IMAGE)
    other = repository.backup(patterned(65536, "other"))
    close_epoch(repository, 1, [counted, other])
    store.objects[counted.name], store.objects[other.name] = (
        store.objects[other.name],
        store.objects[counted.name],
    )
    assert names(repository) == []


def test_a_writer_at_work_is_not_shut_out_by_a_fence_that_decides_the_epoch_before(
    repository: Repository,
) -> None:
    writer, prepared = prepared_point(repository)
    close_epoch(repository, 1, [], decided=0)
    later, _ = prepared_point(repository)
    assert later._lease.writer_epoch == 2
    writer.publish(prepared, repository.grant(prepared))
    later.abandon()
    assert len(names(repository)) == 1


def test_a_point_that_came_while_its_epoch_was_decided_is_not_acknowledged(
    repository: Repository, store: MemoryStore
) -> None:
    """Its writer was suspended right after the last look at the fences."""
    writer, prepared = prepared_point(repository)
    grant = repository.grant(prepared)
    put = store.put

    def fenced_first(name: str, data: bytes) -> None:
        store.put = put  # type: ignore[method-assign]
        close_epoch(repository, 1, [], decided=0)
        close_epoch(repository, 2, [], decided=1)
        put(name, data)

    store.put = fenced_first  # type: ignore[assignment, method-assign]
    with pytest.raises(LeaseExpired):
        writer.publish(prepared, grant)
    writer.abandon()
    assert names(repository) == []


def test_a_point_that_came_between_the_census_and_its_fence_is_not_acknowledged(
    repository: Repository, store: MemoryStore
) -> None:
    """Its writer slept past its lease without its own clock telling, as a suspended VM's does."""
    pruner = Pruner.of(repository)
    forget(repository, repository.backup(patterned(65536, "in the first fence")))
    writer, prepared = prepared_point(repository)
    grant = repository.grant(prepared)
    pruner.round()
    slept, repository.clock.seconds = repository.clock.seconds, 0.0
    repository.clock.advance(GRACE_SECONDS + 1)
    put = store.put
    refused = []

    def late_point_first(name: str, data: bytes) -> None:
        if name.startswith("fences/"):
            awake, repository.clock.seconds = repository.clock.seconds, slept
            with pytest.raises(LeaseExpired) as caught:
                writer.publish(prepared, grant)
            refused.append(str(caught.value))
            repository.clock.seconds = awake
        put(name, data)

    store.put = late_point_first  # type: ignore[assignment, method-assign]
    pruner.round()
    assert "given up by a prune" in refused[0]
    assert names(repository) == []


def test_a_writer_at_work_keeps_its_announcement_and_its_newest_renewal(
    repository: Repository, store: MemoryStore
) -> None:
    writer, prepared = prepared_point(repository)
    for _ in range(4):
        repository.clock.advance(LEASE_SECONDS / 2)
        writer.renew_lease()
    Pruner.of(repository).round()
    kept = sorted(name[-6:] for name in store.objects if name.startswith("leases/"))
    assert kept == ["000000", "000004"]
    writer.publish(prepared, repository.grant(prepared))
    assert len(names(repository)) == 1


def test_the_newest_census_speaks_so_a_forgotten_point_cannot_be_put_back(
    repository: Repository, store: MemoryStore
) -> None:
    first = repository.backup(IMAGE)
    second = repository.backup(IMAGE)
    close_epoch(repository, 1, [first, second], decided=0)
    close_epoch(repository, 2, [first, second], decided=1)
    assert names(repository) == [first.name, second.name]
    kept = store.objects.pop(first.name)
    close_epoch(repository, 3, [second], decided=2)
    store.objects[first.name] = kept
    assert names(repository) == [second.name]


def test_fences_of_which_the_newest_one_says_that_they_were_deleted_are_not_missed(
    repository: Repository, store: MemoryStore
) -> None:
    for epoch in (1, 2, 3):
        close_epoch(repository, epoch, [], decided=epoch - 1, first_kept=max(1, epoch - 1))
    del store.objects["fences/0000000001"]
    listed = repository.keys.writers(store)
    assert not load_fences(store, repository.keys.common, listed).unusable
    del store.objects["fences/0000000002"]
    assert list(load_fences(store, repository.keys.common, listed).unusable) == [2]


def test_nothing_is_taken_from_a_pack_that_the_fence_calls_dead(
    repository: Repository, store: MemoryStore
) -> None:
    image = patterned(8 * 65536, "dead soon")
    forgotten = repository.backup(image)
    del store.objects[forgotten.name]
    packs = tuple(name for name in store.objects if name.startswith("packs/"))
    close_epoch(repository, 1, [], decided=0, tombstones=packs)
    again = repository.backup(image)
    assert again.disks[0].summary.known_bytes == 0
    for name in packs:
        del store.objects[name]
    assert repository.restored(again) == image


def test_a_point_that_was_forgotten_meanwhile_is_not_built_on(
    repository: Repository, store: MemoryStore
) -> None:
    first = repository.backup(IMAGE)
    del store.objects[first.name]
    with repository.writer() as writer, pytest.raises(PreviousLost):
        writer.begin_disk(disk_header(len(IMAGE)), previous=first.disks[0])


def test_a_writer_whose_announcement_came_behind_a_fence_is_announced_again(
    repository: Repository, store: MemoryStore
) -> None:
    put = store.put

    def fenced_meanwhile(name: str, data: bytes) -> None:
        store.put = put  # type: ignore[method-assign]
        close_epoch(repository, 1, [], decided=0)
        put(name, data)

    store.put = fenced_meanwhile  # type: ignore[assignment, method-assign]
    point = repository.backup(IMAGE)
    assert point.manifest.writer_epoch == 2


def test_an_epoch_is_closed_once(repository: Repository) -> None:
    close_epoch(repository, 1, [])
    with pytest.raises(ObjectExists):
        close_epoch(repository, 1, [])


def test_a_damaged_fence_hides_no_point_and_is_noted(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    close_epoch(repository, 1, [point])
    store.objects["fences/0000000001"] = store.objects["fences/0000000001"][:-1]
    writers = repository.keys.writers(store)
    fences = load_fences(store, repository.keys.common, writers)
    assert list(fences.unusable) == [1]
    assert fences.current_epoch == 2, "a new writer still starts behind it"
    assert names(repository) == [point.name]


def test_a_missing_fence_is_noted(repository: Repository, store: MemoryStore) -> None:
    close_epoch(repository, 1, [])
    close_epoch(repository, 2, [])
    del store.objects["fences/0000000001"]
    fences = load_fences(store, repository.keys.common, repository.keys.writers(store))
    assert fences.unusable == {1: "it is missing"}


def test_a_fence_of_somebody_without_the_role_is_refused(
    repository: Repository, store: MemoryStore
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    point = repository.backup(IMAGE)
    store_fence(
        store,
        Fence(closed_epoch=1, closed_at="", census={}),
        keys=repository.keys.common,
        signing_key=Ed25519PrivateKey.generate(),
    )
    assert names(repository) == [point.name]


def test_a_writer_is_announced_and_signs_off(repository: Repository) -> None:
    writer, _ = prepared_point(repository)
    keys = repository.keys.common
    (record,) = load_leases(repository.store, keys, repository.keys.writers(repository.store))
    assert record.is_alive(repository.clock.now())
    assert record.writer_epoch == 1
    writer.abandon()
    (record,) = load_leases(repository.store, keys, repository.keys.writers(repository.store))
    assert record.released
    assert not record.is_alive(repository.clock.now())


def test_a_lease_that_ran_out_publishes_nothing(repository: Repository) -> None:
    writer, prepared = prepared_point(repository)
    repository.clock.advance(LEASE_SECONDS)
    with pytest.raises(LeaseExpired):
        writer.publish(prepared, repository.grant(prepared))
    writer.abandon()
    assert names(repository) == []


def test_a_long_backup_renews_its_lease(repository: Repository) -> None:
    with repository.writer() as writer:
        disk = writer.begin_disk(disk_header(200 << 20))
        for number in range(10):
            repository.clock.advance(LEASE_SECONDS / 2)
            writer.renew_lease()
            disk.write(number << 20, patterned(65536, str(number)))
        disk.finish()
        prepared = writer.prepare(ManifestFacts())
        writer.publish(prepared, repository.grant(prepared))
    (record,) = load_leases(
        repository.store, repository.keys.common, repository.keys.writers(repository.store)
    )
    assert record.sequence >= 10
    assert len(names(repository)) == 1

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import IntegrityError, NotFound, Refused, UsageError
from holdfast_common.repository.check import check_data
from holdfast_common.repository.keys import create_repository
from holdfast_common.repository.lease import load_leases
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import list_points
from holdfast_common.repository.writers import ROLE_WRITE, load_writers
from support.memory_store import MemoryStore
from support.repositories import (
    FixedClock,
    Repository,
    authorise,
    disk_header,
    new_repository,
    patterned,
)

IMAGE = patterned(3 * 65536, "image")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    return new_repository(store)


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_a_new_repository_has_no_writers() -> None:
    store = MemoryStore()
    keys, _ = create_repository(store, recipients=(), clock=FixedClock())
    assert load_writers(store, keys.common).writers == ()


def test_authorising_twice_changes_nothing(repository: Repository) -> None:
    before = repository.keys.writers(repository.store)
    authorise(repository, repository.signing_key, agent_id="proxy-1")
    assert repository.keys.writers(repository.store) == before


def test_a_proxy_may_not_close_an_epoch_also_one_that_was_listed_with_every_role(
    repository: Repository,
) -> None:
    key = public(repository.signing_key)
    before = repository.keys.writers(repository.store).of(key)
    assert before is not None
    assert "prune" in before.roles
    listed = repository.keys.authorise_writer(
        repository.store, key, agent_id="proxy-1", clock=repository.clock
    )
    after = listed.of(key)
    assert after is not None
    assert after.roles == ("verify", "write")
    assert [writer.public_key for writer in listed.writers] == [key]


def test_a_writer_that_is_not_listed_cannot_begin(repository: Repository) -> None:
    with pytest.raises(Refused):
        repository.writer(signing_key=Ed25519PrivateKey.generate())


def test_a_writer_without_the_role_cannot_begin(repository: Repository) -> None:
    key = Ed25519PrivateKey.generate()
    repository.keys.authorise_writer(
        repository.store, public(key), agent_id="verifier", clock=repository.clock, roles=["verify"]
    )
    with pytest.raises(Refused):
        repository.writer(signing_key=key)


def test_unknown_roles_and_keys_are_refused(repository: Repository) -> None:
    for key, roles in ((bytes(31), ["write"]), (bytes(32), ["root"])):
        with pytest.raises(UsageError):
            repository.keys.authorise_writer(
                repository.store, key, agent_id="x", clock=repository.clock, roles=roles
            )


def test_a_retired_writers_points_stay_and_nothing_new_of_it_counts(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    prepared_before = repository.writer()
    disk = prepared_before.begin_disk(point.disks[0].header)
    disk.finish()
    repository.keys.revoke_writer(
        store, public(repository.signing_key), clock=repository.clock, keep_existing=True
    )
    listed = list_points(store, repository.keys)
    assert [found.point_id for found in listed.points] == [point.point_id]
    assert repository.restored(point) == IMAGE
    with pytest.raises(Refused):
        repository.backup(IMAGE)
    prepared_before.abandon()
    with pytest.raises(Refused):
        authorise(repository, repository.signing_key, agent_id="again")


def test_a_revoked_writer_leaves_a_whole_repository_and_no_lease(
    repository: Repository, store: MemoryStore
) -> None:
    """Also when it is revoked in the middle of an attempt, of which an index object comes too late."""
    key = public(repository.signing_key)
    repository.backup(IMAGE)
    writer = repository.writer()
    disk = writer.begin_disk(disk_header(len(IMAGE)))
    disk.write(0, bytes(reversed(IMAGE)))
    disk.finish()
    repository.keys.revoke_writer(store, key, clock=repository.clock, keep_existing=True)
    with pytest.raises(Refused):
        writer.prepare(ManifestFacts())
    writer.abandon()
    assert len(list(store.list("index/"))) == 2
    other = Ed25519PrivateKey.generate()
    authorise(repository, other, agent_id="proxy-2")
    point = repository.backup(IMAGE, signing_key=other)
    report = check_data(store, repository.keys, segment_keys=repository.keys)
    assert report.is_clean, report.damaged
    assert report.points == 2
    assert repository.restored(point) == IMAGE
    (lease,) = load_leases(store, repository.keys.common, repository.keys.writers(store))
    assert lease.job_id == point.manifest.job_id


def test_a_stolen_key_takes_its_points_with_it(repository: Repository, store: MemoryStore) -> None:
    repository.backup(IMAGE)
    repository.keys.revoke_writer(
        store, public(repository.signing_key), clock=repository.clock, keep_existing=False
    )
    listed = list_points(store, repository.keys)
    assert not listed.points
    assert "revoked" in listed.unusable[0].reason


def test_what_a_revoked_writer_had_ready_does_not_count(
    repository: Repository, store: MemoryStore
) -> None:
    """Its manifest and grant are right, but it is put after the revocation by whatever means."""
    with repository.writer() as writer:
        disk = writer.begin_disk(repository.backup(IMAGE).disks[0].header)
        disk.write(0, IMAGE)
        disk.finish()

        prepared = writer.prepare(ManifestFacts())
        grant = repository.grant(prepared)
        repository.keys.revoke_writer(
            store, public(repository.signing_key), clock=repository.clock, keep_existing=True
        )
        with pytest.raises(Refused):
            writer.publish(prepared, grant)
        name = next(iter(store.list("points/"))).name.rpartition("/")[0]
        store.put(f"{name}/{prepared.manifest.job_id}", prepared.stored + grant)
    listed = list_points(store, repository.keys)
    assert len(listed.points) == 1
    assert len(listed.unusable) == 1


def test_an_old_list_put_back_is_noticed(repository: Repository, store: MemoryStore) -> None:
    repository.keys.revoke_writer(
        store, public(repository.signing_key), clock=repository.clock, keep_existing=False
    )
    del store.objects["writers/0000000002"]
    del store.objects["writers/0000000002-copy"]
    with pytest.raises(IntegrityError):
        load_writers(store, repository.keys.common)


def test_a_list_under_another_number_is_refused(repository: Repository, store: MemoryStore) -> None:
    store.objects["writers/0000000007"] = store.objects["writers/0000000001"]
    listed = load_writers(store, repository.keys.common)
    assert [name for name, _ in listed.damaged] == ["writers/0000000007"]
    assert listed.writers == repository.keys.writers(MemoryStore(store.objects)).writers


def test_damage_to_one_copy_of_the_list_costs_nothing(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    for name in ("writers/0000000001", "writers/0000000001-copy"):
        damaged = store.copy()
        damaged.objects[name] = damaged.objects[name][:-1]
        assert repository.restored(point, store=damaged) == IMAGE


def test_when_both_copies_are_damaged_the_controller_lists_its_writers_again(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    for name in ("writers/0000000001", "writers/0000000001-copy"):
        store.objects[name] = b"rotten"
    assert not list_points(store, repository.keys).points
    authorise(repository, repository.signing_key, agent_id="proxy-1")
    assert repository.restored(point) == IMAGE


def test_a_crash_between_the_two_copies_is_made_good(
    repository: Repository, store: MemoryStore
) -> None:
    copy = store.objects.pop("writers/0000000001-copy")
    authorise(repository, repository.signing_key, agent_id="proxy-1")
    assert store.objects["writers/0000000001-copy"] == copy


def test_a_list_that_another_key_signed_is_refused(
    repository: Repository, store: MemoryStore
) -> None:
    from holdfast_common.repository.writers import Writer, store_writers

    thief = Ed25519PrivateKey.generate()
    mine = Writer(agent_id="thief", public_key=public(thief), roles=(ROLE_WRITE,), added_at="")
    store_writers(
        store,
        (mine,),
        number=2,
        keys=repository.keys.common,
        authority=thief,
        randomness=repository.randomness,
    )
    listed = load_writers(store, repository.keys.common)
    assert "authority" in listed.damaged[0][1]
    assert listed.of(public(thief)) is None


def test_revoking_an_unknown_key_says_so(repository: Repository) -> None:
    with pytest.raises(NotFound):
        repository.keys.revoke_writer(
            repository.store, bytes(32), clock=repository.clock, keep_existing=True
        )

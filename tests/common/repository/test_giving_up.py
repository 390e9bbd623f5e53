"""Giving up points whose manifest is damaged: prunes go on afterwards, and nothing else is ever given up."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.clock import utc_text
from holdfast_common.errors import (
    IntegrityError,
    Refused,
    RepositoryFailed,
    RepositoryFull,
    TimedOut,
)
from holdfast_common.repository.forget import HELD
from holdfast_common.repository.giving_up import (
    AT_WORK,
    NOT_DAMAGED,
    REPAIR_WAITS,
    GiveUpPlan,
    give_up_point,
    plan_give_up,
)
from holdfast_common.repository.hang_watch import StopWhenGivenUp
from holdfast_common.repository.holds import hold_point, unhold_point
from holdfast_common.repository.key_sets import GRANT_BYTES
from holdfast_common.repository.layout import aside_name
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.repair_staging import replacement_name
from holdfast_common.repository.writers import ROLE_VERIFY, ROLE_WRITE
from support.memory_store import MemoryStore, MemoryUpload
from support.pruning import Pruner
from support.repositories import BLOCK, Repository, disk_header, new_repository, patterned

IMAGE = patterned(8 * BLOCK, "kept")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    made = new_repository(store)
    store.now = made.clock.now
    return made


def plan(repository: Repository, *names: str, store: MemoryStore | None = None) -> GiveUpPlan:
    return plan_give_up(
        store or repository.store, repository.keys, names, now=repository.clock.now()
    )


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def kept(found: GiveUpPlan) -> list[str]:
    assert not found.given_up
    return [reason for _, reason in found.kept]


def damage(store: MemoryStore, name: str, at: int = -150) -> None:
    data = bytearray(store.objects[name])
    data[at] ^= 1
    store.objects[name] = bytes(data)


@pytest.mark.parametrize("at", [0, 100, -150, -1])
def test_a_damaged_manifest_blocks_the_prune_until_it_is_given_up_and_is_kept_aside(
    repository: Repository, store: MemoryStore, at: int
) -> None:
    pruner = Pruner.of(repository)
    stays = repository.backup(IMAGE)
    lost = repository.backup(patterned(8 * BLOCK, "lost"))
    damage(store, lost.name, at)
    damaged = store.objects[lost.name]
    with pytest.raises(IntegrityError, match=lost.name) as refused:
        pruner.round()
    assert "holdfast point delete POINT --give-up" in refused.value.advice
    assert refused.value.facts["manifests"] == lost.name
    ((given, reason),) = plan(repository, lost.name).given_up
    assert (given.name, bool(reason)) == (lost.name, True)
    assert give_up_point(store, repository.keys, lost.name)
    assert store.objects[aside_name(lost.name)] == damaged
    assert lost.name not in store.objects
    assert not give_up_point(store, repository.keys, lost.name), "twice is harmless"
    assert sum(report.deleted for report in pruner.until_done()) > 0
    assert store.objects[aside_name(lost.name)] == damaged
    assert repository.restored(stays) == IMAGE


@pytest.mark.parametrize("at", [8, 9, 10])
def test_a_manifest_of_which_only_the_bytes_of_its_format_are_damaged_is_given_up(
    repository: Repository, store: MemoryStore, at: int
) -> None:
    point = repository.backup(IMAGE)
    damage(store, point.name, at)
    found = plan(repository, point.name)
    assert [name.name for name, _ in found.given_up] == [point.name]
    assert give_up_point(store, repository.keys, point.name)
    Pruner.of(repository).round()


def test_a_manifest_of_a_format_that_is_not_known_here_is_not_given_up(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    damage(store, point.name, 8)  # of another format,
    damage(store, point.name, 300)  # in which what follows means something else
    assert kept(plan(repository, point.name)) == [NOT_DAMAGED]
    with pytest.raises(Refused):
        give_up_point(store, repository.keys, point.name)


def test_what_is_whole_or_held_or_waits_for_its_repair_is_not_given_up(
    repository: Repository, store: MemoryStore
) -> None:
    pruner = Pruner.of(repository)
    point = repository.backup(IMAGE)
    whole = store.objects[point.name]
    assert kept(plan(repository, point.name)) == [NOT_DAMAGED]
    with pytest.raises(Refused, match="not damaged any more"):
        give_up_point(store, repository.keys, point.name)
    hold_point(
        store,
        point,
        held_at=utc_text(repository.clock.now()),
        reason="a court asked",
        keys=repository.keys.common,
        signing_key=pruner.signing_key,
    )
    damage(store, point.name)
    assert kept(plan(repository, point.name)) == [HELD]
    with pytest.raises(Refused, match="held"):
        give_up_point(store, repository.keys, point.name)
    unhold_point(store, point.name)
    store.put(replacement_name(point.name), whole)
    assert kept(plan(repository, point.name)) == [REPAIR_WAITS]
    with pytest.raises(Refused, match="repair"):
        give_up_point(store, repository.keys, point.name)
    assert point.name in store.objects


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_on_a_full_repository_it_is_kept_aside_in_the_room_of_prunes_or_stays_where_it_is(
    repository: Repository, store: MemoryStore, pieces: int
) -> None:
    kept_at_first = [f"reserve/room-{number}" for number in range(pieces)]
    point = repository.backup(IMAGE)
    damage(store, point.name)
    damaged = store.objects[point.name]
    for name in kept_at_first:
        store.put(name, bytes(len(damaged) * 2 // 3))
    store.capacity_bytes = store.used_bytes()
    before = dict(store.objects)
    if pieces == 2:
        assert give_up_point(store, repository.keys, point.name)
        assert store.objects[aside_name(point.name)] == damaged
        assert point.name not in store.objects
        return
    with pytest.raises(RepositoryFull, match="stays where it is") as full:
        give_up_point(store, repository.keys, point.name)
    assert "holdfast repo forget POINT" in full.value.advice
    assert store.objects == {name: before[name] for name in before.keys() - set(kept_at_first)}


def test_nothing_is_given_up_when_nobody_waits_for_it_any_more(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    damage(store, point.name)
    waited = StopWhenGivenUp()
    waited.stop(TimedOut("the mount does not answer"))
    before = dict(store.objects)
    with pytest.raises(TimedOut):
        give_up_point(store, repository.keys, point.name, check=waited.check)
    assert store.objects == before


def test_what_is_kept_back_from_data_is_room_for_it(
    repository: Repository, store: MemoryStore
) -> None:
    asked = []

    class Watched(MemoryStore):
        def begin(self, *, bulk: bool = False) -> MemoryUpload:
            asked.append(bulk)
            return super().begin(bulk=bulk)

    point = repository.backup(IMAGE)
    damage(store, point.name)
    assert give_up_point(Watched(store.objects), repository.keys, point.name)
    assert asked == [False]


# -- what nobody who may has signed ---------------------------------------------------------------


def names_of(store: ObjectStore) -> list[str]:
    return [info.name for prefix in ("writers/", "leases/") for info in store.list(prefix)]


def forged(repository: Repository, *, roles: tuple[str, ...] = (), is_granted: bool = False) -> str:
    """A manifest by a key that was never listed, or in other roles, with all keys of the lineage; its name."""
    store = repository.store
    key = Ed25519PrivateKey.generate()
    before = set(names_of(store))
    number = repository.keys.writers_number_min

    def list_it(*roles: str) -> None:
        repository.keys.authorise_writer(
            store, public(key), agent_id="thief", clock=repository.clock, roles=roles
        )

    list_it(ROLE_WRITE)
    writer = repository.writer(signing_key=key)
    disk = writer.begin_disk(disk_header(len(IMAGE)))
    disk.write(0, patterned(8 * BLOCK, "forged"))
    disk.finish()
    prepared = writer.prepare(ManifestFacts(order=2))
    grant = repository.grant(prepared) if is_granted else bytes(GRANT_BYTES)
    writer.abandon()
    for name in set(names_of(store)) - before:
        store.delete(name)
    repository.keys.writers_number_min = number
    if roles:
        list_it(*roles)
    tag = repository.keys.reader_keys(prepared.manifest.lineage_id).lineage_tag.hex()
    name = f"points/{tag}/{prepared.manifest.job_id}"
    store.put(name, prepared.stored + grant)
    return name


@pytest.mark.parametrize("roles", [(), (ROLE_VERIFY,)])
def test_a_manifest_of_a_key_that_was_never_listed_as_a_writers_stops_prunes_only_until_it_is_given_up(
    repository: Repository, store: MemoryStore, roles: tuple[str, ...]
) -> None:
    pruner = Pruner.of(repository)
    stays = repository.backup(IMAGE)
    name = forged(repository, roles=roles)
    content = store.objects[name]
    with pytest.raises(IntegrityError, match="signed by nobody who may") as refused:
        pruner.round()
    assert "or nobody who may signed it" in refused.value.advice
    assert [
        (item.name, "nobody" in reason) for item, reason in plan(repository, name).given_up
    ] == [(name, True)]
    assert give_up_point(store, repository.keys, name)
    assert store.objects[aside_name(name)] == content
    pruner.until_done()
    assert repository.restored(stays) == IMAGE


def test_a_real_point_is_not_given_up_because_a_list_of_writers_is_gone(
    repository: Repository, store: MemoryStore
) -> None:
    """It was granted; or nobody can tell who was listed, for a list is missing or damaged."""
    assert kept(plan(repository, forged(repository, is_granted=True))) == [NOT_DAMAGED]
    name = forged(repository)
    repository.keys.restate_writers(store)
    assert plan(repository, name).given_up
    first = {
        each: store.objects.pop(each) for each in ("writers/0000000001", "writers/0000000001-copy")
    }
    assert kept(plan(repository, name)) == [NOT_DAMAGED]
    store.objects.update({each: data[:-1] for each, data in first.items()})
    assert kept(plan(repository, name)) == [NOT_DAMAGED]
    store.objects["writers/0000000001"] = first["writers/0000000001"]
    assert plan(repository, name).given_up, "one copy tells"


def test_a_point_of_a_writer_whose_role_was_taken_away_is_not_given_up(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    key = repository.signing_key.public_key().public_bytes_raw()
    repository.keys.authorise_writer(
        store, key, agent_id="proxy", clock=repository.clock, roles=(ROLE_VERIFY,)
    )
    assert kept(plan(repository, point.name)) == [NOT_DAMAGED]


class Failing(MemoryStore):
    """Its disk does not read one object."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        super().__init__(now=store.now)
        self.objects, self.times = store.objects, store.times
        self._failing = name

    def get(self, name: str, *, length_max: int) -> bytes:
        if name == self._failing:
            raise RepositoryFailed("Input/output error", name=name)
        return super().get(name, length_max=length_max)


def test_what_the_storage_does_not_read_just_now_is_not_given_up(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    failing = Failing(store, point.name)
    (reason,) = kept(plan(repository, point.name, store=failing))
    assert "Input/output error" in reason
    with pytest.raises(RepositoryFailed):
        give_up_point(failing, repository.keys, point.name)
    assert point.name in store.objects


def test_a_point_of_a_revoked_writer_is_not_given_up(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    repository.keys.revoke_writer(
        store,
        repository.signing_key.public_key().public_bytes_raw(),
        clock=repository.clock,
        keep_existing=False,
    )
    assert kept(plan(repository, point.name)) == [NOT_DAMAGED]


def test_nothing_is_given_up_while_a_writer_is_at_work(
    repository: Repository, store: MemoryStore
) -> None:
    point = repository.backup(IMAGE)
    damage(store, point.name)
    with repository.writer():
        assert kept(plan(repository, point.name)) == [AT_WORK]
    assert plan(repository, point.name).given_up

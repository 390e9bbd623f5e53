"""Revoking a writer: what it made before stays, what comes after does not, and damage is not made final unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import IntegrityError, Refused, RepositoryFailed
from holdfast_common.repository.check import check_data
from holdfast_common.repository.layout import ObjectKind
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore
from holdfast_common.repository.points import Point, list_points
from holdfast_common.repository.repair import repair_repository
from holdfast_common.repository.revocation import Revoked, granted_besides
from holdfast_common.repository.writer import PointWriter, PreparedPoint
from holdfast_common.repository.writers import ROLE_PRUNE, ROLE_VERIFY, ROLE_WRITE, load_writers
from support.memory_store import MemoryStore
from support.pruning import Pruner
from support.repositories import BLOCK, disk_header, new_repository, patterned

IMAGE = patterned(16 * BLOCK, "kept")
OTHER_IMAGE = patterned(16 * BLOCK, "other")


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


class Meanwhile(MemoryStore):
    """The same objects; what happens just before one is listed or put, once."""

    def __init__(self, inner: MemoryStore, happens: dict[str, Callable[[], None]]) -> None:
        super().__init__(now=inner.now)
        self.objects, self.times = inner.objects, inner.times
        self._happens = dict(happens)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._step(f"list {prefix}")
        return super().list(prefix)

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._step(f"put {name}")
        super().put(name, data)

    def _step(self, call: str) -> None:
        happens = self._happens.pop(call, None)
        if happens is not None:
            happens()


class Retiring:
    """A repository with two proxies, of which one retires."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.repository = new_repository(self.store)
        self.store.now = self.repository.clock.now
        self.key = Ed25519PrivateKey.generate()
        self.list_writer(self.key, ROLE_WRITE, ROLE_VERIFY)

    def list_writer(self, key: Ed25519PrivateKey, *roles: str) -> None:
        self.repository.keys.authorise_writer(
            self.store,
            public(key),
            agent_id="retiring",
            clock=self.repository.clock,
            roles=roles,
        )

    def backup(self, image: bytearray = IMAGE) -> Point:
        return self.repository.backup(image, signing_key=self.key)

    def prepared(self) -> tuple[PointWriter, PreparedPoint]:
        writer = self.repository.writer(signing_key=self.key)
        disk = writer.begin_disk(disk_header(len(OTHER_IMAGE)))
        disk.write(0, OTHER_IMAGE)
        disk.finish()
        return writer, writer.prepare(ManifestFacts(order=2))

    def revoke(
        self,
        store: ObjectStore | None = None,
        *,
        keep_existing: bool = True,
        give_up_unread: bool = False,
    ) -> Revoked:
        return self.repository.keys.revoke_writer(
            store or self.store,
            public(self.key),
            clock=self.repository.clock,
            keep_existing=keep_existing,
            give_up_unread=give_up_unread,
        )

    def damage(self, name: str) -> None:
        data = bytearray(self.store.objects[name])
        data[len(data) // 2] ^= 1
        self.store.objects[name] = bytes(data)

    def counted(self) -> set[str]:
        return {point.name for point in list_points(self.store, self.repository.keys).points}

    def repair(self, good: MemoryStore, *points: Point) -> None:
        repair_repository(
            self.store,
            self.repository.keys,
            segment_keys=self.repository.keys,
            signing_key=self.repository.signing_key,
            clock=self.repository.clock,
            sources=[good],
            expected_points=[point.name for point in points],
            workers=0,
        )


@pytest.fixture
def retiring() -> Retiring:
    return Retiring()


# -- what is published meanwhile ------------------------------------------------------------------

MOMENTS = ["list index/", "list points/", "list fences/", "put writers/0000000003"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_point_that_was_acknowledged_while_its_writer_was_being_revoked_stays(
    retiring: Retiring, moment: str
) -> None:
    repository = retiring.repository
    acknowledged = []

    def publish() -> None:
        writer, prepared = retiring.prepared()
        writer.publish(prepared, repository.grant(prepared))
        acknowledged.append(prepared)

    before = retiring.backup()
    revoked = retiring.revoke(Meanwhile(retiring.store, {moment: publish}))
    assert len(acknowledged) == 1
    assert len(retiring.counted()) == 2
    report = check_data(retiring.store, repository.keys, segment_keys=repository.keys)
    assert report.is_clean, report.damaged
    Pruner.of(repository).until_done()
    points = list_points(retiring.store, repository.keys).points
    assert {repository.restored(point) for point in points} == {bytes(IMAGE), bytes(OTHER_IMAGE)}
    assert before.name in retiring.counted()
    mine = revoked.writers.of(public(retiring.key))
    assert mine is not None
    assert mine.is_settled


def test_what_the_key_signs_without_a_grant_while_it_is_revoked_does_not_count(
    retiring: Retiring,
) -> None:
    """A thief of the key alone: an index object and a manifest that nobody granted."""
    repository, store = retiring.repository, retiring.store
    theirs: set[str] = set()

    def steal() -> None:
        before = set(store.objects)
        writer, prepared = retiring.prepared()
        tag = repository.keys.reader_keys(prepared.manifest.lineage_id).lineage_tag.hex()
        store.put(f"points/{tag}/{prepared.manifest.job_id}", prepared.stored + bytes(72))
        writer.abandon()
        theirs.update(set(store.objects) - before)

    retiring.backup()
    revoked = retiring.revoke(Meanwhile(store, {"put writers/0000000003": steal}))
    assert any(name.startswith("index/") for name in theirs)
    mine = revoked.writers.of(public(retiring.key))
    assert mine is not None
    for name in theirs:
        if name.startswith("index/"):
            stolen = repository.keys.common.open(ObjectKind.INDEX, store.objects[name])
            assert stolen.digest not in mine.accepted
    assert len(retiring.counted()) == 1


def test_what_comes_after_the_revocation_is_not_let_in_by_revoking_again(
    retiring: Retiring,
) -> None:
    writer, prepared = retiring.prepared()
    grant = retiring.repository.grant(prepared)
    kept = retiring.backup()
    first = retiring.revoke()
    tag = retiring.repository.keys.reader_keys(prepared.manifest.lineage_id).lineage_tag.hex()
    retiring.store.put(f"points/{tag}/{prepared.manifest.job_id}", prepared.stored + grant)
    writer.abandon()
    assert retiring.revoke() == first
    assert retiring.counted() == {kept.name}


def test_a_revocation_that_was_cut_off_between_its_two_lists_is_finished_by_the_next_one(
    retiring: Retiring,
) -> None:
    repository = retiring.repository

    def publish() -> None:
        writer, prepared = retiring.prepared()
        writer.publish(prepared, repository.grant(prepared))

    def killed() -> None:
        raise RepositoryFailed("the process was killed here")

    retiring.backup()
    moments = {"put writers/0000000003": publish, "put writers/0000000004": killed}
    with pytest.raises(RepositoryFailed, match="killed"):
        retiring.revoke(Meanwhile(retiring.store, moments))
    (mine,) = (
        each
        for each in load_writers(retiring.store, repository.keys.common).writers
        if each.public_key == public(retiring.key)
    )
    assert mine.revoked_at
    assert not mine.is_settled
    assert len(retiring.counted()) == 1
    with pytest.raises(IntegrityError, match="revocation of its writer was not finished"):
        Pruner.of(repository).until_done()
    retiring.revoke()
    assert len(retiring.counted()) == 2
    Pruner.of(repository).until_done()
    for point in list_points(retiring.store, repository.keys).points:
        assert repository.restored(point)


def test_a_key_that_retired_can_be_called_stolen_later_and_then_nothing_of_it_counts(
    retiring: Retiring,
) -> None:
    retiring.backup()
    retiring.revoke()
    retiring.revoke(keep_existing=False)
    again = retiring.revoke(keep_existing=False)
    assert not retiring.counted()
    assert retiring.revoke() == replace(again, given_up=())


# -- what is damaged meanwhile --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["damaged", "missing", "unreadable"])
def test_a_manifest_that_is_not_whole_while_its_writer_retires_counts_again_once_it_is_repaired(
    retiring: Retiring, how: str
) -> None:
    """Its digest stands in the newest fence's census."""
    rotten, other = retiring.backup(), retiring.backup(OTHER_IMAGE)
    gone = retiring.repository.backup(patterned(16 * BLOCK, "goes"))
    retiring.store.delete(gone.name)
    Pruner.of(retiring.repository).round()
    good = retiring.store.copy()
    store: MemoryStore = retiring.store
    if how == "damaged":
        retiring.damage(rotten.name)
    elif how == "missing":
        retiring.store.delete(rotten.name)
    else:
        store = BadSector(retiring.store, rotten.name)
    assert retiring.revoke(store).given_up == ()
    if how == "unreadable":
        retiring.damage(rotten.name)
    retiring.repair(good, rotten, other)
    assert retiring.store.objects[rotten.name] == good.objects[rotten.name]
    assert retiring.counted() == {rotten.name, other.name}
    assert retiring.repository.restored(rotten) == IMAGE


@pytest.mark.parametrize("give_up_unread", [False, True])
@pytest.mark.parametrize("name", ["", "fences/0000000001"])
def test_what_the_storage_does_not_read_just_now_is_never_given_up(
    retiring: Retiring, name: str, give_up_unread: bool
) -> None:
    """A manifest that no fence has counted, or the fence that may tell a damaged one's digest."""
    point = retiring.backup()
    if name:
        gone = retiring.repository.backup(OTHER_IMAGE)
        retiring.store.delete(gone.name)
        assert Pruner.of(retiring.repository).round().fence == 1
        retiring.damage(point.name)
    before = dict(retiring.store.objects)
    with pytest.raises(RepositoryFailed, match=f"{name or point.name} just now") as failed:
        retiring.revoke(
            BadSector(retiring.store, name or point.name), give_up_unread=give_up_unread
        )
    assert "then revoke again" in failed.value.advice
    assert retiring.store.objects == before
    assert retiring.revoke().given_up == ()


class PublishedMeanwhile(Meanwhile):
    """A point is published right before the first list of its writer's revocation, and is not read then."""

    def __init__(self, retiring: Retiring, *, is_damaged: bool) -> None:
        super().__init__(retiring.store, {"put writers/0000000003": self._publish})
        self._retiring = retiring
        self._is_damaged = is_damaged
        self.published = ""
        self.is_healthy = False

    def _publish(self) -> None:
        repository = self._retiring.repository
        writer, prepared = self._retiring.prepared()
        writer.publish(prepared, repository.grant(prepared))
        tag = repository.keys.reader_keys(prepared.manifest.lineage_id).lineage_tag.hex()
        self.published = f"points/{tag}/{prepared.manifest.job_id}"

    def get(self, name: str, *, length_max: int) -> bytes:
        data = super().get(name, length_max=length_max)
        if name != self.published or self.is_healthy:
            return data
        if not self._is_damaged:
            raise RepositoryFailed("input/output error", name=name)
        return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_point_acknowledged_while_its_writer_was_being_revoked_stays_although_it_cannot_be_read_then(
    retiring: Retiring, is_damaged: bool
) -> None:
    repository = retiring.repository
    retiring.backup()
    store = PublishedMeanwhile(retiring, is_damaged=is_damaged)
    with pytest.raises(Refused if is_damaged else RepositoryFailed) as failed:
        retiring.revoke(store)
    assert "JOB00002" in str(failed.value)
    assert "revoke again" in failed.value.advice
    mine = repository.keys.writers(retiring.store).of(public(retiring.key))
    assert mine is not None
    assert mine.revoked_at
    assert not mine.is_settled, "so nothing is deleted"
    store.is_healthy = True
    assert retiring.revoke(store).given_up == ()
    Pruner.of(repository).until_done()
    assert store.published in retiring.counted()
    assert len(retiring.counted()) == 2


def test_what_was_published_meanwhile_and_is_damaged_can_be_given_up_but_not_what_is_only_not_read(
    retiring: Retiring,
) -> None:
    kept = retiring.backup()
    with pytest.raises(RepositoryFailed):
        retiring.revoke(PublishedMeanwhile(retiring, is_damaged=False), give_up_unread=True)
    retiring = Retiring()
    kept = retiring.backup()
    store = PublishedMeanwhile(retiring, is_damaged=True)
    assert retiring.revoke(store, give_up_unread=True).given_up == (store.published,)
    assert retiring.counted() == {kept.name}


class BadSector(MemoryStore):
    """The same objects, of which one cannot be read."""

    def __init__(self, inner: MemoryStore, name: str) -> None:
        super().__init__(now=inner.now)
        self.objects, self.times = inner.objects, inner.times
        self._name = name

    def get(self, name: str, *, length_max: int) -> bytes:
        if name == self._name:
            raise RepositoryFailed("input/output error", name=name)
        return super().get(name, length_max=length_max)


def test_a_damaged_manifest_that_no_fence_has_counted_stops_the_revocation_until_it_is_repaired(
    retiring: Retiring,
) -> None:
    rotten, other = retiring.backup(), retiring.backup(OTHER_IMAGE)
    good = retiring.store.copy()
    retiring.damage(rotten.name)
    before = dict(retiring.store.objects)
    with pytest.raises(Refused, match=f"repair first: {rotten.name}"):
        retiring.revoke()
    assert retiring.store.objects == before
    retiring.repair(good, rotten, other)
    assert retiring.revoke().given_up == ()
    assert retiring.counted() == {rotten.name, other.name}


def test_who_cannot_wait_for_a_repair_gives_up_what_is_named_and_no_more(
    retiring: Retiring,
) -> None:
    rotten, other = retiring.backup(), retiring.backup(OTHER_IMAGE)
    retiring.damage(rotten.name)
    assert retiring.revoke(give_up_unread=True).given_up == (rotten.name,)
    assert retiring.counted() == {other.name}
    with pytest.raises(Refused):
        retiring.backup()


def test_a_stolen_key_is_refused_whatever_is_damaged(retiring: Retiring) -> None:
    retiring.damage(retiring.backup().name)
    assert retiring.revoke(keep_existing=False).given_up == ()
    assert not retiring.counted()


def test_what_is_damaged_of_another_writer_stops_nothing(retiring: Retiring) -> None:
    retiring.backup()
    of_other = retiring.repository.backup(OTHER_IMAGE)
    retiring.damage(of_other.name)
    assert retiring.revoke().given_up == ()


def test_a_damaged_index_object_stops_nothing_and_is_accepted_by_the_digest_that_its_point_tells(
    retiring: Retiring,
) -> None:
    point = retiring.backup()
    good = retiring.store.copy()
    (name,) = [each for each in retiring.store.objects if each.startswith("index/")]
    retiring.damage(name)
    assert retiring.revoke().given_up == ()
    retiring.store.objects[name] = good.objects[name]
    repository = retiring.repository
    report = check_data(retiring.store, repository.keys, segment_keys=repository.keys)
    assert report.is_clean, report.damaged
    assert repository.restored(point) == IMAGE


def test_a_damaged_fence_stops_the_revocation_of_who_closes_epochs_and_of_nobody_else(
    retiring: Retiring,
) -> None:
    retiring.backup()
    repository = retiring.repository
    pruner = Pruner.of(repository)
    retiring.store.delete(repository.backup(OTHER_IMAGE).name)
    assert pruner.round().fence == 1
    # its own key tells whose it is: flip it as well
    data = bytearray(retiring.store.objects["fences/0000000001"])
    data[-90] ^= 1
    retiring.store.objects["fences/0000000001"] = bytes(data)
    assert retiring.revoke().given_up == ()
    listed = repository.keys.writers(retiring.store).of(public(pruner.signing_key))
    assert listed is not None
    assert listed.roles == (ROLE_PRUNE,)
    with pytest.raises(Refused, match="repair first: fences/0000000001"):
        repository.keys.revoke_writer(
            retiring.store,
            public(pruner.signing_key),
            clock=repository.clock,
            keep_existing=True,
        )


def test_only_points_that_count_are_let_in_after_the_list(retiring: Retiring) -> None:
    """Under another name, in no lineage, of another key, damaged: none of it."""
    point = retiring.backup()
    repository, store = retiring.repository, retiring.store
    repository.backup(OTHER_IMAGE)
    listed = repository.keys.writers(store)
    other = repository.keys.writers(store).of(public(repository.signing_key))
    assert other is not None
    store.objects["points/strange"] = store.objects[point.name]
    store.objects[point.name + "x"] = store.objects[point.name]
    found, given_up = granted_besides(store, repository.keys, listed, public(retiring.key))
    indexes = {each.digest for each in point.manifest.indexes}
    assert found == {point.digest, *indexes}
    assert not given_up

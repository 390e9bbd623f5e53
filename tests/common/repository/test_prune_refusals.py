"""A prune beside points that are missing: nothing is deleted, and nothing is decided about them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import IntegrityError, PointsMissing
from holdfast_common.repository.check import check_structure
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.object_store import ObjectInfo
from holdfast_common.repository.points import list_points
from holdfast_common.repository.prune_plan import (
    CLOCK_JUMP_MAX,
    CLOCK_TOLERANCE,
    ClockFacts,
    clock_problem,
)
from holdfast_common.repository.prune_report import PruneLimits
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import BLOCK, Repository, authorise, new_repository, patterned

IMAGE = patterned(8 * BLOCK, "kept")
SECOND = timedelta(seconds=1)


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


@pytest.mark.parametrize(
    ("storage", "seen", "said"),
    [
        (timedelta(0), timedelta(0), ""),
        (None, None, ""),
        (-CLOCK_TOLERANCE - SECOND, None, "this clock and the storage's differ"),
        (CLOCK_TOLERANCE + SECOND, None, "this clock and the storage's differ"),
        (None, CLOCK_TOLERANCE, ""),
        (None, CLOCK_TOLERANCE + SECOND, "the clock went back"),
        (None, -CLOCK_JUMP_MAX, ""),
        (None, -CLOCK_JUMP_MAX - SECOND, "nothing was written for"),
    ],
)
def test_a_clock_is_doubted_beside_the_storages_and_beside_what_was_written_last(
    storage: timedelta | None, seen: timedelta | None, said: str
) -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    facts = ClockFacts(
        now=now,
        storage_now=None if storage is None else now + storage,
        last_seen=None if seen is None else now + seen,
    )
    found = clock_problem(facts)
    assert said in found
    assert bool(said) == bool(found)


def pass_grace(repository: Repository) -> None:
    repository.clock.advance(GRACE_SECONDS + 60)


class Vanishing(MemoryStore):
    """One manifest is taken away after the first listing of all of them."""

    def __init__(self, store: MemoryStore, name: str) -> None:
        super().__init__(now=store.now)
        self.objects, self.times = store.objects, store.times
        self.vanishing = name
        self.kept = b""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = list(super().list(prefix))
        if prefix == "points/" and not self.kept:
            self.kept = self.objects.pop(self.vanishing)
        return iter(found)


def test_a_manifest_that_is_missing_by_mistake_stops_the_prune_and_counts_when_it_is_back(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    point = repository.backup(IMAGE)
    second = repository.backup(patterned(8 * BLOCK, "second"))
    forget(repository, repository.backup(patterned(8 * BLOCK, "gone")))
    expected = {point.name, second.name}
    assert pruner.round(expected=expected).fence == 1
    pass_grace(repository)
    taken = {name: store.objects.pop(name) for name in sorted(expected)}
    before = dict(store.objects)
    for dry_run in (True, False):
        with pytest.raises(PointsMissing, match="so nothing is deleted") as refused:
            pruner.round(expected=expected, dry_run=dry_run)
        assert refused.value.names == tuple(sorted(expected))
        assert point.name in str(refused.value)
        assert "repair --from COPY" in refused.value.advice
        assert store.objects == before, "nothing was deleted, and nothing closed"
    store.objects |= taken
    done = pruner.round(expected=expected)
    assert (done.fence, done.deleted > 0) == (2, True)
    assert repository.restored(point) == IMAGE


def test_a_manifest_that_goes_missing_while_maps_are_read_is_in_no_census(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    point = repository.backup(IMAGE)
    forget(repository, repository.backup(patterned(8 * BLOCK, "gone")))
    vanishing = Vanishing(store, point.name)
    with pytest.raises(PointsMissing):
        pruner.round(store=vanishing, expected={point.name})
    store.objects[point.name] = vanishing.kept
    assert not list(store.list("fences/"))
    pruner.until_done()
    assert repository.restored(point) == IMAGE


def test_a_forgotten_point_and_one_that_cannot_be_read_are_not_missing(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    point = repository.backup(IMAGE)
    forget(repository, repository.backup(patterned(8 * BLOCK, "gone")))
    assert pruner.round(expected={point.name}).fence == 1
    pass_grace(repository)
    store.objects[point.name] = store.objects[point.name][:-200] + bytes(200)
    with pytest.raises(IntegrityError, match="cannot be used") as refused:
        pruner.round(expected={point.name})
    assert not isinstance(refused.value, PointsMissing)


def test_many_missing_points_are_all_in_the_error_and_some_in_its_text(
    repository: Repository, pruner: Pruner
) -> None:
    expected = {f"points/{'0' * 32}/JOB{number:05d}" for number in range(25)}
    with pytest.raises(PointsMissing, match=r"points=25.*JOB00009 and 15 more") as refused:
        pruner.round(expected=expected)
    assert len(refused.value.names) == 25


def test_what_never_counted_may_be_gone_and_is_told_so_that_the_catalogue_drops_it(
    repository: Repository, store: MemoryStore, pruner: Pruner
) -> None:
    stolen = Ed25519PrivateKey.generate()
    authorise(repository, stolen, agent_id="proxy-2")
    kept = repository.backup(IMAGE)
    void = repository.backup(patterned(8 * BLOCK, "void"), signing_key=stolen)
    repository.keys.revoke_writer(
        store,
        stolen.public_key().public_bytes_raw(),
        clock=repository.clock,
        keep_existing=False,
    )
    expected = {kept.name, void.name}
    told = []
    for _ in range(4):
        told.append(pruner.round(expected=expected).void_points)
        pass_grace(repository)
    assert void.name not in store.objects
    assert told[0] == ()
    assert told[1:] == [(void.name,)] * 3
    assert [point.name for point in list_points(store, repository.keys).points] == [kept.name]


@pytest.mark.parametrize(
    "stray",
    ["points/strange.txt", "points/.nfs000000000001", "{lineage}/.JOB00001.swp", "{point}.bak"],
)
def test_a_file_that_somebody_left_among_the_manifests_stops_no_prune_and_stays_and_is_told(
    tmp_path: Path, stray: str
) -> None:
    root = tmp_path / "repository"
    with DirectoryStore.create(root) as store:
        repository = new_repository(store)
        pruner = Pruner.of(repository)
        stays, goes = repository.backup(IMAGE), repository.backup(patterned(8 * BLOCK, "goes"))
        name = stray.format(point=stays.name, lineage=stays.name.rpartition("/")[0])
        (root / name).write_bytes((root / stays.name).read_bytes())
        forget(repository, goes)
        listed = list_points(store, repository.keys)
        assert (listed.strays, listed.unusable) == ((name,), ())
        limits = PruneLimits(accept_clock=True, grace=timedelta(0))
        pruner.round(limits=limits, expected=[stays.name])
        assert pruner.round(limits=limits, expected=[stays.name]).deleted
        assert (root / name).exists()
        assert repository.restored(stays) == IMAGE
        found = check_structure(store, repository.keys)
        assert [item.name for item in found.damaged] == [name]
        assert "no object has such a name" in found.damaged[0].reason
        assert not found.lost_points

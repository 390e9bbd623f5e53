"""A prune that is killed, or whose store fails, at any call: nothing needed is lost, and the next one goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from holdfast_common.errors import HoldfastError, RepositoryFailed, RepositoryFull
from holdfast_common.repository.check import check_data
from holdfast_common.repository.points import Point
from support.faulty_store import Fault, FaultyStore
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import BLOCK, FixedClock, Repository, new_repository, patterned
from support.shared_work import shared_work

FAILED = RepositoryFailed("the storage failed")
FULL = RepositoryFull("the repository has no room left")


@dataclass
class Scene:
    """A repository in which a pack is repacked, a point is gone, and an attempt left its packs."""

    repository: Repository
    pruner: Pruner
    points: list[tuple[Point, bytes]]

    def copy(self) -> Scene:
        clock = FixedClock()
        clock.moment = self.repository.clock.moment
        clock.seconds = self.repository.clock.seconds
        store = self.repository.store
        assert isinstance(store, MemoryStore)
        copied = MemoryStore(store.objects, now=clock.now)
        copied.times = dict(store.times)
        made = self.repository
        repository = Repository(
            copied, made.keys, made.sheet, made.signing_key, clock, jobs=made.jobs
        )
        return Scene(repository, Pruner(repository, self.pruner.signing_key), self.points)

    def assert_whole(self) -> None:
        for point, image in self.points:
            assert self.repository.restored(point) == image
        report = check_data(
            self.repository.store, self.repository.keys, segment_keys=self.repository.keys
        )
        assert report.is_clean, report.damaged


def scene(rounds: int) -> Scene:
    store = MemoryStore()
    repository = new_repository(store)
    store.now = repository.clock.now
    pruner = Pruner.of(repository)
    image = patterned(32 * BLOCK, "first")
    first = repository.backup(image)
    changed = bytearray(image)
    changed[: 16 * BLOCK] = patterned(16 * BLOCK, "second")
    second = repository.backup(changed, ranges=[(0, 16 * BLOCK)], previous=first.disks[0])
    forget(repository, first)
    forget(repository, repository.backup(patterned(4 * BLOCK, "gone")))
    repository.writer().suspend()
    made = Scene(repository, pruner, [(second, bytes(changed))])
    for _ in range(rounds):
        pruner.round()
        repository.clock.advance(GRACE_SECONDS + 1)
    return made


def faults(made: Scene) -> Iterator[Fault]:
    counting = FaultyStore(made.copy().repository.store, Fault(-1, FAILED))
    made.copy().pruner.round(store=counting)
    for call in range(counting.calls):
        yield Fault(call, FAILED, persistent=True)  # the process is killed here
        yield Fault(call, FAILED, reply_lost=True)
        yield Fault(call, FULL)


@pytest.mark.repeats
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_prune_that_ends_anywhere_loses_nothing_and_the_next_one_goes_on(rounds: int) -> None:
    made = scene(rounds)
    clean = made.copy()
    clean.pruner.until_done()
    wanted = {
        prefix: sum(name.startswith(prefix) for name in clean.repository.store.objects)  # type: ignore[attr-defined]
        for prefix in ("packs/", "index/", "maps/", "points/")
    }
    tried = failed = 0
    with shared_work():
        for fault in faults(made):
            copied = made.copy()
            faulty = FaultyStore(copied.repository.store, fault)
            tried += 1
            try:
                copied.pruner.round(store=faulty)
            except HoldfastError:
                failed += 1
            copied.assert_whole()
            copied.repository.clock.advance(GRACE_SECONDS + 1)
            copied.pruner.until_done(rounds_max=8)
            copied.assert_whole()
            store = copied.repository.store
            assert isinstance(store, MemoryStore)
            for prefix, count in wanted.items():
                found = [name for name in store.objects if name.startswith(prefix)]
                assert len(found) == count, (fault, faulty.failed_at, prefix)
    print(f"{rounds} rounds before: {tried} faults, {failed} of them ended the round")
    assert failed > tried / 2

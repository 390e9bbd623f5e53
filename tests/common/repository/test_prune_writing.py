"""A fence is published by the round whose turn it is, whatever numbers came free meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast_common.errors import Locked
from holdfast_common.repository.fence import newest_number
from holdfast_common.repository.points import Point
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner, forget
from support.repositories import BLOCK, Repository, new_repository, patterned

KEPT = patterned(8 * BLOCK, "kept")
AGAIN = patterned(8 * BLOCK, "again")


class StandingStill(MemoryStore):
    """Whoever uses it stands still before his first fence, while another one works."""

    def __init__(self, store: MemoryStore, others: list[Callable[[], None]]) -> None:
        super().__init__(now=store.now)
        self.objects, self.times = store.objects, store.times
        self.others = others

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        while name.startswith("fences/") and self.others:
            self.others.pop()()
        super().put(name, data)


def test_a_prune_that_stood_still_takes_no_number_that_came_free_and_deletes_nothing() -> None:
    store = MemoryStore()
    repository = new_repository(store)
    store.now = repository.clock.now
    pruner = Pruner.of(repository)
    kept = repository.backup(KEPT)
    dead = repository.backup(AGAIN)
    forget(repository, dead)
    pruner.round()  # calls it dead for the first time
    repository.clock.advance(GRACE_SECONDS + 60)
    points: list[Point] = []

    def round_of_another() -> None:
        garbage(repository, len(points))
        if len(points) == 3:  # behind the fences that deleted what was dead: it is stored again
            points.append(repository.backup(AGAIN))
        else:
            points.append(kept)
        pruner.round()
        repository.clock.advance(GRACE_SECONDS + 60)

    late = StandingStill(store, [round_of_another] * 6)
    garbage(repository, 100)
    fences = names(store)
    with pytest.raises(Locked, match="another one prunes"):
        pruner.round(store=late)
    assert newest_number(store) >= 6
    assert len(names(store)) == 3
    assert not names(store) & fences, "its number had been free again"
    assert repository.restored(points[3]) == AGAIN
    assert repository.restored(kept) == KEPT
    assert pruner.until_done()


def names(store: MemoryStore) -> set[str]:
    return {info.name for info in store.list("fences/")}


def garbage(repository: Repository, number: int) -> None:
    forget(repository, repository.backup(patterned(4 * BLOCK, f"garbage {number}")))

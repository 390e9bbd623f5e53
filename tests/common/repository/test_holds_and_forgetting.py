from __future__ import annotations

from datetime import timedelta

import pytest

from holdfast_common.clock import utc_text
from holdfast_common.errors import Refused, TimedOut
from holdfast_common.repository.check import check_structure
from holdfast_common.repository.fence import load_fences
from holdfast_common.repository.forget import (
    HELD,
    TOO_NEW,
    ForgetPlan,
    PointName,
    forget_point,
    plan_forget,
)
from holdfast_common.repository.hang_watch import StopWhenGivenUp
from holdfast_common.repository.holds import held_points, hold_point, read_hold, unhold_point
from holdfast_common.repository.layout import hold_name
from holdfast_common.repository.points import Point
from support.memory_store import MemoryStore
from support.pruning import GRACE_SECONDS, Pruner
from support.repositories import BLOCK, Repository, new_repository, patterned

IMAGE = patterned(4 * BLOCK, "held")


@pytest.fixture
def repository() -> Repository:
    return new_repository(MemoryStore())


@pytest.fixture
def pruner(repository: Repository) -> Pruner:
    return Pruner.of(repository)


def hold(repository: Repository, pruner: Pruner, point: Point) -> None:
    hold_point(
        repository.store,
        point,
        held_at=utc_text(repository.clock.now()),
        reason="a court asked",
        keys=repository.keys.common,
        signing_key=pruner.signing_key,
    )


def plan(repository: Repository, *points: Point) -> ForgetPlan:
    store, keys = repository.store, repository.keys
    return plan_forget(
        [PointName(name=point.name, digest=point.digest) for point in points],
        held=held_points(store),
        fences=load_fences(store, keys.common, keys.writers(store)),
    )


def test_a_held_point_is_not_forgotten_until_it_is_let_go(
    repository: Repository, pruner: Pruner
) -> None:
    point = repository.backup(IMAGE)
    hold(repository, pruner, point)
    hold(repository, pruner, point)
    planned = plan(repository, point)
    assert not planned.forgotten
    assert [reason for _, reason in planned.kept] == [HELD]
    with pytest.raises(Refused):
        forget_point(repository.store, PointName(name=point.name, digest=point.digest))
    listed = repository.keys.writers(repository.store)
    found = read_hold(repository.store, hold_name(point.name), repository.keys.common, listed)
    assert found.reason == "a court asked"
    assert found.point_digest == point.digest
    assert unhold_point(repository.store, point.name)
    assert not unhold_point(repository.store, point.name)
    assert plan(repository, point).forgotten


def test_nothing_is_forgotten_when_nobody_waits_for_it_any_more(repository: Repository) -> None:
    point = repository.backup(IMAGE)
    waited = StopWhenGivenUp()
    waited.check()
    waited.stop(TimedOut("the mount does not answer"))
    with pytest.raises(TimedOut):
        forget_point(
            repository.store, PointName(name=point.name, digest=point.digest), check=waited.check
        )
    assert repository.store.head(point.name)


def test_a_damaged_hold_holds_and_is_reported(repository: Repository, pruner: Pruner) -> None:
    point = repository.backup(IMAGE)
    hold(repository, pruner, point)
    store = repository.store
    assert isinstance(store, MemoryStore)
    store.objects[hold_name(point.name)] = b"damaged"
    assert not plan(repository, point).forgotten
    report = check_structure(store, repository.keys)
    assert [item.name for item in report.damaged] == [hold_name(point.name)]


def test_a_point_younger_than_the_fence_waits_for_the_next_one(
    repository: Repository, pruner: Pruner
) -> None:
    old = repository.backup(IMAGE)
    repository.store.delete(repository.backup(patterned(4 * BLOCK, "gone")).name)
    pruner.round()
    young = repository.backup(patterned(4 * BLOCK, "young"))
    planned = plan(repository, old, young)
    assert [point.name for point in planned.forgotten] == [old.name]
    assert [(point.name, reason) for point, reason in planned.kept] == [(young.name, TOO_NEW)]
    repository.clock.advance(GRACE_SECONDS + 1)
    pruner.round()
    repository.clock.advance(GRACE_SECONDS + 1)
    pruner.round()
    assert plan(repository, young).forgotten


def test_a_fence_of_a_clock_that_ran_ahead_holds_nothing_up_once_the_clock_is_accepted(
    repository: Repository, pruner: Pruner
) -> None:
    gone = repository.backup(patterned(4 * BLOCK, "gone"))
    repository.store.delete(gone.name)
    kept = repository.backup(IMAGE)
    ahead = timedelta(days=400).total_seconds()
    repository.clock.advance(ahead)
    assert pruner.round().fence == 1
    repository.clock.advance(-ahead)
    with pytest.raises(Refused, match="went back"):
        pruner.round()
    assert not pruner.round(accept_clock=True).deleted, "a grace time begins"
    assert pruner.round().doomed
    assert not pruner.round().deleted
    repository.clock.advance(GRACE_SECONDS + 1)
    assert pruner.round().deleted
    assert repository.restored(kept) == IMAGE


def test_a_young_point_can_be_forgotten_although_nothing_else_dies_any_more(
    repository: Repository, pruner: Pruner
) -> None:
    repository.store.delete(repository.backup(patterned(4 * BLOCK, "gone")).name)
    pruner.round()
    repository.clock.advance(GRACE_SECONDS + 1)
    assert pruner.round().deleted
    young = repository.backup(patterned(4 * BLOCK, "young"))
    assert [reason for _, reason in plan(repository, young).kept] == [TOO_NEW]
    pruner.round()
    assert plan(repository, young).forgotten
    assert not pruner.round().fence, "one is enough"

"""Every call to the store fails once: no half point shows, every earlier point restores, the next run works."""

from __future__ import annotations

import contextlib

import pytest

from holdfast_common.errors import HoldfastError, RepositoryFailed, RepositoryFull
from holdfast_common.repository.check import check_data
from holdfast_common.repository.points import Point, list_points
from support.faulty_store import Fault, FaultyStore
from support.memory_store import MemoryStore
from support.repositories import BLOCK, Repository, new_repository, patterned

FIRST = patterned(6 * BLOCK + 512, "first")
SECOND = bytearray(FIRST)
SECOND[2 * BLOCK : 3 * BLOCK] = patterned(BLOCK, "second")
FULL = RepositoryFull("no room")
FAILED = RepositoryFailed("input/output error")


def prepared_repository(workers: int = 0) -> tuple[MemoryStore, Repository, Point]:
    store = MemoryStore()
    repository = new_repository(store, workers=workers)
    return store, repository, repository.backup(FIRST, blobs={"vmx": b"one"})


def incremental(repository: Repository, store: FaultyStore, first: Point) -> Point:
    return repository.backup(
        SECOND,
        ranges=[(2 * BLOCK, BLOCK)],
        previous=first.disks[0],
        blobs={"vmx": b"two"},
        store=store,
    )


def count_of_calls() -> int:
    store, repository, first = prepared_repository()
    counting = FaultyStore(store, Fault(call=-1, error=FAILED))
    incremental(repository, counting, first)
    return counting.calls


CALLS = count_of_calls()


def run_with(fault: Fault, *, workers: int = 0) -> None:
    store, repository, first = prepared_repository(workers)
    faulty = FaultyStore(store, fault)
    failure: HoldfastError | None = None
    try:
        incremental(repository, faulty, first)
    except HoldfastError as error:
        failure = error
    points = list_points(store, repository.keys)
    assert not points.unusable, faulty.failed_at
    assert repository.restored(points.points[0]) == FIRST
    if len(points.points) == 2:
        assert repository.restored(points.points[1]) == SECOND
    else:
        assert failure is not None, faulty.failed_at
    if isinstance(fault.error, RepositoryFull) and failure is not None:
        assert failure.code == "repository_full", "what the user reads"
    next_point = repository.backup(SECOND, previous=first.disks[0], compare=True)
    assert repository.restored(next_point) == SECOND
    report = check_data(store, repository.keys, segment_keys=repository.keys)
    assert report.is_clean, (faulty.failed_at, report)


def test_there_are_calls_to_fail() -> None:
    assert CALLS > 20


@pytest.mark.parametrize(
    ("reply_lost", "persistent"),
    [(False, False), (False, True), (True, False)],
    ids=["once", "for ever", "reply lost"],
)
@pytest.mark.parametrize("call", range(CALLS))
def test_a_failing_call_harms_nothing(call: int, reply_lost: bool, persistent: bool) -> None:
    error = FULL if call % 2 else FAILED
    run_with(Fault(call=call, error=error, reply_lost=reply_lost, persistent=persistent))


@pytest.mark.parametrize("call", range(0, CALLS, 3))
def test_a_failing_call_harms_nothing_with_workers(call: int) -> None:
    run_with(Fault(call=call, error=FULL, persistent=bool(call % 2)), workers=2)


@pytest.mark.parametrize("call", range(12))
def test_reading_through_a_failing_store_gives_right_bytes_or_an_error(call: int) -> None:
    store, repository, first = prepared_repository()
    faulty = FaultyStore(store, Fault(call=call, error=FAILED))
    restored = bytes(FIRST)
    with contextlib.suppress(RepositoryFailed):
        restored = repository.restored(first, store=faulty)
    assert restored == FIRST

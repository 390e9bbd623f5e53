"""What ends a pool's work: a task, a pack that cannot be made durable, a worker's last pack."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from holdfast_common.errors import RepositoryFailed, RepositoryFull
from holdfast_common.repository.frame_worker import FrameWorker
from holdfast_common.repository.pack_writer import CompletePack
from holdfast_common.repository.worker_pool import COMPLETE_PACKS_MAX, WorkerPool


@dataclass
class Discarded:
    """An upload that tells whether it was given up."""

    aborts: int = 0

    def abort(self) -> None:
        self.aborts += 1


@dataclass
class Pack:
    """As much of a pack as the pool touches."""

    upload: Discarded = field(default_factory=Discarded)


@dataclass
class Packs:
    """A worker's packs; ``error`` is raised by the last one."""

    error: Exception | None = None
    closed: int = 0
    aborted: int = 0

    def close(self) -> None:
        self.closed += 1
        if self.error is not None:
            raise self.error

    def abort(self) -> None:
        self.aborted += 1


@dataclass
class Worker:
    """As much of a worker as the pool touches."""

    packs: Packs
    finished: Callable[[CompletePack], None]

    def give(self, pack: Pack) -> None:
        self.finished(cast("CompletePack", pack))


def pool_of(
    threads: int,
    *,
    committed: Callable[[Any], None] = lambda _: None,
    error: Exception | None = None,
) -> tuple[WorkerPool, list[Worker]]:
    workers: list[Worker] = []

    def make(finished: Callable[[CompletePack], None]) -> FrameWorker:
        workers.append(Worker(Packs(error), finished))
        return cast("FrameWorker", workers[-1])

    return WorkerPool(make, threads=threads, committed=committed), workers


def fails(error: Exception) -> Callable[[Any], None]:
    def task(_: object) -> None:
        raise error

    return task


@pytest.mark.parametrize("threads", [0, 2])
def test_all_packs_are_durable_when_a_pool_is_closed(threads: int) -> None:
    durable: list[Any] = []
    pool, workers = pool_of(threads, committed=durable.append)
    packs = [Pack() for _ in range(9)]
    for pack in packs:
        pool.submit(lambda worker, pack=pack: cast("Worker", worker).give(pack))  # type: ignore[misc]  # bound now
    pool.close()
    assert sorted(map(id, durable)) == sorted(map(id, packs))
    assert all(worker.packs.closed == 1 for worker in workers)


def test_a_pack_that_cannot_be_made_durable_ends_all_and_the_others_are_given_up() -> None:
    pool, workers = pool_of(1, committed=fails(RepositoryFull("no room")))
    packs = [Pack() for _ in range(COMPLETE_PACKS_MAX + 3)]

    def task(worker: FrameWorker) -> None:
        for pack in packs:
            cast("Worker", worker).give(pack)

    pool.submit(task)
    with pytest.raises(RepositoryFull):
        pool.close()
    assert sum(pack.upload.aborts for pack in packs) == len(packs) - 1
    assert workers[0].packs.closed == 0, "nothing more is stored"
    with pytest.raises(RepositoryFull):
        pool.submit(task)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_task_raises_reaches_everybody(threads: int) -> None:
    pool, workers = pool_of(threads)
    pool.submit(fails(ValueError("a bug")))
    with pytest.raises(RepositoryFailed) as raised:
        pool.close()
    assert isinstance(raised.value.__cause__, ValueError)
    assert pool.has_failed
    pool.abort()
    assert all(worker.packs.aborted == 1 for worker in workers)


def test_a_last_pack_that_fails_is_not_overlooked() -> None:
    pool, _ = pool_of(2, error=RepositoryFailed("the footer cannot be written"))
    with pytest.raises(RepositoryFailed, match="the footer"):
        pool.close()


def test_who_waits_for_a_buffer_learns_of_a_failure() -> None:
    pool, _ = pool_of(1)
    taken = [pool.take_buffer(), pool.take_buffer()]
    waits = threading.Event()

    def task(_: FrameWorker) -> None:
        assert waits.wait(60)
        raise RepositoryFull("no room")

    pool.submit(task)
    threading.Timer(0.0, waits.set).start()
    with pytest.raises(RepositoryFull):
        pool.take_buffer()
    pool.abort()
    assert len(taken) == 2

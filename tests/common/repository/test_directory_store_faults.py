"""Whatever call beneath the production store fails: it says which object, leaves nothing open and nothing half."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from holdfast_common.errors import HoldfastError, NoRepository, RepositoryFailed, RepositoryFull
from holdfast_common.repository.directory_store import DirectoryStore
from support.faulty_files import CallFault, FaultKind, FaultyFiles
from support.memory_files import MemoryFiles
from support.repositories import SeededRandomness

ROOT = Path("/repository")
OLD = "packs/ab/" + "ab" * 32
NEW = "index/" + "cd" * 16
DATA = bytes(range(256)) * 40
NOW = datetime(2027, 1, 1, tzinfo=UTC)  # long after the files in memory

WORKS: dict[str, Callable[[DirectoryStore], object]] = {
    "put": lambda store: store.put(NEW, DATA),
    "put into a new directory": lambda store: store.put("packs/cd/" + "cd" * 32, DATA),
    "get": lambda store: store.get(OLD, length_max=1 << 20),
    "read_into": lambda store: store.read_into(OLD, 5, memoryview(bytearray(100))),
    "head": lambda store: store.head(OLD),
    "list": lambda store: list(store.list("packs/")),
    "stamps": lambda store: store.stamps("packs/"),
    "confirm": lambda store: store.confirm([OLD]),
    "delete": lambda store: store.delete(OLD),
    "storage_time": lambda store: store.storage_time(),
    "stored_at": lambda store: store.stored_at(OLD),
    "sweep_temporary": lambda store: store.sweep_temporary(now=NOW),
    "begin bulk": lambda store: store.begin(bulk=True).abort(),
}


def made() -> MemoryFiles:
    memory = MemoryFiles()
    with DirectoryStore.create(ROOT, files=memory) as store:
        store.put(OLD, DATA)
        store.begin().write(b"left by a writer that was killed")
    return memory


def failing(
    kind: FaultKind, work: Callable[[DirectoryStore], object]
) -> Iterator[tuple[HoldfastError, MemoryFiles]]:
    """Each error of a run in which one more call is spared, and the disk after it."""
    for number in count():
        memory = made()
        before = sorted(memory.open_descriptors())
        files = FaultyFiles(memory, CallFault(kind, number), slow=lambda: None)
        try:
            store = DirectoryStore.open(ROOT, files=files, randomness=SeededRandomness("names"))
        except HoldfastError as error:
            raised: HoldfastError | None = error
        else:
            raised = None
            try:
                work(store)
            except HoldfastError as error:
                raised = error
            store.close()
        assert sorted(memory.open_descriptors()) == before
        if not files.hit:
            assert raised is None
            return
        if raised is not None:
            yield raised, memory


@pytest.mark.parametrize("name", WORKS)
def test_an_error_of_the_disk_is_told_and_nothing_stays_open(name: str) -> None:
    told = 0
    for error, memory in failing(FaultKind.IO_ERROR, WORKS[name]):
        assert isinstance(error, RepositoryFailed)
        assert not isinstance(error, RepositoryFull | NoRepository)
        assert error.retryable
        files = memory.image().files
        assert files.get(f"{ROOT}/{NEW}", DATA) == DATA, "half an object"
        assert files.get(f"{ROOT}/{OLD}", DATA) == DATA
        told += 1
    assert told >= 3


@pytest.mark.parametrize("name", ["put", "put into a new directory", "begin bulk"])
def test_a_full_disk_is_called_full(name: str) -> None:
    errors = [error for error, _ in failing(FaultKind.FULL, WORKS[name])]
    assert errors
    assert all(isinstance(error, RepositoryFull) for error in errors)


def test_a_full_disk_does_not_tell_the_time_and_that_is_no_error() -> None:
    assert not list(failing(FaultKind.FULL, WORKS["storage_time"]))

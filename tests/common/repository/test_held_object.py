"""An object of a directory that stays open."""

import threading
from pathlib import Path

import pytest

from holdfast_common.errors import IntegrityError, ObjectMissing
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.layout import LEAF_BYTES
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.object_store import HoldingStore
from support.repositories import BLOCK, disk_header, new_repository, patterned

NAME = "maps/00/aa"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    made = DirectoryStore.create(tmp_path / "repository")
    made.put(NAME, bytes(range(200)))
    return made


def read(source: object, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    source.read_into(NAME, offset, memoryview(buffer))  # type: ignore[attr-defined]  # either of them
    return bytes(buffer)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_it_reads_what_the_store_reads(store: DirectoryStore) -> None:
    assert isinstance(store, HoldingStore)
    held = store.hold(NAME)
    for offset, length in ((0, 200), (7, 3), (199, 1), (200, 0)):
        assert read(held, offset, length) == read(store, offset, length)
    with pytest.raises(IntegrityError):
        read(held, 199, 2)
    with pytest.raises(ObjectMissing):
        store.hold("maps/00/bb")
    held.close()


def test_after_it_was_closed_it_is_opened_for_each_read(store: DirectoryStore) -> None:
    before = descriptors()
    held = store.hold(NAME)
    assert descriptors() == before + 1
    held.close()
    held.close()
    assert descriptors() == before
    assert read(held, 5, 2) == bytes([5, 6])
    assert descriptors() == before
    store.delete(NAME)
    with pytest.raises(ObjectMissing):
        read(held, 5, 2)


def test_nobody_reads_another_file_because_somebody_closed_it_meanwhile(
    store: DirectoryStore,
) -> None:
    store.put("maps/00/cc", bytes(200))
    wrong: list[bytes] = []
    held = [store.hold(NAME) for _ in range(100)]

    def reading() -> None:
        for each in held:
            if read(each, 100, 1) != b"\x64":
                wrong.append(read(each, 100, 1))

    readers = [threading.Thread(target=reading) for _ in range(3)]
    for thread in readers:
        thread.start()
    others = []
    for each in held:
        each.close()
        others.append(store.hold("maps/00/cc"))  # takes the number that became free
    for thread in readers:
        thread.join()
    for each in others:
        each.close()
    assert not wrong


@pytest.mark.parametrize("is_published", [True, False])
def test_a_writer_keeps_the_maps_it_builds_on_open_and_gives_them_back(
    store: DirectoryStore, is_published: bool
) -> None:
    repository = new_repository(store)
    image = bytes(patterned(2 * LEAF_BYTES, "image"))
    first = repository.backup(image)
    before = descriptors()
    with repository.writer() as writer:
        disk = writer.begin_disk(disk_header(len(image)), previous=first.disks[0])
        disk.write(0, b"changed".ljust(BLOCK, b"."))
        disk.write(LEAF_BYTES, b"changed too".ljust(BLOCK, b"."))
        disk.finish()
        held = descriptors()
        if is_published:
            prepared = writer.prepare(ManifestFacts(order=2))
            assert descriptors() == before
            writer.publish(prepared, repository.grant(prepared))
    assert held > before
    assert descriptors() == before

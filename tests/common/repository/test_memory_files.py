"""Disks in memory behave like disks, and what a crash may leave of them is what it may leave of a disk."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.file_system import SYSTEM_FILES, FileSystem
from support.crash_states import CrashState, crash_states, image_digest
from support.interleaving import Turns
from support.memory_files import Image, MemoryFiles
from support.object_store_contract import NAME, ObjectStoreContract
from support.recorded_files import RecordingFiles

ROOT = Path("/repository")
DATA = random.Random(1).randbytes(3 * 4096)
EMPTY = Image(directories=frozenset({"/"}), files={})


class TestContract(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> Iterator[DirectoryStore]:
        files = MemoryFiles()
        with DirectoryStore.create(ROOT, files=files) as made:
            yield made
        assert not list(files.open_descriptors())


@pytest.fixture(params=["a real disk", "a disk in memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, int]:
    files: FileSystem = SYSTEM_FILES
    if request.param == "a disk in memory":
        files = MemoryFiles()
        tmp_path = Path("/disk")
        files.make_directory(str(tmp_path))
    return files, files.open_directory(str(tmp_path))


def test_who_must_exist_and_who_must_not(disk: tuple[FileSystem, int]) -> None:
    files, at = disk
    files.make_directory("below", at=at)
    files.close(files.create_file("below/first", at=at))
    files.close(files.create_file("second", at=at))
    with pytest.raises(FileExistsError):
        files.create_file("second", at=at)
    with pytest.raises(FileExistsError):
        files.make_directory("below", at=at)
    with pytest.raises(FileExistsError):
        files.rename("second", "below/first", at=at)
    with pytest.raises(FileExistsError):
        files.link("second", "below/first", at=at)
    with pytest.raises(FileNotFoundError):
        files.rename("third", "below/third", at=at)
    with pytest.raises(FileNotFoundError):
        files.rename("second", "elsewhere/second", at=at)
    with pytest.raises(FileNotFoundError):
        files.unlink("third", at=at)
    with pytest.raises(IsADirectoryError):
        files.unlink("below", at=at)
    with pytest.raises(NotADirectoryError):
        files.open_directory("second", at=at)
    with pytest.raises(FileNotFoundError):
        files.open_file("third", at=at)
    files.rename("second", "below/second", at=at)
    files.link("below/second", "again", at=at)
    assert sorted(files.names(at)) == [("again", False), ("below", True)]


def test_what_is_written_is_read_and_a_hole_is_zero(disk: tuple[FileSystem, int]) -> None:
    files, at = disk
    descriptor = files.create_file("data", at=at)
    assert files.write(descriptor, memoryview(b"abc")) == 3
    assert files.pwrite(descriptor, memoryview(b"xyz"), 6) == 3
    assert files.write(descriptor, memoryview(b"d")) == 1
    files.sync(descriptor)
    assert files.length(descriptor) == 9
    files.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.write(descriptor, memoryview(b"late"))
    descriptor = files.open_file("data", at=at)
    buffer = bytearray(20)
    assert files.read_into(descriptor, memoryview(buffer), 1) == 8
    assert buffer[:9] == b"bcd\0\0xyz\0"
    assert files.read_into(descriptor, memoryview(buffer), 9) == 0


class _Vanishing(MemoryFiles):
    """Another program removes whatever is listed before one can look at it."""

    def names(self, descriptor: int) -> list[tuple[str, bool]]:
        found = list(super().names(descriptor))
        for name in [name for name, is_directory in found if not is_directory]:
            self.unlink(name, at=descriptor)
        return found


def test_what_is_removed_while_it_is_listed_is_not_listed_and_no_error() -> None:
    files = MemoryFiles()
    with DirectoryStore.create(ROOT, files=files) as store:
        store.put(NAME, b"soon gone")
    with DirectoryStore.open(ROOT, files=_Vanishing.of(files.image())) as store:
        assert not list(store.list("packs/"))


def states_of(recorded: RecordingFiles, before: Image = EMPTY) -> list[CrashState]:
    return [
        state for seed in range(8) for state in crash_states(recorded.log, before, {}, seed=seed)
    ]


def test_a_crash_leaves_of_an_unsynced_file_any_part_and_any_zeros() -> None:
    files = RecordingFiles(MemoryFiles())
    at = files.open_directory("/")
    descriptor = files.create_file("data", at=at)
    files.write(descriptor, memoryview(DATA))
    lengths = set()
    zeros = set()
    for state in states_of(files):
        data = state.image.files.get("/data")
        if data is not None:
            lengths.add(len(data))
            zeros.add(DATA.startswith(data))
    assert {0, len(DATA)} < lengths, "nothing, all, and something between"
    assert zeros == {True, False}, "a beginning of the data, and its length with other bytes"


def test_after_its_sync_a_file_is_whole_wherever_its_name_is() -> None:
    files = RecordingFiles(MemoryFiles())
    at = files.open_directory("/")
    descriptor = files.create_file("temporary", at=at)
    files.write(descriptor, memoryview(DATA))
    files.sync(descriptor)
    begin = len(files.log)
    files.rename("temporary", "final", at=at)
    found = [
        state.image.files
        for state in states_of(files)
        if f"after call {begin}" in state.told or f"after call {begin + 1}" in state.told
    ]
    assert {"/temporary": DATA} in found
    assert {"/final": DATA} in found
    assert {} in found, "its name was never synced"
    assert all(set(each.values()) <= {DATA} and len(each) <= 1 for each in found)


def test_after_the_sync_of_its_directory_a_name_stays() -> None:
    files = RecordingFiles(MemoryFiles())
    at = files.open_directory("/")
    files.make_directory("below", at=at)
    files.sync(at)
    files.close(files.create_file("temporary", at=at))
    files.rename("temporary", "below/final", at=at)
    files.sync(files.open_directory("below", at=at))
    files.mark("promised")
    promised = [state for state in states_of(files) if state.promised]
    assert promised
    assert all(set(state.image.files) == {"/below/final"} for state in promised)
    files.unlink("below/final", at=at)
    last = [state.image.files for state in states_of(files) if state.promised]
    assert {"/below/final": b""} in last
    assert {} in last, "unlinked, though nothing was synced"


def test_what_lies_in_a_directory_that_was_lost_is_lost() -> None:
    files = RecordingFiles(MemoryFiles())
    at = files.open_directory("/")
    files.make_directory("below", at=at)
    files.close(files.create_file("below/file", at=at))
    files.sync(files.open_directory("below", at=at))
    left = {tuple(state.image.files) for state in states_of(files)}
    assert left == {(), ("/below/file",)}


def test_equal_disks_have_equal_digests_and_others_not() -> None:
    one = Image(directories=frozenset({"/", "/a"}), files={"/a/b": b"1", "/c": b"2"})
    same = Image(directories=frozenset({"/a", "/"}), files={"/c": b"2", "/a/b": b"1"})
    others = [
        Image(directories=frozenset({"/", "/a"}), files={"/a/b": b"2", "/c": b"2"}),
        Image(directories=frozenset({"/", "/a", "/d"}), files=one.files),
        Image(directories=one.directories, files={"/a/b": b"1"}),
    ]
    assert image_digest(one) == image_digest(same)
    assert len({image_digest(one), *map(image_digest, others)}) == 4


def test_programs_take_turns_in_an_order_that_only_the_seed_decides() -> None:
    def order(seed: int) -> str:
        turns = Turns(seed)
        steps: list[str] = []

        def program(name: str) -> None:
            for _ in range(20):
                steps.append(name)
                turns.step()

        turns.run([lambda: program("a"), lambda: program("b")])
        return "".join(steps)

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert "aba" in order(1) + order(2)

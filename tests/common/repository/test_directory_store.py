from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_common.errors import (
    NoRepository,
    ObjectExists,
    Refused,
    RepositoryFailed,
    RepositoryFull,
)
from holdfast_common.repository import file_system
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.file_system import FreeSpace, SystemFiles
from support.object_store_contract import NAME, ObjectStoreContract


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def store(root: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore.create(root) as made:
        yield made


class TestContract(ObjectStoreContract):
    pass


class TestContractWithoutRenameat2(ObjectStoreContract):
    """Where the file system cannot rename without replacing, a link does the same."""

    @pytest.fixture(autouse=True)
    def without_renameat2(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class OldLibrary:
            @staticmethod
            def renameat2(*_: object) -> int:
                ctypes.set_errno(errno.ENOSYS)
                return -1

        monkeypatch.setattr(file_system, "_libc", OldLibrary())


def temporary_files(root: Path) -> list[Path]:
    return list((root / "tmp").iterdir())


def test_opening_a_missing_directory_makes_nothing(root: Path) -> None:
    with pytest.raises(NoRepository) as caught:
        DirectoryStore.open(root)
    assert caught.value.exit_status == 10
    assert not root.exists()


def test_opening_an_empty_mount_point_makes_nothing(root: Path) -> None:
    root.mkdir()
    with pytest.raises(NoRepository):
        DirectoryStore.open(root)
    assert not list(root.iterdir())


def test_a_repository_is_not_made_among_other_files(root: Path) -> None:
    root.mkdir()
    (root / "letter.txt").write_text("mine")
    with pytest.raises(Refused):
        DirectoryStore.create(root)
    assert [path.name for path in root.iterdir()] == ["letter.txt"]


def test_a_repository_is_not_made_below_a_missing_directory(root: Path) -> None:
    with pytest.raises(Exception, match="no such object"):
        DirectoryStore.create(root / "below")
    assert not root.exists()


def test_making_one_again_keeps_what_is_there(root: Path, store: DirectoryStore) -> None:
    store.put(NAME, b"kept")
    with DirectoryStore.create(root) as again:
        assert again.get(NAME, length_max=10) == b"kept"


def test_files_are_for_their_owner_alone(root: Path, store: DirectoryStore) -> None:
    store.put(NAME, b"x")
    assert (root / NAME).stat().st_mode & 0o777 == 0o600
    assert (root / "packs" / "ab").stat().st_mode & 0o777 == 0o700


def test_a_store_stays_with_its_directory_when_another_takes_its_place(
    root: Path, store: DirectoryStore
) -> None:
    """As when a file system is unmounted and its mount point is empty again."""
    root.rename(root.with_name("moved"))
    root.mkdir()
    store.put(NAME, b"x")
    assert not list(root.iterdir())
    assert (root.with_name("moved") / NAME).read_bytes() == b"x"


def test_no_link_is_followed(root: Path, store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (root / "packs" / "ab").mkdir()
    (root / NAME).symlink_to(tmp_path / "secret")
    with pytest.raises(RepositoryFailed):
        store.get(NAME, length_max=100)
    assert store.head(NAME) is None
    with pytest.raises(ObjectExists):
        store.put(NAME, b"x")
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_failed_sync_is_not_tried_again_on_that_file(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def failing(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    upload = store.begin()
    upload.write(b"lost")
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RepositoryFailed):
        upload.commit(NAME)
    with pytest.raises(AssertionError):
        upload.commit(NAME)
    upload.abort()
    assert len(synced) == 1
    assert store.head(NAME) is None
    assert not temporary_files(root)
    store.put(NAME, b"whole")  # from memory, in a new file
    assert store.get(NAME, length_max=10) == b"whole"


@pytest.mark.parametrize("number", [1, 2])
def test_a_name_whose_sync_failed_is_taken_back(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Of the new directory, then of the object: the next sync would call what was dropped a success."""
    syncs: list[int] = []
    real = os.fsync

    def failing(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            syncs.append(len(syncs))
            if syncs[-1] == number:
                raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RepositoryFailed):
        store.put("maps/0123/4567", b"x")
    assert store.head("maps/0123/4567") is None
    assert (root / "maps" / "0123").exists() == (number == 2)
    assert not temporary_files(root)
    store.put("maps/0123/4567", b"again")
    assert store.get("maps/0123/4567", length_max=10) == b"again"


def test_a_repository_that_could_not_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(RepositoryFailed):
        patch.setattr(os, "fsync", failing)
        DirectoryStore.create(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    DirectoryStore.create(tmp_path / "new").close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_file_system_is_said_to_be_full(
    root: Path, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(RepositoryFull) as caught:
        store.put(NAME, b"x")
    assert caught.value.code == "repository_full"
    assert not temporary_files(root)


def test_data_may_not_use_the_space_that_is_kept_for_finishing(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstatvfs

    class Nearly:
        f_bavail = 10
        f_frsize = 4096
        f_blocks = 1_000_000

    monkeypatch.setattr(os, "fstatvfs", lambda _: Nearly)
    with pytest.raises(RepositoryFull):
        store.begin(bulk=True)
    store.put(NAME, b"a manifest still fits")
    monkeypatch.setattr(os, "fstatvfs", real)
    store.begin(bulk=True).abort()


def test_a_file_system_that_tells_late_what_is_free_is_asked_again(root: Path) -> None:
    class Late(SystemFiles):
        free = 4096

        def space(self, descriptor: int) -> FreeSpace:
            return FreeSpace(free=self.free, capacity=1 << 30)

        def sync_all(self, descriptor: int) -> None:
            super().sync_all(descriptor)
            self.free = 1 << 29

    with DirectoryStore.create(root, files=Late()) as store:
        store.begin(bulk=True).abort()


def test_what_crashed_attempts_left_is_swept_after_four_days(
    root: Path, store: DirectoryStore
) -> None:
    now = datetime.now(UTC)
    (root / "tmp" / "old").write_text("x")
    (root / "tmp" / "new").write_text("x")
    old = (now - timedelta(hours=97)).timestamp()
    os.utime(root / "tmp" / "old", (old, old))
    assert store.sweep_temporary(now=now) == 1
    assert [path.name for path in temporary_files(root)] == ["new"]


def test_the_order_of_system_calls_makes_an_object_durable(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File synced, then named, then its directory synced."""
    calls: list[str] = []
    real_sync = os.fsync
    real_library = file_system._libc

    class Library:
        @staticmethod
        def renameat2(*arguments: object) -> int:
            calls.append("rename")
            return int(real_library.renameat2(*arguments))

    def sync(descriptor: int) -> None:
        target = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        calls.append(f"sync {Path(target).name if 'repository/tmp/' not in target else 'file'}")
        real_sync(descriptor)

    store.put("packs/ab/first", b"x")
    monkeypatch.setattr(file_system, "_libc", Library())
    monkeypatch.setattr(os, "fsync", sync)
    store.put("packs/ab/second", b"x")
    assert [call for call in calls if call != "sync packs"] == ["sync file", "rename", "sync ab"]

"""A name that is seen is on the disk, or is made so before anybody goes by it; emptied directories go."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_common.errors import RepositoryFailed
from holdfast_common.identity import JobId
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.file_system import SystemFiles
from holdfast_common.repository.layout import manifest_name
from holdfast_common.repository.lease import LEASE_SECONDS
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import confirm_point, find_job_point
from holdfast_common.repository.reference_check import stored_packs
from support.pruning import Pruner
from support.repositories import (
    BLOCK,
    LINEAGE,
    Repository,
    disk_header,
    new_repository,
    patterned,
)

NAME = "packs/ab/abcdef"
OTHER_LINEAGE = "vcenter-1/another"


@dataclass
class Told(SystemFiles):
    """The system's calls, written down: of those the ones that make names and make them durable."""

    log: list[str] = field(default_factory=list)
    opened: dict[int, str] = field(default_factory=dict)
    fails: Callable[[str], bool] = lambda _: False

    def tell(self, call: str) -> None:
        self.log.append(call)
        if self.fails(call):
            raise OSError(errno.EIO, "Input/output error")

    def open_directory(self, path: str, *, at: int | None = None, follow: bool = True) -> int:
        found = super().open_directory(path, at=at, follow=follow)
        self.opened[found] = path
        return found

    def open_file(self, path: str, *, at: int) -> int:
        found = super().open_file(path, at=at)
        self.opened[found] = path
        return found

    def create_file(self, path: str, *, at: int) -> int:
        found = super().create_file(path, at=at)
        self.opened[found] = "new file"
        return found

    def sync(self, descriptor: int) -> None:
        self.tell(f"sync {self.opened[descriptor]}")
        super().sync(descriptor)

    def rename(self, source: str, target: str, *, at: int) -> None:
        self.tell(f"rename {target}")
        super().rename(source, target, at=at)

    def link(self, source: str, target: str, *, at: int) -> None:
        self.tell(f"link {target}")
        super().link(source, target, at=at)

    def unlink(self, path: str, *, at: int) -> None:
        self.tell(f"unlink {path if not path.startswith('tmp/') else 'temporary'}")
        super().unlink(path, at=at)


@dataclass
class WithoutRenameat2(Told):
    """As on a file system that only has links."""

    def rename(self, source: str, target: str, *, at: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def real_repository(root: Path, files: SystemFiles) -> Repository:
    made = new_repository(DirectoryStore.create(root, files=files))
    made.clock.moment = datetime.now(UTC)
    return made


def test_a_linked_name_is_on_the_disk_before_the_temporary_one_goes(root: Path) -> None:
    files = WithoutRenameat2()
    with DirectoryStore.create(root, files=files) as store:
        store.put("packs/ab/first", b"x")
        files.log.clear()
        files.fails = lambda call: call == "unlink temporary"
        store.put(NAME, b"content")
        calls = ["sync new file", f"link {NAME}", "sync packs/ab", "unlink temporary"]
        assert files.log == calls
        assert store.get(NAME, length_max=100) == b"content"
        assert len(list((root / "tmp").iterdir())) == 1
        files.fails = lambda _: False
        assert store.sweep_temporary(now=datetime.now(UTC) + timedelta(hours=97)) == 1
        assert store.get(NAME, length_max=100) == b"content"


def test_a_linked_name_whose_sync_failed_is_taken_back(root: Path) -> None:
    files = WithoutRenameat2()
    with DirectoryStore.create(root, files=files) as store:
        store.put("packs/ab/first", b"x")
        files.fails = lambda call: call == "sync packs/ab"
        with pytest.raises(RepositoryFailed):
            store.put(NAME, b"content")
        assert store.head(NAME) is None
        assert not list((root / "tmp").iterdir())


def test_what_is_confirmed_is_synced_with_all_the_names_that_lead_to_it(root: Path) -> None:
    with DirectoryStore.create(root) as store:
        store.put(NAME, b"content")
    files = Told()
    with DirectoryStore.open(root, files=files) as store:
        store.confirm([NAME])
        assert files.log == [f"sync {NAME}", "sync .", "sync packs", "sync packs/ab"]
        files.fails = lambda call: call == "sync packs/ab"
        with pytest.raises(RepositoryFailed):
            store.confirm([NAME])


def prepared(repository: Repository, *, job_id: str = "job-1", lineage: str = LINEAGE):  # type: ignore[no-untyped-def]  # of two values
    writer = repository.writer(job_id=JobId(job_id), lineage=lineage)
    disk = writer.begin_disk(disk_header(4 * BLOCK))
    disk.write(0, patterned(4 * BLOCK, "a"))
    disk.finish()
    return writer, writer.prepare(ManifestFacts(order=1))


def test_a_point_whose_manifest_was_put_by_a_call_that_failed_is_synced_before_it_is_told(
    root: Path,
) -> None:
    """The name is there, its sync failed, and so did taking it back: the same put again finds it."""
    files = Told()
    repository = real_repository(root, files)
    writer, point = prepared(repository)
    grant = repository.grant(point)
    name = manifest_name(repository.keys.reader_keys(LINEAGE).lineage_tag, "job-1")
    folder = name.rpartition("/")[0]
    files.fails = lambda call: call in {f"sync {folder}", f"unlink {name}"}
    with pytest.raises(RepositoryFailed):
        writer.publish(point, grant)
    assert (root / name).exists()
    with pytest.raises(RepositoryFailed):
        writer.publish(point, grant)  # still not on the disk
    files.fails = lambda _: False
    files.log.clear()
    assert writer.publish(point, grant) == point.point_id
    assert [call for call in files.log if "points" in call] == [
        f"rename {name}",  # it is there
        f"sync {name}",
        f"sync {folder}",
    ]


def test_a_point_that_is_found_is_synced_before_it_is_told(root: Path) -> None:
    files = Told()
    repository = real_repository(root, files)
    writer, point = prepared(repository)
    name = manifest_name(repository.keys.reader_keys(LINEAGE).lineage_tag, "job-1")
    folder = name.rpartition("/")[0]
    files.fails = lambda call: call in {f"sync {folder}", f"unlink {name}"}
    with pytest.raises(RepositoryFailed):
        writer.publish(point, repository.grant(point))
    with DirectoryStore.open(root, files=Told()) as store:
        found = find_job_point(store, repository.keys.reader_keys(LINEAGE), "job-1")
        assert found is not None
        assert isinstance(store.files, Told)
        store.files.log.clear()
        confirm_point(store, found)
        assert store.files.log == [
            f"sync {name}",
            "sync .",
            "sync points",
            f"sync {folder}",
        ]


def test_what_another_attempt_stored_is_synced_before_a_point_stands_on_it(root: Path) -> None:
    """Its index object is seen as soon as it has its name, which its writer may not live to sync."""
    files = Told()
    repository = real_repository(root, files)
    first, _ = prepared(repository)
    first.abandon()
    (index,) = [info.name for info in repository.store.list("index/")]
    files.log.clear()
    second, _ = prepared(repository, job_id="job-2", lineage=OTHER_LINEAGE)
    assert len(stored_packs(repository.store)) == 1, "it found everything"
    assert f"sync {index}" in files.log
    assert "sync index" in files.log
    second.abandon()


def test_the_fence_by_which_a_writer_goes_is_synced_first(root: Path) -> None:
    files = Told()
    repository = real_repository(root, files)
    repository.store.delete(repository.backup(patterned(4 * BLOCK, "a")).name)
    assert Pruner.of(repository).round().fence == 1
    files.log.clear()
    repository.writer(job_id=JobId("job-9")).abandon()
    announced = next(at for at, call in enumerate(files.log) if call.startswith("rename leases/"))
    assert "sync fences/0000000001" in files.log[:announced]
    assert "sync fences" in files.log[:announced]


def test_fences_are_synced_before_anything_is_deleted_by_them(root: Path) -> None:
    files = Told()
    repository = real_repository(root, files)
    pruner = Pruner.of(repository)
    repository.store.delete(repository.backup(patterned(4 * BLOCK, "a")).name)
    assert pruner.round().fence == 1
    files.log.clear()
    assert pruner.round(grace=timedelta(0)).deleted
    gone = next(at for at, call in enumerate(files.log) if call.startswith("unlink packs/"))
    assert {"sync fences/0000000001", "sync fences/0000000002"} <= set(files.log[:gone])


def test_a_lease_whose_last_object_went_leaves_no_directory(root: Path) -> None:
    with DirectoryStore.create(root) as store:
        store.put("leases/aa/000000", b"x")
        store.put("leases/aa/000001", b"x")
        store.delete("leases/aa/000000")
        assert (root / "leases" / "aa").is_dir()
        store.delete("leases/aa/000001")
        assert not (root / "leases" / "aa").exists()
        store.put("leases/aa/000002", b"again")  # its writer goes on: the directory is made again
        assert store.get("leases/aa/000002", length_max=10) == b"again"
        store.put(NAME, b"x")
        store.delete(NAME)
        assert (root / "packs" / "ab").is_dir()


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_a_directory_that_goes_beneath_a_writer_is_made_again(
    root: Path, linked: bool, times: int
) -> None:
    """Between the making of the directory, or its being known, and the first file in it."""
    files = WithoutRenameat2() if linked else Told()
    left = [times]

    def emptied(call: str) -> bool:
        if call.endswith("leases/aa/000000") and left[0]:
            left[0] -= 1
            (root / "leases" / "aa").rmdir()
        return False

    files.fails = emptied
    with DirectoryStore.create(root, files=files) as store:
        store.put("leases/aa/000000", b"x")
        assert store.get("leases/aa/000000", length_max=10) == b"x"
        made = max(at for at, call in enumerate(files.log) if "leases/aa/0" in call)
        assert "sync leases" in files.log[:made]
    assert not left[0]
    assert not list((root / "tmp").iterdir())


def test_empty_directories_of_old_leases_are_swept(root: Path) -> None:
    old = (datetime.now(UTC) - timedelta(hours=97)).timestamp()
    with DirectoryStore.create(root) as store:
        for name in ("old", "used", "new"):
            (root / "leases" / name).mkdir()
        store.put("leases/used/000000", b"x")
        for name in ("old", "used"):
            os.utime(root / "leases" / name, (old, old))
        assert store.sweep_temporary(now=datetime.now(UTC)) == 0
        assert sorted(path.name for path in (root / "leases").iterdir()) == ["new", "used"]


def test_prune_leaves_no_directories_of_ended_leases(root: Path) -> None:
    repository = real_repository(root, SystemFiles())
    for number in range(3):
        repository.backup(patterned(4 * BLOCK, f"{number}"))
    assert len(list((root / "leases").iterdir())) == 3
    repository.clock.advance(LEASE_SECONDS * 100)
    Pruner.of(repository).round(accept_clock=True)
    assert not list((root / "leases").iterdir())

"""Every effect fails once, at every place: a clear error, no half point, no half disk, no thread left."""

from __future__ import annotations

import random
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast_agent import transport_table
from holdfast_agent.pipelines.list_points import list_points
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_agent.pipelines.verify_disks import verify_disks
from holdfast_agent.transport_table import RandomOpener
from holdfast_common.blocks.sink import BlockSink
from holdfast_common.blocks.source import BlockSource
from holdfast_common.errors import (
    Cancelled,
    HoldfastError,
    IntegrityError,
    LeaseExpired,
    NoRepository,
    Refused,
    RepositoryFailed,
    RepositoryFull,
    ShortRead,
    SourceFailed,
    TargetFailed,
)
from holdfast_common.identity import PointId
from holdfast_common.job_result import PointFound
from holdfast_common.job_spec import FileFormat, ListPoints, TransportKind
from holdfast_common.units import MIB
from support.backup_jobs import LINEAGE, Site, make_site, point_of
from support.memory_disks import MemorySink, MemorySource

CAPACITY = 4 * MIB
CONTENT = random.Random(5).randbytes(CAPACITY)
PIECES = 5  # of 4 MiB, in which disks are restored


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = make_site(tmp_path)
    site.make_disk(2000, CONTENT)
    threads = set(threading.enumerate())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    yield site
    left = [thread.name for thread in set(threading.enumerate()) - threads]
    assert not left
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def points(site: Site) -> tuple[PointFound, ...]:
    keys = (site.repository.reader_keys(LINEAGE),)
    return list_points(site.spec(ListPoints(keys=keys)), site.context()).points


def restore(site: Site, point: PointId, name: str = "disk.vmdk") -> None:
    work = site.restore_work(point, {2000: site.file_ticket(name)})
    restore_disks(site.spec(work), site.context())


def make_disk_of_pieces(site: Site) -> None:
    """In the place of the disk that is there."""
    for path in (site.root / "nfs" / "web").iterdir():
        path.unlink()
    site.make_disk(2000, random.Random(6).randbytes(PIECES * 4 * MIB))


def read_from(monkeypatch: pytest.MonkeyPatch, opened: Callable[[], BlockSource]) -> None:
    opener = RandomOpener(lambda *_, **__: opened())
    monkeypatch.setitem(transport_table.OPENERS, TransportKind.DIRECT, opener)


def write_to(monkeypatch: pytest.MonkeyPatch, opened: Callable[[], BlockSink]) -> None:
    monkeypatch.setitem(transport_table.SINKS, TransportKind.FILE, lambda *_, **__: opened())


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("error", [SourceFailed("read error"), ShortRead("disk ended early")])
def test_a_read_that_fails_leaves_no_point(
    site: Site, monkeypatch: pytest.MonkeyPatch, at: int, error: HoldfastError
) -> None:
    source = MemorySource(CONTENT, error=error, error_at_read=at)
    read_from(monkeypatch, lambda: source)
    with pytest.raises(type(error)):
        site.back_up()
    assert points(site) == ()
    assert source.closed == 1


@pytest.mark.parametrize("error", [Cancelled("cancelled"), LeaseExpired("the lease ended")])
def test_a_backup_is_stopped_at_every_check_and_leaves_no_point(
    site: Site, error: HoldfastError
) -> None:
    for number in range(1000):  # how often it looks differs with the threads' luck
        context = site.context(stop_with=error, stop_at_check=number)
        try:
            site.back_up(context=context)
        except type(error):
            assert context.granted == []
            continue
        assert context.checks <= number
        assert number > 5
        break
    assert len(points(site)) == 1


def test_a_later_attempt_uses_what_an_interrupted_one_stored(site: Site) -> None:
    interrupted = site.context(stop_with=LeaseExpired("the lease ended"), stop_at_check=6)
    with pytest.raises(LeaseExpired):
        site.back_up(context=interrupted)
    again = site.back_up()
    assert again.disks[0].stored_bytes < CAPACITY - MIB // 2


def test_a_refused_commit_leaves_no_point(site: Site) -> None:
    with pytest.raises(Refused, match="disk moved"):
        site.back_up(context=site.context(commit_error=Refused("disk moved")))
    assert points(site) == ()


def test_a_missing_repository_is_never_made(site: Site) -> None:
    (site.root / "repository").rename(site.root / "unmounted")
    with pytest.raises(NoRepository):
        site.back_up()
    assert not (site.root / "repository").exists()
    (site.root / "unmounted").rename(site.root / "repository")


@pytest.mark.parametrize("at", range(4))
def test_a_write_that_fails_ends_the_restore(
    site: Site, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    make_disk_of_pieces(site)
    point = point_of(site.back_up())
    sink = MemorySink(PIECES * 4 * MIB, error_at_write=at)
    write_to(monkeypatch, lambda: sink)
    with pytest.raises(TargetFailed):
        restore(site, point)
    assert (sink.closed, sink.finished) == (1, False)


def test_a_restore_is_stopped_at_every_check_and_leaves_nothing(site: Site) -> None:
    make_disk_of_pieces(site)
    point = point_of(site.back_up())
    folder = site.root / "restores"
    for number in range(1000):
        context = site.context(stop_with=Cancelled("cancelled"), stop_at_check=number)
        work = site.restore_work(point, {2000: site.file_ticket("disk.vmdk")})
        try:
            restore_disks(site.spec(work), context)
        except Cancelled:
            assert list(folder.iterdir()) == []
            continue
        assert context.checks <= number
        assert number > 3
        break
    assert sorted(path.name for path in folder.iterdir()) == ["disk-flat.vmdk", "disk.vmdk"]


def test_damaged_data_in_the_repository_is_never_written_to_a_disk(site: Site) -> None:
    point = point_of(site.back_up())
    for pack in (site.root / "repository" / "packs").rglob("*"):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[len(data) // 2] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(data)
    with pytest.raises(HoldfastError) as caught:
        restore(site, point)
    assert caught.value.exit_status == 13
    assert list((site.root / "restores").iterdir()) == []


def test_a_disk_of_another_size_cannot_be_read_back(site: Site) -> None:
    point = point_of(site.back_up())
    restore(site, point)
    path = site.root / "restores/disk.vmdk"
    path.write_text(path.read_text().replace(f"RW {CAPACITY // 512}", f"RW {CAPACITY // 512 - 8}"))
    work = site.verify_work(point, {2000: site.file_ticket("disk.vmdk")})
    with pytest.raises(IntegrityError, match="cannot be opened again"):
        verify_disks(site.spec(work), site.context())


def test_a_missing_disk_cannot_be_read_back(site: Site) -> None:
    point = point_of(site.back_up())
    work = site.verify_work(point, {2000: site.file_ticket("disk.vmdk")})
    with pytest.raises(SourceFailed):
        verify_disks(site.spec(work), site.context())


@contextmanager
def files_end_at(length: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes, as if the storage were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("file_format", FileFormat)
@pytest.mark.parametrize("length", [0, 100_000, MIB, 3 * MIB])
def test_a_target_without_room_is_an_error_and_leaves_nothing(
    site: Site, file_format: FileFormat, length: int
) -> None:
    point = point_of(site.back_up())
    work = site.restore_work(point, {2000: site.file_ticket("disk.vmdk", file_format)})
    with files_end_at(length), pytest.raises(TargetFailed):
        restore_disks(site.spec(work), site.context())
    assert list((site.root / "restores").iterdir()) == []


@pytest.mark.parametrize("length", [0, 1000, 100_000, MIB])
def test_a_repository_without_room_is_an_error_and_leaves_no_point(site: Site, length: int) -> None:
    with files_end_at(length), pytest.raises((RepositoryFull, RepositoryFailed)):
        site.back_up()
    assert points(site) == ()
    assert len(points_after(site)) == 1


def points_after(site: Site) -> tuple[PointFound, ...]:
    """The points after one more backup, which must succeed."""
    site.back_up()
    return points(site)

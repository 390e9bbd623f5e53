from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_agent.pipelines.pipeline_table import PIPELINES
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_common.clock import SystemClock
from holdfast_common.errors import HoldfastError, TimedOut
from holdfast_common.identity import PointId
from holdfast_common.job_spec import CheckRepository, DiskTicket, ListPoints, Work
from holdfast_common.repository import hang_watch, mount_probe
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import while_it_answers
from holdfast_common.repository.points import list_points
from holdfast_common.units import MIB
from support.backup_jobs import LINEAGE, Site, make_site
from support.hanging_mount import hanging_mount
from support.local_job_context import LocalJobContext
from support.memory_files import Image
from support.repositories import patterned
from support.unsynced_mount import UnsyncedMount, unsynced_mount

POINT = PointId("01HZZZZZZZZZZZZZZZZZZZZZZZ")
WORKS: dict[str, Callable[[Site], Work]] = {
    "backup": lambda site: site.backup_work(),
    "restore": lambda site: site.restore_work(POINT, {2000: site.file_ticket("r.vmdk")}),
    "read back": lambda site: site.verify_work(POINT, {2000: site.file_ticket("r.vmdk")}),
    "check": lambda site: CheckRepository(
        read_data=True, point_ids=(), keys=(site.repository.reader_keys(LINEAGE),)
    ),
    "list": lambda site: ListPoints(keys=(site.repository.reader_keys(LINEAGE),)),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(mount_probe, "ANSWER_SECONDS_MAX", 0.2)
    site = make_site(tmp_path)
    site.make_disk(2000, b"data" * 16384)
    with hanging_mount(site.repository.folder):
        yield site


@pytest.mark.parametrize("kind", WORKS)
def test_a_job_ends_in_time_when_the_repositorys_mount_hangs(site: Site, kind: str) -> None:
    work = WORKS[kind](site)
    with pytest.raises(TimedOut, match="does not answer") as caught:
        PIPELINES[type(work)](site.spec(work), site.context())
    assert caught.value.exit_status == 124
    assert caught.value.facts["path"] == str(site.repository.folder)
    assert list((site.root / "restores").iterdir()) == []


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnsyncedMount]:
    with unsynced_mount(tmp_path_factory.mktemp("mount")) as mounted:
        yield mounted


def image_of(folder: Path) -> Image:
    """A real folder, as it is laid on a mount."""
    paths = list(folder.rglob("*"))
    names = {path: f"/{path.relative_to(folder.parent)}" for path in [folder, *paths]}
    return Image(
        directories=frozenset({"/", *(names[path] for path in names if path.is_dir())}),
        files={names[path]: path.read_bytes() for path in paths if path.is_file()},
    )


@dataclass
class HangingContext(LocalJobContext):
    """The mount hangs from the job's first progress on, or from when the first keys of its data are asked for."""

    mount: UnsyncedMount | None = None

    def hang(self) -> None:
        """Once: what is given up may go on later."""
        mount, self.mount = self.mount, None
        if mount is not None:
            mount.hang()

    def report(self, *, done_bytes: int, total_bytes: int, device_key: int, phase: str) -> None:
        self.hang()

    def open_segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        self.hang()
        return super().open_segment_keys(headers)

    def stop(self, error: HoldfastError) -> None:
        self.stop_with = error


@pytest.mark.parametrize(
    "kind",
    [
        "backup",
        "restore",
        pytest.param("read back", marks=pytest.mark.long),
        pytest.param("check", marks=pytest.mark.long),
    ],
)
def test_a_job_ends_in_time_when_the_mount_begins_to_hang_in_the_middle(
    kind: str, mount: UnsyncedMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads stay where they are. When the mount answers again they end, and nothing comes of them."""
    monkeypatch.setattr(mount_probe, "ANSWER_SECONDS_MAX", 0.2)
    monkeypatch.setattr(hang_watch, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(hang_watch, "LOOK_SECONDS", 0.05)
    site = make_site(tmp_path)
    site.make_disk(2000, bytes(patterned(8 * MIB, "disk")))
    first = back_up_disks(site.spec(site.backup_work()), site.context()).point_id
    assert first is not None
    site.write(2000, 0, bytes(patterned(8 * MIB, "changed")))
    real = site.repository.folder
    with mount.loaded(image_of(real), now=SystemClock().now().timestamp()) as top:
        site.repository.folder = mount.path / top / real.name
        restored: dict[int, DiskTicket] = {2000: site.file_ticket("r.vmdk")}
        if kind == "read back":
            restore_disks(site.spec(site.restore_work(first, restored)), site.context())
        works: dict[str, Work] = {
            "restore": site.restore_work(first, restored),
            "read back": site.verify_work(first, restored),
        }
        work = works[kind] if kind in works else WORKS[kind](site)
        context = HangingContext(
            repository=site.repository, configuration=site.configuration, mount=mount
        )
        before = set(threading.enumerate())
        try:
            with pytest.raises(TimedOut, match="does not answer") as caught:
                while_it_answers(
                    lambda: PIPELINES[type(work)](site.spec(work), context), gave_up=context.stop
                )
        finally:
            mount.go_on()
        assert caught.value.exit_status == 124
        assert caught.value.facts["path"] == str(site.repository.folder)
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
            assert not thread.is_alive()
        with DirectoryStore.open(site.repository.folder) as store:
            points = list_points(store, site.repository.keys.reader_keys(LINEAGE)).points
        assert [point.point_id for point in points] == [first]

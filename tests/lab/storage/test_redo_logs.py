"""COWD and SE sparse files by themselves: layout, growth, damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_lab.storage.cowd import create_cowd, open_cowd
from holdfast_lab.storage.errors import DescriptorError, OutOfRange
from holdfast_lab.storage.grained import GrainedExtent
from holdfast_lab.storage.runs import Run, RunKind
from holdfast_lab.storage.se_sparse import create_se_sparse, open_se_sparse
from support.lab_disks import MIB, make_disk

Create = Callable[[Path, int], None]
Open = Callable[[Path], GrainedExtent]
FORMATS = [
    pytest.param(create_cowd, open_cowd, id="cowd"),
    pytest.param(create_se_sparse, open_se_sparse, id="se_sparse"),
]


def nothing_below(_offset: int, buffer: memoryview) -> None:
    buffer[:] = bytes(len(buffer))


@pytest.mark.parametrize(("create", "open_file"), FORMATS)
def test_a_new_redo_log_leaves_everything_to_its_parent(
    tmp_path: Path, create: Create, open_file: Open
) -> None:
    create(tmp_path / "log", 2**40)
    extent = open_file(tmp_path / "log")
    assert list(extent.runs(0, 2**40)) == [Run(RunKind.ABSENT, 0, 2**40)]
    assert (tmp_path / "log").stat().st_blocks * 512 < 64 * 1024
    extent.close()
    extent.close()


@pytest.mark.parametrize(("create", "open_file"), FORMATS)
def test_a_partly_written_grain_is_completed_from_below(
    tmp_path: Path, create: Create, open_file: Open
) -> None:
    create(tmp_path / "log", MIB)
    extent = open_file(tmp_path / "log")

    def below(_offset: int, buffer: memoryview) -> None:
        buffer[:] = b"b" * len(buffer)

    extent.write(4096 + 512, memoryview(b"t" * 512), below)
    (run,) = [run for run in extent.runs(0, MIB) if run.kind is RunKind.DATA]
    content = bytearray(run.length)
    extent.read_data(run.position, memoryview(content))
    at = 4096 + 512 - run.offset
    assert content[at : at + 512] == b"t" * 512
    assert set(content[:at] + content[at + 512 :]) <= {ord("b")}


@pytest.mark.parametrize(("create", "open_file"), FORMATS)
def test_neighbouring_writes_become_one_run(
    tmp_path: Path, create: Create, open_file: Open
) -> None:
    create(tmp_path / "log", 64 * MIB)
    extent = open_file(tmp_path / "log")
    extent.write(0, memoryview(bytes(2 * MIB - 4096)), nothing_below)
    (first, rest) = extent.runs(0, 64 * MIB)
    assert (first.kind, first.length) == (RunKind.DATA, 2 * MIB - 4096)
    assert rest == Run(RunKind.ABSENT, first.length, 64 * MIB - first.length)
    with pytest.raises(OutOfRange):
        list(extent.runs(0, 65 * MIB))


def test_only_se_sparse_can_say_zeros(tmp_path: Path) -> None:
    create_se_sparse(tmp_path / "se", MIB + 512)
    create_cowd(tmp_path / "cowd", MIB + 512)
    se_sparse, cowd = open_se_sparse(tmp_path / "se"), open_cowd(tmp_path / "cowd")
    for extent, kind in ((se_sparse, RunKind.ZERO), (cowd, RunKind.DATA)):
        extent.write_zeros(8192, MIB + 512 - 8192, nothing_below)
        absent, rest = extent.runs(0, MIB + 512)
        assert (absent.kind, absent.length) == (RunKind.ABSENT, 8192)
        assert (rest.kind, rest.length) == (kind, MIB + 512 - 8192)


def test_a_cowd_redo_log_ends_below_2_tib_and_se_sparse_takes_over(tmp_path: Path) -> None:
    from holdfast_lab.storage.disk import DatastoreKind

    with pytest.raises(OutOfRange):
        create_cowd(tmp_path / "log", 2**41)
    disk = make_disk(tmp_path, capacity=2**41, kind=DatastoreKind.NFS)
    disk.freeze()
    assert (disk.directory / "web-000001-sesparse.vmdk").exists()


@pytest.mark.parametrize(("create", "open_file"), FORMATS)
@pytest.mark.parametrize("damage", ["cut", "magic", "version", "capacity"])
def test_a_damaged_header_is_refused(
    tmp_path: Path, create: Create, open_file: Open, damage: str
) -> None:
    path = tmp_path / "log"
    create(path, MIB)
    content = bytearray(path.read_bytes()[:2048])
    places = {"magic": 0, "version": 4 if create is create_cowd else 8}
    if damage == "cut":
        content = content[:100]
    elif damage == "capacity":
        place = 12 if create is create_cowd else 16
        content[place : place + 4] = struct.pack("<I", 2**30)
    else:
        content[places[damage]] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(DescriptorError):
        open_file(path)


def test_a_dirty_se_sparse_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    create_se_sparse(path, MIB)
    with path.open("r+b") as file:
        file.seek(512 + 24)
        file.write(b"\x01")
    with pytest.raises(DescriptorError, match="journal"):
        open_se_sparse(path)

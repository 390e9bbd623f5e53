"""The guest's file systems: real ext4 with known files, before and after changes and snapshots."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from holdfast_lab.guest import (
    SYSTEM_PATHS,
    change_files,
    file_system,
    fill_from_image,
    is_clean,
    known_files,
    make_ext4,
    read_files,
    write_random_blocks,
)
from holdfast_lab.storage.disk import DatastoreKind
from holdfast_lab.storage.errors import OutOfRange, StorageError, TruthUnknown
from holdfast_lab.storage.partitions import PartitionLayout
from holdfast_lab.storage.runs import Area
from support.lab_disks import MIB, assert_qemu_agrees, assert_true_everywhere, make_disk, needs_qemu

needs_e2fsprogs = pytest.mark.skipif(
    shutil.which("mkfs.ext4", path=f"/usr/bin:{SYSTEM_PATHS}") is None,
    reason="mkfs.ext4 is not installed: apt-get install e2fsprogs",
)


@needs_e2fsprogs
@needs_qemu
@pytest.mark.parametrize("layout", list(PartitionLayout))
def test_files_of_the_guest_are_on_the_disk_before_and_after_a_change(
    tmp_path: Path, layout: PartitionLayout
) -> None:
    disk = make_disk(tmp_path, capacity=32 * MIB + 512, kind=DatastoreKind.NFS)
    disk.enable_tracking()
    files = known_files(1)
    system = make_ext4(disk, files, layout=layout)
    first = disk.freeze()
    changes: dict[str, bytes | None] = {
        "hostname": b"renamed\n",
        "data/0/file-001": None,
        "new folder/deep/note": b"x" * 10_000,
    }
    written = change_files(disk, changes)
    assert 0 < sum(area.length for area in written) < 4 * MIB
    second = disk.freeze()
    assert file_system(disk) == system
    for made, wanted in ((first, dict(files)), (second, {**files, **changes})):
        raw = tmp_path / f"{made.sequence}.raw"
        disk.materialise(raw, made.descriptor)
        assert is_clean(raw, system)
        assert read_files(raw, system, list(wanted)) == wanted
        assert_qemu_agrees(disk, made.descriptor, tmp_path, made.sequence)


@needs_e2fsprogs
@pytest.mark.skipif(shutil.which("sfdisk") is None, reason="apt-get install fdisk")
@pytest.mark.parametrize("layout", [PartitionLayout.MBR, PartitionLayout.GPT])
def test_sfdisk_reads_the_partition_table(tmp_path: Path, layout: PartitionLayout) -> None:
    import json
    import subprocess

    disk = make_disk(tmp_path, capacity=16 * MIB)
    system = make_ext4(disk, {"a": b"b"}, layout=layout)
    disk.truth(tmp_path / "raw")
    command = ["sfdisk", "--json", str(tmp_path / "raw")]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    table = json.loads(result.stdout)["partitiontable"]
    assert table["label"] == ("dos" if layout is PartitionLayout.MBR else "gpt")
    (partition,) = table["partitions"]
    assert partition["start"] * 512 == system.partition.offset
    assert partition["size"] * 512 == system.partition.length
    assert "corrupt" not in result.stderr


def test_random_blocks_follow_from_their_seed(tmp_path: Path) -> None:
    one, other = make_disk(tmp_path, "one"), make_disk(tmp_path, "other")
    areas = write_random_blocks(one, seed=5, count=20)
    assert areas == write_random_blocks(other, seed=5, count=20)
    with one.reader_at() as reader:
        assert other.first_difference(reader) is None
    inside = Area(MIB, MIB)
    for area in write_random_blocks(one, seed=6, count=9, within=inside):
        assert inside.offset <= area.offset
        assert area.end <= inside.end
    assert_true_everywhere(one)


@needs_e2fsprogs
def test_paths_that_leave_the_file_system_are_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    with pytest.raises(TruthUnknown):
        file_system(disk)
    with pytest.raises(StorageError):
        make_ext4(disk, {"../outside": b""})


def test_a_disk_is_filled_from_a_raw_image_and_holds_nothing_of_before(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, capacity=4 * MIB, kind=DatastoreKind.NFS)
    write_random_blocks(disk, seed=1, count=20)
    image = tmp_path / "image.raw"
    content = bytearray(3 * MIB)
    content[:512], content[2 * MIB : 2 * MIB + 4096] = b"b" * 512, b"d" * 4096
    image.write_bytes(content)
    assert fill_from_image(disk, image) is None
    truth = tmp_path / "truth.raw"
    disk.truth(truth)
    assert truth.read_bytes()[: 3 * MIB] == bytes(content)
    assert_true_everywhere(disk)


def test_an_image_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, capacity=4 * MIB, kind=DatastoreKind.NFS)
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(5 * MIB))
    with pytest.raises(OutOfRange):
        fill_from_image(disk, image)


@needs_e2fsprogs
def test_files_of_a_filled_disk_are_changed_by_its_layout(tmp_path: Path) -> None:
    source = make_disk(tmp_path / "source", capacity=16 * MIB, kind=DatastoreKind.NFS)
    make_ext4(source, known_files(3, count=2))
    image = tmp_path / "image.raw"
    source.truth(image)
    disk = make_disk(tmp_path / "disk", capacity=16 * MIB, kind=DatastoreKind.NFS)
    system = fill_from_image(disk, image, layout=PartitionLayout.MBR)
    assert system is not None
    change_files(disk, {"srv/note": b"changed"})
    truth = tmp_path / "truth.raw"
    disk.truth(truth)
    assert is_clean(truth, system)
    assert read_files(truth, system, ["srv/note"]) == {"srv/note": b"changed"}

"""What a guest does to its disk: random blocks, and real ext4 file systems with known files.

Everything reaches the disk as guest writes, so the ground truth knows it. Needs mkfs.ext4 and
debugfs of e2fsprogs for file systems; nothing is mounted and nobody needs to be root.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from holdfast_lab.storage.disk import SECTOR_BYTES, LabDisk
from holdfast_lab.storage.errors import OutOfRange, StorageError, ToolMissing, TruthUnknown
from holdfast_lab.storage.flat import create_flat
from holdfast_lab.storage.partitions import PartitionLayout, partitioned
from holdfast_lab.storage.readers import RawReader, pieces
from holdfast_lab.storage.runs import Area, joined, union

SYSTEM_PATHS = "/usr/sbin:/sbin:/usr/local/sbin"  # not in an ordinary user's PATH
TOOL_SECONDS_MAX = 300
BLOCK_BYTES = 4096
NOTE_NAME = "ext4.json"  # beside the guest log: where the file system lies
E2FSCK_CLEAN = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """Where a file system lies on a disk."""

    layout: PartitionLayout
    partition: Area


def write_random_blocks(
    disk: LabDisk,
    *,
    seed: int,
    count: int,
    block_bytes: int = 64 * 1024,
    within: Area | None = None,
) -> list[Area]:
    """Write ``count`` random blocks at random places; the same seed writes the same.

    ``within`` None: anywhere. Gives the areas written, sorted and joined.
    """
    chooser = random.Random(seed)
    space = within or Area(0, disk.capacity_bytes)
    length = min(block_bytes, space.length) // SECTOR_BYTES * SECTOR_BYTES
    places = (space.length - length) // SECTOR_BYTES + 1
    written = []
    for _ in range(count):
        offset = space.offset + chooser.randrange(places) * SECTOR_BYTES
        disk.guest_write(offset, chooser.randbytes(length))
        written.append(Area(offset, length))
    return list(joined(sorted(written)))


def known_files(seed: int, count: int = 12, largest_bytes: int = 200_000) -> dict[str, bytes]:
    """Files with content that follows from the seed: text, random, empty, in directories."""
    chooser = random.Random(seed)
    files: dict[str, bytes] = {"hostname": f"guest-{seed}\n".encode(), "empty": b""}
    for number in range(count):
        size = chooser.randrange(1, largest_bytes)
        content = (
            chooser.randbytes(size)
            if number % 2
            else (f"line of file {number} of guest {seed}\n" * (size // 20 + 1)).encode()[:size]
        )
        files[f"data/{number // 5}/file-{number:03d}"] = content
    return files


def make_ext4(
    disk: LabDisk,
    files: Mapping[str, bytes],
    *,
    layout: PartitionLayout = PartitionLayout.MBR,
    label: str = "lab",
) -> FileSystem:
    """Put a new ext4 with these files (relative path -> content) over the whole disk.

    Raises: ToolMissing, StorageError (mkfs refused), OutOfRange (disk too small).
    """
    plan = partitioned(layout, disk.capacity_bytes)
    with _workshop(disk) as folder:
        tree = folder / "tree"
        tree.mkdir()
        for name, content in files.items():
            path = tree / _relative(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        image = folder / "ext4"
        create_flat(image, plan.partition.length)
        options = ["-q", "-F", "-b", str(BLOCK_BYTES), "-L", label, "-E", "root_owner=0:0"]
        _run("mkfs.ext4", *options, "-d", str(tree), str(image))
        for offset, content in plan.writes:
            disk.guest_write(offset, content)
        _write_image(disk, image, plan.partition.offset)
    found = FileSystem(layout=layout, partition=plan.partition)
    _save_note(disk, found)
    return found


def fill_from_image(
    disk: LabDisk, image: Path, *, layout: PartitionLayout | None = None
) -> FileSystem | None:
    """Write a whole raw image as the guest, from the disk's start; what it leaves out is discarded.

    ``layout``: how the image's one ext4 lies on it, so that its files can be changed afterwards; None:
    it is just bytes. Raises: OutOfRange when the image is larger than the disk.
    """
    if image.stat().st_size > disk.capacity_bytes:
        raise OutOfRange(f"{image.name} is larger than the disk")
    _write_image(disk, image, 0)
    if layout is None:
        return None
    found = FileSystem(layout=layout, partition=partitioned(layout, disk.capacity_bytes).partition)
    _save_note(disk, found)
    return found


def change_files(disk: LabDisk, files: Mapping[str, bytes | None]) -> list[Area]:
    """Write, replace or (None) delete files; the disk gets only the blocks that differ.

    Works on a copy of the ground truth. Directories are made as needed. Gives what was written.
    Raises: ToolMissing, StorageError, TruthUnknown (no file system was made here).
    """
    system = file_system(disk)
    with _workshop(disk) as folder:
        before, after = folder / "before", folder / "after"
        disk.truth(before)
        disk.truth(after)
        commands = []
        for number, (name, content) in enumerate(files.items()):
            path = PurePosixPath("/") / _relative(name)
            commands += [f"mkdir {_quoted(folder)}" for folder in list(path.parents)[-2::-1]]
            commands.append(f"rm {_quoted(path)}")
            if content is not None:
                source = folder / f"content-{number}"
                source.write_bytes(content)
                commands.append(f"write {_quoted(source)} {_quoted(path)}")
        script = folder / "commands"
        script.write_text("\n".join(commands) + "\n", encoding="utf-8")
        _run("debugfs", "-w", "-f", str(script), _at(after, system))
        for name, content in files.items():
            if _read_file(after, system, name, folder) != content:
                raise StorageError(f"debugfs did not write {name}")
        return _write_differences(disk, before, after)


def read_files(raw: Path, system: FileSystem, names: list[str]) -> dict[str, bytes | None]:
    """Contents of files on a raw disk image; None for one that is not there."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: _read_file(raw, system, name, Path(folder)) for name in names}


def is_clean(raw: Path, system: FileSystem) -> bool:
    """Does ``e2fsck -fn`` find nothing wrong in a raw disk image?"""
    result = _started("e2fsck", "-fn", _at(raw, system))
    return result.returncode == E2FSCK_CLEAN


def file_system(disk: LabDisk) -> FileSystem:
    """The file system that ``make_ext4`` put on a disk. Raises: TruthUnknown."""
    path = disk.guest_log_directory / NOTE_NAME
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TruthUnknown(f"no ext4 was made on {disk.base_name}") from error
    return FileSystem(
        layout=PartitionLayout(note["layout"]), partition=Area(note["offset"], note["length"])
    )


# -- inside ----------------------------------------------------------------------------------


@contextmanager
def _workshop(disk: LabDisk) -> Iterator[Path]:
    """A folder beside the guest log, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=disk.guest_log_directory) as folder:
        yield Path(folder)


def _save_note(disk: LabDisk, system: FileSystem) -> None:
    note = {
        "layout": system.layout.value,
        "offset": system.partition.offset,
        "length": system.partition.length,
    }
    (disk.guest_log_directory / NOTE_NAME).write_text(json.dumps(note), encoding="utf-8")


def _write_image(disk: LabDisk, image: Path, offset: int) -> None:
    """Write what the image holds; what the disk held there before is discarded, as mkfs does."""
    end = offset + image.stat().st_size
    with disk.reader_at(reason="mkfs") as old:
        held = list(old.allocated())
    for area in held:
        start, stop = max(area.offset, offset), min(area.end, end)
        if start < stop:
            disk.guest_discard(start, stop - start)
    with RawReader(image) as reader:
        for area in reader.allocated():
            for at, length in pieces(area):
                content = bytearray(length)
                reader.read_into(at, memoryview(content))
                disk.guest_write(offset + at, content)


def _write_differences(disk: LabDisk, before: Path, after: Path) -> list[Area]:
    written: list[Area] = []
    with RawReader(before) as old, RawReader(after) as new:
        for area in union(old.allocated(), new.allocated()):
            for at, length in pieces(area):
                one, other = bytearray(length), bytearray(length)
                old.read_into(at, memoryview(one))
                new.read_into(at, memoryview(other))
                if one != other:
                    written += _different_blocks(at, one, other)
        written = list(joined(written))
        for area in written:
            for at, length in pieces(area):
                content = bytearray(length)
                new.read_into(at, memoryview(content))
                disk.guest_write(at, content)
    return written


def _different_blocks(offset: int, one: bytearray, other: bytearray) -> list[Area]:
    found = []
    for start in range(0, len(one), BLOCK_BYTES):
        end = min(start + BLOCK_BYTES, len(one))
        if one[start:end] != other[start:end]:
            found.append(Area(offset + start, end - start))
    return found


def _read_file(raw: Path, system: FileSystem, name: str, folder: Path) -> bytes | None:
    path = PurePosixPath("/") / _relative(name)
    copy = folder / "dumped"
    copy.unlink(missing_ok=True)
    _run("debugfs", "-R", f"dump {_quoted(path)} {_quoted(copy)}", _at(raw, system))
    stat = _run("debugfs", "-R", f"stat {_quoted(path)}", _at(raw, system))
    if "Inode:" not in stat:
        return None
    return copy.read_bytes()


def _relative(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise StorageError(f"{name!r} is not a relative path within the file system")
    return path


def _quoted(path: PurePosixPath | Path) -> str:
    text = str(path)
    if '"' in text or "\n" in text:
        raise StorageError(f"{text!r} cannot be given to debugfs")
    return f'"{text}"'


def _at(raw: Path, system: FileSystem) -> str:
    """How e2fsprogs name a file system inside a larger file."""
    return f"{raw}?offset={system.partition.offset}"


def _run(program: str, *arguments: str) -> str:
    result = _started(program, *arguments)
    if result.returncode != 0:
        raise StorageError(f"{program} failed: {result.stderr.strip()[-500:]}")
    return result.stdout


def _started(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    search = os.environ.get("PATH", "") + os.pathsep + SYSTEM_PATHS
    found = shutil.which(program, path=search)
    if found is None:
        raise ToolMissing(f"{program} is not installed: apt-get install e2fsprogs")
    return subprocess.run(
        [found, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=TOOL_SECONDS_MAX,
        env={**os.environ, "LC_ALL": "C", "DEBUGFS_PAGER": "cat"},
        stdin=subprocess.DEVNULL,
    )

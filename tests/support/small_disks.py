"""Small real file systems, each in one file of a fixed size, and ballast that fills them to the last byte."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast_common.units import MIB

COMMAND_SECONDS_MAX = 120
_libc = ctypes.CDLL(None, use_errno=True)
_SMALL_FILES_MAX = 4096  # a file system whose small files need no blocks ends with its inodes


@dataclass(frozen=True)
class DiskKind:
    """A file system and how to make it. Nothing is kept for root: full is full, also for the tests."""

    make: tuple[str, ...]
    package: str
    capacity_bytes: int


KINDS: Mapping[str, DiskKind] = {
    "ext4": DiskKind(("mkfs.ext4", "-q", "-F", "-m", "0"), "e2fsprogs", 64 * MIB),
    "xfs": DiskKind(("mkfs.xfs", "-q", "-f"), "xfsprogs", 320 * MIB),
    "btrfs": DiskKind(("mkfs.btrfs", "-q", "-f"), "btrfs-progs", 128 * MIB),
}


@contextmanager
def small_disk(kind: str, folder: Path) -> Iterator[Path]:
    """A new one, mounted below ``folder``; unmounted, detached and removed at the end."""
    chosen = KINDS[kind]
    command = shutil.which(chosen.make[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("root with loop devices would run this")
    if command is None:
        pytest.skip(f"{chosen.make[0]} (Debian: {chosen.package}) would run this")
    file, mounted = folder / f"{kind}.disk", folder / kind
    mounted.mkdir()
    try:
        with file.open("wb") as disk:
            disk.truncate(chosen.capacity_bytes)
        _run(command, *chosen.make[1:], str(file))
        try:
            _run("mount", "-t", kind, "-o", "loop", str(file), str(mounted))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"a kernel with {kind} and loop devices would run this: {error.stderr}")
        try:
            yield mounted
        finally:
            _run("umount", str(mounted))  # which detaches the loop device as well
    finally:
        file.unlink(missing_ok=True)
        mounted.rmdir()


class Ballast:
    """What somebody else stores on the same disk."""

    def __init__(self, disk: Path) -> None:
        self._folder = disk / "ballast"
        self._folder.mkdir()
        self._files = 0

    def take(self, length: int) -> None:
        """That many bytes, or what there is."""
        try:
            descriptor = self._new_file()
        except OSError as error:
            _only_full(error)
            return
        try:
            step = min(MIB, max(length, 1))
            while length > 0 and step:
                try:
                    length -= os.write(descriptor, bytes(min(step, length)))
                except OSError as error:
                    _only_full(error)
                    step //= 4
            os.fsync(descriptor)
        except OSError as error:
            _only_full(error)
        finally:
            os.close(descriptor)

    def take_all(self) -> None:
        """Until a file of one byte does not fit any more."""
        self.take(1 << 40)
        for _ in range(_SMALL_FILES_MAX):
            try:
                self.take_one()
            except OSError as error:
                _only_full(error)
                return

    def take_one(self) -> None:
        """A file too long to lie in an inode. Raises: OSError."""
        descriptor = self._new_file()
        try:
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _new_file(self) -> int:
        self._files += 1
        path = self._folder / str(self._files)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def go(self) -> None:
        """Remove all of it."""
        for path in self._folder.iterdir():
            path.unlink()


def free_bytes(disk: Path) -> int:
    """What may be used, once all that was removed is really given back."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs")
        found = os.fstatvfs(descriptor)
    finally:
        os.close(descriptor)
    return found.f_bavail * found.f_frsize


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)


def _only_full(error: OSError) -> None:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error

"""The system calls of a repository in a directory, and nothing else: what `directory_store` stands on.

Every call that a crash could cut off goes through here, so tests record them, replay what a crash between
any two of them leaves, and let each of them fail. Failures are the operating system's own `OSError`.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from holdfast_common.direct_writes import SystemDirectCalls

_RENAME_NOREPLACE: Final = 1
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# ext2 to ext4, XFS, btrfs, tmpfs, ZFS: nobody but this machine's kernel changes them
_LOCAL: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x2FC12FC1})
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStatus:
    """What is known of a name without opening it; links are not followed."""

    length: int
    is_file: bool
    is_directory: bool
    modified_seconds: float  # since 1970


# of a directory: another text as soon as a name in it came or went, empty: not known; when it last changed
FolderStamp = tuple[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSpace:
    """Of a file system: what may still be used, and what there is."""

    free: int
    capacity: int


class FileSystem(Protocol):
    """Calls on descriptors, and on names below one: ``at`` is a directory's descriptor.

    Names are relative to it; only `open_directory` and `make_directory` go without. All raise OSError.
    """

    def open_directory(self, path: str, *, at: int | None = None, follow: bool = True) -> int:
        """A descriptor of a directory."""
        ...

    def open_file(self, path: str, *, at: int) -> int:
        """A descriptor of a file, for reading; a link is refused."""
        ...

    def create_file(self, path: str, *, at: int) -> int:
        """A descriptor of a new file, for writing; it must not exist."""
        ...

    def close(self, descriptor: int) -> None:
        """Give it back."""
        ...

    def write(self, descriptor: int, data: memoryview) -> int:
        """Append at the descriptor's position; how much of it was written."""
        ...

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write at an offset; how much of it was written."""
        ...

    def set_direct(self, descriptor: int, *, direct: bool) -> None:
        """Write past the page cache from now on, or through it."""
        ...

    def read_into(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        """Read from an offset; how much was read, 0 at the end."""
        ...

    def sync(self, descriptor: int) -> None:
        """Make a file's content, or a directory's names, durable."""
        ...

    def make_directory(self, path: str, *, at: int | None = None) -> None:
        """Make a directory for its owner alone; it must not exist."""
        ...

    def remove_directory(self, path: str, *, at: int | None = None) -> None:
        """Take an empty directory away."""
        ...

    def rename(self, source: str, target: str, *, at: int) -> None:
        """Move a name, never over another one."""
        ...

    def link(self, source: str, target: str, *, at: int) -> None:
        """Give a file a second name, which must not exist."""
        ...

    def unlink(self, path: str, *, at: int) -> None:
        """Take a file's name away."""
        ...

    def status(self, path: str, *, at: int) -> FileStatus:
        """Of a name."""
        ...

    def length(self, descriptor: int) -> int:
        """Of an open file."""
        ...

    def names(self, descriptor: int) -> Sequence[tuple[str, bool]]:
        """What a directory holds, in any order, each with whether it is a directory."""
        ...

    def folder_stamps(self, descriptor: int, names: Sequence[str]) -> Sequence[FolderStamp]:
        """Of directories in one; a network file system is made to ask its server."""
        ...

    def space(self, descriptor: int) -> FreeSpace:
        """Of the file system on which a descriptor lies."""
        ...

    def sync_all(self, descriptor: int) -> None:
        """Everything on the file system of a descriptor; removed files give their room back then."""
        ...


class SystemFiles(SystemDirectCalls):
    """The operating system's calls (`pwrite` and `set_direct` are `SystemDirectCalls`')."""

    def open_directory(self, path: str, *, at: int | None = None, follow: bool = True) -> int:
        """The call openat."""
        return os.open(path, _DIRECTORY | (0 if follow else os.O_NOFOLLOW), dir_fd=at)

    def open_file(self, path: str, *, at: int) -> int:
        """The call openat."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=at)

    def create_file(self, path: str, *, at: int) -> int:
        """The call openat."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(path, flags, 0o600, dir_fd=at)

    def close(self, descriptor: int) -> None:
        """The call close."""
        os.close(descriptor)

    def write(self, descriptor: int, data: memoryview) -> int:
        """The call write."""
        return os.write(descriptor, data)

    def read_into(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        """The call preadv."""
        return os.preadv(descriptor, [buffer], offset)

    def sync(self, descriptor: int) -> None:
        """The call fsync."""
        os.fsync(descriptor)

    def make_directory(self, path: str, *, at: int | None = None) -> None:
        """The call mkdirat."""
        os.mkdir(path, mode=0o700, dir_fd=at)

    def remove_directory(self, path: str, *, at: int | None = None) -> None:
        """The call unlinkat."""
        os.rmdir(path, dir_fd=at)

    def rename(self, source: str, target: str, *, at: int) -> None:
        """The call renameat2."""
        result = _libc.renameat2(at, source.encode(), at, target.encode(), _RENAME_NOREPLACE)
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def link(self, source: str, target: str, *, at: int) -> None:
        """The call linkat."""
        os.link(source, target, src_dir_fd=at, dst_dir_fd=at)

    def unlink(self, path: str, *, at: int) -> None:
        """The call unlinkat."""
        os.unlink(path, dir_fd=at)

    def status(self, path: str, *, at: int) -> FileStatus:
        """The call newfstatat."""
        found = os.stat(path, dir_fd=at, follow_symlinks=False)
        return FileStatus(
            length=found.st_size,
            is_file=stat.S_ISREG(found.st_mode),
            is_directory=stat.S_ISDIR(found.st_mode),
            modified_seconds=found.st_mtime,
        )

    def length(self, descriptor: int) -> int:
        """The call newfstatat."""
        return os.fstat(descriptor).st_size

    def names(self, descriptor: int) -> Sequence[tuple[str, bool]]:
        """The call getdents64."""
        with os.scandir(descriptor) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]

    def folder_stamps(self, descriptor: int, names: Sequence[str]) -> Sequence[FolderStamp]:
        """The call newfstatat; openat before it, and close, where another machine may change the names."""
        is_local = _type_of(descriptor) in _LOCAL
        found = []
        for name in names:
            if is_local:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            else:
                folder = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                try:
                    status = os.fstat(folder)
                finally:
                    os.close(folder)
            stamp = f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}:{status.st_ctime_ns}"
            found.append((stamp, status.st_mtime))
        return found

    def space(self, descriptor: int) -> FreeSpace:
        """The call fstatvfs."""
        found = os.fstatvfs(descriptor)
        return FreeSpace(
            free=found.f_bavail * found.f_frsize, capacity=found.f_blocks * found.f_frsize
        )

    def sync_all(self, descriptor: int) -> None:
        """The call syncfs."""
        if _libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _type_of(descriptor: int) -> int:
    """The number of a file system's type, statfs(2); 0 when it cannot be told."""
    found = (ctypes.c_long * 32)()  # struct statfs, which begins with the type, has 120 bytes
    return 0 if _libc.fstatfs64(descriptor, ctypes.byref(found)) else found[0]


SYSTEM_FILES: Final = SystemFiles()

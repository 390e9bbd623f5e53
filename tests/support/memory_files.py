"""A file system in memory behind the port of `DirectoryStore`, made from an image and turned into one.

An image is what a disk holds: directories, and files with their bytes. Contents are shared between images
and never changed in place, so thousands of them cost little.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast_common.repository.file_system import FileStatus, FolderStamp, FreeSpace

CAPACITY = 1 << 40
MODIFIED_SECONDS = 1_772_000_000.0  # in 2026


@dataclass(frozen=True)
class Image:
    """Absolute paths. Two images are equal when a program could not tell them apart."""

    directories: frozenset[str]
    files: Mapping[str, bytes]


def in_2026() -> float:
    """Where no test cares for the time."""
    return MODIFIED_SECONDS


@dataclass
class _File:
    data: bytes | bytearray
    modified_seconds: float


@dataclass
class _Open:
    path: str
    file: _File | None = None
    position: int = 0


@dataclass
class MemoryFiles:
    """Keeps the calls' rules as Linux does: who must exist, who must not. One thread at a time."""

    directories: dict[str, set[str]] = field(default_factory=lambda: {"/": set()})
    files: dict[str, _File] = field(default_factory=dict)
    free: int = CAPACITY
    now: Callable[[], float] = in_2026
    _open: dict[int, _Open] = field(default_factory=dict)
    _next: int = 1000

    @classmethod
    def of(cls, image: Image, *, now: Callable[[], float] = in_2026) -> MemoryFiles:
        """A disk with these files, all of now."""
        made = cls(now=now)
        moment = now()
        for directory in image.directories:
            made.directories.setdefault(directory, set())
        for directory in image.directories - {"/"}:
            parent, name = _split(directory)
            made.directories[parent].add(name)
        for path, data in image.files.items():
            parent, name = _split(path)
            made.directories[parent].add(name)
            made.files[path] = _File(data, moment)
        return made

    def image(self) -> Image:
        """What lies on the disk now."""
        return Image(
            directories=frozenset(self.directories),
            files={path: bytes(file.data) for path, file in self.files.items()},
        )

    def path_of(self, descriptor: int) -> str:
        """The name under which it was opened."""
        return self._found(descriptor).path

    def resolved(self, path: str, at: int | None) -> str:
        """The absolute path."""
        if at is None or path.startswith("/"):
            return path
        base = self._found(at).path
        return base if path == "." else f"{base.rstrip('/')}/{path}"

    def open_directory(self, path: str, *, at: int | None = None, follow: bool = True) -> int:
        name = self.resolved(path, at)
        if name in self.files:
            raise _error(errno.ENOTDIR)
        if name not in self.directories:
            raise _error(errno.ENOENT)
        return self._opened(_Open(name))

    def open_file(self, path: str, *, at: int) -> int:
        name = self.resolved(path, at)
        if name in self.directories:
            raise _error(errno.EISDIR)
        if name not in self.files:
            raise _error(errno.ENOENT)
        return self._opened(_Open(name, self.files[name]))

    def create_file(self, path: str, *, at: int) -> int:
        name = self.resolved(path, at)
        self._add(name)
        self.files[name] = _File(bytearray(), self.now())
        return self._opened(_Open(name, self.files[name]))

    def close(self, descriptor: int) -> None:
        self._found(descriptor)
        del self._open[descriptor]

    def write(self, descriptor: int, data: memoryview) -> int:
        found = self._found(descriptor)
        count = self.pwrite(descriptor, data, found.position)
        found.position += count
        return count

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        file = self._found(descriptor).file
        if file is None:
            raise _error(errno.EBADF)
        content = bytearray(file.data) if isinstance(file.data, bytes) else file.data
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        file.data = content
        file.modified_seconds = self.now()
        return len(data)

    def set_direct(self, descriptor: int, *, direct: bool) -> None:
        self._found(descriptor)

    def read_into(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        file = self._found(descriptor).file
        if file is None:
            raise _error(errno.EISDIR)
        piece = file.data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def sync(self, descriptor: int) -> None:
        self._found(descriptor)

    def make_directory(self, path: str, *, at: int | None = None) -> None:
        name = self.resolved(path, at)
        self._add(name)
        self.directories[name] = set()

    def remove_directory(self, path: str, *, at: int | None = None) -> None:
        name = self.resolved(path, at)
        if self.directories.get(name):
            raise _error(errno.ENOTEMPTY)
        if name not in self.directories:
            raise _error(errno.ENOENT)
        del self.directories[name]
        parent, last = _split(name)
        self.directories[parent].discard(last)

    def rename(self, source: str, target: str, *, at: int) -> None:
        self.link(source, target, at=at)
        self.unlink(source, at=at)

    def link(self, source: str, target: str, *, at: int) -> None:
        old = self.resolved(source, at)
        if old not in self.files:
            raise _error(errno.ENOENT)
        new = self.resolved(target, at)
        self._add(new)
        self.files[new] = self.files[old]

    def unlink(self, path: str, *, at: int) -> None:
        name = self.resolved(path, at)
        if name in self.directories:
            raise _error(errno.EISDIR)
        if name not in self.files:
            raise _error(errno.ENOENT)
        del self.files[name]
        parent, last = _split(name)
        self.directories[parent].discard(last)

    def status(self, path: str, *, at: int) -> FileStatus:
        name = self.resolved(path, at)
        if name not in self.directories and name not in self.files:
            raise _error(errno.ENOENT)
        file = self.files.get(name)
        return FileStatus(
            length=len(file.data) if file is not None else 4096,
            is_file=file is not None,
            is_directory=file is None,
            modified_seconds=file.modified_seconds if file is not None else MODIFIED_SECONDS,
        )

    def length(self, descriptor: int) -> int:
        file = self._found(descriptor).file
        return len(file.data) if file is not None else 4096

    def names(self, descriptor: int) -> Sequence[tuple[str, bool]]:
        path = self._found(descriptor).path
        base = path.rstrip("/")
        return [(name, f"{base}/{name}" in self.directories) for name in self.directories[path]]

    def folder_stamps(self, descriptor: int, names: Sequence[str]) -> Sequence[FolderStamp]:
        return [("", self.status(name, at=descriptor).modified_seconds) for name in names]

    def space(self, descriptor: int) -> FreeSpace:
        return FreeSpace(free=self.free, capacity=CAPACITY)

    def sync_all(self, descriptor: int) -> None:
        self._found(descriptor)

    def open_descriptors(self) -> Iterator[str]:
        """Names of what is still open."""
        return iter([each.path for each in self._open.values()])

    def _opened(self, entry: _Open) -> int:
        self._next += 1
        self._open[self._next] = entry
        return self._next

    def _found(self, descriptor: int) -> _Open:
        if descriptor not in self._open:
            raise _error(errno.EBADF)
        return self._open[descriptor]

    def _add(self, path: str) -> None:
        parent, name = _split(path)
        if parent not in self.directories:
            raise _error(errno.ENOENT)
        if name in self.directories[parent]:
            raise _error(errno.EEXIST)
        self.directories[parent].add(name)


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent or "/", name


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))

"""Writes down, beneath the production store, every system call that changes a disk, in its order.

What is written down is what `strace -f` shows of the same run; `tests/common/repository/test_recording.py`
compares both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from holdfast_common.repository.file_system import FileStatus, FileSystem, FolderStamp, FreeSpace


class Call(StrEnum):
    """What changes a disk, and a mark of our own."""

    CREATE = "create"
    WRITE = "write"
    PWRITE = "pwrite"
    SYNC_FILE = "sync file"
    SYNC_DIRECTORY = "sync directory"
    MAKE_DIRECTORY = "mkdir"
    REMOVE_DIRECTORY = "rmdir"
    RENAME = "rename"
    LINK = "link"
    UNLINK = "unlink"
    MARK = "mark"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One call that succeeded. ``path``: of a descriptor, the name under which it was opened.

    ``inode`` numbers files by their creation. A mark's ``path`` is what was promised at that moment.
    """

    call: Call
    path: str
    target: str = ""
    inode: int = 0
    offset: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        told = f"{self.call} {self.path}"
        if self.target:
            told += f" -> {self.target}"
        return f"{told} [{self.offset}, +{len(self.data)})" if self.data else told


@dataclass
class _Handle:
    path: str
    inode: int = 0  # 0: a directory
    position: int = 0


class RecordingFiles:
    """Passes every call on. ``before`` is called ahead of each one that changes the disk."""

    def __init__(
        self, inner: FileSystem, *, before: Callable[[], None] = lambda: None, first_inode: int = 1
    ) -> None:
        self._inner = inner
        self._before = before
        self._handles: dict[int, _Handle] = {}
        self._inodes: dict[str, int] = {}
        self._next_inode = first_inode
        self.log: list[Recorded] = []

    def mark(self, text: str) -> None:
        """Note that something was promised now."""
        self.log.append(Recorded(call=Call.MARK, path=text))

    def inode_of(self, path: str) -> int:
        """The number of a file; one that was there before gets one when it is asked for."""
        if path not in self._inodes:
            self._inodes[path] = self._next_inode
            self._next_inode += 1
        return self._inodes[path]

    def open_directory(self, path: str, *, at: int | None = None, follow: bool = True) -> int:
        descriptor = self._inner.open_directory(path, at=at, follow=follow)
        self._handles[descriptor] = _Handle(self._resolved(path, at))
        return descriptor

    def open_file(self, path: str, *, at: int) -> int:
        descriptor = self._inner.open_file(path, at=at)
        name = self._resolved(path, at)
        self._handles[descriptor] = _Handle(name, self.inode_of(name))
        return descriptor

    def create_file(self, path: str, *, at: int) -> int:
        self._before()
        descriptor = self._inner.create_file(path, at=at)
        name = self._resolved(path, at)
        inode = self.inode_of(name)
        self._handles[descriptor] = _Handle(name, inode)
        self.log.append(Recorded(call=Call.CREATE, path=name, inode=inode))
        return descriptor

    def close(self, descriptor: int) -> None:
        self._inner.close(descriptor)
        del self._handles[descriptor]

    def write(self, descriptor: int, data: memoryview) -> int:
        self._before()
        handle = self._handles[descriptor]
        count = self._inner.write(descriptor, data)
        self._note_data(Call.WRITE, handle, handle.position, data[:count])
        handle.position += count
        return count

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        self._before()
        count = self._inner.pwrite(descriptor, data, offset)
        self._note_data(Call.PWRITE, self._handles[descriptor], offset, data[:count])
        return count

    def set_direct(self, descriptor: int, *, direct: bool) -> None:
        self._inner.set_direct(descriptor, direct=direct)

    def read_into(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        return self._inner.read_into(descriptor, buffer, offset)

    def sync(self, descriptor: int) -> None:
        self._before()
        self._inner.sync(descriptor)
        handle = self._handles[descriptor]
        call = Call.SYNC_FILE if handle.inode else Call.SYNC_DIRECTORY
        self.log.append(Recorded(call=call, path=handle.path, inode=handle.inode))

    def make_directory(self, path: str, *, at: int | None = None) -> None:
        self._before()
        self._inner.make_directory(path, at=at)
        self.log.append(Recorded(call=Call.MAKE_DIRECTORY, path=self._resolved(path, at)))

    def remove_directory(self, path: str, *, at: int | None = None) -> None:
        self._before()
        self._inner.remove_directory(path, at=at)
        self.log.append(Recorded(call=Call.REMOVE_DIRECTORY, path=self._resolved(path, at)))

    def rename(self, source: str, target: str, *, at: int) -> None:
        self._before()
        self._inner.rename(source, target, at=at)
        self._note_names(Call.RENAME, source, target, at)
        del self._inodes[self._resolved(source, at)]

    def link(self, source: str, target: str, *, at: int) -> None:
        self._before()
        self._inner.link(source, target, at=at)
        self._note_names(Call.LINK, source, target, at)

    def unlink(self, path: str, *, at: int) -> None:
        self._before()
        self._inner.unlink(path, at=at)
        name = self._resolved(path, at)
        self.log.append(Recorded(call=Call.UNLINK, path=name, inode=self.inode_of(name)))
        del self._inodes[name]

    def status(self, path: str, *, at: int) -> FileStatus:
        return self._inner.status(path, at=at)

    def length(self, descriptor: int) -> int:
        return self._inner.length(descriptor)

    def names(self, descriptor: int) -> Sequence[tuple[str, bool]]:
        return self._inner.names(descriptor)

    def folder_stamps(self, descriptor: int, names: Sequence[str]) -> Sequence[FolderStamp]:
        return self._inner.folder_stamps(descriptor, names)

    def space(self, descriptor: int) -> FreeSpace:
        return self._inner.space(descriptor)

    def sync_all(self, descriptor: int) -> None:
        self._inner.sync_all(descriptor)

    def _note_names(self, call: Call, source: str, target: str, at: int) -> None:
        old, new = self._resolved(source, at), self._resolved(target, at)
        inode = self.inode_of(old)
        self._inodes[new] = inode
        self.log.append(Recorded(call=call, path=old, target=new, inode=inode))

    def _note_data(self, call: Call, handle: _Handle, offset: int, data: memoryview) -> None:
        self.log.append(
            Recorded(
                call=call, path=handle.path, inode=handle.inode, offset=offset, data=bytes(data)
            )
        )

    def _resolved(self, path: str, at: int | None) -> str:
        if at is None or path.startswith("/"):
            return path
        base = self._handles[at].path
        return base if path == "." else f"{base.rstrip('/')}/{path}"

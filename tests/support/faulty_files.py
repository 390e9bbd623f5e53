"""Files of which the N-th call fails, beneath the production store: as disks, full disks and slow mounts do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from holdfast_common.repository.file_system import FileStatus, FileSystem, FolderStamp, FreeSpace

T = TypeVar("T")


class FaultKind(StrEnum):
    """What a call does instead."""

    IO_ERROR = "EIO"
    FULL = "ENOSPC"
    SHORT = "short"  # half of the bytes, and no error
    SLOW = "slow"  # longer than a lease lives
    REPLY_LOST = "reply lost"  # done, and then an error


@dataclass(frozen=True)
class CallFault:
    """``number``: which of the calls that can fail in this way, from 0; ``persistent``: all later ones too."""

    kind: FaultKind
    number: int
    persistent: bool = False

    def __str__(self) -> str:
        return f"{self.kind} from call {self.number}{' on' if self.persistent else ''}"


_BYTES = frozenset({"write", "pwrite", "read_into"})
_NEED_SPACE = frozenset(
    {"create_file", "write", "pwrite", "sync", "make_directory", "rename", "link"}
)
_CHANGING = _NEED_SPACE | {"unlink", "remove_directory"}


class FaultyFiles:
    """Wraps files. ``slow`` is called for a call that takes long; ``hit`` says at which call a fault came."""

    def __init__(self, inner: FileSystem, fault: CallFault, *, slow: Callable[[], None]) -> None:
        self._inner = inner
        self._fault = fault
        self._slow = slow
        self._calls = 0
        self.hit = ""

    def open_directory(self, path: str, *, at: int | None = None, follow: bool = True) -> int:
        return self._call(
            "open_directory",
            path,
            lambda: self._inner.open_directory(path, at=at, follow=follow),
            undo=self._inner.close,
        )

    def open_file(self, path: str, *, at: int) -> int:
        return self._call(
            "open_file", path, lambda: self._inner.open_file(path, at=at), undo=self._inner.close
        )

    def create_file(self, path: str, *, at: int) -> int:
        return self._call(
            "create_file",
            path,
            lambda: self._inner.create_file(path, at=at),
            undo=self._inner.close,
        )

    def close(self, descriptor: int) -> None:
        self._inner.close(descriptor)

    def write(self, descriptor: int, data: memoryview) -> int:
        piece = self._shortened("write", data)
        return self._call("write", "", lambda: self._inner.write(descriptor, piece))

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        piece = self._shortened("pwrite", data)
        return self._call("pwrite", "", lambda: self._inner.pwrite(descriptor, piece, offset))

    def set_direct(self, descriptor: int, *, direct: bool) -> None:
        self._inner.set_direct(descriptor, direct=direct)

    def read_into(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        piece = self._shortened("read_into", buffer)
        return self._call("read_into", "", lambda: self._inner.read_into(descriptor, piece, offset))

    def sync(self, descriptor: int) -> None:
        self._call("sync", "", lambda: self._inner.sync(descriptor))

    def make_directory(self, path: str, *, at: int | None = None) -> None:
        self._call("make_directory", path, lambda: self._inner.make_directory(path, at=at))

    def remove_directory(self, path: str, *, at: int | None = None) -> None:
        self._call("remove_directory", path, lambda: self._inner.remove_directory(path, at=at))

    def rename(self, source: str, target: str, *, at: int) -> None:
        self._call("rename", target, lambda: self._inner.rename(source, target, at=at))

    def link(self, source: str, target: str, *, at: int) -> None:
        self._call("link", target, lambda: self._inner.link(source, target, at=at))

    def unlink(self, path: str, *, at: int) -> None:
        self._call("unlink", path, lambda: self._inner.unlink(path, at=at))

    def status(self, path: str, *, at: int) -> FileStatus:
        return self._call("status", path, lambda: self._inner.status(path, at=at))

    def length(self, descriptor: int) -> int:
        return self._call("length", "", lambda: self._inner.length(descriptor))

    def names(self, descriptor: int) -> Sequence[tuple[str, bool]]:
        return self._call("names", "", lambda: self._inner.names(descriptor))

    def folder_stamps(self, descriptor: int, names: Sequence[str]) -> Sequence[FolderStamp]:
        return self._call("folder_stamps", "", lambda: self._inner.folder_stamps(descriptor, names))

    def space(self, descriptor: int) -> FreeSpace:
        return self._call("space", "", lambda: self._inner.space(descriptor))

    def sync_all(self, descriptor: int) -> None:
        self._call("sync_all", "", lambda: self._inner.sync_all(descriptor))

    def fail_from_now_on(self) -> None:
        """Every later call is hit."""
        self._fault = replace(self._fault, number=self._calls, persistent=True)

    def _can_fail(self, call: str) -> bool:
        kind = self._fault.kind
        if kind is FaultKind.SHORT:
            return call in _BYTES
        if kind is FaultKind.FULL:
            return call in _NEED_SPACE
        return kind is not FaultKind.REPLY_LOST or call in _CHANGING

    def _is_hit(self, call: str, what: str) -> bool:
        if not self._can_fail(call):
            return False
        number = self._calls
        self._calls += 1
        fault = self._fault
        if number == fault.number or (fault.persistent and number > fault.number):
            self.hit = self.hit or f"{call} {what}"
            return True
        return False

    def _shortened(self, call: str, data: memoryview) -> memoryview:
        if self._fault.kind is FaultKind.SHORT and len(data) > 1 and self._is_hit(call, ""):
            return data[: len(data) // 2]
        return data

    def _call(
        self, call: str, what: str, act: Callable[[], T], *, undo: Callable[[T], None] | None = None
    ) -> T:
        kind = self._fault.kind
        if kind is FaultKind.SHORT or not self._is_hit(call, what):
            return act()
        if kind is FaultKind.SLOW:
            self._slow()
            return act()
        if kind is FaultKind.REPLY_LOST:
            done = act()
            if undo is not None:
                undo(done)
        raise _error(errno.ENOSPC if kind is FaultKind.FULL else errno.EIO)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))

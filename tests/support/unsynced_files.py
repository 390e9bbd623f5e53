"""Files of which it is known what the disk has: what a power cut leaves is what was synced, and nothing else.

A sync may fail. Then Linux calls the pages clean all the same: what was to be written is dropped, everybody
still reads it, and the next sync succeeds.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from enum import StrEnum

from support.memory_files import Image


class SyncFailure(StrEnum):
    """What a failed sync leaves behind."""

    LATER = "EIO, and the next sync writes it"
    DROPPED = "EIO, and what was to be written is dropped"


@dataclass(frozen=True)
class SyncFault:
    """``number``: which sync fails, of a file or a directory, from 0; ``persistent``: all later ones too."""

    failure: SyncFailure
    number: int
    persistent: bool = False

    def __str__(self) -> str:
        return f"{self.failure}, from sync {self.number}{' on' if self.persistent else ''}"


@dataclass(eq=False)
class Node:
    """A file or a directory, as everybody sees it and as it is on the disk."""

    is_directory: bool
    modified_seconds: float
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, Node] = field(default_factory=dict)
    on_disk: bytearray = field(default_factory=bytearray)
    names_on_disk: dict[str, Node] = field(default_factory=dict)
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)
    unsynced_names: list[tuple[str, Node | None]] = field(default_factory=list)  # None: taken away

    def sync(self) -> None:
        for offset, data in self.unsynced:
            self.on_disk.extend(bytes(max(0, offset - len(self.on_disk))))
            self.on_disk[offset : offset + len(data)] = data
        for name, node in self.unsynced_names:
            if node is None:
                self.names_on_disk.pop(name, None)
            else:
                self.names_on_disk[name] = node
        self.unsynced, self.unsynced_names = [], []

    def drop(self) -> None:
        """Nobody writes it any more: of a file the blocks are there, without their content.

        Names that went are gone with the next sync: what came back would be garbage already.
        """
        self.unsynced = [(offset, bytes(len(data))) for offset, data in self.unsynced]
        self.unsynced_names = [(name, node) for name, node in self.unsynced_names if node is None]


class UnsyncedFiles:
    """The calls of a file system, on absolute paths. One at a time. All raise OSError."""

    def __init__(self) -> None:
        self.root = Node(is_directory=True, modified_seconds=0.0)
        self.fault: SyncFault | None = None
        self.syncs = 0
        self.hit = ""

    def load(self, image: Image, *, top: str, now: float) -> None:
        """Lay an image below a new directory, all of it on the disk already."""
        base = Node(is_directory=True, modified_seconds=now)
        made = {"/": base}
        for path in sorted({*image.directories, *image.files} - {"/"}):
            node = Node(is_directory=path in image.directories, modified_seconds=now)
            if path in image.files:
                node.data = bytearray(image.files[path])
                node.on_disk = bytearray(image.files[path])
            parent, _, name = path.rpartition("/")
            made[path] = made[parent or "/"].names[name] = node
            made[parent or "/"].names_on_disk[name] = node
        self.root.names[top] = base

    def image(self, top: str, *, on_disk: bool) -> Image:
        """What lies below a directory: as everybody sees it, or after a power cut."""
        directories, files = {"/"}, {}
        waiting = [("", self.root.names[top])]
        while waiting:
            path, node = waiting.pop()
            for name, child in (node.names_on_disk if on_disk else node.names).items():
                below = f"{path}/{name}"
                if child.is_directory:
                    directories.add(below)
                    waiting.append((below, child))
                else:
                    files[below] = bytes(child.on_disk if on_disk else child.data)
        return Image(directories=frozenset(directories), files=files)

    def unload(self, top: str) -> None:
        """Forget what lies below."""
        del self.root.names[top]

    def find(self, path: str) -> Node:
        node = self.root
        for name in path.split("/"):
            if name:
                if name not in node.names:
                    raise _error(errno.ENOENT)
                node = node.names[name]
        return node

    def make(self, path: str, *, is_directory: bool, now: float) -> Node:
        node = Node(is_directory=is_directory, modified_seconds=now)
        self._name(path, node)
        return node

    def write(self, node: Node, data: bytes, offset: int, *, now: float) -> None:
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + len(data)] = data
        node.unsynced.append((offset, data))
        node.modified_seconds = now

    def rename(self, source: str, target: str) -> None:
        node = self.find(source)
        self._name(target, node)
        self._take(source)

    def link(self, source: str, target: str) -> None:
        self._name(target, self.find(source))

    def unlink(self, path: str) -> None:
        self._take(path)

    def remove_directory(self, path: str) -> None:
        if self.find(path).names:
            raise _error(errno.ENOTEMPTY)
        self._take(path)

    def sync(self, node: Node, path: str) -> None:
        number, fault = self.syncs, self.fault
        self.syncs += 1
        if fault is None or number < fault.number:
            node.sync()
            return
        if number > fault.number and not fault.persistent:
            node.sync()
            return
        self.hit = self.hit or f"sync {number} of {path}"
        if fault.failure is SyncFailure.DROPPED:
            node.drop()
        raise _error(errno.EIO)

    def _name(self, path: str, node: Node) -> None:
        parent, name = self._parent(path)
        if name in parent.names:
            raise _error(errno.EEXIST)
        parent.names[name] = node
        parent.unsynced_names.append((name, node))

    def _take(self, path: str) -> None:
        parent, name = self._parent(path)
        if name not in parent.names:
            raise _error(errno.ENOENT)
        del parent.names[name]
        parent.unsynced_names.append((name, None))

    def _parent(self, path: str) -> tuple[Node, str]:
        directory, _, name = path.rpartition("/")
        return self.find(directory), name


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))

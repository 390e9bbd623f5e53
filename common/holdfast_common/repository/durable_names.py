"""Names that are on the disk when a call returns: of new objects, of what others put, of what is removed.

Below `directory_store`. Every path is relative to a descriptor of the root. All methods raise OSError.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable
from typing import Final

from holdfast_common.repository.file_system import FileSystem

_NO_RENAMEAT2: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
_ATTEMPTS_MAX: Final = (
    3  # somebody takes an empty directory away between its making and its first file
)
# Each writer makes one below these; emptied they would stay for ever.
_SHORT_LIVED: Final = ("leases/",)


class DurableNames:
    """Safe for several threads."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._known: set[str] = set()  # directories whose names are on the disk

    def publish(self, temporary: str, name: str, *, at: int) -> None:
        """Move a synced file to its name, never over another one."""
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            self._make_directories(name, at=at)
            try:
                self._move(temporary, name, at=at)
                return
            except FileNotFoundError:
                if attempt == _ATTEMPTS_MAX:
                    raise
                with self._lock:
                    self._known -= set(_directories(name))

    def confirm(self, names: Iterable[str], *, at: int) -> None:
        """Make durable what is seen: whoever put it may have died before it was."""
        directories: set[str] = set()
        parents: set[str] = set()
        for name in names:
            descriptor = self._files.open_file(name, at=at)
            try:
                self._files.sync(descriptor)
            finally:
                self._files.close(descriptor)
            directories.update(_directories(name))
            parents.add(_parent(name))
        for directory in sorted(directories):  # those above come first
            self._confirm_directory(directory, at=at)
        for directory in sorted(parents):
            self._sync(directory, at=at)

    def remove(self, name: str, *, at: int) -> None:
        """Take an object's name away, and an emptied directory that no other writer will use."""
        self._files.unlink(name, at=at)
        parent = _parent(name)
        self._sync(parent, at=at)
        if parent.startswith(_SHORT_LIVED):
            self.remove_if_empty(parent, at=at)

    def remove_if_empty(self, directory: str, *, at: int) -> None:
        """Harmless when it is not, or is gone. Who makes a file in it just now makes it again.

        What a crash brings back is an empty directory: what was in it went, and that was synced, before.
        """
        with contextlib.suppress(OSError):
            self._files.remove_directory(directory, at=at)
        with self._lock:
            self._known.discard(directory)

    def _move(self, temporary: str, name: str, *, at: int) -> None:
        is_second_name = False
        try:
            self._files.rename(temporary, name, at=at)
        except OSError as error:
            if error.errno not in _NO_RENAMEAT2:
                raise
            self._files.link(temporary, name, at=at)
            is_second_name = True
        self._sync_name(name, undo=self._files.unlink, at=at)
        if is_second_name:
            # only now: an error here must not leave a name that is seen and not on the disk
            with contextlib.suppress(OSError):  # the sweep of temporary files removes it later
                self._files.unlink(temporary, at=at)

    def _make_directories(self, name: str, *, at: int) -> None:
        for directory in _directories(name):
            with self._lock:
                if directory in self._known:
                    continue
            is_new = make_directory(self._files, directory, at=at)
            # also when it was there: whoever made it may have crashed before the sync
            self._sync_name(directory, undo=self._files.remove_directory if is_new else None, at=at)
            with self._lock:
                self._known.add(directory)

    def _confirm_directory(self, directory: str, *, at: int) -> None:
        with self._lock:
            if directory in self._known:
                return
        self._sync(_parent(directory), at=at)
        with self._lock:
            self._known.add(directory)

    def _sync_name(self, name: str, *, undo: Callable[..., None] | None, at: int) -> None:
        """Make a new name durable, or take it back. ``undo``: None: it is not ours."""
        try:
            self._sync(_parent(name), at=at)
        except OSError:
            if undo is not None:
                withdraw(undo, name, at=at)
            raise

    def _sync(self, directory: str, *, at: int) -> None:
        descriptor = self._files.open_directory(directory or ".", at=at)
        try:
            self._files.sync(descriptor)
        finally:
            self._files.close(descriptor)


def make_directory(files: FileSystem, path: str, *, at: int | None = None) -> bool:
    """Whether it was not there before."""
    try:
        files.make_directory(path, at=at)
    except FileExistsError:
        return False
    return True


def withdraw(remove: Callable[..., None], name: str, *, at: int | None = None) -> None:
    """Take a name back whose sync failed; as long as it is seen, others build on what no disk may have.

    A kernel drops what it could not write, and calls the next sync a success.
    """
    with contextlib.suppress(OSError):
        remove(name, at=at)


def _directories(name: str) -> list[str]:
    """Those above it, the outermost first."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _parent(name: str) -> str:
    return name.rpartition("/")[0]

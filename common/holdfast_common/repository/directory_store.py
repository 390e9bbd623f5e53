"""A repository in a directory. An object appears under its name at once, durable, and never changes.

Everything is reached relative to one descriptor of the root, taken when the store is opened: when the
file system is unmounted meanwhile, nothing is written to what lay below its mount point.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from holdfast_common.direct_writes import DirectWrites
from holdfast_common.errors import (
    HoldfastError,
    IntegrityError,
    NoRepository,
    ObjectExists,
    ObjectMissing,
    Refused,
    RepositoryFailed,
    RepositoryFull,
)
from holdfast_common.repository.object_store import ObjectInfo, checked_name, checked_prefix
from holdfast_common.units import MIB

TEMPORARY_DIRECTORY: Final = "tmp"
TOP_DIRECTORIES: Final = (
    "keys", "writers", "packs", "index", "maps", "points", "fences", "leases", "proofs", "about", TEMPORARY_DIRECTORY,
)  # fmt: skip
TEMPORARY_AGE_MAX: Final = timedelta(hours=96)  # no attempt lives longer
RESERVE_BYTES_MAX: Final = 192 * MIB  # a pack, its index and 64 MiB: enough to finish a commit
RESERVE_SHARE: Final = 10  # but never more than a tenth of a small file system
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RENAMEAT2: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
_RENAME_NOREPLACE: Final = 1
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryStore:
    """Objects as files below one directory. Close it, or use it as a context."""

    def __init__(self, root: Path, *, root_descriptor: int) -> None:
        self.root = root
        self._root = root_descriptor
        self._lock = threading.Lock()
        self._known_directories: set[str] = set()

    @classmethod
    def create(cls, root: Path) -> DirectoryStore:
        """Make the directory (its parent must exist) and what every repository has in it.

        Raises: Refused when something else lies there; RepositoryFull, RepositoryFailed.
        """
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            strangers = sorted(
                {path.name for path in root.iterdir()} - {*TOP_DIRECTORIES, "lost+found"}
            )
            if strangers:
                raise Refused("the directory is not empty", path=str(root), found=strangers[0])
            for name in TOP_DIRECTORIES:
                (root / name).mkdir(mode=0o700, exist_ok=True)
            for path in (root, root.parent):
                descriptor = os.open(path, _DIRECTORY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise _translated(error, name=str(root)) from error
        return cls.open(root)

    @classmethod
    def open(cls, root: Path) -> DirectoryStore:
        """Open what `create` made; makes nothing. Raises: NoRepository, RepositoryFailed."""
        try:
            descriptor = os.open(root, _DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoRepository("there is no such directory", path=str(root)) from error
        except OSError as error:
            raise _translated(error, name=str(root)) from error
        store = cls(root, root_descriptor=descriptor)
        try:
            for name in ("keys", "packs", "points", TEMPORARY_DIRECTORY):
                if not stat.S_ISDIR(
                    os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
                ):
                    raise NoRepository("this is not a repository", path=str(root), missing=name)
        except FileNotFoundError as error:
            store.close()
            raise NoRepository(
                "there is no repository in this directory", path=str(root)
            ) from error
        except (OSError, HoldfastError):
            store.close()
            raise
        return store

    def close(self) -> None:
        """Give the descriptor back. Twice is harmless."""
        descriptor, self._root = self._root, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> DirectoryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Store an object once. Raises: ObjectExists, RepositoryFull, RepositoryFailed."""
        checked_name(name)
        upload = self.begin()
        try:
            upload.write(data)
            upload.commit(name)
        finally:
            upload.abort()

    def begin(self, *, bulk: bool = False) -> FileUpload:
        """Start an object. Raises: RepositoryFull, RepositoryFailed."""
        if bulk:
            self._keep_reserve()
        return FileUpload(self, bulk=bulk)

    def get(self, name: str, *, length_max: int) -> bytes:
        """All bytes. Raises: ObjectMissing, FormatError, RepositoryFailed."""
        descriptor = self._open_object(name)
        try:
            length = os.fstat(descriptor).st_size
            if length > length_max:
                raise IntegrityError(
                    "object is longer than its kind may be", name=name, length=length
                )
            buffer = bytearray(length)
            _read_fully(descriptor, 0, memoryview(buffer), name=name)
            return bytes(buffer)
        except OSError as error:
            raise _translated(error, name=name) from error
        finally:
            os.close(descriptor)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``. Raises: ObjectMissing, IntegrityError, RepositoryFailed."""
        descriptor = self._open_object(name)
        try:
            _read_fully(descriptor, offset, buffer, name=name)
        except OSError as error:
            raise _translated(error, name=name) from error
        finally:
            os.close(descriptor)

    def head(self, name: str) -> ObjectInfo | None:
        """The object's length, or None. Raises: RepositoryFailed."""
        try:
            status = os.stat(checked_name(name), dir_fd=self._root, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _translated(error, name=name) from error
        return (
            ObjectInfo(name=name, length=status.st_size) if stat.S_ISREG(status.st_mode) else None
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below ``prefix``, by name. Raises: RepositoryFailed."""
        yield from self._list(checked_prefix(prefix)[:-1])

    def delete(self, name: str) -> None:
        """Remove an object. Raises: ObjectMissing, RepositoryFailed."""
        try:
            os.unlink(checked_name(name), dir_fd=self._root)
            self._sync_directory(_parent(name))
        except OSError as error:
            raise _translated(error, name=name) from error

    def sweep_temporary(self, *, now: datetime) -> int:
        """Remove what crashed attempts left in the temporary directory; the number of files removed."""
        removed = 0
        try:
            directory = os.open(TEMPORARY_DIRECTORY, _DIRECTORY, dir_fd=self._root)
            try:
                with os.scandir(directory) as entries:
                    names = [entry.name for entry in entries]
                oldest = now.timestamp() - TEMPORARY_AGE_MAX.total_seconds()
                for name in names:
                    # it may have become an object meanwhile, or another one sweeps as well
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                        if status.st_mtime < oldest:
                            os.unlink(name, dir_fd=directory)
                            removed += 1
            finally:
                os.close(directory)
        except OSError as error:
            raise _translated(error, name=TEMPORARY_DIRECTORY) from error
        return removed

    def _keep_reserve(self) -> None:
        try:
            found = os.fstatvfs(self._root)
        except OSError as error:
            raise _translated(error, name=str(self.root)) from error
        reserve = min(RESERVE_BYTES_MAX, found.f_blocks * found.f_frsize // RESERVE_SHARE)
        free = found.f_bavail * found.f_frsize
        if free < reserve:
            raise RepositoryFull(
                "the repository has no room for more data", free=free, reserve=reserve
            )

    def _list(self, directory: str) -> Iterator[ObjectInfo]:
        try:
            descriptor = os.open(directory, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._root)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _translated(error, name=directory) from error
        try:
            with os.scandir(descriptor) as entries:
                found = sorted(
                    (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries
                )
            for name, is_directory in found:
                path = f"{directory}/{name}"
                if is_directory:
                    yield from self._list(path)
                    continue
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(name=path, length=status.st_size)
        except OSError as error:
            raise _translated(error, name=directory) from error
        finally:
            os.close(descriptor)

    def _open_object(self, name: str) -> int:
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            return os.open(checked_name(name), flags, dir_fd=self._root)
        except OSError as error:
            raise _translated(error, name=name) from error

    def _make_parents(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            with self._lock:
                if directory in self._known_directories:
                    continue
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, mode=0o700, dir_fd=self._root)
            # also when it was there: whoever made it may have crashed before the sync
            self._sync_directory(_parent(directory))
            with self._lock:
                self._known_directories.add(directory)

    def _sync_directory(self, directory: str) -> None:
        descriptor = os.open(directory or ".", _DIRECTORY, dir_fd=self._root)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _publish(self, temporary: str, name: str) -> None:
        """Move the synced file to its name, never over another one, and make that durable."""
        self._make_parents(name)
        result = _libc.renameat2(
            self._root, temporary.encode(), self._root, name.encode(), _RENAME_NOREPLACE
        )
        if result != 0:
            number = ctypes.get_errno()
            if number not in _NO_RENAMEAT2:
                raise OSError(number, os.strerror(number))
            os.link(temporary, name, src_dir_fd=self._root, dst_dir_fd=self._root)
            os.unlink(temporary, dir_fd=self._root)
        self._sync_directory(_parent(name))


class FileUpload:
    """A temporary file on its way to become an object. ``bulk``: written past the page cache."""

    def __init__(self, store: DirectoryStore, *, bulk: bool = False) -> None:
        self._store = store
        self._temporary = f"{TEMPORARY_DIRECTORY}/{secrets.token_hex(16)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._temporary, flags, 0o600, dir_fd=store._root)
        except OSError as error:
            raise _translated(error, name=self._temporary) from error
        self._exists = True
        self._length = 0
        self._direct = DirectWrites(self._descriptor) if bulk else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises: RepositoryFull, RepositoryFailed."""
        remaining = memoryview(data)
        try:
            if self._direct is not None:
                self._direct.write(self._length, remaining)
                self._length += remaining.nbytes
                return
            while remaining.nbytes:
                remaining = remaining[os.write(self._descriptor, remaining) :]
        except OSError as error:
            raise _translated(error, name=self._temporary) from error

    def commit(self, name: str) -> None:
        """Sync, close, rename, sync the directory. Raises: ObjectExists, RepositoryFull, RepositoryFailed."""
        checked_name(name)
        descriptor, self._descriptor = self._descriptor, -1
        assert descriptor >= 0, "an upload is committed once"
        try:
            try:
                # after a failed fsync the kernel calls the lost pages clean: never a second try here
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._store._publish(self._temporary, name)
            self._exists = False
        except OSError as error:
            raise _translated(error, name=name) from error

    def abort(self) -> None:
        """Discard it. Harmless after `commit` and when called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        if self._exists:
            self._exists = False
            try:
                os.unlink(self._temporary, dir_fd=self._store._root)
            except OSError:
                return  # `sweep_temporary` removes it later


def _read_fully(descriptor: int, offset: int, buffer: memoryview, *, name: str) -> None:
    done = 0
    while done < buffer.nbytes:
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise IntegrityError(
                "object is shorter than it must be", name=name, offset=offset, wanted=buffer.nbytes
            )
        done += count


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _translated(error: OSError, *, name: str) -> HoldfastError:
    if error.errno in _FULL:
        return RepositoryFull("the repository has no room left", name=name)
    if error.errno == errno.EEXIST:
        return ObjectExists("an object of this name is already stored", name=name)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ObjectMissing("there is no such object", name=name)
    return RepositoryFailed("the repository's storage failed", name=name, cause=error.strerror)

"""A repository in a directory. An object appears under its name at once, durable, and never changes.

Everything is reached relative to one descriptor of the root, taken when the store is opened: when the
file system is unmounted meanwhile, nothing is written to what lay below its mount point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from holdfast_common.errors import (
    HoldfastError,
    IntegrityError,
    NoRepository,
    Refused,
    RepositoryFull,
)
from holdfast_common.repository.directory_stamps import directory_stamps
from holdfast_common.repository.durable_names import DurableNames, make_directory, withdraw
from holdfast_common.repository.file_system import SYSTEM_FILES, FileSystem, FreeSpace
from holdfast_common.repository.file_upload import TEMPORARY_DIRECTORY, FileUpload
from holdfast_common.repository.held_object import HeldObject
from holdfast_common.repository.object_store import ObjectInfo, checked_name, checked_prefix
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS, Randomness
from holdfast_common.repository.storage_errors import STORAGE_FULL, translated
from holdfast_common.units import MIB

TOP_DIRECTORIES: Final = (
    "keys", "writers", "packs", "index", "maps", "points", "fences", "leases", "proofs", "about", TEMPORARY_DIRECTORY,
)  # fmt: skip
LEASE_DIRECTORY: Final = "leases"
TEMPORARY_AGE_MAX: Final = timedelta(hours=96)  # no attempt lives longer
RESERVE_BYTES_MAX: Final = 192 * MIB  # a pack, its index and 64 MiB: enough to finish a commit
RESERVE_SHARE: Final = 10  # but never more than a tenth of a small file system


class DirectoryStore:
    """Objects as files below one directory. Close it, or use it as a context."""

    def __init__(
        self, root: Path, *, root_descriptor: int, files: FileSystem, randomness: Randomness
    ) -> None:
        self.root = root
        self.files = files
        self.descriptor = root_descriptor
        self.randomness = randomness
        self._durable = DurableNames(files)

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        files: FileSystem = SYSTEM_FILES,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> DirectoryStore:
        """Make the directory (its parent must exist) and what every repository has in it.

        Raises: Refused when something else lies there; RepositoryFull, RepositoryFailed.
        """
        made: list[str] = []
        try:
            if make_directory(files, str(root)):
                made.append(str(root))
            descriptor = files.open_directory(str(root))
            try:
                found = {name for name, _ in files.names(descriptor)}
                strangers = sorted(found - {*TOP_DIRECTORIES, "lost+found"})
                if strangers:
                    raise Refused("the directory is not empty", path=str(root), found=strangers[0])
                for name in TOP_DIRECTORIES:
                    if make_directory(files, name, at=descriptor):
                        made.append(f"{root}/{name}")
                files.sync(descriptor)
            finally:
                files.close(descriptor)
            parent = files.open_directory(str(root.parent))
            try:
                files.sync(parent)
            finally:
                files.close(parent)
        except OSError as error:
            for path in reversed(made):
                withdraw(files.remove_directory, path)
            raise translated(error, name=str(root)) from error
        return cls.open(root, files=files, randomness=randomness)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        files: FileSystem = SYSTEM_FILES,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> DirectoryStore:
        """Open what `create` made; makes nothing. Raises: NoRepository, RepositoryFailed."""
        try:
            descriptor = files.open_directory(str(root))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoRepository("there is no such directory", path=str(root)) from error
        except OSError as error:
            raise translated(error, name=str(root)) from error
        store = cls(root, root_descriptor=descriptor, files=files, randomness=randomness)
        try:
            for name in ("keys", "packs", "points", TEMPORARY_DIRECTORY):
                if not files.status(name, at=descriptor).is_directory:
                    raise NoRepository("this is not a repository", path=str(root), missing=name)
        except FileNotFoundError as error:
            store.close()
            raise NoRepository(
                "there is no repository in this directory", path=str(root)
            ) from error
        except OSError as error:
            store.close()
            raise translated(error, name=str(root)) from error
        except HoldfastError:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Give the descriptor back. Twice is harmless."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            self.files.close(descriptor)

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
            length = self.files.length(descriptor)
            if length > length_max:
                raise IntegrityError(
                    "object is longer than its kind may be", name=name, length=length
                )
            buffer = bytearray(length)
            _read_fully(self.files, descriptor, 0, memoryview(buffer), name=name)
            return bytes(buffer)
        except OSError as error:
            raise translated(error, name=name) from error
        finally:
            self.files.close(descriptor)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``. Raises: ObjectMissing, IntegrityError, RepositoryFailed."""
        descriptor = self._open_object(name)
        try:
            self.read_descriptor(descriptor, offset, buffer, name=name)
        finally:
            self.files.close(descriptor)

    def read_descriptor(
        self, descriptor: int, offset: int, buffer: memoryview, *, name: str
    ) -> None:
        """Fill ``buffer`` from an object that is open. Raises: IntegrityError, RepositoryFailed."""
        try:
            _read_fully(self.files, descriptor, offset, buffer, name=name)
        except OSError as error:
            raise translated(error, name=name) from error

    def hold(self, name: str) -> HeldObject:
        """An object that stays open for many small reads. Raises: ObjectMissing, RepositoryFailed."""
        return HeldObject(self, name, self._open_object(name))

    def head(self, name: str) -> ObjectInfo | None:
        """The object's length, or None. Raises: RepositoryFailed."""
        try:
            status = self.files.status(checked_name(name), at=self.descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise translated(error, name=name) from error
        return ObjectInfo(name=name, length=status.length) if status.is_file else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below ``prefix``, by name. Raises: RepositoryFailed."""
        yield from self._list(checked_prefix(prefix)[:-1])

    def names(self, prefix: str) -> Sequence[str]:
        """Of objects right below ``prefix``, without looking at them; none when it is not there.

        Raises: RepositoryFailed.
        """
        directory = checked_prefix(prefix)[:-1]
        try:
            found = self._names(directory)
        except OSError as error:
            raise translated(error, name=directory) from error
        return [f"{directory}/{name}" for name, is_directory in found if not is_directory]

    def stamps(self, prefix: str) -> Mapping[str, str] | None:
        """Prefixes below ``prefix``, each with a stamp that changes with the names below it; see `StampedStore`.

        Raises: RepositoryFailed.
        """
        directory = checked_prefix(prefix)[:-1]
        try:
            return directory_stamps(self.files, directory, at=self.descriptor)
        except OSError as error:
            raise translated(error, name=directory) from error

    def delete(self, name: str) -> None:
        """Remove an object. Raises: ObjectMissing, RepositoryFailed."""
        try:
            self._durable.remove(checked_name(name), at=self.descriptor)
        except OSError as error:
            raise translated(error, name=name) from error

    def confirm(self, names: Iterable[str]) -> None:
        """Make durable what is seen, whoever put it. Raises: ObjectMissing, RepositoryFailed."""
        wanted = sorted({checked_name(name) for name in names})
        try:
            self._durable.confirm(wanted, at=self.descriptor)
        except OSError as error:
            raise translated(error, name=wanted[0]) from error

    def storage_time(self) -> datetime | None:
        """The file system's clock: of a new file; None when no file can be made. Raises: RepositoryFailed."""
        path = f"{TEMPORARY_DIRECTORY}/{self.randomness.draw(16).hex()}"
        try:
            self.files.close(self.files.create_file(path, at=self.descriptor))
            found = self.files.status(path, at=self.descriptor).modified_seconds
            self.files.unlink(path, at=self.descriptor)
        except OSError as error:
            if error.errno in STORAGE_FULL:
                return None
            raise translated(error, name=path) from error
        return datetime.fromtimestamp(found, UTC)

    def stored_at(self, name: str) -> datetime | None:
        """When an object was written, by the file system's clock. Raises: RepositoryFailed."""
        try:
            status = self.files.status(checked_name(name), at=self.descriptor)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise translated(error, name=name) from error
        return datetime.fromtimestamp(status.modified_seconds, UTC)

    def sweep_temporary(self, *, now: datetime) -> int:
        """Remove what crashed attempts left in the temporary directory; the number of files removed.

        Empty directories of leases, as old, go too: a crash may bring one back, earlier versions left them.
        """
        removed = 0
        oldest = now.timestamp() - TEMPORARY_AGE_MAX.total_seconds()
        try:
            for name, _ in self._names(TEMPORARY_DIRECTORY):
                path = f"{TEMPORARY_DIRECTORY}/{name}"
                # it may have become an object meanwhile, or another one sweeps as well
                with contextlib.suppress(FileNotFoundError):
                    if self.files.status(path, at=self.descriptor).modified_seconds < oldest:
                        self.files.unlink(path, at=self.descriptor)
                        removed += 1
            for name, is_directory in self._names(LEASE_DIRECTORY):
                path = f"{LEASE_DIRECTORY}/{name}"
                with contextlib.suppress(FileNotFoundError):
                    if (
                        is_directory
                        and self.files.status(path, at=self.descriptor).modified_seconds < oldest
                    ):
                        self._durable.remove_if_empty(path, at=self.descriptor)
        except OSError as error:
            raise translated(error, name=TEMPORARY_DIRECTORY) from error
        return removed

    def _keep_reserve(self) -> None:
        try:
            space = self.files.space(self.descriptor)
            if space.free < _reserve(space):
                self.files.sync_all(self.descriptor)  # some tell late what was removed: btrfs
                space = self.files.space(self.descriptor)
        except OSError as error:
            raise translated(error, name=str(self.root)) from error
        if space.free < _reserve(space):
            raise RepositoryFull(
                "the repository has no room for more data",
                free=space.free,
                reserve=_reserve(space),
            )

    def _list(self, directory: str) -> Iterator[ObjectInfo]:
        try:
            for name, is_directory in sorted(self._names(directory)):
                path = f"{directory}/{name}"
                if is_directory:
                    yield from self._list(path)
                    continue
                # prune may have removed it meanwhile
                with contextlib.suppress(FileNotFoundError):
                    status = self.files.status(path, at=self.descriptor)
                    if status.is_file:
                        yield ObjectInfo(name=path, length=status.length)
        except OSError as error:
            raise translated(error, name=directory) from error

    def _names(self, directory: str) -> Sequence[tuple[str, bool]]:
        try:
            descriptor = self.files.open_directory(directory, at=self.descriptor, follow=False)
        except FileNotFoundError:
            return []
        try:
            return self.files.names(descriptor)
        finally:
            self.files.close(descriptor)

    def _open_object(self, name: str) -> int:
        try:
            return self.files.open_file(checked_name(name), at=self.descriptor)
        except OSError as error:
            raise translated(error, name=name) from error

    def publish(self, temporary: str, name: str) -> None:
        """Move a synced file to its name, never over another one, and make that durable. Raises: OSError."""
        self._durable.publish(temporary, name, at=self.descriptor)


def _read_fully(
    files: FileSystem, descriptor: int, offset: int, buffer: memoryview, *, name: str
) -> None:
    done = 0
    while done < buffer.nbytes:
        count = files.read_into(descriptor, buffer[done:], offset + done)
        if count == 0:
            raise IntegrityError(
                "object is shorter than it must be", name=name, offset=offset, wanted=buffer.nbytes
            )
        done += count


def _reserve(space: FreeSpace) -> int:
    return min(RESERVE_BYTES_MAX, space.capacity // RESERVE_SHARE)

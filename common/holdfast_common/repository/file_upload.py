"""A temporary file that becomes an object: written, synced, then moved to its name by its store."""

from __future__ import annotations

from typing import Final, Protocol

from holdfast_common.direct_writes import DirectWrites
from holdfast_common.repository.file_system import FileSystem
from holdfast_common.repository.object_store import checked_name
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.storage_errors import translated

TEMPORARY_DIRECTORY: Final = "tmp"


class PublishingStore(Protocol):
    """What an upload needs of the store that it is for."""

    files: FileSystem
    descriptor: int  # of the root
    randomness: Randomness

    def publish(self, temporary: str, name: str) -> None:
        """Move a synced file to its name, never over another one, and make that durable. Raises: OSError."""
        ...


class FileUpload:
    """A temporary file on its way to become an object. ``bulk``: written past the page cache."""

    def __init__(self, store: PublishingStore, *, bulk: bool = False) -> None:
        self._store = store
        self._files = store.files
        self._temporary = f"{TEMPORARY_DIRECTORY}/{store.randomness.draw(16).hex()}"
        try:
            self._descriptor = self._files.create_file(self._temporary, at=store.descriptor)
        except OSError as error:
            raise translated(error, name=self._temporary) from error
        self._exists = True
        self._length = 0
        self._direct = DirectWrites(self._descriptor, self._files) if bulk else None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises: RepositoryFull, RepositoryFailed."""
        remaining = memoryview(data)
        try:
            if self._direct is not None:
                self._direct.write(self._length, remaining)
                self._length += remaining.nbytes
                return
            while remaining.nbytes:
                remaining = remaining[self._files.write(self._descriptor, remaining) :]
        except OSError as error:
            raise translated(error, name=self._temporary) from error

    def commit(self, name: str) -> None:
        """Sync, close, rename, sync the directory. Raises: ObjectExists, RepositoryFull, RepositoryFailed."""
        checked_name(name)
        descriptor, self._descriptor = self._descriptor, -1
        assert descriptor >= 0, "an upload is committed once"
        try:
            try:
                # after a failed fsync the kernel calls the lost pages clean: never a second try here
                self._files.sync(descriptor)
            finally:
                self._files.close(descriptor)
            self._store.publish(self._temporary, name)
            self._exists = False
        except OSError as error:
            raise translated(error, name=name) from error

    def abort(self) -> None:
        """Discard it. Harmless after `commit` and when called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._files.close(descriptor)
        if self._exists:
            self._exists = False
            try:
                self._files.unlink(self._temporary, at=self._store.descriptor)
            except OSError:
                return  # `sweep_temporary` removes it later

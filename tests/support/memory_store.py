"""An object store in memory, for tests that make many repositories; it meets the same contract."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from holdfast_common.errors import IntegrityError, ObjectExists, ObjectMissing, RepositoryFull
from holdfast_common.repository.object_store import ObjectInfo, checked_name, checked_prefix


class MemoryStore:
    """Objects in a dictionary that tests may look into and damage."""

    def __init__(
        self,
        objects: dict[str, bytes] | None = None,
        *,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        """``now``: the storage's own clock; without one it does not tell the time."""
        self.objects: dict[str, bytes] = dict(objects or {})
        self.now = now
        self.times: dict[str, datetime] = {}  # when an object was stored
        self.capacity_bytes: int | None = None
        self._lock = threading.Lock()

    def storage_time(self) -> datetime | None:
        return None if self.now is None else self.now()

    def stored_at(self, name: str) -> datetime | None:
        return self.times.get(name)

    def copy(self) -> MemoryStore:
        """The same objects, to be damaged on their own."""
        return MemoryStore(self.objects)

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        checked_name(name)
        with self._lock:
            if name in self.objects:
                raise ObjectExists("an object of this name is already stored", name=name)
            if (
                self.capacity_bytes is not None
                and self.used_bytes() + len(data) > self.capacity_bytes
            ):
                raise RepositoryFull("the repository has no room left", name=name)
            self.objects[name] = bytes(data)
            if self.now is not None:
                self.times[name] = self.now()

    def used_bytes(self) -> int:
        """What all objects take."""
        return sum(len(data) for data in self.objects.values())

    def begin(self, *, bulk: bool = False) -> MemoryUpload:
        return MemoryUpload(self)

    def get(self, name: str, *, length_max: int) -> bytes:
        data = self._found(name)
        if len(data) > length_max:
            raise IntegrityError("object is longer than its kind may be", name=name)
        return data

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        data = self._found(name)[offset : offset + buffer.nbytes]
        if len(data) != buffer.nbytes:
            raise IntegrityError("object is shorter than it must be", name=name)
        buffer[:] = data

    def head(self, name: str) -> ObjectInfo | None:
        checked_name(name)
        data = self.objects.get(name)
        return None if data is None else ObjectInfo(name=name, length=len(data))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        checked_prefix(prefix)
        for name in sorted(self.objects):
            if name.startswith(prefix):
                yield ObjectInfo(name=name, length=len(self.objects[name]))

    def confirm(self, names: Iterable[str]) -> None:
        for name in names:
            self._found(name)

    def delete(self, name: str) -> None:
        self._found(name)
        del self.objects[name]
        self.times.pop(name, None)

    def _found(self, name: str) -> bytes:
        checked_name(name)
        try:
            return self.objects[name]
        except KeyError as error:
            raise ObjectMissing("there is no such object", name=name) from error


class MemoryUpload:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._pieces.append(bytes(data))

    def commit(self, name: str) -> None:
        self._store.put(name, b"".join(self._pieces))

    def abort(self) -> None:
        self._pieces = []

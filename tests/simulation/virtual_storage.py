"""The storage below the repository, as a model: objects by name, put once, listed and deleted; it fails and is full.

A `VirtualStore` is what somebody opened of it: an agent, or the controller for one piece of its work. The product's own
code of leases, fences, holds, forgetting and pruning calls it as it would a directory.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from holdfast_common.errors import ObjectExists, ObjectMissing, RepositoryFailed, RepositoryFull
from holdfast_common.repository.object_store import ObjectInfo
from simulation.virtual_time import BEGIN, Kernel, Life

CALL_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """``body``: what a pack, a map or a manifest stands for; nothing of it is bytes here."""

    data: bytes
    stored_at: datetime
    body: Any = None


class Watcher(Protocol):
    """Who looks at every change, at the moment in which it happens."""

    def put(self, name: str, body: Any) -> None:
        """Raises: Violation."""
        ...

    def deleted(self, name: str, store: VirtualStore) -> None:
        """Right before. Raises: Violation."""
        ...

    def opened(self, store: VirtualStore) -> None:
        """By the controller."""
        ...


class VirtualStorage:
    """``full``: nothing can be put but into the reserve's room. ``failing``: so many of the next calls fail."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        self.kernel = kernel
        self.random = random.Random(seed * 86028121 + 7)
        self.objects: dict[str, StoredObject] = {}
        self.full = False
        self.room = 0  # what was given back of the reserve since it was full
        self.failing = 0
        self.failed = 0
        self.tells_time = True
        self.watcher: Watcher | None = None

    def now(self) -> datetime:
        """By the storage's own clock, which never jumps."""
        return BEGIN + timedelta(seconds=self.kernel.now)

    def names(self, prefix: str) -> list[str]:
        """Of what lies there, in order."""
        return sorted(name for name in self.objects if name.startswith(prefix))


class VirtualStore:
    """`ObjectStore`, `KnowsTime` and a context, for one life. ``opened_at``: seconds."""

    def __init__(self, storage: VirtualStorage, life: Life) -> None:
        self.storage = storage
        self.life = life
        self.opened_at = storage.kernel.now
        self.facts: Any = None  # what the watcher knew when it was opened

    def __enter__(self) -> VirtualStore:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open."""

    def put(
        self, name: str, data: bytes | bytearray | memoryview = b"", *, body: Any = None
    ) -> None:
        """Raises: ObjectExists, RepositoryFull, RepositoryFailed."""
        storage = self.storage
        self._call(f"put {name}", waits=True)
        if name in storage.objects:
            raise ObjectExists("there is an object of that name", name=name)
        if storage.full and not storage.room:
            raise RepositoryFull("the repository is full")
        storage.room = max(0, storage.room - 1)
        storage.objects[name] = StoredObject(data=bytes(data), stored_at=storage.now(), body=body)
        if storage.watcher is not None:
            storage.watcher.put(name, body)
        storage.kernel.step(f"{name} was put")

    def get(self, name: str, *, length_max: int) -> bytes:
        """Raises: ObjectMissing, RepositoryFailed."""
        del length_max
        self._call(f"get {name}")
        return self.object(name).data

    def object(self, name: str) -> StoredObject:
        """Raises: ObjectMissing."""
        found = self.storage.objects.get(name)
        if found is None:
            raise ObjectMissing("there is no object of that name", name=name)
        return found

    def head(self, name: str) -> ObjectInfo | None:
        self._call(f"head {name}")
        found = self.storage.objects.get(name)
        return None if found is None else ObjectInfo(name=name, length=len(found.data))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._call(f"list {prefix}")
        objects = self.storage.objects
        return iter(
            [
                ObjectInfo(name=each, length=len(objects[each].data))
                for each in self.storage.names(prefix)
            ]
        )

    def confirm(self, names: Iterable[str]) -> None:
        """Raises: ObjectMissing."""
        for name in names:
            self.object(name)

    def delete(self, name: str) -> None:
        """Raises: ObjectMissing, RepositoryFailed."""
        storage = self.storage
        self._call(f"delete {name}", waits=name in storage.objects)
        self.object(name)
        if storage.watcher is not None:
            storage.watcher.deleted(name, self)
        del storage.objects[name]
        if storage.full and name.startswith("reserve/"):
            storage.room += 1
        storage.kernel.trace.append(f"{storage.kernel.now:.3f} {self.life.name} deletes {name}")
        storage.kernel.step(f"{name} was deleted")

    def storage_time(self) -> datetime | None:
        return self.storage.now() if self.storage.tells_time else None

    def stored_at(self, name: str) -> datetime | None:
        found = self.storage.objects.get(name)
        return found.stored_at if found is not None and self.storage.tells_time else None

    def _call(self, what: str, *, waits: bool = False) -> None:
        kernel = self.storage.kernel
        kernel.step(what)
        if waits:
            kernel.sleep(self.storage.random.uniform(0.0, CALL_SECONDS))
        if self.storage.failing:
            self.storage.failing -= 1
            self.storage.failed += 1
            raise RepositoryFailed("the storage failed", call=what.partition("/")[0])

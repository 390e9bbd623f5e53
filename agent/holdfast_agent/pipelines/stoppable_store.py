"""An object store that hears when its job must stop: long checks ask nobody else in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from holdfast_common.repository.object_store import ObjectInfo, ObjectStore, Upload


class StoppableStore:
    """An `ObjectStore` over another one; every access may raise what ``check`` raises."""

    def __init__(self, store: ObjectStore, *, check: Callable[[], None]) -> None:
        self._store = store
        self._check = check

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """As the store below."""
        self._check()
        self._store.put(name, data)

    def begin(self, *, bulk: bool = False) -> Upload:
        """As the store below."""
        self._check()
        return self._store.begin(bulk=bulk)

    def get(self, name: str, *, length_max: int) -> bytes:
        """As the store below."""
        self._check()
        return self._store.get(name, length_max=length_max)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """As the store below."""
        self._check()
        self._store.read_into(name, offset, buffer)

    def head(self, name: str) -> ObjectInfo | None:
        """As the store below."""
        self._check()
        return self._store.head(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As the store below."""
        self._check()
        return self._store.list(prefix)

    def confirm(self, names: Iterable[str]) -> None:
        """As the store below."""
        self._check()
        self._store.confirm(names)

    def delete(self, name: str) -> None:
        """As the store below."""
        self._check()
        self._store.delete(name)

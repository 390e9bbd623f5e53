"""One object of a directory that stays open for many small reads. Beside `directory_store`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast_common.repository.directory_store import DirectoryStore


class HeldObject:
    """Reads ranges of one object. Safe for several threads; whoever got it closes it."""

    def __init__(self, store: DirectoryStore, name: str, descriptor: int) -> None:
        self._store = store
        self._name = name
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """As `ObjectStore.read_into`, of this object; after `close` it is opened for each read."""
        assert name == self._name, "one object only"
        with self._lock:  # nobody closes it while it is read: its number may be another file's then
            if self._descriptor >= 0:
                self._store.read_descriptor(self._descriptor, offset, buffer, name=name)
                return
        self._store.read_into(name, offset, buffer)

    def close(self) -> None:
        """Give the descriptor back. Twice is harmless."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._store.files.close(descriptor)

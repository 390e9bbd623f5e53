"""A store whose k-th call fails, for every k: before it does anything, or after (the reply is lost)."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from holdfast_common.errors import HoldfastError
from holdfast_common.repository.object_store import ObjectInfo, ObjectStore, Upload


@dataclass(frozen=True)
class Fault:
    """``call``: number from 0 of the call that fails; -1 fails none and counts.

    What is raised is a copy of ``error``, a new one each time: a raised error keeps the frames that it went
    through, and all that they hold.
    """

    call: int
    error: HoldfastError
    reply_lost: bool = False
    persistent: bool = False  # all later calls fail too


class FaultyStore:
    """Wraps a store; counts all calls that may fail in reality."""

    def __init__(self, inner: ObjectStore, fault: Fault) -> None:
        self._inner = inner
        self._fault = fault
        self._lock = threading.Lock()
        self.calls = 0
        self.failed_at = ""

    def _step(self, what: str) -> bool:
        """Whether the reply of this call is lost. Raises the fault when it is this call's turn."""
        with self._lock:
            number = self.calls
            self.calls += 1
        mine = number == self._fault.call or (
            self._fault.persistent and 0 <= self._fault.call < number
        )
        if not mine:
            return False
        self.failed_at = self.failed_at or what
        if self._fault.reply_lost:
            return True
        raise copy.copy(self._fault.error)

    def _after(self, lost: bool) -> None:
        if lost:
            raise copy.copy(self._fault.error)

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        lost = self._step(f"put {name}")
        self._inner.put(name, data)
        self._after(lost)

    def begin(self, *, bulk: bool = False) -> Upload:
        self._after(self._step("begin"))
        return FaultyUpload(self, self._inner.begin(bulk=bulk))

    def get(self, name: str, *, length_max: int) -> bytes:
        self._after(self._step(f"get {name}"))
        return self._inner.get(name, length_max=length_max)

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        self._after(self._step(f"read {name}"))
        self._inner.read_into(name, offset, buffer)

    def head(self, name: str) -> ObjectInfo | None:
        self._after(self._step(f"head {name}"))
        return self._inner.head(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._after(self._step(f"list {prefix}"))
        return self._inner.list(prefix)

    def confirm(self, names: Iterable[str]) -> None:
        wanted = list(names)
        lost = bool(wanted) and self._step(f"confirm {wanted[0]}")
        self._inner.confirm(wanted)
        self._after(lost)

    def delete(self, name: str) -> None:
        lost = self._step(f"delete {name}")
        self._inner.delete(name)
        self._after(lost)


class FaultyUpload:
    def __init__(self, store: FaultyStore, inner: Upload) -> None:
        self._store = store
        self._inner = inner

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._store._after(self._store._step("write"))
        self._inner.write(data)

    def commit(self, name: str) -> None:
        lost = self._store._step(f"commit {name}")
        self._inner.commit(name)
        self._store._after(lost)

    def abort(self) -> None:
        self._inner.abort()

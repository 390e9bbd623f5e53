"""What a repository needs from storage: put once, read ranges, list, delete. Nothing else.

An object is complete and durable when `put` or `Upload.commit` returns, invisible before, and never
changes afterwards. FORMAT.md knows no rename; how a store makes an object appear at once is its own
affair (`directory_store`: temporary name, sync, rename without replacing, sync of the directory).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from holdfast_common.errors import FormatError, ObjectExists

_NAME: Final = re.compile(
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){1,3}$"
)
_PREFIX: Final = re.compile(
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,2}/$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """An object that exists, and its length in bytes."""

    name: str
    length: int


class Upload(Protocol):
    """An object on its way in. One thread at a time; ends with `commit` or `abort`."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises: RepositoryFull, RepositoryFailed."""
        ...

    def commit(self, name: str) -> None:
        """Make it durable and visible under ``name``, at once or not at all.

        A failure leaves nothing visible; the upload cannot be used again, because after a failed sync
        nobody knows what reached the disk. Raises: ObjectExists, RepositoryFull, RepositoryFailed.
        """
        ...

    def abort(self) -> None:
        """Discard it. Harmless after `commit` and when called twice."""
        ...


class RangeStore(Protocol):
    """What reading takes."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``. Raises: ObjectMissing, IntegrityError (it ends earlier), RepositoryFailed."""
        ...


class OpenObject(RangeStore, Protocol):
    """One object that stays open. Safe for several threads; whoever got it closes it."""

    def close(self) -> None:
        """Let go of it. Twice is harmless."""
        ...


@runtime_checkable
class HoldingStore(Protocol):
    """A store in which opening an object costs more than reading a page of it."""

    def hold(self, name: str) -> OpenObject:
        """An object that stays open for many small reads. Raises: ObjectMissing, RepositoryFailed."""
        ...


class ObjectStore(RangeStore, Protocol):
    """Objects by name. Safe for use by several threads."""

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Store an object once. Raises: ObjectExists, RepositoryFull, RepositoryFailed."""
        ...

    def begin(self, *, bulk: bool = False) -> Upload:
        """Start an object that is written in pieces; its name is given at the end.

        ``bulk`` data (packs) may not use the space that is kept back for finishing a commit or a prune.
        Raises: RepositoryFull, RepositoryFailed.
        """
        ...

    def get(self, name: str, *, length_max: int) -> bytes:
        """All bytes. Raises: ObjectMissing, IntegrityError (longer than the limit), RepositoryFailed."""
        ...

    def head(self, name: str) -> ObjectInfo | None:
        """The object's length; None when there is no such object. Raises: RepositoryFailed."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below ``prefix`` (which ends in ``/``), by name. Raises: RepositoryFailed."""
        ...

    def confirm(self, names: Iterable[str]) -> None:
        """Make objects durable that are seen, whoever put them: he may have died before he could.

        Before something else is acknowledged, deleted, or built because an object is there that this caller
        has not put itself. Raises: ObjectMissing, RepositoryFailed.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove an object that a plan names. Raises: ObjectMissing, RepositoryFailed."""
        ...


def is_legal_name(name: str) -> bool:
    """Whether a store can have an object of that name; other files may be listed all the same."""
    return _NAME.fullmatch(name) is not None


def checked_name(name: str) -> str:
    """The name itself when it follows the grammar. Raises: FormatError."""
    if not is_legal_name(name):
        raise FormatError("not an object name", name=name[:100])
    return name


def checked_prefix(prefix: str) -> str:
    """The prefix itself when it follows the grammar. Raises: FormatError."""
    if not _PREFIX.fullmatch(prefix):
        raise FormatError("not a prefix of object names", prefix=prefix[:100])
    return prefix


def put_or_confirm(store: ObjectStore, name: str, data: bytes | bytearray | memoryview) -> None:
    """Put an object; one that is there already is made durable. Raises: RepositoryFull, RepositoryFailed."""
    try:
        store.put(name, data)
    except ObjectExists:
        store.confirm([name])


def get_range(store: RangeStore, name: str, *, offset: int, length: int) -> bytes:
    """Exactly ``length`` bytes from ``offset``. Raises: as `ObjectStore.read_into`."""
    buffer = bytearray(length)
    store.read_into(name, offset, memoryview(buffer))
    return bytes(buffer)

"""Objects that can stand only under their own name: keys, lists, indexes, maps, manifests and the like.

Part of `repair`. A replacement is durable and proven before what is damaged leaves its name, and that is kept
aside. A repair that was cut off is gone on with by the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from blake3 import blake3

from holdfast_common.errors import (
    HoldfastError,
    IntegrityError,
    ObjectMissing,
    RepositoryFailed,
)
from holdfast_common.repository.check import check_structure
from holdfast_common.repository.key_sets import KeyRing
from holdfast_common.repository.layout import METADATA_BYTES_MAX, aside_name, copy_name
from holdfast_common.repository.object_store import (
    ObjectInfo,
    ObjectStore,
    Upload,
    get_range,
    put_or_confirm,
)
from holdfast_common.repository.repair_staging import remove_replacement, replacement_name

_COPIED_TWICE: Final = ("keys/", "writers/")
_NOBODY_NEEDS: Final = (
    "leases/",
    "proofs/",
    "controller/",
)  # of these a damaged one is worth as much as none
_PIECE_BYTES: Final = 4096
_STEP_BYTES: Final = 1 << 20


def found_replacements(
    store: ObjectStore,
    ring: KeyRing,
    damaged: Collection[str],
    *,
    sources: Sequence[ObjectStore],
    expected_points: Collection[str] = (),
) -> dict[str, bytes]:
    """Of the damaged objects those that a good one was found for; each was judged by a check as it would stand.

    Raises: RepositoryFailed; what `check_structure` raises.
    """
    found: dict[str, bytes] = {}
    missing = set(damaged)
    readable: list[_Source] = [_Own(store), *sources]
    for source in readable:
        candidates = {}
        for name in missing:
            with contextlib.suppress(HoldfastError):  # a source may be damaged itself
                candidates[name] = source.get(name, length_max=METADATA_BYTES_MAX)
        if not candidates:
            continue
        view = _Replaced(store, {**found, **candidates})
        report = check_structure(view, ring, expected_points=expected_points)
        wrong = {item.name for item in report.damaged}
        found |= {name: data for name, data in candidates.items() if name not in wrong}
        missing -= set(found)
    return found


def put_replacement(store: ObjectStore, name: str, data: bytes) -> bool:
    """Put a good object in the place of a damaged one, which is kept aside; whether there was one.

    Raises: IntegrityError, RepositoryFull, RepositoryFailed; then the damaged one is still there, or the good
    one is kept for the next repair.
    """
    staged = replacement_name(name)
    put_or_confirm(store, staged, data)
    if store.get(staged, length_max=len(data)) != data:
        raise IntegrityError("a replacement was not stored as it is", name=name)
    was_there = set_aside(store, name, unreadable_too=True)
    store.put(name, data)
    if store.get(name, length_max=len(data)) != data:
        raise IntegrityError("a replacement was not stored as it is", name=name)
    remove_replacement(store, name)  # a prune may have done it
    return was_there


def set_aside(
    store: ObjectStore, name: str, *, unreadable_too: bool = False, bulk: bool = True
) -> bool:
    """Move a damaged object out of its name; whether that was done.

    One that cannot be read wholly stays, because another day it may be read; with ``unreadable_too`` it goes,
    with zeros for what cannot be read. Without ``bulk`` it may take the space that is kept back.
    Raises: RepositoryFull, RepositoryFailed.
    """
    info = store.head(name)
    if info is None:
        return False
    for number in range(1, 100):
        target = aside_name(name) + (f".{number}" if number > 1 else "")
        there = store.head(target)
        if there is not None and there.length != info.length:
            continue
        upload = store.begin(bulk=bulk) if there is None else None
        try:
            digest, whole = _read_through(store, info, upload)
            if not whole and not unreadable_too:
                return False
            if upload is not None:
                upload.commit(target)
        finally:
            if upload is not None:
                upload.abort()
        kept, kept_whole = _read_through(store, ObjectInfo(name=target, length=info.length), None)
        if kept == digest and kept_whole:
            store.delete(name)
            return True
        if upload is not None:
            raise IntegrityError("a damaged object was not kept as it is", name=name)
    raise IntegrityError("too many damaged objects of one name were kept", name=name)


def note_gone(store: ObjectStore, name: str) -> None:
    """Say of an object that is not there any more that nobody has to miss it. Harmless twice."""
    put_or_confirm(store, aside_name(name), b"")


def is_needed(name: str) -> bool:
    """Whether an object of that name is missed when it is gone."""
    return not name.startswith(_NOBODY_NEEDS)


def _read_through(
    store: ObjectStore, info: ObjectInfo, upload: Upload | None
) -> tuple[bytes, bool]:
    """The digest of an object, and whether all of it can be read; zeros stand for what cannot.

    It is copied to ``upload`` on the way. A MiB of it is in memory at a time.
    """
    whole = True
    hashed = blake3()
    for start in range(0, info.length, _STEP_BYTES):
        length = min(_STEP_BYTES, info.length - start)
        piece = _read(store, info.name, start, length)
        if piece is None:
            whole = False
            parts = [
                (offset, min(_PIECE_BYTES, start + length - offset))
                for offset in range(start, start + length, _PIECE_BYTES)
            ]
            piece = b"".join(
                _read(store, info.name, offset, count) or bytes(count) for offset, count in parts
            )
        hashed.update(piece)
        if upload is not None:
            upload.write(piece)
    return hashed.digest(), whole


def _read(store: ObjectStore, name: str, offset: int, length: int) -> bytes | None:
    """None: it cannot be read."""
    try:
        return get_range(store, name, offset=offset, length=length)
    except (IntegrityError, RepositoryFailed):  # and nothing else: who is told to stop stops
        return None


class _Source(Protocol):
    def get(self, name: str, *, length_max: int) -> bytes: ...


class _Own:
    """What a repository itself still has: what a repair had begun to put, and the other one of two copies."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def get(self, name: str, *, length_max: int) -> bytes:
        """Raises: ObjectMissing and others."""
        if self._store.head(replacement_name(name)) is not None:
            return self._store.get(replacement_name(name), length_max=length_max)
        if name.startswith(_COPIED_TWICE):
            original = name.removesuffix("-copy")
            other = original if name != original else copy_name(original)
            return self._store.get(other, length_max=length_max)
        raise ObjectMissing("there is no second one", name=name)


class _Replaced:
    """A repository as it would be with some objects replaced; nothing can be written to it."""

    def __init__(self, store: ObjectStore, replaced: Mapping[str, bytes]) -> None:
        self._store = store
        self._replaced = replaced

    def get(self, name: str, *, length_max: int) -> bytes:
        """As the store below, or the replacement."""
        data = self._replaced.get(name)
        if data is None:
            return self._store.get(name, length_max=length_max)
        if len(data) > length_max:
            raise IntegrityError("object is longer than its kind may be", name=name)
        return data

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """As the store below, or from the replacement."""
        data = self._replaced.get(name)
        if data is None:
            self._store.read_into(name, offset, buffer)
            return
        piece = data[offset : offset + buffer.nbytes]
        if len(piece) != buffer.nbytes:
            raise IntegrityError("object is shorter than it must be", name=name)
        buffer[:] = piece

    def head(self, name: str) -> ObjectInfo | None:
        """As the store below, or of the replacement."""
        data = self._replaced.get(name)
        return self._store.head(name) if data is None else ObjectInfo(name=name, length=len(data))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As the store below, with the replacements."""
        found = {info.name: info for info in self._store.list(prefix)}
        for name, data in self._replaced.items():
            if name.startswith(prefix):
                found[name] = ObjectInfo(name=name, length=len(data))
        yield from (found[name] for name in sorted(found))

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Never."""
        raise AssertionError("a check writes nothing")

    def begin(self, *, bulk: bool = False) -> Upload:
        """Never."""
        raise AssertionError("a check writes nothing")

    def confirm(self, names: Iterable[str]) -> None:
        """Never."""
        raise AssertionError("a check acknowledges nothing")

    def delete(self, name: str) -> None:
        """Never."""
        raise AssertionError("a check removes nothing")

"""The disks that a crash may leave: from a record of system calls, everything a file system may make of it.

The model, which allows at least what ext4, xfs and btrfs do: data of a file is durable after its sync;
names in a directory are durable after the directory's sync, and a rename is whole or not there at all.
What is not durable may be there or not, in any combination: all of them are tried, once with the data that
is there whole, and once with it torn in a way that a seed draws. Data may be torn at a sector or a page, it may
be zero behind some point, or have pages of zeros in it, while its length is already the new one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from blake3 import blake3

from support.memory_files import Image
from support.recorded_files import Call, Recorded

ALL_SUBSETS_MAX = 6  # operations: 64 subsets; of more, as many are drawn by seed
SECTOR = 512
PAGE = 4096
_DATA = frozenset({Call.WRITE, Call.PWRITE})
_REMEMBERED: Final = 5000
_NUMBERS: Final = 1 << 256


class Tear(StrEnum):
    """What became of the data that was not synced."""

    WHOLE = "whole"
    SECTOR = "cut at a sector"
    PAGE = "cut at a page"
    ZERO_TAIL = "zero behind a sector"
    ZERO_PAGES = "some pages zero"
    LENGTH_ONLY = "nothing but its length"


_TEARS = tuple(tear for tear in Tear if tear is not Tear.WHOLE)


@dataclass(frozen=True)
class CrashState:
    """A disk after a crash. ``promised``: the marks before it; ``missing``: calls that it undid."""

    image: Image
    digest: int
    promised: tuple[str, ...]
    position: int
    last: Recorded | None  # the call before the crash
    missing: tuple[Recorded, ...]
    tear: Tear

    @property
    def told(self) -> str:
        """For people."""
        undone = "; ".join(map(str, self.missing)) or "nothing"
        after = self.last or "the beginning"
        return f"after call {self.position}, {after}; not on the disk: {undone}; {self.tear}"


class CrashDisk:
    """What is durable, and what is not yet, while a record is read on."""

    def __init__(self, before: Image, inodes: Mapping[str, int]) -> None:
        """``inodes``: the numbers of the files in ``before``."""
        self.directories = set(before.directories)
        self.entries = {path: inodes[path] for path in before.files}
        self.contents = {inodes[path]: data for path, data in before.files.items()}
        self.pending: list[Recorded] = []

    def read_on(self, call: Recorded) -> None:
        """The next call was made."""
        if call.call is Call.SYNC_FILE:
            self._settle(lambda each: each.call in _DATA and each.inode == call.inode)
        elif call.call is Call.SYNC_DIRECTORY:
            self._settle(lambda each: each.call not in _DATA and _parent(each) == call.path)
        elif call.call is not Call.MARK:
            self.pending.append(call)

    def left(self, chosen: Sequence[Recorded], tear: Tear, *, seed: str) -> Image:
        """The disk when only ``chosen`` of the pending calls reached it."""
        chance = random.Random(seed) if tear is not Tear.WHOLE else None
        directories = set(self.directories)
        entries = dict(self.entries)
        contents = dict(self.contents)
        for call in chosen:
            if call.call in _DATA:
                contents[call.inode] = _written(
                    contents.get(call.inode, b""), call, tear=tear, chance=chance
                )
            else:
                _apply(call, directories, entries)
        reachable = _reachable(frozenset(directories))
        return Image(
            directories=reachable,
            files={
                path: contents.get(inode, b"")
                for path, inode in entries.items()
                if _above(path) in reachable
            },
        )

    def _settle(self, is_durable: Callable[[Recorded], bool]) -> None:
        rest = []
        moved = set()
        for call in self.pending:
            if not is_durable(call):
                rest.append(call)
            elif call.call in _DATA:
                old = self.contents.get(call.inode, b"")
                self.contents[call.inode] = _overlaid(old, call.offset, call.data)
            else:
                _apply(call, self.directories, self.entries)
                moved |= {(call.inode, call.path)} - {(0, call.path)}
        # of a name that a file lost for good it no longer matters whether it ever had it
        self.pending = [
            call
            for call in rest
            if not (call.call is Call.CREATE and (call.inode, call.path) in moved)
        ]


def crash_states(
    log: Sequence[Recorded],
    before: Image,
    inodes: Mapping[str, int],
    *,
    promised: tuple[str, ...] = (),
    seed: int = 0,
) -> Iterator[CrashState]:
    """The disks after a crash behind every call, with repetitions; the same for the same seed.

    ``promised``: the marks from before the record.
    """
    disk = CrashDisk(before, inodes)
    for position in range(len(log) + 1):
        for chosen, tear in _choices(disk.pending, seed=seed, position=position):
            image = disk.left(chosen, tear, seed=f"{seed}-{position}-{len(chosen)}-{tear}")
            yield CrashState(
                image=image,
                digest=image_digest(image),
                promised=promised,
                position=position,
                last=log[position - 1] if position else None,
                missing=tuple(call for call in disk.pending if call not in chosen),
                tear=tear,
            )
        if position < len(log):
            disk.read_on(log[position])
            if log[position].call is Call.MARK:
                promised = (*promised, log[position].path)


def image_digest(image: Image) -> int:
    """Equal for equal disks: a sum of what is on them, each part hashed."""
    parts = sum(_file_number(path, data) for path, data in image.files.items())
    return (_directories_number(image.directories) + parts) % _NUMBERS


@lru_cache(_REMEMBERED)
def _file_number(path: str, data: bytes) -> int:
    return int.from_bytes(blake3(path.encode() + b"\0" + data).digest(), "big")


@lru_cache(_REMEMBERED)
def _directories_number(directories: frozenset[str]) -> int:
    return int.from_bytes(blake3("\0".join(sorted(directories)).encode()).digest(), "big")


def _choices(
    pending: Sequence[Recorded], *, seed: int, position: int
) -> Iterator[tuple[list[Recorded], Tear]]:
    drawn_tear = random.Random(f"{seed}-{position}-tear")
    if len(pending) <= ALL_SUBSETS_MAX:
        masks: Iterator[Sequence[int]] = itertools.product((1, 0), repeat=len(pending))
    else:
        chance = random.Random(f"{seed}-{position}")
        drawn = [[chance.randint(0, 1) for _ in pending] for _ in range(1 << ALL_SUBSETS_MAX)]
        masks = iter([[1] * len(pending), *drawn[1:]])
    for mask in masks:
        chosen = [call for call, taken in zip(pending, mask, strict=True) if taken]
        yield chosen, Tear.WHOLE
        if any(call.call in _DATA for call in chosen):
            yield chosen, drawn_tear.choice(_TEARS)


def _written(old: bytes, call: Recorded, *, tear: Tear, chance: random.Random | None) -> bytes:
    data = call.data
    if chance is None:
        return _overlaid(old, call.offset, data)
    if tear is Tear.SECTOR:
        data = data[: chance.randrange(0, len(data), SECTOR)]
    elif tear is Tear.PAGE:
        data = data[: chance.randrange(0, len(data), PAGE)]
    elif tear is Tear.ZERO_TAIL:
        start = chance.randrange(0, len(data), SECTOR)
        data = data[:start] + bytes(len(data) - start)
    elif tear is Tear.ZERO_PAGES:
        pages = bytearray(data)
        for start in range(0, len(data), PAGE):
            if chance.random() < 0.5:
                pages[start : start + PAGE] = bytes(len(pages[start : start + PAGE]))
        data = bytes(pages)
    elif tear is Tear.LENGTH_ONLY:
        data = bytes(len(data))
    return _overlaid(old, call.offset, data)


def _overlaid(old: bytes, offset: int, data: bytes) -> bytes:
    if offset == len(old):
        return old + data if old else data
    return old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


def _apply(call: Recorded, directories: set[str], entries: dict[str, int]) -> None:
    if call.call is Call.MAKE_DIRECTORY:
        directories.add(call.path)
    elif call.call is Call.REMOVE_DIRECTORY:
        directories.discard(call.path)
    elif call.call is Call.CREATE:
        entries[call.path] = call.inode
    elif call.call is Call.UNLINK:
        if entries.get(call.path) == call.inode:
            del entries[call.path]
    else:
        if call.call is Call.RENAME and entries.get(call.path) == call.inode:
            del entries[call.path]
        entries[call.target] = call.inode


def _parent(call: Recorded) -> str:
    """The directory whose sync makes a change of names durable."""
    return _above(call.target or call.path)


def _above(path: str) -> str:
    return path.rpartition("/")[0] or "/"


@lru_cache(_REMEMBERED)
def _reachable(directories: frozenset[str]) -> frozenset[str]:
    """Those whose directories above are there, all of them."""

    def is_reachable(directory: str) -> bool:
        while directory != "/":
            directory = _above(directory)
            if directory not in directories:
                return False
        return True

    return frozenset(filter(is_reachable, directories))

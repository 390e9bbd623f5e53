"""A leaf of an earlier map in which some blocks change, without taking it apart.

After many incrementals a leaf has a hundred frames and nearly twice as many runs; one more changes two of them.
So runs are cut out of the page and put into it. The result is the page that `Leaf.encode` makes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

import numpy as np

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.disk_map import LEAF_HEAD, LEAF_RUN, Leaf, page_head
from holdfast_common.repository.layout import BLOCKS_PER_FRAME, BLOCKS_PER_LEAF, CHUNK_ID_BYTES

SPLICED_MAX: Final = 32  # changed blocks; with more it is cheaper to take the leaf apart
_ALL_BYTES: Final = bytes(range(256))

_Run = tuple[int, int, int, int]  # see `LEAF_RUN`


class EditedLeaf:
    """What `Leaf` is for a writer: blocks are set, then it is encoded. One thread."""

    __slots__ = ("_changes", "_page", "number")

    def __init__(self, page: bytes, number: int) -> None:
        """Raises: IntegrityError: not the page of that leaf."""
        _check(page, number)
        self.number = number
        self._page = page
        self._changes: dict[int, tuple[bytes | None, int]] = {}

    def set(self, block: int, chunk_id: bytes | None, place: int = 0) -> None:
        """Map one block; None makes it zero."""
        self._changes[block] = (chunk_id, place)

    def mapped_blocks(self) -> int:
        """How many blocks are not zero."""
        page = self.encode()
        runs = page_head(page, LEAF_HEAD)[2]
        return runs + sum(page[LEAF_HEAD.size + 1 : LEAF_HEAD.size + runs * LEAF_RUN.size : 4])

    def encode(self) -> bytes:
        """The page's bytes."""
        if self._changes:
            changes, self._changes = self._changes, {}
            self._page = _spliced(self._page, changes) or _rebuilt(self._page, changes)
        return self._page


def _check(page: bytes, wanted: int) -> None:
    """As `Leaf.decode` does. Raises: IntegrityError."""
    level, _, runs, frames, _, number = page_head(page, LEAF_HEAD)
    frames_at = LEAF_HEAD.size + runs * LEAF_RUN.size
    if level != 0 or len(page) != frames_at + frames * CHUNK_ID_BYTES:
        raise IntegrityError("a leaf of a disk's map has a wrong length", length=len(page))
    if number != wanted:
        raise IntegrityError("a leaf stands where another belongs", wanted=wanted, found=number)
    if not runs:
        return
    table = np.frombuffer(page, np.uint8, runs * LEAF_RUN.size, LEAF_HEAD.size)
    first, more, frame, place = table.reshape(runs, LEAF_RUN.size).T.astype(np.uint16)
    last = first + more
    if (
        (last[:-1] >= first[1:]).any()
        or last[-1] >= BLOCKS_PER_LEAF
        or frame.max() >= frames
        or (place + more).max() >= BLOCKS_PER_FRAME
    ):
        raise IntegrityError("a run of a disk's map is out of bounds", leaf=number)


def _rebuilt(page: bytes, changes: dict[int, tuple[bytes | None, int]]) -> bytes:
    leaf = Leaf.decode(page)
    for block, (chunk_id, place) in changes.items():
        leaf.set(block, chunk_id, place)
    return leaf.encode()


def _spliced(page: bytes, changes: dict[int, tuple[bytes | None, int]]) -> bytes | None:
    """The new page; None when that does not pay, or there are too many frames for it."""
    _, _, run_count, frame_count, _, number = page_head(page, LEAF_HEAD)
    if len(changes) > SPLICED_MAX or frame_count + len(changes) > len(_ALL_BYTES):
        return None
    frames_at = LEAF_HEAD.size + run_count * LEAF_RUN.size
    runs = bytearray(page[LEAF_HEAD.size : frames_at])
    frames = _Frames(page[frames_at:])
    for first, last, wanted in _groups(changes, frames):
        _replace(runs, first, last, wanted)
    # frames are counted in the order in which runs name them, and those that none names are left out
    column = bytes(runs[2 :: LEAF_RUN.size])
    order = bytes(dict.fromkeys(column))
    if len(order) * CHUNK_ID_BYTES != len(frames.ids) or order != _ALL_BYTES[: len(order)]:
        table = bytes.maketrans(order, _ALL_BYTES[: len(order)])
        runs[2 :: LEAF_RUN.size] = column.translate(table)
        frames.reorder(order)
    head = LEAF_HEAD.pack(0, 0, len(column), len(order), 0, number)
    return b"".join((head, runs, frames.ids))


class _Frames:
    """Ids of frames in one piece: of a hundred of them one comes and one goes."""

    __slots__ = ("ids",)

    def __init__(self, ids: bytes) -> None:
        self.ids = ids

    def number_of(self, chunk_id: bytes) -> int:
        """Where it stands; at the end when it is a new one."""
        at = self.ids.find(chunk_id)
        while at > 0 and at % CHUNK_ID_BYTES:  # across two others
            at = self.ids.find(chunk_id, at + 1)
        if at < 0:
            at = len(self.ids)
            self.ids += chunk_id
        return at // CHUNK_ID_BYTES

    def reorder(self, order: bytes) -> None:
        """Those of these numbers, in that order."""
        rows = np.frombuffer(self.ids, f"V{CHUNK_ID_BYTES}")
        self.ids = rows[np.frombuffer(order, np.uint8)].tobytes()


def _groups(
    changes: dict[int, tuple[bytes | None, int]], frames: _Frames
) -> Iterator[tuple[int, int, list[_Run]]]:
    """Changed blocks that lie side by side: the first, the last, and runs for them. New frames are added."""
    group: list[_Run] = []
    first = end = -1
    for block in sorted(changes):
        if block != end and end >= 0:
            yield first, end - 1, group
            group, first = [], block
        elif end < 0:
            first = block
        end = block + 1
        chunk_id, place = changes[block]
        if chunk_id is not None:
            group.append((block, 0, frames.number_of(chunk_id), place))
    yield first, end - 1, group


def _replace(runs: bytearray, first: int, last: int, wanted: list[_Run]) -> None:
    """Put runs in the place of whatever covers the blocks ``first`` to ``last``."""
    firsts = runs[:: LEAF_RUN.size]
    start = bisect_left(firsts, first)
    low = max(start - 1, 0)  # the one before may reach into it, or go on in it
    high = min(bisect_right(firsts, last, start) + 1, len(firsts))
    before: list[_Run] = []
    after: list[_Run] = []
    stored = runs[low * LEAF_RUN.size : high * LEAF_RUN.size]
    for block, more, frame, place in LEAF_RUN.iter_unpack(stored):
        if block < first:
            before.append((block, min(more, first - 1 - block), frame, place))
        if block + more > last:
            cut = max(last + 1 - block, 0)
            after.append((block + cut, more - cut, frame, place + cut))
    joined: list[int] = []
    for block, more, frame, place in (*before, *wanted, *after):
        if joined:
            earlier, length, same, before_place = joined[-4], joined[-3] + 1, *joined[-2:]
            if earlier + length == block and same == frame and before_place + length == place:
                joined[-3] += more + 1
                continue
        joined += (block, more, frame, place)
    runs[low * LEAF_RUN.size : high * LEAF_RUN.size] = bytes(joined)

"""A disk's map: a tree from byte ranges to (frame, block in the frame). What it does not name is zero.

A leaf covers 16 MiB in blocks of 64 KiB; an inner page has up to 256 children. Pages are immutable and
shared between points; a reference holds the page's keyed digest, so the manifest vouches for all of it.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCKS_PER_FRAME,
    BLOCKS_PER_LEAF,
    CHUNK_ID_BYTES,
    ID_BYTES,
    LEAF_BYTES,
    MAP_FANOUT,
    ObjectKind,
    map_name,
)
from holdfast_common.repository.object_store import ObjectStore, RangeStore
from holdfast_common.repository.sealed_object import SEGMENT_BYTES, SealedRanges, body_length
from holdfast_common.units import MIB

# level u8 (0) | zero u8 | runs u16 | frames u16 | zero u16 | number of the leaf u64
LEAF_HEAD: Final = struct.Struct("<BBHHHQ")
LEAF_RUN: Final = struct.Struct("<BBBB")  # first block, blocks - 1, frame, first block in the frame
# level u8 | zero u8 | children u16 | objects u16 | zero u16 | number of the page at its level u64
_INNER: Final = struct.Struct("<BBHHHQ")
# slot u8 | zero u8 | object u16 | page length u32 | page offset u64 | mapped blocks u64 | digest 32
_CHILD: Final = struct.Struct("<BBHIQQ32s")
_IN_ORDER: Final = bytes(range(BLOCKS_PER_FRAME))
PAGE_BYTES_MAX: Final = 64 * 1024
LEVEL_MAX: Final = 4
PAGE_CACHE_MAX: Final = 64  # inner pages of some 15 KiB at most: 1 MiB
SEGMENT_CACHE_BYTES: Final = 16 * MIB  # opened segments: after many incrementals leaves lie in many
OBJECT_CACHE_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PageReference:
    """Where a page of a map stands, and what it must be."""

    object_id: bytes
    offset: int
    length: int
    blocks: int  # mapped blocks below it
    digest: bytes


@dataclass(slots=True)
class Leaf:
    """16 MiB of a disk: per block its frame's id and its place in the frame, None where the disk is zero."""

    number: int
    ids: list[bytes | None]
    places: bytearray

    @classmethod
    def empty(cls, number: int) -> Leaf:
        """All zero."""
        return cls(number, [None] * BLOCKS_PER_LEAF, bytearray(BLOCKS_PER_LEAF))

    def set(self, block: int, chunk_id: bytes | None, place: int = 0) -> None:
        """Map one block; None makes it zero."""
        self.ids[block] = chunk_id
        self.places[block] = place

    def mapped_blocks(self) -> int:
        """How many blocks are not zero."""
        return BLOCKS_PER_LEAF - self.ids.count(None)

    def encode(self) -> bytes:
        """The page's bytes."""
        ids, places = self.ids, self.places
        frames: dict[bytes, int] = {}
        runs: list[int] = []  # four for each, see `LEAF_RUN`
        block = 0
        while block < BLOCKS_PER_LEAF:
            chunk_id = ids[block]
            start = block
            block += 1
            if chunk_id is None:
                continue
            while (
                block < BLOCKS_PER_LEAF
                and ids[block] == chunk_id
                and places[block] == places[block - 1] + 1
            ):
                block += 1
            frame = frames.setdefault(chunk_id, len(frames))
            runs += (start, block - start - 1, frame, places[start])
        count = len(runs) // LEAF_RUN.size
        page = LEAF_HEAD.pack(0, 0, count, len(frames), 0, self.number)
        return b"".join((page, bytes(runs), *frames))

    @classmethod
    def decode(cls, page: bytes) -> Leaf:
        """Raises: IntegrityError."""
        level, _, run_count, frame_count, _, number = page_head(page, LEAF_HEAD)
        frames_at = LEAF_HEAD.size + run_count * LEAF_RUN.size
        if level != 0 or len(page) != frames_at + frame_count * CHUNK_ID_BYTES:
            raise IntegrityError("a leaf of a disk's map has a wrong length", length=len(page))
        frames = [
            page[at : at + CHUNK_ID_BYTES] for at in range(frames_at, len(page), CHUNK_ID_BYTES)
        ]
        ids: list[bytes | None] = [None] * BLOCKS_PER_LEAF
        places = bytearray(BLOCKS_PER_LEAF)
        end = 0
        for first, more, frame, place in LEAF_RUN.iter_unpack(page[LEAF_HEAD.size : frames_at]):
            if (
                first < end
                or first + more >= BLOCKS_PER_LEAF
                or frame >= frame_count
                or place + more >= BLOCKS_PER_FRAME
            ):
                raise IntegrityError("a run of a disk's map is out of bounds", leaf=number)
            end = first + more + 1
            if more:
                ids[first:end] = [frames[frame]] * (more + 1)
                places[first:end] = _IN_ORDER[place : place + more + 1]
            else:  # most runs of a disk of many incrementals
                ids[first] = frames[frame]
                places[first] = place
        return cls(number, ids, places)


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerPage:
    """The children of an inner page by their slot."""

    level: int
    number: int
    children: dict[int, PageReference]

    def encode(self) -> bytes:
        """The page's bytes."""
        objects: dict[bytes, int] = {}
        rows = bytearray()
        for slot in sorted(self.children):
            child = self.children[slot]
            object_index = objects.setdefault(child.object_id, len(objects))
            rows += _CHILD.pack(
                slot, 0, object_index, child.length, child.offset, child.blocks, child.digest
            )
        start = _INNER.pack(self.level, 0, len(self.children), len(objects), 0, self.number)
        return start + b"".join(objects) + rows

    @classmethod
    def decode(cls, page: bytes) -> InnerPage:
        """Raises: IntegrityError."""
        level, _, child_count, object_count, _, number = page_head(page, _INNER)
        children_at = _INNER.size + object_count * ID_BYTES
        if not 0 < level <= LEVEL_MAX or len(page) != children_at + child_count * _CHILD.size:
            raise IntegrityError("a page of a disk's map has a wrong length", length=len(page))
        objects = [page[at : at + ID_BYTES] for at in range(_INNER.size, children_at, ID_BYTES)]
        children: dict[int, PageReference] = {}
        for slot, _, index, length, offset, blocks, digest in _CHILD.iter_unpack(
            page[children_at:]
        ):
            if index >= object_count or length > PAGE_BYTES_MAX or slot in children:
                raise IntegrityError("a reference in a disk's map is out of bounds", page=number)
            children[slot] = PageReference(
                object_id=objects[index], offset=offset, length=length, blocks=blocks, digest=digest
            )
        return cls(level=level, number=number, children=children)


class PageStore:
    """Reads pages of maps of one lineage. One thread."""

    def __init__(self, store: ObjectStore, keys: ReaderKeys) -> None:
        self._store = store
        self._keys = keys
        self._hasher: Hasher = keys.hasher()
        self._objects: OrderedDict[bytes, SealedRanges] = OrderedDict()
        self._segments: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._segments_bytes = 0

    def page(self, reference: PageReference) -> bytes:
        """The page's bytes, which are what the reference promised.

        Raises: IntegrityError, FormatError, ObjectMissing, RepositoryFailed.
        """
        page = self._read(reference)
        if self._hasher.page_digest(page) != reference.digest:
            raise IntegrityError(
                "a page of a disk's map is not the one that was stored",
                object=reference.object_id.hex(),
                offset=reference.offset,
            )
        return page

    def _read(self, reference: PageReference) -> bytes:
        """What stands there: `page` proves it."""
        first = reference.offset // SEGMENT_BYTES
        last = (reference.offset + max(reference.length, 1) - 1) // SEGMENT_BYTES
        data = b"".join(self._segment(reference.object_id, n) for n in range(first, last + 1))
        start = reference.offset - first * SEGMENT_BYTES
        return data[start : start + reference.length]

    def _segment(self, object_id: bytes, number: int) -> bytes:
        key = (object_id, number)
        if key in self._segments:
            self._segments.move_to_end(key)
            return self._segments[key]
        plain = self._opened(object_id).segment(number)
        self._segments[key] = plain
        self._segments_bytes += len(plain)
        while self._segments_bytes > SEGMENT_CACHE_BYTES:
            self._segments_bytes -= len(self._segments.popitem(last=False)[1])
        return plain

    def _opened(self, object_id: bytes) -> SealedRanges:
        """An object of maps, opened. Raises: as `page`."""
        if object_id in self._objects:
            self._objects.move_to_end(object_id)
            return self._objects[object_id]
        name = map_name(self._keys.lineage_tag, object_id)
        # The length is nobody's promise: a wrong one makes the last segment fail to open.
        length = self._length_of(object_id, name)
        ranges = SealedRanges(
            self._source(object_id, name),
            name,
            expected=self._keys.expected(ObjectKind.MAP, object_id),
            body=body_length(length, kind=ObjectKind.MAP) if length is not None else 0,
            class_key=self._keys.class_key,
        )
        self._objects[object_id] = ranges
        if len(self._objects) > OBJECT_CACHE_MAX:
            self._objects.popitem(last=False)
        return ranges

    def _source(self, _object_id: bytes, _name: str) -> RangeStore:
        """What an object of maps is read from. Raises: ObjectMissing, RepositoryFailed."""
        return self._store

    def _length_of(self, object_id: bytes, name: str) -> int | None:
        """The length of an object of maps; None: it is gone. Raises: RepositoryFailed."""
        info = self._store.head(name)
        return info.length if info is not None else None


class DiskMap:
    """The map of one disk of one point, read page by page as needed. One thread."""

    def __init__(
        self, pages: PageStore, root: PageReference | None, *, capacity_bytes: int
    ) -> None:
        self._store = pages
        self.root = root
        self.root_level = level_count(capacity_bytes)
        self._leaf_count = -(-capacity_bytes // LEAF_BYTES)
        self._inner: OrderedDict[bytes, InnerPage] = OrderedDict()

    def leaf(self, number: int) -> Leaf | None:
        """One leaf; None where all of it is zero."""
        found = next(self.references(number, number + 1), None)
        return self.load_leaf(found[0], found[1]) if found is not None else None

    def load_leaf(self, number: int, reference: PageReference) -> Leaf:
        """The leaf behind a reference. Raises: IntegrityError, FormatError."""
        leaf = Leaf.decode(self.leaf_page(reference))
        if leaf.number != number:
            raise IntegrityError(
                "a leaf stands where another belongs", wanted=number, found=leaf.number
            )
        return leaf

    def leaf_page(self, reference: PageReference) -> bytes:
        """The bytes of the leaf behind a reference. Raises: IntegrityError, FormatError."""
        return self._store.page(reference)

    def references(
        self, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, PageReference]]:
        """References of the leaves ``first`` to ``end`` (without it) that are not all zero, in order."""
        end = self._leaf_count if end is None else min(end, self._leaf_count)
        if self.root is not None and first < end:
            yield from self._below(self.root, level=self.root_level, number=0, first=first, end=end)

    def pages(self) -> Iterator[PageReference]:
        """References of all pages, the leaves' too; only inner pages are read for it."""
        if self.root is not None:
            yield self.root
            yield from self._pages_below(self.root, level=self.root_level, number=0)

    def children(
        self, reference: PageReference, *, level: int, number: int
    ) -> dict[int, PageReference]:
        """The children of an inner page. Raises: IntegrityError, FormatError."""
        page = self._inner.get(reference.digest)
        if page is None:
            page = InnerPage.decode(self._store.page(reference))
            self._inner[reference.digest] = page
            if len(self._inner) > PAGE_CACHE_MAX:
                self._inner.popitem(last=False)
        else:
            self._inner.move_to_end(reference.digest)
        if page.level != level or page.number != number:
            raise IntegrityError(
                "a page stands where another belongs", wanted=number, found=page.number
            )
        return page.children

    def _pages_below(
        self, reference: PageReference, *, level: int, number: int
    ) -> Iterator[PageReference]:
        if level == 0:
            return
        for slot, child in self.children(reference, level=level, number=number).items():
            yield child
            yield from self._pages_below(child, level=level - 1, number=number * MAP_FANOUT + slot)

    def _below(
        self, reference: PageReference, *, level: int, number: int, first: int, end: int
    ) -> Iterator[tuple[int, PageReference]]:
        if level == 0:
            yield number, reference
            return
        span = MAP_FANOUT ** (level - 1)
        children = self.children(reference, level=level, number=number)
        for slot in sorted(children):
            child = number * MAP_FANOUT + slot
            if child * span < end and (child + 1) * span > first:
                yield from self._below(
                    children[slot], level=level - 1, number=child, first=first, end=end
                )


def level_count(capacity_bytes: int) -> int:
    """The level of the root page of a disk of that size; 0: the root is a leaf."""
    leaves = max(1, -(-capacity_bytes // LEAF_BYTES))
    level = 0
    while leaves > 1:
        leaves = -(-leaves // MAP_FANOUT)
        level += 1
    return level


def block_length(block: int, *, capacity_bytes: int) -> int:
    """The bytes of a block of the disk; less than 64 KiB only at an odd end."""
    return min(BLOCK_BYTES, capacity_bytes - block * BLOCK_BYTES)


def page_head(page: bytes, layout: struct.Struct) -> tuple[int, ...]:
    """The numbers with which a page begins. Raises: IntegrityError."""
    if not layout.size <= len(page) <= PAGE_BYTES_MAX:
        raise IntegrityError("a page of a disk's map has a wrong length", length=len(page))
    fields: tuple[int, ...] = layout.unpack_from(page)
    return fields

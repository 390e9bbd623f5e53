"""What to read for a piece of a disk, and reading it into a buffer. Between `disk_map` and `frame_reader`.

Pieces are planned in the disk's order, many at once: the index and the controller are asked in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Final

from holdfast_common.blocks.wanted import told_apart
from holdfast_common.errors import IntegrityError
from holdfast_common.extents import Extent, merged, split
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.disk_map import DiskMap, Leaf
from holdfast_common.repository.frame_reader import (
    FrameReader,
    WantedChunk,
    holds,
    missing_chunk,
)
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCKS_PER_LEAF,
    LEAF_BYTES,
)
from holdfast_common.units import MIB

PIECE_BYTES: Final = 4 * MIB  # what is decoded and written at once
BATCH_FRAMES: Final = 1024  # looked up at once: a gibibyte of whole frames
BATCH_ITEMS_MAX: Final = 256  # leaves, and what lies between them


@dataclass(slots=True)
class FrameUse:
    """Which blocks of a piece come from one frame: (block of the disk, block in the frame)."""

    chunk_id: bytes
    blocks: list[tuple[int, int]] = field(default_factory=list)
    place: ChunkLocation | None = None  # None: no index knows it

    @property
    def mask(self) -> int:
        """The blocks of the frame that are needed, bit per block."""
        bits = 0
        for _, in_frame in self.blocks:
            bits |= 1 << in_frame
        return bits


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecePlan:
    """A piece of a disk that lies within `PIECE_BYTES`: what is wanted of it, and what that comes from."""

    wanted: tuple[Extent, ...]  # whole blocks, ascending; the disk's last one may be shorter
    mapped: tuple[Extent, ...]  # what of it the point holds; the rest is zero
    uses: tuple[FrameUse, ...]

    @property
    def offset(self) -> int:
        """Where it begins on the disk."""
        return self.wanted[0].offset

    @property
    def length(self) -> int:
        """How long a buffer for it must be."""
        return self.wanted[-1].end - self.wanted[0].offset

    def part(self, buffer: memoryview, extent: Extent) -> memoryview:
        """Where one of its extents lies in its buffer."""
        return buffer[extent.offset - self.offset : extent.end - self.offset]


@dataclass(slots=True)
class _Asked:
    """A leaf, and what is wanted of it; no parts: all that it maps."""

    leaf: Leaf
    parts: list[Extent] = field(default_factory=list)

    def ids(self) -> set[bytes]:
        base = self.leaf.number * BLOCKS_PER_LEAF
        found = set(
            chain.from_iterable(
                self.leaf.ids[
                    part.offset // BLOCK_BYTES - base : -(-part.end // BLOCK_BYTES) - base
                ]
                for part in self.parts
            )
            if self.parts
            else self.leaf.ids
        )
        return {chunk_id for chunk_id in found if chunk_id is not None}

    @property
    def end(self) -> int:
        return (self.leaf.number + 1) * LEAF_BYTES


class PiecePlanner:
    """Plans and fills pieces of one disk. Planning: one thread; filling: any."""

    def __init__(self, disk_map: DiskMap, frames: FrameReader, *, capacity_bytes: int) -> None:
        self._map = disk_map
        self._frames = frames
        self._capacity = capacity_bytes

    def everything(
        self, coming: Callable[[Sequence[Extent]], None] = lambda _: None
    ) -> Iterator[PiecePlan]:
        """All that the point holds, ascending. ``coming`` is told what the next pieces will hold, many at once.

        Raises: IntegrityError and others of maps, indexes and keys; what ``coming`` raises.
        """
        leaves = (
            _Asked(self._map.load_leaf(number, reference))
            for number, reference in self._map.references()
        )
        yield from self._planned(leaves, coming)

    def within(self, wanted: Iterable[Extent]) -> Iterator[PiecePlan]:
        """These extents: whole blocks, ascending, merged. Raises: as `everything`.

        Where the map has no leaf a piece may be of any length; it needs no buffer.
        """
        yield from self._planned(self._asked(wanted))

    def fill(self, plan: PiecePlan, buffer: memoryview) -> None:
        """All that is mapped of a piece, every frame checked; what it raises makes the buffer worthless.

        Raises: IntegrityError, FormatError, ObjectMissing, RepositoryFailed and others.
        """
        uses = {use.chunk_id: use for use in plan.uses}
        chunks = [
            WantedChunk(self._held(use), use.mask, self._target(use, plan, buffer))
            for use in plan.uses
        ]
        for chunk, plain in self._frames.each(chunks):
            if plain is not chunk.target:
                self._copy(uses[chunk.place.chunk_id], plain, plan, buffer)

    def _asked(self, wanted: Iterable[Extent]) -> Iterator[_Asked | Extent]:
        leaves = (
            Extent(offset=number * LEAF_BYTES, length=LEAF_BYTES)
            for number, _ in self._map.references()
        )
        current: _Asked | None = None
        for part, is_mapped in told_apart(wanted, leaves):
            if is_mapped and current is not None and part.offset < current.end:
                current.parts.append(part)
                continue
            if current is not None:
                yield current
                current = None
            if not is_mapped:
                yield part
                continue
            leaf = self._map.leaf(part.offset // LEAF_BYTES)
            assert leaf is not None, "told by the map itself"
            current = _Asked(leaf, [part])
        if current is not None:
            yield current

    def _planned(
        self,
        asked: Iterable[_Asked | Extent],
        coming: Callable[[Sequence[Extent]], None] = lambda _: None,
    ) -> Iterator[PiecePlan]:
        """With places, for which the index and the controller are asked for many frames at once."""
        batch: list[_Asked | Extent] = []
        ids: set[bytes] = set()
        for item in asked:
            batch.append(item)
            if isinstance(item, _Asked):
                ids |= item.ids()
            if len(ids) >= BATCH_FRAMES or len(batch) >= BATCH_ITEMS_MAX:
                coming(self._runs_of(batch))
                yield from self._pieces(batch, self._frames.locate(ids))
                batch, ids = [], set()
        coming(self._runs_of(batch))
        yield from self._pieces(batch, self._frames.locate(ids))

    def _pieces(
        self, batch: list[_Asked | Extent], located: Mapping[bytes, ChunkLocation]
    ) -> Iterator[PiecePlan]:
        for item in batch:
            if isinstance(item, Extent):
                yield PiecePlan(wanted=(item,), mapped=(), uses=())
                continue
            parts = split(item.parts or self._runs(item.leaf), unit=PIECE_BYTES)
            for _, extents in groupby(parts, key=lambda extent: extent.offset // PIECE_BYTES):
                yield self._piece(tuple(extents), item.leaf, located)

    def _piece(
        self, wanted: tuple[Extent, ...], leaf: Leaf, located: Mapping[bytes, ChunkLocation]
    ) -> PiecePlan:
        uses: dict[bytes, FrameUse] = {}
        mapped: list[Extent] = []
        base = leaf.number * BLOCKS_PER_LEAF
        for extent in wanted:
            start = -1
            end = -(-extent.end // BLOCK_BYTES)
            for block in range(extent.offset // BLOCK_BYTES, end):
                chunk_id = leaf.ids[block - base]
                if chunk_id is None:
                    if start >= 0:
                        mapped.append(self._extent(start, block))
                        start = -1
                    continue
                start = block if start < 0 else start
                use = uses.get(chunk_id)
                if use is None:
                    use = uses[chunk_id] = FrameUse(chunk_id, place=located.get(chunk_id))
                use.blocks.append((block, leaf.places[block - base]))
            if start >= 0:
                mapped.append(self._extent(start, end))
        return PiecePlan(wanted=wanted, mapped=tuple(mapped), uses=tuple(uses.values()))

    def _runs_of(self, batch: Iterable[_Asked | Extent]) -> list[Extent]:
        """All that the batch's leaves map, merged, ascending."""
        return merged(
            run for item in batch if isinstance(item, _Asked) for run in self._runs(item.leaf)
        )

    def _runs(self, leaf: Leaf) -> Iterator[Extent]:
        """What a leaf maps, ascending."""
        base = leaf.number * BLOCKS_PER_LEAF
        start = -1
        for block, chunk_id in enumerate((*leaf.ids, None)):
            if chunk_id is not None and start < 0:
                start = block
            elif chunk_id is None and start >= 0:
                yield self._extent(base + start, base + block)
                start = -1

    def _extent(self, start: int, end: int) -> Extent:
        last = min(end * BLOCK_BYTES, self._capacity)
        return Extent(offset=start * BLOCK_BYTES, length=last - start * BLOCK_BYTES)

    def _held(self, use: FrameUse) -> ChunkLocation:
        """A place where all that is needed of the frame is stored."""
        if use.place is None:
            raise missing_chunk(use.chunk_id)
        if holds(use.place, use.mask):
            return use.place
        for place in self._frames.index.find_all(use.chunk_id):
            if holds(place, use.mask):
                return place
        raise IntegrityError(
            "blocks that a disk's map needs were taken out of their frame",
            chunk=use.chunk_id.hex(),
        )

    def _target(self, use: FrameUse, plan: PiecePlan, buffer: memoryview) -> memoryview | None:
        """Where a frame lies as a whole in the piece; None: only some blocks of it are needed there."""
        first = use.blocks[0][0]
        place = use.place
        if place is None or len(use.blocks) != place.blocks:
            return None
        if use.blocks != [(first + number, number) for number in range(place.blocks)]:
            return None
        extent = self._extent(first, first + place.blocks)
        return plan.part(buffer, extent) if extent.length == place.plain_length else None

    def _copy(self, use: FrameUse, plain: memoryview, plan: PiecePlan, buffer: memoryview) -> None:
        for block, in_frame in use.blocks:
            extent = self._extent(block, block + 1)
            data = plain[in_frame * BLOCK_BYTES :][: extent.length]
            if len(data) != extent.length:
                raise IntegrityError(
                    "a frame is shorter than its disk's map says", chunk=use.chunk_id.hex()
                )
            plan.part(buffer, extent)[:] = data

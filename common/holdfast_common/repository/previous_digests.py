"""What a disk's blocks were in the previous point, without reading a pack: for scans, audits and read-back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.extents import Extent, split
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.disk_map import DiskMap, Leaf
from holdfast_common.repository.frame_worker import KnownChunks
from holdfast_common.repository.layout import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    BLOCKS_PER_FRAME,
    BLOCKS_PER_LEAF,
    FRAME_BYTES,
    FRAMES_PER_LEAF,
)
from holdfast_common.repository.repository_index import RepositoryIndex

UNKNOWN = b""  # a digest that equals none
BlockDigests = tuple[bytes | None, ...]  # None: the block is zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """``differing``: blocks that are not what they were; of ``unknown_bytes`` nobody can say what they were."""

    differing: tuple[Extent, ...]
    unknown_bytes: int


class PreviousBlocks:
    """A disk's blocks in an earlier point, to be compared with what is read. `compared`: one thread, ascending."""

    def __init__(self, digests: Callable[[int], tuple[bytes | None, ...]], hasher: Hasher) -> None:
        """``digests``: what `previous_digests_of` made."""
        self._digests = digests
        self._hasher = hasher

    def digests_of(self, data: memoryview) -> BlockDigests:
        """Of what was read from a block's beginning on, for `compared`. In any thread."""
        parts = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
        return tuple(None if _is_zero(part) else self._hasher.block_digest(part) for part in parts)

    def compared(self, extent: Extent, found: BlockDigests | None) -> Compared:
        """Compare ``found`` (None: all zeros) with what the point has there; no reading of any pack.

        ``extent`` begins at a block and ends at one, or at the disk's end. Raises: IntegrityError and others.
        """
        differing: list[Extent] = []
        unknown_bytes = 0
        for part in split([extent], unit=FRAME_BYTES):
            window, place = divmod(part.offset, FRAME_BYTES)
            before = self._digests(window)[place // BLOCK_BYTES :]
            if found is None and before.count(None) == len(before):
                continue  # a hole, as it was
            for digest, block in zip(before, split([part], unit=BLOCK_BYTES), strict=False):
                now = (
                    None if found is None else found[(block.offset - extent.offset) // BLOCK_BYTES]
                )
                if digest == UNKNOWN:
                    unknown_bytes += block.length
                elif digest != now:
                    differing.append(block)
        return Compared(differing=tuple(differing), unknown_bytes=unknown_bytes)


def _is_zero(part: memoryview) -> bool:
    return not np.frombuffer(part, np.uint8).any()


def previous_digests_of(
    disk_map: DiskMap, known: KnownChunks
) -> Callable[[int], tuple[bytes | None, ...]]:
    """A function from a window's number to its 16 blocks' digests: None: zero; `UNKNOWN`: not known.

    What is not there any more is not known either, so it is stored anew.

    Windows are asked for in ascending order, by one thread; the index is asked for a whole leaf at once.
    """
    current: list[tuple[bytes | None, ...]] = [()]
    number = [-1]
    lock = threading.Lock()

    def digests(window: int) -> tuple[bytes | None, ...]:
        with lock:
            wanted = window // FRAMES_PER_LEAF
            if wanted != number[0]:
                current[0] = block_digests(
                    disk_map.leaf(wanted), 0, BLOCKS_PER_LEAF, known.index, is_there=known.is_there
                )
                number[0] = wanted
            of_leaf = current[0]
        first = window % FRAMES_PER_LEAF * BLOCKS_PER_FRAME
        return of_leaf[first : first + BLOCKS_PER_FRAME]

    return digests


def block_digests(
    leaf: Leaf | None,
    first: int,
    count: int,
    index: RepositoryIndex,
    *,
    is_there: Callable[[ChunkLocation], bool] = lambda _: True,
) -> tuple[bytes | None, ...]:
    """The digests of ``count`` blocks of a leaf: None: zero; `UNKNOWN`: the index cannot say."""
    if leaf is None:
        return (None,) * count
    ids = leaf.ids[first : first + count]
    places = index.find_many(list({chunk_id for chunk_id in ids if chunk_id is not None}))
    frames = {
        chunk_id: _digests_of(found, index, is_there=is_there) for chunk_id, found in places.items()
    }
    result: list[bytes | None] = []
    for chunk_id, place in zip(ids, leaf.places[first : first + count], strict=True):
        if chunk_id is None:
            result.append(None)
            continue
        start = place * BLOCK_DIGEST_BYTES
        result.append(frames.get(chunk_id, UNKNOWN)[start : start + BLOCK_DIGEST_BYTES])
    return tuple(result)


def _digests_of(
    places: Iterable[ChunkLocation],
    index: RepositoryIndex,
    *,
    is_there: Callable[[ChunkLocation], bool],
) -> bytes:
    """The digests of a frame's blocks; empty when no index can say."""
    for location in places:
        if not is_there(location):
            continue
        try:
            return index.digests(location)
        except (IntegrityError, FormatError, RepositoryFailed):
            continue  # a damaged index object: the frame itself can still be read
    return UNKNOWN

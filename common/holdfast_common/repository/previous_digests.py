"""What a disk's blocks were in the previous point, without reading a pack: for scans and for read-back."""

from __future__ import annotations

import threading
from collections.abc import Callable

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.disk_map import DiskMap, Leaf
from holdfast_common.repository.frame_worker import KnownChunks
from holdfast_common.repository.layout import (
    BLOCK_DIGEST_BYTES,
    BLOCKS_PER_FRAME,
    FRAMES_PER_LEAF,
)
from holdfast_common.repository.repository_index import RepositoryIndex

UNKNOWN = b""  # a digest that equals none


def previous_digests_of(
    disk_map: DiskMap, known: KnownChunks
) -> Callable[[int], tuple[bytes | None, ...]]:
    """A function from a window's number to its 16 blocks' digests: None: zero; `UNKNOWN`: not known.

    What is not there any more is not known either, so it is stored anew.

    Windows are asked for in ascending order, by one thread.
    """
    current: list[Leaf | None] = [None]
    number = [-1]
    lock = threading.Lock()

    def digests(window: int) -> tuple[bytes | None, ...]:
        with lock:
            wanted = window // FRAMES_PER_LEAF
            if wanted != number[0]:
                current[0] = disk_map.leaf(wanted)
                number[0] = wanted
            leaf = current[0]
        first = window % FRAMES_PER_LEAF * BLOCKS_PER_FRAME
        return block_digests(leaf, first, BLOCKS_PER_FRAME, known.index, is_there=known.is_there)

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
    frames: dict[bytes, bytes] = {}
    result: list[bytes | None] = []
    for block in range(first, first + count):
        chunk_id = leaf.ids[block]
        if chunk_id is None:
            result.append(None)
            continue
        if chunk_id not in frames:
            frames[chunk_id] = frame_digests(chunk_id, index, is_there=is_there)
        start = leaf.places[block] * BLOCK_DIGEST_BYTES
        result.append(frames[chunk_id][start : start + BLOCK_DIGEST_BYTES])
    return tuple(result)


def frame_digests(
    chunk_id: bytes,
    index: RepositoryIndex,
    *,
    is_there: Callable[[ChunkLocation], bool] = lambda _: True,
) -> bytes:
    """The digests of a frame's blocks; empty when no index can say."""
    for location in index.find_all(chunk_id):
        if not is_there(location):
            continue
        try:
            return index.digests(location)
        except (IntegrityError, FormatError, RepositoryFailed):
            continue  # a damaged index object: the frame itself can still be read
    return UNKNOWN

"""A window of a disk on its way from `disk_writer` to a worker: what is known of it, and where its bytes are.

Bytes that were written lie in a buffer of the window's own; those that are to be read are read by the
worker itself into the worker's buffer, so that they are copied by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from holdfast_common.direct_writes import page_aligned
from holdfast_common.repository.layout import BLOCK_BYTES, BLOCKS_PER_FRAME, FRAME_BYTES

ReadInto = Callable[
    [int, memoryview], None
]  # offset in the disk, where to; several threads at once
_PROBE_WORDS: Final = 8  # of a block's begin: nearly all that is not zero shows it here


class WindowBuffer:
    """1 MiB, aligned to pages, so that it can be read past the page cache."""

    __slots__ = ("blocks", "data", "words")

    def __init__(self) -> None:
        self.data = page_aligned(FRAME_BYTES)
        self.words: npt.NDArray[np.uint64] = np.frombuffer(self.data, np.uint64).reshape(
            BLOCKS_PER_FRAME, BLOCK_BYTES // 8
        )
        self.blocks = [
            self.data[start : start + BLOCK_BYTES] for start in range(0, FRAME_BYTES, BLOCK_BYTES)
        ]

    def nonzero(self, wanted: int) -> int:
        """Which of the wanted blocks are not all zeros; a bit per block, like ``wanted``."""
        found = 0
        begins: npt.NDArray[np.bool_] = np.any(self.words[:, :_PROBE_WORDS], axis=1)
        for block, shows in enumerate(begins.tolist()):
            if wanted >> block & 1 and (shows or np.bitwise_or.reduce(self.words[block])):
                found |= 1 << block
        return found


@dataclass(slots=True)
class Window:
    """1 MiB of a disk, filled by one thread, then given to a worker. A bit of a mask stands for a block."""

    number: int
    received: int = 0  # blocks whose bytes are written or to be read
    zeroed: int = 0  # blocks that are said to be zero
    tail_block: int = -1  # the disk's last block, if it is short, and
    tail_length: int = 0  # its length
    previous_digests: tuple[bytes | None, ...] = ()  # per block; empty: do not compare
    written: WindowBuffer | None = None
    reads: list[tuple[int, int]] = field(default_factory=list)  # offset in the window, length
    read_into: ReadInto | None = None

    def add(self, start: int, length: int) -> None:
        """Bytes of ``[start, start + length)`` come; only the disk's end is not at a block's end."""
        self.received |= blocks_mask(start, length)
        rest = (start + length) % BLOCK_BYTES
        if rest:
            self.tail_block = (start + length) // BLOCK_BYTES
            self.tail_length = rest

    def load(self, own: WindowBuffer) -> WindowBuffer:
        """The bytes, in the written buffer or else in ``own``. Raises: what the source raises."""
        buffer = own if self.written is None else self.written
        for start, length in self.reads:
            assert self.read_into is not None
            self.read_into(self.number * FRAME_BYTES + start, buffer.data[start : start + length])
        if self.tail_block >= 0:  # the zero test looks at whole blocks
            buffer.blocks[self.tail_block][self.tail_length :] = bytes(
                BLOCK_BYTES - self.tail_length
            )
        return buffer

    def length_of(self, block: int) -> int:
        """Bytes in a block."""
        return self.tail_length if block == self.tail_block else BLOCK_BYTES


def blocks_mask(start: int, length: int) -> int:
    """Bits of the blocks in a range of a window."""
    return ((1 << -(-length // BLOCK_BYTES)) - 1) << start // BLOCK_BYTES

"""Disks in memory for tests: sources, sinks, and the faults that real ones have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast_common.errors import HoldfastError, ShortRead, TargetFailed
from holdfast_common.extents import Extent


class MemorySource:
    """A disk in memory. ``error_at_read``: number of the read (from 0) that raises ``error``."""

    def __init__(
        self,
        content: bytes,
        *,
        allocated: Sequence[Extent] | None = None,
        error: HoldfastError | None = None,
        error_at_read: int = -1,
    ) -> None:
        self.content = memoryview(content)
        self.reads: list[Extent] = []
        self.closed = 0
        self._allocated = allocated
        self._error = error
        self._error_at_read = error_at_read

    @property
    def capacity_bytes(self) -> int:
        return len(self.content)

    def allocated(self) -> Sequence[Extent] | None:
        return self._allocated

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if self._error is not None and len(self.reads) == self._error_at_read:
            raise self._error
        if offset + len(buffer) > len(self.content):
            raise ShortRead("disk ended early", offset=offset, wanted=len(buffer))
        self.reads.append(Extent(offset=offset, length=len(buffer)))
        buffer[:] = self.content[offset : offset + len(buffer)]

    def close(self) -> None:
        self.closed += 1


class MemorySequentialSource:
    """A disk in memory that comes in the pieces given; what is in no piece is zero."""

    def __init__(
        self,
        content: bytes,
        pieces: Sequence[Extent],
        *,
        error: HoldfastError | None = None,
        error_at_piece: int = -1,
    ) -> None:
        self.content = memoryview(content)
        self.pieces = pieces
        self.closed = 0
        self._error = error
        self._error_at_piece = error_at_piece

    @property
    def capacity_bytes(self) -> int:
        return len(self.content)

    def blocks(self) -> Iterator[tuple[int, memoryview]]:
        for number, piece in enumerate(self.pieces):
            if self._error is not None and number == self._error_at_piece:
                raise self._error
            yield piece.offset, self.content[piece.offset : piece.end]

    def close(self) -> None:
        self.closed += 1


class MemorySink:
    """A new disk in memory. ``error_at_write``: number of the write (from 0) that fails."""

    def __init__(self, capacity_bytes: int, *, error_at_write: int = -1) -> None:
        self.content = bytearray(capacity_bytes)
        self.writes: list[Extent] = []
        self.finished = False
        self.closed = 0
        self._error_at_write = error_at_write

    @property
    def capacity_bytes(self) -> int:
        return len(self.content)

    def write(self, offset: int, data: memoryview) -> None:
        if len(self.writes) == self._error_at_write:
            raise TargetFailed("no room", offset=offset)
        self.writes.append(Extent(offset=offset, length=len(data)))
        self.content[offset : offset + len(data)] = data

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed += 1

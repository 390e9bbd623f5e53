"""What all writers of disk images share: ascending writes of whole sectors, gathered into grains."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast_common.errors import TargetFailed
from holdfast_common.formats.vmdk_limits import CAPACITY_BYTES_MAX
from holdfast_common.formats.zero_bytes import fill_zero
from holdfast_common.units import SECTOR_BYTES


class AscendingWrites:
    """Refuses writes that go back, overlap, leave the disk or are no whole sectors."""

    def __init__(self, capacity_bytes: int) -> None:
        if not 0 < capacity_bytes <= CAPACITY_BYTES_MAX or capacity_bytes % SECTOR_BYTES:
            raise TargetFailed(
                "a disk is whole sectors, from 1 sector to 64 TiB", capacity_bytes=capacity_bytes
            )
        self.capacity_bytes = capacity_bytes
        self._end = 0
        self._finished = False

    def accept(self, offset: int, length: int) -> None:
        """Check the next write. Raises: TargetFailed."""
        if self._finished:
            raise TargetFailed("disk was written after it was finished", offset=offset)
        if offset < self._end or offset + length > self.capacity_bytes:
            raise TargetFailed(
                "write is not ascending or leaves the disk",
                offset=offset,
                length=length,
                end_of_last=self._end,
                capacity_bytes=self.capacity_bytes,
            )
        if offset % SECTOR_BYTES or length % SECTOR_BYTES:
            raise TargetFailed("write is no whole sectors", offset=offset, length=length)
        self._end = offset + length

    def accept_unordered(self, offset: int, length: int) -> None:
        """Check a write that need not ascend; any thread. Raises: TargetFailed."""
        if self._finished:
            raise TargetFailed("disk was written after it was finished", offset=offset)
        if offset < 0 or offset + length > self.capacity_bytes:
            raise TargetFailed(
                "write leaves the disk",
                offset=offset,
                length=length,
                capacity_bytes=self.capacity_bytes,
            )
        if offset % SECTOR_BYTES or length % SECTOR_BYTES:
            raise TargetFailed("write is no whole sectors", offset=offset, length=length)

    def finish(self) -> None:
        """No more writes. Raises: TargetFailed, on a second call."""
        if self._finished:
            raise TargetFailed("disk was finished twice")
        self._finished = True


class GrainGatherer:
    """Cuts ascending writes into whole grains; what is missing in a grain is zero."""

    def __init__(self, *, grain_bytes: int) -> None:
        self._grain_bytes = grain_bytes
        self._buffer = memoryview(bytearray(grain_bytes))
        self._index = -1  # the grain in the buffer; -1: none
        self._filled = 0

    def add(self, offset: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """(grain index, its bytes) for each grain that is complete now; use it before the next."""
        while len(data):
            index, inside = divmod(offset, self._grain_bytes)
            if index != self._index:
                yield from self.flush()
                if inside == 0 and len(data) >= self._grain_bytes:
                    yield index, data[: self._grain_bytes]  # a whole grain needs no copy
                    data = data[self._grain_bytes :]
                    offset += self._grain_bytes
                    continue
                self._index = index
            piece = data[: self._grain_bytes - inside]
            if inside > self._filled:
                fill_zero(self._buffer[self._filled : inside])
            self._buffer[inside : inside + len(piece)] = piece
            self._filled = inside + len(piece)
            if self._filled == self._grain_bytes:
                yield from self.flush()
            data = data[len(piece) :]
            offset += len(piece)

    def flush(self) -> Iterator[tuple[int, memoryview]]:
        """The grain that was begun, if any, filled up with zeros."""
        if self._index >= 0:
            fill_zero(self._buffer[self._filled :])
            index = self._index
            self._index, self._filled = -1, 0
            yield index, self._buffer

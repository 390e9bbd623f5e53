"""Flat extents: the disk's bytes, one after the other, with holes where the file system has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from holdfast_common.direct_writes import DirectWrites
from holdfast_common.errors import FormatError, TargetFailed
from holdfast_common.formats.ascending import AscendingWrites
from holdfast_common.formats.grain_map import ABSENT, Run
from holdfast_common.formats.image_file import ImageFile
from holdfast_common.formats.unordered import UnorderedFileWrites


class FlatExtent:
    """``length`` bytes of a disk that start at ``file_offset`` of ``file``; closes the file."""

    def __init__(self, file: ImageFile, *, length: int, file_offset: int = 0) -> None:
        if file_offset + length > file.length:
            raise FormatError(
                "flat disk image is shorter than its descriptor says",
                name=file.name,
                wanted=file_offset + length,
                file_length=file.length,
            )
        self._file = file
        self._start = file_offset
        self.capacity_bytes = length

    def runs(self, offset: int, end: int) -> Iterator[Run]:
        """Runs that cover ``[offset, end)``: everything is here, nothing is the parent's."""
        yield Run(offset, end - offset, self._start + offset)

    def data_runs(self, offset: int, end: int) -> Iterator[Run]:
        """Like `runs`, with the file's holes told apart; the file system is asked lazily."""
        while offset < end:
            data = self._file.next_data(self._start + offset)
            data_offset = end if data is None else min(data - self._start, end)
            if data_offset > offset:
                yield Run(offset, data_offset - offset, ABSENT)
            if data_offset >= end:
                return
            hole = self._file.next_hole(self._start + data_offset) - self._start
            data_end = min(max(hole, data_offset + 1), end)
            yield Run(data_offset, data_end - data_offset, self._start + data_offset)
            offset = data_end

    def read_run(self, run: Run, buffer: memoryview) -> None:
        """Fill ``buffer`` with a run's bytes."""
        self._file.read_into(run.position, buffer)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class FlatWriter:
    """A `BlockSink` that writes a flat extent into ``file`` (new, empty, unbuffered); closes it.

    Raises: TargetFailed, from every method.
    """

    def __init__(self, file: BinaryIO, capacity_bytes: int) -> None:
        self._file = file
        self._direct = DirectWrites(file.fileno())
        self._order = AscendingWrites(capacity_bytes)
        self._unordered: UnorderedFileWrites | None = None
        try:
            os.ftruncate(file.fileno(), capacity_bytes)
        except OSError as error:
            raise TargetFailed("flat disk cannot be made", reason=str(error)) from error

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._order.capacity_bytes

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors at ``offset``, not before the end of the last write."""
        self._order.accept(offset, len(data))
        try:
            self._direct.write(offset, data)
        except OSError as error:
            raise TargetFailed(
                "disk cannot be written", offset=offset, reason=str(error)
            ) from error

    def unordered(self) -> UnorderedFileWrites:
        """For writing it in any order, instead of `write`."""
        self._unordered = UnorderedFileWrites(self._file.fileno(), self._order)
        return self._unordered

    def finish(self) -> None:
        """Make it durable."""
        if self._unordered is not None:
            self._unordered.finish()
        self._order.finish()
        sync(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def pwrite_all(file: BinaryIO, offset: int, data: memoryview | bytes | bytearray) -> None:
    """Write all of ``data`` at ``offset``. Raises: TargetFailed."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        try:
            done += os.pwrite(file.fileno(), view[done:], offset + done)
        except OSError as error:
            raise TargetFailed(
                "disk cannot be written", offset=offset + done, reason=str(error)
            ) from error


def sync(file: BinaryIO) -> None:
    """Wait until all that was written is on storage. Raises: TargetFailed."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        raise TargetFailed("disk cannot be made durable", reason=str(error)) from error

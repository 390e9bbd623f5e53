"""The flat file of a base disk: offset in the file = offset in the disk; thin means holes."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from holdfast_lab.storage.extent_file import ReadBelow, read_exactly, write_exactly
from holdfast_lab.storage.runs import Area, Run, RunKind

ZERO_PIECE = bytes(1024 * 1024)
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
NO_HOLES_HERE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_libc = ctypes.CDLL(ctypes.util.find_library("c") or None, use_errno=True)
_fallocate = getattr(_libc, "fallocate", None)


class FlatExtent:
    """A raw file. Several may be open on one file; there is no state but the file."""

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        self.capacity_bytes = os.lseek(self._file, 0, os.SEEK_END)  # right for devices too

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Data where the file has data, zeros in its holes."""
        at = offset
        end = offset + length
        for area in data_areas(self._file, offset, end):
            if area.offset > at:
                yield Run(RunKind.ZERO, at, area.offset - at)
            yield Run(RunKind.DATA, area.offset, area.length, area.offset)
            at = area.end
        if at < end:
            yield Run(RunKind.ZERO, at, end - at)

    def read_data(self, position: int, buffer: memoryview) -> None:
        """Fill the buffer from the file."""
        read_exactly(self._file, position, buffer)

    def write(self, offset: int, data: memoryview, below: ReadBelow) -> None:
        """Write in place."""
        del below
        write_exactly(self._file, offset, data)

    def write_zeros(self, offset: int, length: int, below: ReadBelow) -> None:
        """Punch a hole, or write zeros where the file system has no holes."""
        del below
        punch_hole(self._file, offset, length)

    def resize(self, capacity_bytes: int) -> None:
        """Set another size; what is new reads as zeros."""
        os.ftruncate(self._file, capacity_bytes)
        self.capacity_bytes = capacity_bytes

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def create_flat(path: Path, capacity_bytes: int) -> None:
    """A new sparse file. Raises: FileExistsError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(file, capacity_bytes)
    finally:
        os.close(file)


def data_areas(file: int, start: int, end: int) -> Iterator[Area]:
    """Where the file has data within ``[start, end)``; everything where holes are unknown."""
    at = start
    while at < end:
        try:
            data = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            yield Area(at, end - at)
            return
        if data >= end:
            return
        hole = min(os.lseek(file, data, os.SEEK_HOLE), end)
        yield Area(data, hole - data)
        at = hole


def punch_hole(file: int, offset: int, length: int) -> None:
    """Zeros in the range, as a hole where that is possible."""
    if length == 0:
        return
    if _fallocate is not None:
        mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        result = _fallocate(
            ctypes.c_int(file), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)
        )
        if result == 0:
            return
        code = ctypes.get_errno()
        if code not in NO_HOLES_HERE:
            raise OSError(code, os.strerror(code))
    done = 0
    while done < length:
        piece = min(len(ZERO_PIECE), length - done)
        write_exactly(file, offset + done, memoryview(ZERO_PIECE)[:piece])
        done += piece


def copy_data(source: int, target: int, end: int) -> None:
    """Copy the data areas of one file to the same places of another, holes left out."""
    piece = bytearray(1024 * 1024)
    for area in data_areas(source, 0, end):
        at = area.offset
        while at < area.end:
            view = memoryview(piece)[: min(len(piece), area.end - at)]
            read_exactly(source, at, view)
            write_exactly(target, at, view)
            at += len(view)

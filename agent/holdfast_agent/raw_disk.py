"""A raw block device, or a file in its place, read and written past the page cache, written in order.

Under the transport `hotadd`, once a disk was found and proven.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from holdfast_common.blocks.wanted import CompactExtents
from holdfast_common.direct_writes import DirectWrites
from holdfast_common.errors import HoldfastError, ShortRead, SourceFailed, TargetFailed
from holdfast_common.extents import Extent
from holdfast_common.formats.ascending import AscendingWrites
from holdfast_common.formats.unordered import UnorderedFileWrites
from holdfast_common.units import MIB

_ALIGNMENT: Final = 4096  # covers devices with 512 and with 4096 byte sectors
_BOUNCE_BYTES: Final = MIB


class RawDiskSource:
    """A `BlockSource` over a device. Raises: SourceFailed, ShortRead, from every method."""

    def __init__(self, path: Path, *, capacity_bytes: int) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system has no direct access
                raise _cannot(SourceFailed, "opened", path, error) from error
            self._fd = _opened(path, os.O_RDONLY, SourceFailed)
        self._bounce = mmap.mmap(-1, _BOUNCE_BYTES)
        try:
            self._is_file = stat.S_ISREG(_checked_mode(self._fd, path, SourceFailed))
            self._capacity_bytes = _checked_size(self._fd, path, capacity_bytes, SourceFailed)
        except BaseException:
            self.close()
            raise

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._capacity_bytes

    def allocated(self) -> Sequence[Extent] | None:
        """What is not in a hole of a file; a device does not tell."""
        return CompactExtents(self._data()) if self._is_file else None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on."""
        if offset < 0 or offset + len(buffer) > self._capacity_bytes:
            raise ShortRead(
                "read past the end of the disk",
                offset=offset,
                wanted=len(buffer),
                capacity_bytes=self._capacity_bytes,
            )
        done = 0
        with memoryview(self._bounce) as bounce:
            while done < len(buffer):
                start = offset + done
                skip = start % _ALIGNMENT
                wanted = min(len(buffer) - done, _BOUNCE_BYTES - skip)
                span = -(-(skip + wanted) // _ALIGNMENT) * _ALIGNMENT
                came = min(self._read_some(start - skip, bounce[:span]) - skip, wanted)
                if came <= 0:
                    raise ShortRead(
                        "the disk ended early", path=str(self._path), offset=start, wanted=wanted
                    )
                buffer[done : done + came] = bounce[skip : skip + came]
                done += came

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        try:
            return os.preadv(self._fd, [buffer], offset)
        except OSError as error:
            raise SourceFailed(
                "disk cannot be read", path=str(self._path), offset=offset, reason=str(error)
            ) from error

    def _data(self) -> Iterator[Extent]:
        offset = 0
        while offset < self._capacity_bytes:
            try:
                start = os.lseek(self._fd, offset, os.SEEK_DATA)
                end = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # only a hole is left
                raise SourceFailed(
                    "disk cannot be searched", path=str(self._path), reason=str(error)
                ) from error
            yield Extent(offset=start, length=end - start)
            offset = end


class RawDiskSink:
    """A `BlockSink` onto an empty device that is there already.

    Raises: TargetFailed, from every method.
    """

    def __init__(self, path: Path, *, capacity_bytes: int) -> None:
        self._path = path
        self._order = AscendingWrites(capacity_bytes)
        # O_EXCL: a device that this system has mounted is not opened
        is_device = path.is_block_device()
        self._fd = _opened(path, os.O_RDWR | (os.O_EXCL if is_device else 0), TargetFailed)
        try:
            _checked_mode(self._fd, path, TargetFailed)
            _checked_size(self._fd, path, capacity_bytes, TargetFailed)
            self._direct = DirectWrites(self._fd)
            self._unordered: UnorderedFileWrites | None = None
        except BaseException:
            self.close()
            raise

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._order.capacity_bytes

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors, ascending."""
        self._order.accept(offset, len(data))
        try:
            self._direct.write(offset, data)
        except OSError as error:
            raise TargetFailed(
                "disk cannot be written", path=str(self._path), offset=offset, reason=str(error)
            ) from error

    def unordered(self) -> UnorderedFileWrites:
        """For writing it in any order, instead of `write`."""
        self._unordered = UnorderedFileWrites(self._fd, self._order)
        return self._unordered

    def finish(self) -> None:
        """Make it durable."""
        if self._unordered is not None:
            self._unordered.finish()
        self._order.finish()
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _cannot(TargetFailed, "made durable", self._path, error) from error

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _opened(path: Path, flags: int, failure: type[HoldfastError]) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot(failure, "opened", path, error) from error


def _checked_mode(descriptor: int, path: Path, failure: type[HoldfastError]) -> int:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
        raise failure("attached disk is neither a block device nor a file", path=str(path))
    return mode


def _checked_size(
    descriptor: int, path: Path, capacity_bytes: int, failure: type[HoldfastError]
) -> int:
    try:
        found = os.lseek(descriptor, 0, os.SEEK_END)
    except OSError as error:
        raise _cannot(failure, "measured", path, error) from error
    if found != capacity_bytes:
        raise failure(
            "attached disk has another size than the disk is known to have",
            path=str(path),
            found=found,
            wanted=capacity_bytes,
        )
    return found


def _cannot(failure: type[HoldfastError], done: str, path: Path, error: OSError) -> HoldfastError:
    return failure(f"disk cannot be {done}", path=str(path), reason=str(error))

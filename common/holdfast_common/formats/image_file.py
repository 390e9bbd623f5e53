"""Opening one file of a disk image by its bare name, inside one directory and nowhere else."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from pathlib import Path
from typing import Final

from holdfast_common.direct_writes import begins_aligned
from holdfast_common.errors import FormatError, SourceFailed
from holdfast_common.formats.vmdk_descriptor import bare_file_name
from holdfast_common.units import MIB

_DIRECT_ALIGNMENT: Final = 4096  # covers disks with 512 and with 4096 byte sectors
_BOUNCE_BYTES: Final = MIB


class ImageFile:
    """A regular file that is read at offsets, by several threads; whoever opened it closes it.

    ``direct`` reads past the page cache, so that what another host wrote is seen.
    """

    def __init__(self, directory_fd: int, name: str, *, direct: bool = False) -> None:
        self.name = bare_file_name(name, where="disk image")
        self._direct = direct
        self._bounce: mmap.mmap | None = None
        self._bounce_lock = threading.Lock()
        # O_NONBLOCK: opening a FIFO that somebody put there must not hang
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        if direct:
            flags |= os.O_DIRECT
        try:
            self._fd = os.open(self.name, flags, dir_fd=directory_fd)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FormatError("disk image is a symbolic link", name=name) from error
            raise SourceFailed(
                "disk image cannot be opened", name=name, reason=str(error)
            ) from error
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError("disk image is no regular file", name=name)
        except BaseException:
            os.close(self._fd)
            raise
        self.length = status.st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on. Raises: FormatError (past its end), SourceFailed."""
        if offset < 0 or offset + len(buffer) > self.length:
            raise FormatError(
                "disk image ends before what it refers to",
                name=self.name,
                offset=offset,
                wanted=len(buffer),
                file_length=self.length,
            )
        if self._direct:
            self._read_direct(offset, buffer)
        else:
            self._read_plain(offset, buffer)

    def read(self, offset: int, length: int) -> bytearray:
        """``length`` bytes from ``offset`` on. Raises: FormatError, SourceFailed."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return data

    def next_data(self, offset: int) -> int | None:
        """The first offset at or after ``offset`` that is not in a hole; None: none is left."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            return offset  # this file system does not know holes

    def next_hole(self, offset: int) -> int:
        """The first offset at or after ``offset``, which is data, that is in a hole (or the end)."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_HOLE)
        except OSError:
            return self.length

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_plain(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            done += self._read_some(offset + done, buffer[done:])

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        try:
            count = os.preadv(self._fd, [buffer], offset)
        except OSError as error:
            raise SourceFailed(
                "disk image cannot be read", name=self.name, offset=offset, reason=str(error)
            ) from error
        if count == 0:
            raise SourceFailed("disk image became shorter", name=self.name, offset=offset)
        return count

    def _read_direct(self, offset: int, buffer: memoryview) -> None:
        """The kernel wants aligned memory, offset and length; the rest goes through a buffer that is so."""
        done = 0
        while len(buffer) - done >= _DIRECT_ALIGNMENT and begins_aligned(
            offset + done, buffer[done:]
        ):
            whole = (len(buffer) - done) // _DIRECT_ALIGNMENT * _DIRECT_ALIGNMENT
            done += self._read_some(offset + done, buffer[done : done + whole])
        if done == len(buffer):
            return
        with self._bounce_lock:
            self._read_through_bounce(offset, buffer, done)

    def _read_through_bounce(self, offset: int, buffer: memoryview, done: int) -> None:
        if self._bounce is None:
            self._bounce = mmap.mmap(-1, _BOUNCE_BYTES)
        with memoryview(self._bounce) as bounce:
            while done < len(buffer):
                start = offset + done
                skip = start % _DIRECT_ALIGNMENT
                wanted = min(len(buffer) - done, _BOUNCE_BYTES - skip)
                window = -(-(skip + wanted) // _DIRECT_ALIGNMENT) * _DIRECT_ALIGNMENT
                usable = self._read_some(start - skip, bounce[:window]) - skip
                if usable <= 0:
                    raise SourceFailed("disk image became shorter", name=self.name, offset=start)
                usable = min(usable, wanted)
                buffer[done : done + usable] = bounce[skip : skip + usable]
                done += usable


def open_directory(path: Path) -> int:
    """A descriptor of the directory at ``path``, for `ImageFile`. Raises: SourceFailed."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceFailed(
            "directory cannot be opened", path=str(path), reason=str(error)
        ) from error

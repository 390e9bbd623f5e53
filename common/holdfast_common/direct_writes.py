"""Writing a new file past the page cache, as far as its file system allows that.

Whole disks pushed through the cache push out what others need, and cost a multiple of the time once they
must be synced. Alignment: open(2), "O_DIRECT"; multiples of a page suit every file system that has it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from typing import Final, Protocol

import numpy as np

PAGE_BYTES: Final = mmap.PAGESIZE
RESERVE_BYTES: Final = 256 << 20  # at once, so that a slow file system lets others in between
_libc = ctypes.CDLL(None, use_errno=True)


class DirectCalls(Protocol):
    """The system calls of direct writing; both raise OSError."""

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write at an offset; how much of it was written."""
        ...

    def set_direct(self, descriptor: int, *, direct: bool) -> None:
        """Write past the page cache from now on, or through it."""
        ...


class SystemDirectCalls:
    """The operating system's."""

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        """The call pwrite64."""
        return os.pwrite(descriptor, data, offset)

    def set_direct(self, descriptor: int, *, direct: bool) -> None:
        """The call fcntl."""
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)


_SYSTEM_CALLS: Final = SystemDirectCalls()


class DirectWrites:
    """Writes into one open file, each past the cache when it can be. One thread; the file is not closed here.

    Offset, length and the data's address must be multiples of a page for that; what is not goes through
    the cache. Both may be mixed: the kernel keeps them coherent.
    """

    def __init__(self, descriptor: int, calls: DirectCalls = _SYSTEM_CALLS) -> None:
        self._descriptor = descriptor
        self._calls = calls
        self._is_direct = False
        self._is_possible = True

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of it. Raises: OSError."""
        view = data.cast("B")
        while len(view):
            self._turn(direct=self._is_possible and _is_aligned(offset, view))
            try:
                count = self._calls.pwrite(self._descriptor, view, offset)
            except OSError as error:
                if not self._is_direct or error.errno != errno.EINVAL:
                    raise
                self._is_possible = False  # a file system that says so only now
                continue
            offset += count
            view = view[count:]

    def _turn(self, *, direct: bool) -> None:
        if direct == self._is_direct:
            return
        try:
            self._calls.set_direct(self._descriptor, direct=direct)
        except OSError:
            if not direct:
                raise
            self._is_possible = False
            return
        self._is_direct = direct


class ParallelWrites:
    """Writes into one open file by several threads at once, in any order, past the cache when it can be.

    The file is not closed here. Two who write through the cache wait for each other's pages; two who write
    past it into room that is reserved do not.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()  # held while something goes through the cache
        self._flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        self._can_reserve = True
        self._late: list[tuple[int, bytes]] = []
        self._is_direct = self._set_direct(True)

    def reserve(self, offset: int, length: int) -> None:
        """Room for what will be written there; it still reads as zero. Raises: OSError, when there is none."""
        start = offset
        while self._can_reserve and start < offset + length:
            count = min(RESERVE_BYTES, offset + length - start)
            if _libc.fallocate64(self._descriptor, 0, ctypes.c_int64(start), ctypes.c_int64(count)):
                number = ctypes.get_errno()
                if number == errno.EINTR:
                    continue
                if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise OSError(number, os.strerror(number))
                self._can_reserve = False  # a file system, or a device, that has no such thing
            start += count

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of it. Raises: OSError."""
        view = data.cast("B")
        if self._is_direct and not _is_aligned(offset, view):
            with self._lock:
                self._late.append((offset, bytes(view)))  # the odd end of a disk, a few sectors
            return
        while len(view):
            try:
                count = os.pwrite(self._descriptor, view, offset)
            except OSError as error:
                if not self._is_direct or error.errno != errno.EINVAL:
                    raise
                with self._lock:  # a file system that says only now that it has no direct access
                    self._is_direct = self._set_direct(False)
                continue
            offset += count
            view = view[count:]

    def finish(self) -> None:
        """Write what does not fit a page, when all others are done. Raises: OSError."""
        self._is_direct = self._set_direct(False)
        late, self._late = self._late, []
        for offset, data in late:
            self.write(offset, memoryview(data))

    def _set_direct(self, wanted: bool) -> bool:
        """Whether writes go past the cache from now on."""
        flags = self._flags | os.O_DIRECT if wanted else self._flags & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags)
        except OSError:
            if not wanted:
                raise
            return False
        return wanted


def page_aligned(length: int) -> memoryview:
    """A new buffer whose address suits `DirectWrites`."""
    return memoryview(mmap.mmap(-1, length))


def _is_aligned(offset: int, view: memoryview) -> bool:
    return len(view) % PAGE_BYTES == 0 and begins_aligned(offset, view)


def begins_aligned(offset: int, view: memoryview) -> bool:
    """Whether whole pages of ``view`` can be read or written at ``offset`` past the cache."""
    if offset % PAGE_BYTES:
        return False
    address: int = np.frombuffer(view, dtype=np.uint8).ctypes.data
    return address % PAGE_BYTES == 0

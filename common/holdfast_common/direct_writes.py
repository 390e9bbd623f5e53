"""Writing a new file past the page cache, as far as its file system allows that.

Whole disks pushed through the cache push out what others need, and cost a multiple of the time once they
must be synced. Alignment: open(2), "O_DIRECT"; multiples of a page suit every file system that has it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Final, Protocol

import numpy as np

PAGE_BYTES: Final = mmap.PAGESIZE


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


def page_aligned(length: int) -> memoryview:
    """A new buffer whose address suits `DirectWrites`."""
    return memoryview(mmap.mmap(-1, length))


def _is_aligned(offset: int, view: memoryview) -> bool:
    if offset % PAGE_BYTES or len(view) % PAGE_BYTES:
        return False
    address: int = np.frombuffer(view, dtype=np.uint8).ctypes.data
    return address % PAGE_BYTES == 0

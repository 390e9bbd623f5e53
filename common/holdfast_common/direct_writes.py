"""Writing a new file past the page cache, as far as its file system allows that.

Whole disks pushed through the cache push out what others need, and cost a multiple of the time once they
must be synced. Alignment: open(2), "O_DIRECT"; multiples of a page suit every file system that has it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Final

import numpy as np

PAGE_BYTES: Final = mmap.PAGESIZE


class DirectWrites:
    """Writes into one open file, each past the cache when it can be. One thread; the file is not closed here.

    Offset, length and the data's address must be multiples of a page for that; what is not goes through
    the cache. Both may be mixed: the kernel keeps them coherent.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        self._is_direct = False
        self._is_possible = True

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of it. Raises: OSError."""
        view = data.cast("B")
        while len(view):
            self._turn(direct=self._is_possible and _is_aligned(offset, view))
            try:
                count = os.pwrite(self._descriptor, view, offset)
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
        flags = self._flags | os.O_DIRECT if direct else self._flags & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags)
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

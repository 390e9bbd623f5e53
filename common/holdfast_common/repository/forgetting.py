"""Secrets and plain data leave a long-lived process: overwritten where they stand, and freed pages given back.

What Python and the libraries beneath cannot promise: copies that they made themselves (a moved object, a
register, a page in swap), and freed memory that shares a page with what is still in use.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_PAGE_BYTES: Final = 4096
_M_ARENA_MAX: Final = -8  # of mallopt(3)
_BYTES_HEADER: Final = bytes.__basicsize__ - 1  # what stands before the content of a bytes object


def overwrite(secret: bytes) -> None:
    """Fill a bytes object with zeros in place, because freeing it would leave its content in memory.

    Only for random bytes that nobody else holds: Python takes bytes for unchangeable, and shares short ones.
    """
    assert len(secret) > 1
    ctypes.memset(id(secret) + _BYTES_HEADER, 0, len(secret))


def overwrite_ends(data: bytes) -> None:
    """The same for the first and the last page of much data: pages between are its own, and are given back."""
    place = id(data) + _BYTES_HEADER
    length = min(len(data), _PAGE_BYTES)
    ctypes.memset(place, 0, length)
    ctypes.memset(place + len(data) - length, 0, length)


def keep_one_heap() -> None:
    """Let all threads allocate from one heap, the only one that the C library gives back to its very end.

    Call it before there are threads. Does nothing where the C library has no such call.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_ARENA_MAX, 1)


def give_back_freed_memory() -> None:
    """Return all freed pages to the kernel, which hands them out zeroed: old content is gone with them.

    Costs some milliseconds; what runs beside it goes on. Does nothing where the C library has no such call.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

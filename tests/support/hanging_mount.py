"""A real mount that does not answer: FUSE, with nobody behind it. Every call into it waits."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


@contextmanager
def hanging_mount(folder: Path) -> Iterator[Path]:
    """``folder``, hanging until the end; then whoever waits gets an error."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"root with /dev/fuse would run this: {error}")
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"nobody", os.fsencode(folder), b"fuse", 0, options):
            pytest.skip(f"the right to mount would run this: {os.strerror(ctypes.get_errno())}")
        try:
            yield folder
        finally:
            _libc.umount2(os.fsencode(folder), _MNT_DETACH)
    finally:
        os.close(device)  # ends the connection

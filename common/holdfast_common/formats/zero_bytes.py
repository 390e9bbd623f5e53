"""Recognising and writing zeros without a step of Python per byte."""

from __future__ import annotations

from typing import Final

from holdfast_common.units import MIB

_ZEROS: Final = bytes(MIB)
_VIEW: Final = memoryview(_ZEROS)


def is_zero(data: bytes | bytearray | memoryview) -> bool:
    """Whether all bytes are zero; compares in place and stops at the first difference."""
    view = memoryview(data)
    return all(
        # startswith takes any buffer and is one memcmp
        _ZEROS.startswith(view[start : start + MIB])
        for start in range(0, len(view), MIB)
    )


def fill_zero(view: memoryview) -> None:
    """Set all bytes to zero."""
    for start in range(0, len(view), MIB):
        piece = view[start : start + MIB]
        piece[:] = _VIEW[: len(piece)]

"""Sizes in bytes, and how they are shown and read."""

from __future__ import annotations

import re
from typing import Final

from holdfast_common.errors import UsageError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB
SECTOR_BYTES: Final = 512

_SUFFIXES: Final = (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB))
_SIZE = re.compile(r"^(\d{1,18})\s*(B|KiB|MiB|GiB|TiB)?$")


def size_text(size_bytes: int) -> str:
    """``1536`` -> ``1.5 KiB``; for people, never parsed again."""
    for suffix, factor in _SUFFIXES:
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {suffix}"
    return f"{size_bytes} B"


def parse_size(text: str) -> int:
    """Bytes of ``64KiB``, ``10 GiB`` or ``4096``. Raises: UsageError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError("not a size", value=text, advice="write for example 64KiB or 10GiB")
    factor = dict(_SUFFIXES).get(match[2] or "B", 1)
    return int(match[1]) * factor


def round_up(value: int, unit: int) -> int:
    """The smallest multiple of ``unit`` that is not below ``value``."""
    return -(-value // unit) * unit

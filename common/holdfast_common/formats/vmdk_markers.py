"""Markers and deflated grains of stream-optimised VMDKs.

A marker starts on a sector. Little endian:

    0  8  a grain: its first sector of the disk; else: sectors of the metadata behind the marker
    8  4  a grain: bytes of deflated data; else: 0
    12 .  a grain: the deflated data, filled up to a sector
    12 4  else: 0 end of stream, 1 grain table, 2 grain directory, 3 footer
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.units import SECTOR_BYTES

GRAIN_MARKER: Final = struct.Struct("<QI")
METADATA_MARKER: Final = struct.Struct("<QII496s")


class MarkerKind(IntEnum):
    """What stands behind a marker that is not a grain's."""

    END_OF_STREAM = 0
    GRAIN_TABLE = 1
    GRAIN_DIRECTORY = 2
    FOOTER = 3


def metadata_marker(kind: MarkerKind, *, length_sectors: int) -> bytes:
    """The marker's sector."""
    return METADATA_MARKER.pack(length_sectors, 0, int(kind), b"")


def deflated_bytes_max(grain_bytes: int) -> int:
    """More than any deflate makes of a grain that cannot be compressed."""
    return 2 * grain_bytes


def inflate_grain(
    deflated: memoryview | bytes | bytearray, *, wanted: int, grain_bytes: int, where: str
) -> bytes:
    """The bytes of one grain: at least ``wanted``, at most ``grain_bytes``; never unpacks more.

    Raises: FormatError.
    """
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(deflated, grain_bytes + 1)
    except zlib.error as error:
        raise FormatError(f"{where}: grain cannot be inflated: {error}") from error
    if len(data) > grain_bytes:
        raise FormatError(f"{where}: grain inflates to more than its size", grain_bytes=grain_bytes)
    if not inflater.eof:
        raise FormatError(f"{where}: grain's deflated data is cut off", length=len(deflated))
    if inflater.unused_data:
        raise FormatError(f"{where}: bytes after a grain's deflated data")
    if len(data) < wanted:
        raise FormatError(f"{where}: grain is too short", length=len(data), wanted=wanted)
    return data


def filled_to_sector(length: int) -> bytes:
    """The zero bytes that are missing to the next sector."""
    return bytes(-length % SECTOR_BYTES)

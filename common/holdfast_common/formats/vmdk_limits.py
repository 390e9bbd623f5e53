"""Limits that every VMDK must keep, whatever its kind; checked before a count from a file is used."""

from __future__ import annotations

from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.units import KIB, MIB, SECTOR_BYTES, TIB

CAPACITY_BYTES_MAX: Final = 64 * TIB  # above the 62 TiB that vSphere allows
DESCRIPTOR_BYTES_MAX: Final = MIB  # real ones are below 10 KiB
EXTENTS_MAX: Final = 1024  # 2 TiB in the 2 GiB pieces of Workstation
LINE_CHARACTERS_MAX: Final = 8192  # a parent hint is a path of at most 4096 bytes
GRAIN_BYTES_MIN: Final = 4 * KIB
GRAIN_BYTES_MAX: Final = MIB


def checked_capacity(capacity_sectors: int, *, what: str) -> int:
    """Bytes of a capacity that a file states in sectors. Raises: FormatError."""
    capacity_bytes = capacity_sectors * SECTOR_BYTES
    if not 0 < capacity_bytes <= CAPACITY_BYTES_MAX:
        raise FormatError(
            f"{what}: capacity outside 1 sector to 64 TiB", capacity_sectors=capacity_sectors
        )
    return capacity_bytes


def checked_grain(grain_sectors: int, *, what: str, bytes_min: int = GRAIN_BYTES_MIN) -> int:
    """Bytes of a grain size that a file states in sectors. Raises: FormatError."""
    grain_bytes = grain_sectors * SECTOR_BYTES
    power_of_two = grain_sectors > 0 and grain_sectors & (grain_sectors - 1) == 0
    if not power_of_two or not bytes_min <= grain_bytes <= GRAIN_BYTES_MAX:
        raise FormatError(
            f"{what}: grain size is no power of two from {bytes_min} bytes to 1 MiB",
            grain_sectors=grain_sectors,
        )
    return grain_bytes

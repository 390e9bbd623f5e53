"""SE sparse redo logs, ``-sesparse.vmdk``: what ESXi writes on VMFS 6.

The format is not published. This is the layout that qemu's strict reader accepts, taken from
real files; all fields are little endian, 8 bytes, places and sizes in sectors:

    sector 0       constant header: magic cafebabe, version 2.1, capacity, sectors per grain 8,
                   sectors per table 64, flags 0, 4 reserved, then place and size of: volatile
                   header, journal header, journal, grain directory, grain tables, free bitmap,
                   back map, grains
    sector 1       volatile header: magic cafecafe, next free table, next transaction, replay 0
    sector 2       journal header; journal (both unused: nothing is left to replay)
    1 MiB aligned  grain directory, grain tables, free bitmap, back map, grains

A directory entry is 0 or 0x1000000000000000 + number of the table. A table has 4096 entries of
8 bytes: 0 from the parent; top four bits 1 unmapped, 2 zeros, 3 data, where the grain's number
has its low 12 bits in bits 48..59 and the rest in bits 0..47. The journal, the free bitmap and
the back map, which no known reader looks at, stay empty.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from holdfast_lab.storage.errors import DescriptorError
from holdfast_lab.storage.extent_file import write_exactly
from holdfast_lab.storage.grained import (
    ABSENT,
    TABLE_ENTRIES,
    ZEROED,
    GrainedExtent,
    check_size,
)

SECTOR_BYTES = 512
CONSTANT_HEADER = struct.Struct("<26Q304x")
VOLATILE_HEADER = struct.Struct("<4Q480x")
CONSTANT_MAGIC = 0xCAFEBABE
VOLATILE_MAGIC = 0xCAFECAFE
VERSION = 0x0000000200000001
GRAIN_SECTORS = 8
GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES
TABLE_SECTORS = TABLE_ENTRIES * 8 // SECTOR_BYTES
TABLE_BYTES = TABLE_SECTORS * SECTOR_BYTES
ALIGNMENT_SECTORS = 2048  # 1 MiB
JOURNAL_SECTORS = 2048

TABLE_ALLOCATED = 0x1000000000000000
ENTRY_KIND = 0xF000000000000000
ENTRY_UNMAPPED = 0x1000000000000000
ENTRY_ZERO = 0x2000000000000000
ENTRY_DATA = 0x3000000000000000
LOW_BITS_MASK = 0x0FFF000000000000
LOW_BITS_SHIFT = 48
LOW_BITS = 12
HIGH_BITS_MASK = 0x0000FFFFFFFFFFFF


class SeSparseLayout:
    """The places within one SE sparse file, in bytes."""

    entry_bytes = 8
    zero_entry: int | None = ENTRY_ZERO
    grain_bytes = GRAIN_BYTES

    def __init__(
        self,
        *,
        capacity_bytes: int,
        directory: int,
        directory_entries: int,
        tables: int,
        grains: int,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.directory_position = directory
        self.directory_entries = directory_entries
        self._tables_position = tables
        self._grains_position = grains

    def table_position(self, directory_entry: int) -> int:
        """Table number to position. Raises: DescriptorError for an entry of unknown kind."""
        if directory_entry == 0:
            return ABSENT
        if directory_entry & ~0xFFFFFFFF != TABLE_ALLOCATED:
            raise DescriptorError(f"SE sparse directory entry {directory_entry:#x}")
        return self._tables_position + (directory_entry & 0xFFFFFFFF) * TABLE_BYTES

    def grain_positions(self, entries: Sequence[int]) -> list[int]:
        """Grain numbers to positions. Raises: DescriptorError for an entry of unknown kind."""
        base = self._grains_position
        positions = []
        for entry in entries:
            kind = entry & ENTRY_KIND
            if kind == ENTRY_DATA:
                number = (entry & LOW_BITS_MASK) >> LOW_BITS_SHIFT
                number |= (entry & HIGH_BITS_MASK) << LOW_BITS
                positions.append(base + number * GRAIN_BYTES)
            elif entry == 0:
                positions.append(ABSENT)
            elif kind in {ENTRY_UNMAPPED, ENTRY_ZERO}:
                positions.append(ZEROED)
            else:
                raise DescriptorError(f"SE sparse grain entry {entry:#x}")
        return positions

    def grain_entry(self, position: int) -> int:
        """Position to grain number, with its bits in their odd order."""
        number = (position - self._grains_position) // GRAIN_BYTES
        low = number & ((1 << LOW_BITS) - 1)
        return ENTRY_DATA | (low << LOW_BITS_SHIFT) | (number >> LOW_BITS)

    def allocate_table(self, file: int) -> int:
        """The next of the tables that the file has room for; they are zeros from the start."""
        header = list(VOLATILE_HEADER.unpack(os.pread(file, VOLATILE_HEADER.size, SECTOR_BYTES)))
        number = int(header[1])
        header[1] += 1
        header[2] += 1
        write_exactly(file, SECTOR_BYTES, VOLATILE_HEADER.pack(*header))
        return TABLE_ALLOCATED | number

    def allocate_grains(self, file: int, count: int) -> int:
        """Grains at the end of the file."""
        size = max(os.fstat(file).st_size, self._grains_position)
        first = size + -(size - self._grains_position) % GRAIN_BYTES
        os.ftruncate(file, first + count * GRAIN_BYTES)
        return first


def _aligned(sectors: int) -> int:
    return -(-sectors // ALIGNMENT_SECTORS) * ALIGNMENT_SECTORS


def create_se_sparse(path: Path, capacity_bytes: int) -> None:
    """A new, empty redo log. Raises: FileExistsError."""
    sectors = capacity_bytes // SECTOR_BYTES
    grains = -(-sectors // GRAIN_SECTORS)
    tables = -(-grains // TABLE_ENTRIES)
    directory = ALIGNMENT_SECTORS + JOURNAL_SECTORS
    directory_sectors = -(-tables * 8 // SECTOR_BYTES)
    tables_at = _aligned(directory + directory_sectors)
    tables_sectors = tables * TABLE_SECTORS
    bitmap = _aligned(tables_at + tables_sectors)
    bitmap_sectors = -(-grains // (8 * SECTOR_BYTES))
    back_map = _aligned(bitmap + bitmap_sectors)
    back_map_sectors = -(-grains * 8 // SECTOR_BYTES)
    grains_at = _aligned(back_map + back_map_sectors)
    places = (
        *(1, 1),  # volatile header
        *(2, 2),  # journal header
        *(ALIGNMENT_SECTORS, JOURNAL_SECTORS),
        *(directory, directory_sectors),
        *(tables_at, tables_sectors),
        *(bitmap, bitmap_sectors),
        *(back_map, back_map_sectors),
        *(grains_at, grains * GRAIN_SECTORS),
    )
    header = CONSTANT_HEADER.pack(
        CONSTANT_MAGIC, VERSION, sectors, GRAIN_SECTORS, TABLE_SECTORS, 0, 0, 0, 0, 0, *places
    )
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(file, grains_at * SECTOR_BYTES)
        write_exactly(file, 0, header)
        write_exactly(file, SECTOR_BYTES, VOLATILE_HEADER.pack(VOLATILE_MAGIC, 0, 1, 0))
    finally:
        os.close(file)


def open_se_sparse(path: Path, *, writable: bool = True) -> GrainedExtent:
    """Open a redo log. Raises: DescriptorError, FileNotFoundError."""
    file = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        layout = _read_headers(path, file)
    except DescriptorError:
        os.close(file)
        raise
    return GrainedExtent(path, file, layout)


def _read_headers(path: Path, file: int) -> SeSparseLayout:
    content = os.pread(file, CONSTANT_HEADER.size, 0)
    if len(content) < CONSTANT_HEADER.size:
        raise DescriptorError(f"{path.name} is too short for SE sparse")
    magic, version, sectors, grain, table, flags, *rest = CONSTANT_HEADER.unpack(content)
    places = rest[4:]
    if (magic, version, grain, table, flags) != (
        CONSTANT_MAGIC,
        VERSION,
        GRAIN_SECTORS,
        TABLE_SECTORS,
        0,
    ):
        raise DescriptorError(f"{path.name} is not an SE sparse redo log of a known version")
    volatile = os.pread(file, VOLATILE_HEADER.size, places[0] * SECTOR_BYTES)
    if (
        len(volatile) < VOLATILE_HEADER.size
        or VOLATILE_HEADER.unpack(volatile)[0] != VOLATILE_MAGIC
    ):
        raise DescriptorError(f"{path.name} has no volatile header")
    if places[0] != 1 or VOLATILE_HEADER.unpack(volatile)[3]:
        raise DescriptorError(f"{path.name} has a journal to replay, or an unknown layout")
    directory, directory_sectors, tables = places[6], places[7], places[8]
    entries = directory_sectors * SECTOR_BYTES // 8
    check_size(
        path, wanted=entries * TABLE_ENTRIES * GRAIN_BYTES, capacity_bytes=sectors * SECTOR_BYTES
    )
    return SeSparseLayout(
        capacity_bytes=sectors * SECTOR_BYTES,
        directory=directory * SECTOR_BYTES,
        directory_entries=entries,
        tables=tables * SECTOR_BYTES,
        grains=places[14] * SECTOR_BYTES,
    )

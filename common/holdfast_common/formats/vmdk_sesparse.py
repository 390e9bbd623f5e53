"""Reading SE sparse redo logs: the `-sesparse.vmdk` of a snapshot on VMFS 6.

VMware never published the layout; this is what qemu reads, and its strictness is ours. Little
endian, 64 bits each. The constant header, one sector, holds sectors:

    0    magic 0x00000000cafebabe         128  grain directory: first sector
    8    version 0x0000000200000001       136  grain directory: length
    16   capacity                         144  grain tables: first sector
    24   grain size: 8                    152  grain tables: length
    32   grain table size: 64             160  free bitmap: first sector, length
    40   flags: 0                         176  backward map: first sector, length
    48   four reserved: 0                 192  grains: first sector
    80   volatile header: first sector    200  grains: length
    88   its length; journal header and   208  zero
         journal up to 128

The volatile header: magic 0xcafecafe, next free table, next transaction, 1 at 24 if a journal waits
to be replayed (refused: only ESXi can), zero from 32 on.

A directory entry is 0 or 0x10000000 in its upper half and the number of a table in its lower half.
A table entry has its kind in the top four bits: 0 the parent's (then all is 0), 1 unmapped and 2
zero (both read as zero), 3 a grain, whose number is bits 0-47 shifted up by 12, with bits 48-59
below them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from holdfast_common.errors import FormatError
from holdfast_common.formats.grain_map import (
    ABSENT,
    ZERO,
    GrainMap,
    GrainShape,
    Positions,
    Run,
    TableDirectory,
    checked_positions,
)
from holdfast_common.formats.image_file import ImageFile
from holdfast_common.formats.vmdk_limits import CAPACITY_BYTES_MAX, checked_capacity
from holdfast_common.formats.zero_bytes import is_zero
from holdfast_common.units import SECTOR_BYTES

_CONSTANT_HEADER: Final = struct.Struct("<26Q304s")
_VOLATILE_HEADER: Final = struct.Struct("<4Q480s")
_CONSTANT_MAGIC: Final = 0x00000000CAFEBABE
_VOLATILE_MAGIC: Final = 0x00000000CAFECAFE
_VERSION: Final = 0x0000000200000001
_GRAIN_SECTORS: Final = 8
_TABLE_SECTORS: Final = 64
_ENTRIES_PER_TABLE: Final = _TABLE_SECTORS * SECTOR_BYTES // 8
_TABLE_PRESENT: Final = 0x10000000
_SECTOR_MAX: Final = CAPACITY_BYTES_MAX // SECTOR_BYTES * 2


class SeSparseExtent:
    """One redo log; closes the file. Raises: FormatError, SourceFailed."""

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        self._what = what = f"SE sparse VMDK {file.name}"
        fields = _CONSTANT_HEADER.unpack(file.read(0, _CONSTANT_HEADER.size))
        _check_constants(fields, what)
        self.capacity_bytes = checked_capacity(fields[2], what=f"{what} at offset 16")
        volatile_sector, directory_sector, directory_sectors = fields[10], fields[16], fields[17]
        self._tables_sector, self._tables_sectors = fields[18], fields[19]
        self._grains_sector = fields[24]
        for offset, sector in (
            (80, volatile_sector),
            (128, directory_sector),
            (144, self._tables_sector),
            (152, self._tables_sectors),
            (192, self._grains_sector),
        ):
            if not 0 < sector <= _SECTOR_MAX:
                raise FormatError(f"{what}: bad sector number", offset=offset, sector=sector)
        self._check_volatile(volatile_sector * SECTOR_BYTES)
        shape = GrainShape(
            capacity_bytes=self.capacity_bytes,
            grain_bytes=_GRAIN_SECTORS * SECTOR_BYTES,
            grains_per_table=_ENTRIES_PER_TABLE,
        )
        if directory_sectors * SECTOR_BYTES // 8 < shape.table_count:
            raise FormatError(
                f"{what}: grain directory is too short for the capacity",
                offset=136,
                length_sectors=directory_sectors,
                tables=shape.table_count,
            )
        self._directory = TableDirectory(
            file,
            position=directory_sector * SECTOR_BYTES,
            entry_count=shape.table_count,
            entry_type="<u8",
            table_bytes=_TABLE_SECTORS * SECTOR_BYTES,
            what=what,
        )
        self._map = GrainMap(
            shape,
            load_table=self._load_table,
            next_table=self._directory.next_present,
            file_length=file.length,
            what=self._what,
        )

    def runs(self, offset: int, end: int) -> Iterator[Run]:
        """Runs that cover ``[offset, end)``. Raises: FormatError."""
        return self._map.runs(offset, end)

    def data_runs(self, offset: int, end: int) -> Iterator[Run]:
        """Like `runs`, for walking a whole disk. Raises: FormatError."""
        self._directory.check_count()
        return self._map.data_runs(offset, end)

    def read_run(self, run: Run, buffer: memoryview) -> None:
        """Fill ``buffer`` with a run's bytes. Raises: FormatError, SourceFailed."""
        self._file.read_into(run.position, buffer)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _check_volatile(self, position: int) -> None:
        what = self._what
        magic, _free, _transaction, replay, padding = _VOLATILE_HEADER.unpack(
            self._file.read(position, _VOLATILE_HEADER.size)
        )
        if magic != _VOLATILE_MAGIC:
            raise FormatError(f"{what}: bad magic of the volatile header", offset=position)
        if replay:
            raise FormatError(
                f"{what}: a journal waits to be replayed",
                offset=position + 24,
                advice="only ESXi can replay it: read this disk through its host",
            )
        if not is_zero(padding):
            raise FormatError(f"{what}: volatile header has unknown fields", offset=position + 32)

    def _load_table(self, index: int) -> Positions | None:
        entry = self._directory.entry(index)
        if entry == 0:
            return None
        mark, number = entry >> 32, entry & 0xFFFFFFFF
        if mark != _TABLE_PRESENT or (number + 1) * _TABLE_SECTORS > self._tables_sectors:
            raise FormatError(
                f"{self._what}: bad entry of the grain directory", entry=index, value=hex(entry)
            )
        table_sector = self._tables_sector + number * _TABLE_SECTORS
        raw = self._file.read(table_sector * SECTOR_BYTES, _TABLE_SECTORS * SECTOR_BYTES)
        if is_zero(raw):
            return None
        return checked_positions(
            self._positions_of(np.frombuffer(raw, dtype="<u8"), index),
            shape=self._map.shape,
            table_index=index,
            first_position=self._grains_sector * SECTOR_BYTES,
            file_length=self._file.length,
            where=self._what,
        )

    def _positions_of(self, entries: np.typing.NDArray[np.uint64], table_index: int) -> Positions:
        kinds = entries >> np.uint64(60)
        wrong = np.flatnonzero((kinds > 3) | ((kinds == 0) & (entries != 0)))
        if len(wrong):
            raise FormatError(
                f"{self._what}: bad entry of a grain table",
                table=table_index,
                entry=int(wrong[0]),
                value=hex(int(entries[wrong[0]])),
            )
        low = (entries >> np.uint64(48)) & np.uint64(0xFFF)
        high = entries & np.uint64(0x0000FFFFFFFFFFFF)
        # a number that would overflow becomes one far outside of the file, which is refused
        numbers = np.minimum(high, np.uint64(1 << 34)) << np.uint64(12) | low
        grain_positions = (
            numbers.astype(np.int64) * (_GRAIN_SECTORS * SECTOR_BYTES)
            + self._grains_sector * SECTOR_BYTES
        )
        positions = np.where(kinds == 3, grain_positions, ABSENT)
        positions[(kinds == 1) | (kinds == 2)] = ZERO
        return positions


def _check_constants(fields: tuple[int | bytes, ...], what: str) -> None:
    expected = {
        0: (_CONSTANT_MAGIC, "bad magic"),
        1: (_VERSION, "unknown version"),
        3: (_GRAIN_SECTORS, "unknown grain size"),
        4: (_TABLE_SECTORS, "unknown size of grain tables"),
        5: (0, "unknown flags"),
        6: (0, "unknown fields are used"),
        7: (0, "unknown fields are used"),
        8: (0, "unknown fields are used"),
        9: (0, "unknown fields are used"),
    }
    for index, (value, message) in expected.items():
        if fields[index] != value:
            raise FormatError(f"{what}: {message}", offset=index * 8, value=str(fields[index]))
    padding = fields[26]
    assert isinstance(padding, bytes)
    if not is_zero(padding):
        raise FormatError(f"{what}: unknown fields are used", offset=208)

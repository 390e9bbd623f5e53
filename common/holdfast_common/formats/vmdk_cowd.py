"""Reading vmfsSparse redo logs ("COWD"): the `-delta.vmdk` of a snapshot on VMFS 5 and NFS.

Little endian, one sector used of four:

    0   4  magic "COWD"
    4   4  version: 1
    8   4  flags: 3
    12  4  capacity in sectors
    16  4  grain size in sectors, 1 on ESXi
    20  4  grain directory: first sector
    24  4  grain directory: entries
    28  4  next free sector
    32 ..  names and generations, not needed to read

A directory entry is the first sector of a table of 4096 entries; an entry is the first sector of a
grain; 0: the parent's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from holdfast_common.errors import FormatError
from holdfast_common.formats.grain_map import (
    ABSENT,
    GrainMap,
    GrainShape,
    Positions,
    Run,
    TableDirectory,
    checked_positions,
)
from holdfast_common.formats.image_file import ImageFile
from holdfast_common.formats.vmdk_limits import checked_capacity, checked_grain
from holdfast_common.formats.zero_bytes import is_zero
from holdfast_common.units import SECTOR_BYTES

COWD_MAGIC: Final = b"COWD"
_HEADER: Final = struct.Struct("<4s7I")
_ENTRIES_PER_TABLE: Final = 4096
_VERSION: Final = 1
_HEADER_SECTORS: Final = 4


class CowdExtent:
    """One redo log; closes the file. Raises: FormatError, SourceFailed."""

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        self._what = what = f"vmfsSparse VMDK {file.name}"
        magic, version, _flags, capacity, grain, directory, entries, _free = _HEADER.unpack(
            file.read(0, _HEADER.size)
        )
        if magic != COWD_MAGIC:
            raise FormatError(f"{what}: bad magic", offset=0, magic=magic.hex())
        if version != _VERSION:
            raise FormatError(f"{what}: unknown version", offset=4, version=version)
        self.capacity_bytes = checked_capacity(capacity, what=f"{what} at offset 12")
        shape = GrainShape(
            capacity_bytes=self.capacity_bytes,
            grain_bytes=checked_grain(grain, what=f"{what} at offset 16", bytes_min=SECTOR_BYTES),
            grains_per_table=_ENTRIES_PER_TABLE,
        )
        if entries < shape.table_count:
            raise FormatError(
                f"{what}: grain directory is too short for the capacity",
                offset=24,
                entries=entries,
                wanted=shape.table_count,
            )
        if directory == 0:
            raise FormatError(f"{what}: no grain directory", offset=20)
        self._directory = TableDirectory(
            file,
            position=directory * SECTOR_BYTES,
            entry_count=shape.table_count,
            entry_type="<u4",
            table_bytes=_ENTRIES_PER_TABLE * 4,
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

    def _load_table(self, index: int) -> Positions | None:
        table_sector = self._directory.entry(index)
        if table_sector == 0:
            return None
        raw = self._file.read(table_sector * SECTOR_BYTES, _ENTRIES_PER_TABLE * 4)
        if is_zero(raw):
            return None
        entries = np.frombuffer(raw, dtype="<u4").astype(np.int64)
        return checked_positions(
            np.where(entries == 0, ABSENT, entries * SECTOR_BYTES),
            shape=self._map.shape,
            table_index=index,
            first_position=_HEADER_SECTORS * SECTOR_BYTES,
            file_length=self._file.length,
            where=self._what,
        )

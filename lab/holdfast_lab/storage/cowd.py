"""vmfsSparse (COWD) redo logs, ``-delta.vmdk``: what ESXi writes on NFS and VMFS 5.

Layout, little endian, in sectors of 512 bytes:

    offset  size  field
         0     4  magic "COWD"
         4     4  version, 1
         8     4  flags, 3
        12     4  sectors of the disk
        16     4  sectors per grain, 1
        20     4  sector of the grain directory, 4
        24     4  entries in the grain directory
        28     4  next free sector of the file
        32  1028  name and generation of the parent (unused by ESXi: the descriptor names it)
      1060     4  generation
      1064    60  name
      1124   512  description
      1636     4  saved generation
      1640     8  reserved
      1648     4  unclean shutdown
      1652   396  padding
      2048     -  grain directory; then tables (4096 entries) and grains as they come

Directory and table entries are sector numbers of 4 bytes, 0 = from the parent; there is no
entry for zeros. Source: VMware's "Virtual Disk Format" and qemu's reader, which is our referee.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from holdfast_lab.storage.errors import DescriptorError, OutOfRange
from holdfast_lab.storage.extent_file import write_exactly
from holdfast_lab.storage.grained import ABSENT, TABLE_ENTRIES, GrainedExtent, check_size

SECTOR_BYTES = 512
HEADER = struct.Struct("<4sIIIIIII1028sI60s512sI8sI396x")
MAGIC = b"COWD"
VERSION = 1
FLAGS = 3
GRAIN_SECTORS = 1
DIRECTORY_SECTOR = 4
TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR_BYTES
SECTORS_MAX = 2**32 - 1  # of the disk and of the file: sector numbers have 32 bits
FREE_SECTOR_POSITION = 28
GRAIN_SECTORS_MAX = 128


class CowdLayout:
    """The places within one COWD file."""

    entry_bytes = 4
    zero_entry: int | None = None

    def __init__(
        self, *, sectors: int, grain_sectors: int, directory_sector: int, directory_entries: int
    ) -> None:
        self.capacity_bytes = sectors * SECTOR_BYTES
        self.grain_bytes = grain_sectors * SECTOR_BYTES
        self.directory_position = directory_sector * SECTOR_BYTES
        self.directory_entries = directory_entries

    def table_position(self, directory_entry: int) -> int:
        """Sector number to position."""
        return directory_entry * SECTOR_BYTES if directory_entry else ABSENT

    def grain_positions(self, entries: Sequence[int]) -> list[int]:
        """Sector numbers to positions."""
        return [entry * SECTOR_BYTES if entry else ABSENT for entry in entries]

    def grain_entry(self, position: int) -> int:
        """Position to sector number."""
        return position // SECTOR_BYTES

    def allocate_table(self, file: int) -> int:
        """A zeroed table at the end of the file."""
        return self._grow(file, TABLE_SECTORS)

    def allocate_grains(self, file: int, count: int) -> int:
        """Grains at the end of the file."""
        return self._grow(file, count * self.grain_bytes // SECTOR_BYTES) * SECTOR_BYTES

    def _grow(self, file: int, sectors: int) -> int:
        """Append sectors, note the next free one in the header; gives the first sector."""
        first = -(-os.fstat(file).st_size // SECTOR_BYTES)
        if first + sectors > SECTORS_MAX:
            raise OutOfRange("a COWD file cannot grow beyond 2 TiB")
        os.ftruncate(file, (first + sectors) * SECTOR_BYTES)
        write_exactly(file, FREE_SECTOR_POSITION, struct.pack("<I", first + sectors))
        return first


def directory_entries_for(sectors: int, grain_sectors: int) -> int:
    """How many tables cover the disk."""
    return -(-sectors // (TABLE_ENTRIES * grain_sectors))


def create_cowd(path: Path, capacity_bytes: int) -> None:
    """A new, empty redo log. Raises: FileExistsError, OutOfRange (2 TiB and more)."""
    sectors = capacity_bytes // SECTOR_BYTES
    if sectors > SECTORS_MAX:
        raise OutOfRange("a COWD redo log covers less than 2 TiB")
    entries = directory_entries_for(sectors, GRAIN_SECTORS)
    free = DIRECTORY_SECTOR + -(-entries * 4 // SECTOR_BYTES)
    header = HEADER.pack(
        MAGIC,
        VERSION,
        FLAGS,
        sectors,
        GRAIN_SECTORS,
        DIRECTORY_SECTOR,
        entries,
        free,
        b"",
        0,
        b"",
        b"",
        0,
        b"",
        0,
    )
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(file, free * SECTOR_BYTES)
        write_exactly(file, 0, header)
    finally:
        os.close(file)


def open_cowd(path: Path, *, writable: bool = True) -> GrainedExtent:
    """Open a redo log. Raises: DescriptorError, FileNotFoundError."""
    file = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        layout = _read_header(path, file)
    except DescriptorError:
        os.close(file)
        raise
    return GrainedExtent(path, file, layout)


def _read_header(path: Path, file: int) -> CowdLayout:
    content = os.pread(file, HEADER.size, 0)
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise DescriptorError(f"{path.name} is not a COWD redo log")
    _, version, _, sectors, grain, directory, entries, *_ = HEADER.unpack(content)
    if version != VERSION or not 1 <= grain <= GRAIN_SECTORS_MAX or sectors == 0:
        raise DescriptorError(f"{path.name}: version {version}, grain {grain} are not supported")
    check_size(
        path,
        wanted=entries * TABLE_ENTRIES * grain * SECTOR_BYTES,
        capacity_bytes=sectors * SECTOR_BYTES,
    )
    return CowdLayout(
        sectors=sectors,
        grain_sectors=grain,
        directory_sector=directory,
        directory_entries=entries,
    )

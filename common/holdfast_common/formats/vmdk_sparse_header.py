"""The header sector of hosted sparse and stream-optimised VMDKs ("KDMV").

Little endian, one sector:

    0   4  magic "KDMV"
    4   4  version: 1, 2 (zeroed grains) or 3 (stream-optimised of ESXi; change tracking)
    8   4  flags, see below
    12  8  capacity in sectors
    20  8  grain size in sectors
    28  8  descriptor: first sector, 0 if there is none
    36  8  descriptor: length in sectors
    44  4  entries per grain table: always 512
    48  8  redundant grain directory: first sector
    56  8  grain directory: first sector; all ones: it is in the footer
    64  8  sectors before the first grain
    72  1  1 while the disk is open for writing
    73  4  LF, blank, CR, LF: damaged by a transfer as text
    77  2  compression: 0 none, 1 deflate
    79 433 zero
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.formats.vmdk_limits import (
    DESCRIPTOR_BYTES_MAX,
    checked_capacity,
    checked_grain,
)
from holdfast_common.units import SECTOR_BYTES

SPARSE_MAGIC: Final = b"KDMV"
ENTRIES_PER_TABLE: Final = 512
TABLE_SECTORS: Final = ENTRIES_PER_TABLE * 4 // SECTOR_BYTES
DIRECTORY_AT_END: Final = 0xFFFFFFFFFFFFFFFF
FLAG_LINE_ENDS: Final = 1 << 0
FLAG_REDUNDANT_DIRECTORY: Final = 1 << 1
FLAG_ZEROED_GRAINS: Final = 1 << 2
FLAG_COMPRESSED: Final = 1 << 16
FLAG_MARKERS: Final = 1 << 17
_FLAGS_KNOWN: Final = (
    FLAG_LINE_ENDS | FLAG_REDUNDANT_DIRECTORY | FLAG_ZEROED_GRAINS | FLAG_COMPRESSED | FLAG_MARKERS
)
_LINE_ENDS: Final = b"\n \r\n"
_HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH433s")
_OVERHEAD_SECTORS_MAX: Final = 1 << 32  # sector numbers in tables have 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseHeader:
    """A checked header. Offsets and lengths here are sectors, as on disk."""

    version: int
    flags: int
    capacity_sectors: int
    grain_sectors: int
    descriptor_sector: int
    descriptor_sectors: int
    redundant_directory_sector: int
    directory_sector: int
    overhead_sectors: int
    unclean: bool = False

    @property
    def capacity_bytes(self) -> int:
        """The disk's (or this extent's) size."""
        return self.capacity_sectors * SECTOR_BYTES

    @property
    def grain_bytes(self) -> int:
        """Size of one grain."""
        return self.grain_sectors * SECTOR_BYTES

    @property
    def table_count(self) -> int:
        """Grain tables of the whole disk: entries of the grain directory."""
        return -(-self.capacity_sectors // (self.grain_sectors * ENTRIES_PER_TABLE))

    @property
    def directory_sectors(self) -> int:
        """Sectors of one grain directory."""
        return -(-self.table_count * 4 // SECTOR_BYTES)

    @property
    def compressed(self) -> bool:
        """Whether grains are deflated and stand behind markers."""
        return bool(self.flags & FLAG_COMPRESSED)

    @property
    def directory_at_end(self) -> bool:
        """Whether the footer, not the header, says where the directory is."""
        return self.directory_sector == DIRECTORY_AT_END


def parse_sparse_header(sector: bytes | bytearray | memoryview, *, what: str) -> SparseHeader:
    """Parse and check a header (or footer) sector. Raises: FormatError."""
    if len(sector) != SECTOR_BYTES:
        raise FormatError(f"{what}: sparse header is cut off", length=len(sector))
    (
        magic,
        version,
        flags,
        capacity,
        grain,
        descriptor,
        descriptor_length,
        entries,
        redundant,
        directory,
        overhead,
        unclean,
        line_ends,
        compression,
        _padding,
    ) = _HEADER.unpack(sector)
    if magic != SPARSE_MAGIC:
        raise FormatError(f"{what}: no sparse VMDK: bad magic", offset=0, magic=magic.hex())
    if version not in {1, 2, 3}:
        raise FormatError(f"{what}: unknown version of sparse VMDK", offset=4, version=version)
    if flags & ~_FLAGS_KNOWN:
        raise FormatError(f"{what}: unknown flags", offset=8, flags=hex(flags))
    checked_capacity(capacity, what=f"{what} at offset 12")
    checked_grain(grain, what=f"{what} at offset 20")
    if entries != ENTRIES_PER_TABLE:
        raise FormatError(f"{what}: grain tables have 512 entries", offset=44, entries=entries)
    if flags & FLAG_LINE_ENDS and line_ends != _LINE_ENDS:
        raise FormatError(f"{what}: was transferred as text", offset=73, found=line_ends.hex())
    deflated = bool(flags & FLAG_COMPRESSED)
    if compression != int(deflated) or deflated != bool(flags & FLAG_MARKERS):
        raise FormatError(
            f"{what}: flags and compression contradict each other",
            offset=77,
            flags=hex(flags),
            compression=compression,
        )
    if unclean > 1:
        raise FormatError(f"{what}: bad mark of an open disk", offset=72, value=unclean)
    if descriptor_length * SECTOR_BYTES > DESCRIPTOR_BYTES_MAX:
        raise FormatError(
            f"{what}: descriptor larger than 1 MiB", offset=36, length_sectors=descriptor_length
        )
    _check_places(what, descriptor, redundant, directory, overhead)
    return SparseHeader(
        version=version,
        flags=flags,
        capacity_sectors=capacity,
        grain_sectors=grain,
        descriptor_sector=descriptor,
        descriptor_sectors=descriptor_length,
        redundant_directory_sector=redundant,
        directory_sector=directory,
        overhead_sectors=overhead,
        unclean=bool(unclean),
    )


def _check_places(
    what: str, descriptor: int, redundant: int, directory: int, overhead: int
) -> None:
    places = {28: descriptor, 48: redundant, 64: overhead}
    if directory != DIRECTORY_AT_END:
        places[56] = directory
        if directory == 0:
            raise FormatError(f"{what}: no grain directory", offset=56)
    for offset, sector in places.items():
        if sector > _OVERHEAD_SECTORS_MAX:
            raise FormatError(f"{what}: sector number is too large", offset=offset, sector=sector)


def pack_sparse_header(header: SparseHeader) -> bytes:
    """The header's sector."""
    return _HEADER.pack(
        SPARSE_MAGIC,
        header.version,
        header.flags,
        header.capacity_sectors,
        header.grain_sectors,
        header.descriptor_sector,
        header.descriptor_sectors,
        ENTRIES_PER_TABLE,
        header.redundant_directory_sector,
        header.directory_sector,
        header.overhead_sectors,
        int(header.unclean),
        _LINE_ENDS,
        int(header.compressed),
        b"",
    )


def check_footer(header: SparseHeader, footer: SparseHeader, *, what: str) -> None:
    """The footer repeats the header, except for the directory's place. Raises: FormatError."""
    if footer.directory_at_end:
        raise FormatError(f"{what}: footer names no grain directory")
    same = replace(
        footer,
        directory_sector=header.directory_sector,
        redundant_directory_sector=header.redundant_directory_sector,
    )
    if same != header:
        raise FormatError(f"{what}: footer differs from header")

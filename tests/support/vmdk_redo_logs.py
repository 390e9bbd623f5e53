"""Redo logs as ESXi leaves them, which qemu reads but cannot make: vmfsSparse and SE sparse."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

SECTOR = 512
COWD_ENTRIES = 4096
SE_ENTRIES = 4096
SE_ZERO = b"zero"  # instead of a grain's bytes: a grain that is zero
SE_UNMAPPED = b"unmapped"


def redo_descriptor(
    create_type: str, capacity_bytes: int, extent_name: str, *, parent_cid: int, hint: str
) -> str:
    kind = {"vmfsSparse": "VMFSSPARSE", "seSparse": "SESPARSE"}[create_type]
    return (
        '# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\nCID=0badcafe\n'
        f'parentCID={parent_cid:08x}\nisNativeSnapshot="no"\ncreateType="{create_type}"\n'
        f'parentFileNameHint="{hint}"\n# Extent description\n'
        f'RW {capacity_bytes // SECTOR} {kind} "{extent_name}"\n\n# The Disk Data Base \n#DDB\n\n'
        'ddb.longContentID = "0123456789abcdef0123456789abcdef"\n'
    )


def cowd_bytes(
    capacity_bytes: int, grains: Mapping[int, bytes], *, grain_sectors: int = 1
) -> bytearray:
    """A COWD file; ``grains`` by grain index, written in the order given."""
    capacity = capacity_bytes // SECTOR
    tables = -(-capacity // (grain_sectors * COWD_ENTRIES))
    directory_sector = 4
    image = bytearray((directory_sector + -(-tables * 4 // SECTOR)) * SECTOR)
    for index, data in grains.items():
        table, entry = divmod(index, COWD_ENTRIES)
        place = directory_sector * SECTOR + table * 4
        table_sector = struct.unpack_from("<I", image, place)[0]
        if not table_sector:
            table_sector = len(image) // SECTOR
            struct.pack_into("<I", image, place, table_sector)
            image += bytes(COWD_ENTRIES * 4)
        struct.pack_into("<I", image, table_sector * SECTOR + entry * 4, len(image) // SECTOR)
        assert len(data) <= grain_sectors * SECTOR
        image += data.ljust(grain_sectors * SECTOR, b"\0")
    struct.pack_into(
        "<4s7I",
        image,
        0,
        b"COWD",
        1,
        3,
        capacity,
        grain_sectors,
        directory_sector,
        tables,
        len(image) // SECTOR,
    )
    return image


def sesparse_bytes(capacity_bytes: int, grains: Mapping[int, bytes]) -> bytearray:
    """An SE sparse file of 4 KiB grains; ``grains`` by index, written in the order given."""
    capacity = capacity_bytes // SECTOR
    tables = -(-capacity // (8 * SE_ENTRIES))
    used_tables = sorted({index // SE_ENTRIES for index in grains})
    directory_sectors = -(-tables * 8 // SECTOR)
    volatile, directory = 1, 8
    tables_sector = directory + directory_sectors
    tables_sectors = max(len(used_tables), 1) * 64
    grains_sector = -(-(tables_sector + tables_sectors) // 8) * 8
    image = bytearray(grains_sector * SECTOR)
    header = [0] * 26
    header[:5] = [0xCAFEBABE, 0x0000000200000001, capacity, 8, 64]
    header[10:12] = [volatile, 1]
    header[16:20] = [directory, directory_sectors, tables_sector, tables_sectors]
    struct.pack_into("<26Q", image, 0, *header)
    struct.pack_into("<4Q", image, volatile * SECTOR, 0xCAFECAFE, 0, 0, 0)
    for number, table in enumerate(used_tables):
        struct.pack_into("<Q", image, directory * SECTOR + table * 8, 0x1000000000000000 | number)
    next_grain = 0
    for index, data in grains.items():
        table, entry = divmod(index, SE_ENTRIES)
        place = (tables_sector + used_tables.index(table) * 64) * SECTOR + entry * 8
        if data == SE_UNMAPPED:
            value = 0x1000000000000000
        elif data == SE_ZERO:
            value = 0x2000000000000000
        else:
            value = 0x3000000000000000 | (next_grain & 0xFFF) << 48 | next_grain >> 12
            next_grain += 1
            image += data.ljust(4096, b"\0")
        struct.pack_into("<Q", image, place, value)
    struct.pack_into("<QQ", image, 24 * 8, grains_sector, next_grain * 8)
    return image


def write_redo_log(  # one call makes descriptor and data file
    folder: Path,
    name: str,
    create_type: str,
    capacity_bytes: int,
    data: bytes | bytearray,
    *,
    parent_cid: int,
    hint: str,
) -> Path:
    extent = f"{name}-{'delta' if create_type == 'vmfsSparse' else 'sesparse'}.vmdk"
    (folder / extent).write_bytes(data)
    path = folder / f"{name}.vmdk"
    path.write_text(
        redo_descriptor(create_type, capacity_bytes, extent, parent_cid=parent_cid, hint=hint)
    )
    return path

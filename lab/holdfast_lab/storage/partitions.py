"""Partition tables that the guest writes: one partition from 1 MiB to the end, MBR or GPT."""

from __future__ import annotations

import enum
import struct
import uuid
import zlib
from dataclasses import dataclass

from holdfast_lab.storage.errors import OutOfRange
from holdfast_lab.storage.runs import Area

SECTOR_BYTES = 512
FIRST_SECTOR = 2048
GPT_ENTRIES = 128
GPT_ENTRY_BYTES = 128
GPT_ENTRY_SECTORS = GPT_ENTRIES * GPT_ENTRY_BYTES // SECTOR_BYTES
ALIGNMENT_BYTES = 4096
PARTITION_BYTES_MIN = 1024 * 1024
LINUX_MBR_TYPE = 0x83
PROTECTIVE_MBR_TYPE = 0xEE
LINUX_GPT_TYPE = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

# status, CHS of the first sector, type, CHS of the last sector, first sector, sectors
MBR_ENTRY = struct.Struct("<B3sB3sII")
NO_CHS = b"\xfe\xff\xff"
# signature, revision, size, CRC, 0, this header, other header, first and last usable sector,
# disk uuid, entries' sector, entries, bytes per entry, CRC of the entries
GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
GPT_ENTRY = struct.Struct("<16s16sQQQ72s")


class PartitionLayout(enum.Enum):
    """What lies in front of the file system."""

    BARE = "bare"
    MBR = "mbr"
    GPT = "gpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionedDisk:
    """Where the partition is, and what to write where for its table."""

    partition: Area
    writes: tuple[tuple[int, bytes], ...]


def partitioned(layout: PartitionLayout, capacity_bytes: int) -> PartitionedDisk:
    """One partition over the disk. Raises: OutOfRange when the disk is too small."""
    if layout is PartitionLayout.BARE:
        length = capacity_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        return PartitionedDisk(partition=_checked(0, length), writes=())
    first = FIRST_SECTOR * SECTOR_BYTES
    tail = (GPT_ENTRY_SECTORS + 1) * SECTOR_BYTES if layout is PartitionLayout.GPT else 0
    length = (capacity_bytes - tail - first) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    area = _checked(first, length)
    if layout is PartitionLayout.MBR:
        return PartitionedDisk(partition=area, writes=((0, _mbr(LINUX_MBR_TYPE, area)),))
    return PartitionedDisk(partition=area, writes=_gpt(area, capacity_bytes))


def _checked(offset: int, length: int) -> Area:
    if length < PARTITION_BYTES_MIN:
        raise OutOfRange("the disk is too small for a file system")
    return Area(offset, length)


def _mbr(kind: int, area: Area) -> bytes:
    sectors = min(area.length // SECTOR_BYTES, 0xFFFFFFFF)
    entry = MBR_ENTRY.pack(0, NO_CHS, kind, NO_CHS, area.offset // SECTOR_BYTES, sectors)
    return (bytes(440) + b"HFLB\0\0" + entry).ljust(510, b"\0") + b"\x55\xaa"


def _gpt(area: Area, capacity_bytes: int) -> tuple[tuple[int, bytes], ...]:
    last = capacity_bytes // SECTOR_BYTES - 1
    entry = GPT_ENTRY.pack(
        LINUX_GPT_TYPE.bytes_le,
        uuid.uuid4().bytes_le,
        area.offset // SECTOR_BYTES,
        area.end // SECTOR_BYTES - 1,
        0,
        "data".encode("utf-16-le"),
    )
    entries = entry.ljust(GPT_ENTRIES * GPT_ENTRY_BYTES, b"\0")
    disk_uuid = uuid.uuid4().bytes_le
    back_entries = last - GPT_ENTRY_SECTORS

    def header(here: int, other: int, entries_at: int) -> bytes:
        def packed(checksum: int) -> bytes:
            return GPT_HEADER.pack(
                b"EFI PART",
                0x00010000,
                GPT_HEADER.size,
                checksum,
                0,
                here,
                other,
                2 + GPT_ENTRY_SECTORS,
                back_entries - 1,
                disk_uuid,
                entries_at,
                GPT_ENTRIES,
                GPT_ENTRY_BYTES,
                zlib.crc32(entries),
            )

        return packed(zlib.crc32(packed(0))).ljust(SECTOR_BYTES, b"\0")

    protective = Area(SECTOR_BYTES, last * SECTOR_BYTES)
    return (
        (0, _mbr(PROTECTIVE_MBR_TYPE, protective) + header(1, last, 2) + entries),
        (back_entries * SECTOR_BYTES, entries + header(last, 1, back_entries)),
    )

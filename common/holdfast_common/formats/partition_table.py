"""A disk's partitions: MBR with its extended chain, and GPT with its backup.

MBR, sector 0: four entries of 16 bytes at 446, then 55 AA. Entry: status (0x00 or 0x80), 3 bytes,
type, 3 bytes, first sector (32 bits), sectors (32 bits). An extended partition holds a chain of
such sectors: the first entry is a partition, relative to its own sector; the second the next link,
relative to the extended partition.

GPT, logical sector 1 (backup: the last one): header below; its CRC is counted with the CRC's own
field as zero. An entry: type GUID, own GUID, first and last sector (64 bits), attributes, name
(36 UTF-16 units).
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from holdfast_common.errors import FormatError
from holdfast_common.units import MIB, SECTOR_BYTES

_MBR_ENTRY: Final = struct.Struct("<B3sB3sII")
_MBR_ENTRIES_OFFSET: Final = 446
_MBR_SIGNATURE: Final = b"\x55\xaa"
_EXTENDED_TYPES: Final = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE_TYPE: Final = 0xEE
_LOGICAL_MAX: Final = 256
_GPT_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_MAGIC: Final = b"EFI PART"
_GPT_REVISION: Final = 0x00010000
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_GPT_ENTRY_BYTES_MAX: Final = 4096
_GPT_TABLE_BYTES_MAX: Final = MIB  # 128 entries of 128 bytes are usual
_SECTOR_SIZES: Final = (512, 4096)
_NO_TYPE: Final = bytes(16)


class ReadableDisk(Protocol):
    """What is needed of a disk: every `BlockSource` is one."""

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on."""
        ...


class TableKind(StrEnum):
    """What divides the disk."""

    NONE = "none"
    MBR = "mbr"
    GPT = "gpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition, in bytes. ``type_id`` is ``0x83`` (MBR) or a GUID; ``uuid`` may be empty."""

    number: int
    offset: int
    length: int
    type_id: str
    uuid: str = ""
    name: str = ""
    bootable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTable:
    """All partitions. ``notes`` say what is damaged but could be worked around."""

    kind: TableKind
    partitions: tuple[Partition, ...] = ()
    disk_id: str = ""
    sector_bytes: int = SECTOR_BYTES
    notes: tuple[str, ...] = ()


def read_partition_table(disk: ReadableDisk) -> PartitionTable:
    """Read the table; `TableKind.NONE` when the disk has none (a bare file system, or empty).

    Raises: FormatError (damaged beyond reading), and what the disk raises.
    """
    if disk.capacity_bytes < SECTOR_BYTES:
        return PartitionTable(kind=TableKind.NONE)
    boot = _read(disk, 0, SECTOR_BYTES)
    entries = _mbr_entries(boot)
    if entries is None:
        # a GPT whose protective MBR was overwritten is still found by its own magic
        return _gpt_if_any(disk) or PartitionTable(kind=TableKind.NONE)
    if any(entry.type_byte == _PROTECTIVE_TYPE for entry in entries):
        table = _gpt_if_any(disk)
        if table is None:
            raise FormatError("GPT is damaged: neither its header nor the backup can be read")
        return table
    return _mbr_table(disk, boot, entries)


@dataclass(frozen=True, slots=True)
class _MbrEntry:
    index: int
    bootable: bool
    type_byte: int
    first_sector: int
    length_sectors: int


def _mbr_entries(sector: bytes) -> list[_MbrEntry] | None:
    """The used entries of an MBR sector; None if this is no MBR."""
    if sector[510:512] != _MBR_SIGNATURE:
        return None
    entries = []
    for index in range(4):
        status, _chs1, type_byte, _chs2, first, length = _MBR_ENTRY.unpack_from(
            sector, _MBR_ENTRIES_OFFSET + index * _MBR_ENTRY.size
        )
        if status not in {0x00, 0x80}:
            return None  # a file system's boot sector has code here
        if type_byte and length:
            entries.append(_MbrEntry(index, status == 0x80, type_byte, first, length))
    return entries or None


def _mbr_table(disk: ReadableDisk, boot: bytes, entries: list[_MbrEntry]) -> PartitionTable:
    partitions = []
    extended = [entry for entry in entries if entry.type_byte in _EXTENDED_TYPES]
    if len(extended) > 1:
        raise FormatError("MBR: more than one extended partition", count=len(extended))
    for entry in entries:
        offset = entry.first_sector * SECTOR_BYTES
        length = entry.length_sectors * SECTOR_BYTES
        _check_inside(disk, offset, length, f"MBR partition {entry.index + 1}")
        if entry.type_byte not in _EXTENDED_TYPES:
            partitions.append(_mbr_partition(entry, entry.index + 1, offset))
    for entry in extended:
        partitions += _logical_partitions(disk, entry)
    return PartitionTable(
        kind=TableKind.MBR,
        partitions=tuple(partitions),
        disk_id=f"{int.from_bytes(boot[440:444], 'little'):08x}",
    )


def _mbr_partition(entry: _MbrEntry, number: int, offset: int) -> Partition:
    return Partition(
        number=number,
        offset=offset,
        length=entry.length_sectors * SECTOR_BYTES,
        type_id=f"0x{entry.type_byte:02x}",
        bootable=entry.bootable,
    )


def _logical_partitions(disk: ReadableDisk, extended: _MbrEntry) -> list[Partition]:
    start = extended.first_sector * SECTOR_BYTES
    end = start + extended.length_sectors * SECTOR_BYTES
    partitions: list[Partition] = []
    seen: set[int] = set()
    link: int | None = start
    while link is not None:
        where = f"extended partition, link at offset {link}"
        if link in seen or len(seen) >= _LOGICAL_MAX:
            raise FormatError(f"{where}: the chain has a loop or more than 256 links")
        if not start <= link <= end - SECTOR_BYTES:
            raise FormatError(f"{where}: outside of the extended partition")
        seen.add(link)
        sector = _read(disk, link, SECTOR_BYTES)
        if sector[510:512] != _MBR_SIGNATURE:
            raise FormatError(f"{where}: no signature")
        following: int | None = None
        for entry in _mbr_entries(sector) or []:
            if entry.type_byte in _EXTENDED_TYPES:
                following = start + entry.first_sector * SECTOR_BYTES
                continue
            offset = link + entry.first_sector * SECTOR_BYTES
            _check_inside(disk, offset, entry.length_sectors * SECTOR_BYTES, where)
            partitions.append(_mbr_partition(entry, 5 + len(partitions), offset))
        link = following
    return partitions


@dataclass(frozen=True, slots=True)
class _GptHeader:
    own_sector: int
    disk_guid: bytes
    entries_sector: int
    entry_count: int
    entry_bytes: int
    entries_crc: int


def _gpt_if_any(disk: ReadableDisk) -> PartitionTable | None:
    """The GPT, from the primary or else the backup; None if there is no sign of one."""
    problems: list[str] = []
    for sector_bytes in _SECTOR_SIZES:
        last_sector = disk.capacity_bytes // sector_bytes - 1
        for name, own_sector in (("primary", 1), ("backup", last_sector)):
            if own_sector < 1 or (own_sector + 1) * sector_bytes > disk.capacity_bytes:
                continue
            raw = _read(disk, own_sector * sector_bytes, sector_bytes)
            if not raw.startswith(_GPT_MAGIC):
                continue
            try:
                header = _gpt_header(raw, own_sector)
                partitions = _gpt_partitions(disk, header, sector_bytes)
            except FormatError as error:
                problems.append(f"{name} GPT: {error}")
                continue
            notes = list(problems)
            if name == "backup":
                notes.append("the backup GPT was used")
            return PartitionTable(
                kind=TableKind.GPT,
                partitions=tuple(partitions),
                disk_id=str(uuid.UUID(bytes_le=header.disk_guid)),
                sector_bytes=sector_bytes,
                notes=tuple(notes),
            )
    if problems:
        raise FormatError("GPT is damaged: " + "; ".join(problems)[:1000])
    return None


def _gpt_header(raw: bytes, own_sector: int) -> _GptHeader:
    (
        _magic,
        revision,
        header_bytes,
        crc,
        _reserved,
        said_sector,
        _other_sector,
        _first_usable,
        _last_usable,
        disk_guid,
        entries_sector,
        entry_count,
        entry_bytes,
        entries_crc,
    ) = _GPT_HEADER.unpack_from(raw)
    if revision != _GPT_REVISION:
        raise FormatError("unknown revision", revision=hex(revision))
    if not _GPT_HEADER.size <= header_bytes <= len(raw):
        raise FormatError("bad length of the header", length=header_bytes)
    counted = zlib.crc32(raw[:16] + bytes(4) + raw[20:header_bytes])
    if counted != crc:
        raise FormatError("header's CRC is wrong", said=f"{crc:08x}", counted=f"{counted:08x}")
    if said_sector != own_sector:
        raise FormatError("header belongs to another sector", said=said_sector, found=own_sector)
    if not _GPT_ENTRY.size <= entry_bytes <= _GPT_ENTRY_BYTES_MAX or entry_bytes % 8:
        raise FormatError("bad size of an entry", entry_bytes=entry_bytes)
    if not 0 < entry_count * entry_bytes <= _GPT_TABLE_BYTES_MAX:
        raise FormatError("table is empty or larger than 1 MiB", entries=entry_count)
    return _GptHeader(own_sector, disk_guid, entries_sector, entry_count, entry_bytes, entries_crc)


def _gpt_partitions(disk: ReadableDisk, header: _GptHeader, sector_bytes: int) -> list[Partition]:
    length = header.entry_count * header.entry_bytes
    offset = header.entries_sector * sector_bytes
    _check_inside(disk, offset, length, "table of entries")
    raw = _read(disk, offset, length)
    if zlib.crc32(raw) != header.entries_crc:
        raise FormatError("table's CRC is wrong", offset=offset)
    partitions = []
    for index in range(header.entry_count):
        type_guid, own_guid, first, last, attributes, name = _GPT_ENTRY.unpack_from(
            raw, index * header.entry_bytes
        )
        if type_guid == _NO_TYPE:
            continue
        where = f"partition {index + 1}"
        if last < first:
            raise FormatError(f"{where}: ends before it starts", first=first, last=last)
        start, size = first * sector_bytes, (last - first + 1) * sector_bytes
        _check_inside(disk, start, size, where)
        partitions.append(
            Partition(
                number=index + 1,
                offset=start,
                length=size,
                type_id=str(uuid.UUID(bytes_le=type_guid)),
                uuid=str(uuid.UUID(bytes_le=own_guid)),
                name=name.decode("utf-16-le", "replace").split("\0")[0],
                bootable=bool(attributes & 0b100),
            )
        )
    return partitions


def _check_inside(disk: ReadableDisk, offset: int, length: int, where: str) -> None:
    if offset < 0 or offset + length > disk.capacity_bytes:
        raise FormatError(
            f"{where}: leaves the disk",
            offset=offset,
            length=length,
            capacity_bytes=disk.capacity_bytes,
        )


def _read(disk: ReadableDisk, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    disk.read_into(offset, memoryview(buffer))
    return bytes(buffer)

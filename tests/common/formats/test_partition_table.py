"""Partition tables: MBR, its extended chain, GPT and its backup; damage is found, not followed."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import FormatError
from holdfast_common.formats.partition_table import (
    Partition,
    PartitionTable,
    TableKind,
    read_partition_table,
)

MIB = 1 << 20
CAPACITY = 64 * MIB
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")


class MemoryDisk:
    """A disk in memory that notes what is read."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytes(data)
        self.read_bytes = 0

    @property
    def capacity_bytes(self) -> int:
        return len(self.data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        assert 0 <= offset <= offset + len(buffer) <= len(self.data)
        self.read_bytes += len(buffer)
        buffer[:] = self.data[offset : offset + len(buffer)]


def read(data: bytes | bytearray) -> PartitionTable:
    disk = MemoryDisk(data)
    table = read_partition_table(disk)
    assert disk.read_bytes < 4 * MIB
    return table


def put_entry(
    disk: bytearray, sector: int, index: int, kind: int, first: int, count: int, status: int = 0
) -> None:
    place = sector * 512 + 446 + 16 * index
    disk[place : place + 16] = struct.pack("<B3xB3xII", status, kind, first, count)
    disk[sector * 512 + 510 : sector * 512 + 512] = b"\x55\xaa"


def mbr_disk() -> bytearray:
    """Two primaries and an extended partition with three logical ones."""
    disk = bytearray(CAPACITY)
    disk[440:444] = struct.pack("<I", 0xDEADBEEF)
    put_entry(disk, 0, 0, 0x83, 2048, 20480, 0x80)
    put_entry(disk, 0, 1, 0x07, 22528, 2048)
    put_entry(disk, 0, 3, 0x05, 32768, 65536)
    for number, link in enumerate((32768, 40960, 49152)):
        put_entry(disk, link, 0, 0x82 + number % 2, 2048, 4096)
        if number < 2:
            put_entry(disk, link, 1, 0x05, 8192 * (number + 1), 8192)
    return disk


def sealed_gpt(
    disk: bytearray,
    partitions: list[tuple[uuid.UUID, int, int, str]],
    *,
    sector_bytes: int = 512,
    entry_bytes: int = 128,
    count: int = 128,
) -> bytearray:
    """Write both copies of a GPT."""
    put_entry(disk, 0, 0, 0xEE, 1, min(len(disk) // sector_bytes - 1, 0xFFFFFFFF))
    table = bytearray(entry_bytes * count)
    for index, (kind, first, last, name) in enumerate(partitions):
        own = uuid.UUID(int=index + 1)
        table[index * entry_bytes : index * entry_bytes + 128] = struct.pack(
            "<16s16sQQQ72s", kind.bytes_le, own.bytes_le, first, last, 0, name.encode("utf-16-le")
        )
    table_sectors = -(-len(table) // sector_bytes)
    last_sector = len(disk) // sector_bytes - 1
    for own_sector, other, entries in (
        (1, last_sector, 2),
        (last_sector, 1, last_sector - table_sectors),
    ):
        fields = (own_sector, other, 34, last_sector - 34, uuid.UUID(int=99).bytes_le)
        tail = (entries, count, entry_bytes, zlib.crc32(table))
        header = bytearray(
            struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields, *tail)
        )
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        disk[own_sector * sector_bytes : own_sector * sector_bytes + 92] = header
        disk[entries * sector_bytes : entries * sector_bytes + len(table)] = table
    return disk


def gpt_disk() -> bytearray:
    return sealed_gpt(
        bytearray(CAPACITY), [(ESP, 2048, 10239, "EFI"), (LINUX, 10240, 100_000, "Wurzel ä")]
    )


def test_primary_and_logical_partitions_are_found() -> None:
    table = read(mbr_disk())
    assert (table.kind, table.disk_id) == (TableKind.MBR, "deadbeef")
    found = [(p.number, p.offset // 512, p.length // 512, p.type_id) for p in table.partitions]
    assert found == [
        (1, 2048, 20480, "0x83"),
        (2, 22528, 2048, "0x07"),
        (5, 32768 + 2048, 4096, "0x82"),
        (6, 40960 + 2048, 4096, "0x83"),
        (7, 49152 + 2048, 4096, "0x82"),
    ]
    assert [p.bootable for p in table.partitions] == [True, False, False, False, False]


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("entry_bytes", [128, 256])
def test_a_gpt_is_read(sector_bytes: int, entry_bytes: int) -> None:
    disk = sealed_gpt(
        bytearray(CAPACITY),
        [(ESP, 256, 511, "EFI"), (LINUX, 512, 1023, "root")],
        sector_bytes=sector_bytes,
        entry_bytes=entry_bytes,
    )
    table = read(disk)
    assert (table.kind, table.sector_bytes, table.notes) == (TableKind.GPT, sector_bytes, ())
    assert table.disk_id == str(uuid.UUID(int=99))
    assert table.partitions[1] == Partition(
        number=2,
        offset=512 * sector_bytes,
        length=512 * sector_bytes,
        type_id=str(LINUX),
        uuid=str(uuid.UUID(int=2)),
        name="root",
    )


@pytest.mark.parametrize("damage", [512, 512 + 16, 512 + 80, 1024, 1024 + 130])
def test_the_backup_is_used_when_the_primary_is_damaged(damage: int) -> None:
    disk = gpt_disk()
    disk[damage] ^= 0xFF
    table = read(disk)
    assert [p.name for p in table.partitions] == ["EFI", "Wurzel ä"]
    assert "the backup GPT was used" in table.notes


def test_a_gpt_is_found_without_its_protective_mbr() -> None:
    disk = gpt_disk()
    disk[:512] = bytes(512)
    assert read(disk).kind is TableKind.GPT


@pytest.mark.parametrize(
    "data",
    [
        bytes(MIB),
        b"\xeb\x52\x90NTFS    ".ljust(446) + b"code" * 16 + b"\x55\xaa" + bytes(MIB - 512),
        b"",
        bytes(100),
        bytes(512),
        bytes(510) + b"\x55\xaa",
        b"\xff" * MIB,
    ],
    ids=["empty", "file system", "nothing", "part of a sector", "sector", "no entries", "ones"],
)
def test_a_disk_without_a_table_has_none(data: bytes) -> None:
    assert read(data).kind is TableKind.NONE


def entry(
    sector: int, index: int, kind: int, first: int, count: int
) -> Callable[[bytearray], None]:
    return lambda disk: put_entry(disk, sector, index, kind, first, count)


EVIL_MBR: dict[str, Callable[[bytearray], None]] = {
    "partition leaves the disk": entry(0, 1, 0x07, 22528, 0xFFFFFFFF),
    "partition starts behind the disk": entry(0, 1, 0x07, 0xFFFFFFFF, 1),
    "extended partition leaves the disk": entry(0, 3, 0x05, 32768, 0x7FFFFFFF),
    "two extended partitions": entry(0, 1, 0x0F, 22528, 2048),
    "chain to itself": entry(32768, 1, 0x05, 0, 8192),
    "chain back": entry(49152, 1, 0x05, 8192, 8192),
    "chain out of the extended partition": entry(40960, 1, 0x05, 70_000, 10),
    "chain out of the disk": entry(40960, 1, 0x05, 0xFFFFFFFF, 10),
    "logical partition leaves the disk": entry(40960, 0, 0x83, 0xFFFFFFF0, 0x20),
    "link without a signature": lambda disk: disk.__setitem__(40960 * 512 + 510, 0),
    "protective entry without a GPT": entry(0, 0, 0xEE, 1, 1000),
}


@pytest.mark.parametrize("case", EVIL_MBR)
def test_a_malformed_mbr_is_refused(case: str) -> None:
    disk = mbr_disk()
    EVIL_MBR[case](disk)
    with pytest.raises(FormatError):
        read(disk)


def test_a_chain_of_many_links_ends() -> None:
    disk = bytearray(CAPACITY)
    put_entry(disk, 0, 0, 0x05, 100, 100_000)
    for number in range(400):
        put_entry(disk, 100 + number, 1, 0x05, number + 1, 10)
    with pytest.raises(FormatError, match="more than 256 links"):
        read(disk)


def change_both(offset: int, form: str, value: int) -> Callable[[bytearray], None]:
    """Change a field of both headers and seal them again."""

    def change(disk: bytearray) -> None:
        for header in (512, len(disk) - 512):
            struct.pack_into("<" + form, disk, header + offset, value)
            struct.pack_into("<I", disk, header + 16, 0)
            length = min(struct.unpack_from("<I", disk, header + 12)[0], 512)
            struct.pack_into("<I", disk, header + 16, zlib.crc32(disk[header : header + length]))

    return change


def change_entries(offset: int, value: int) -> Callable[[bytearray], None]:
    """Change a field of the first entry and seal tables and headers again."""

    def change(disk: bytearray) -> None:
        backup = len(disk) - 512 - 128 * 128
        for table in (1024, backup):
            struct.pack_into("<Q", disk, table + offset, value)
        change_both(88, "I", zlib.crc32(disk[1024 : 1024 + 128 * 128]))(disk)

    return change


EVIL_GPT: dict[str, Callable[[bytearray], None]] = {
    "revision": change_both(8, "I", 0x20000),
    "header too short": change_both(12, "I", 91),
    "header of length 0": change_both(12, "I", 0),
    "header longer than its sector": change_both(12, "I", 513),
    "header of another sector": change_both(24, "Q", 7),
    "table outside of the disk": change_both(72, "Q", CAPACITY // 512),
    "table far outside": change_both(72, "Q", (1 << 64) - 1),
    "no entries": change_both(80, "I", 0),
    "four thousand million entries": change_both(80, "I", 0xFFFFFFFF),
    "entries too small": change_both(84, "I", 64),
    "entries too large": change_both(84, "I", 1 << 20),
    "entries not aligned": change_both(84, "I", 129),
    "table's check sum": change_both(88, "I", 0),
    "partition leaves the disk": change_entries(40, CAPACITY // 512),
    "partition far outside": change_entries(40, (1 << 64) - 1),
    "partition ends before it starts": change_entries(40, 5),
    "partition starts far outside": change_entries(32, (1 << 64) - 1),
}


@pytest.mark.parametrize("case", EVIL_GPT)
def test_a_malformed_gpt_is_refused(case: str) -> None:
    disk = gpt_disk()
    EVIL_GPT[case](disk)
    with pytest.raises(FormatError):
        read(disk)


@settings(max_examples=200, deadline=None)
@given(places=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), max_size=20))
def test_random_damage_raises_nothing_else(places: list[tuple[int, int]]) -> None:
    disk = sealed_gpt(bytearray(MIB), [(LINUX, 100, 200, "x")])
    for place, value in places:
        disk[place] = value
    try:
        read(disk)
    except FormatError:
        return


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_sfdisk_sees_the_same(tmp_path: Path, label: str) -> None:
    sfdisk = shutil.which("sfdisk", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if sfdisk is None:
        pytest.skip("needs sfdisk: install fdisk to run this")
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(CAPACITY))
    script = f"label: {label}\nsize=8MiB, bootable\nsize=8MiB\n"
    script += (
        "type=extended\nsize=4MiB\nsize=4MiB\nsize=4MiB\n" if label == "dos" else "size=4MiB\n"
    )
    subprocess.run([sfdisk, "-q", image], input=script, text=True, check=True, timeout=60)
    shown = subprocess.run(
        [sfdisk, "--json", image], capture_output=True, text=True, check=True, timeout=60
    )
    theirs = [
        (part["start"] * 512, part["size"] * 512)
        for part in json.loads(shown.stdout)["partitiontable"]["partitions"]
        if part["type"] not in {"5", "f"}
    ]
    table = read(image.read_bytes())
    assert [(part.offset, part.length) for part in table.partitions] == theirs

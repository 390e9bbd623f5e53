"""Encode a disk as a streamOptimized VMDK in one pass: what an export lease sends."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator

from holdfast_lab.storage.descriptor import CreateType, Descriptor, new_cid, to_text
from holdfast_lab.storage.disk_values import DiskReader
from holdfast_lab.storage.runs import rounded_out
from holdfast_lab.storage.stream_layout import (
    DEFLATE,
    DESCRIPTOR_SECTOR,
    DESCRIPTOR_SECTORS,
    DIRECTORY_AT_END,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINES,
    GRAIN_BYTES,
    GRAIN_MARKER,
    GRAIN_SECTORS,
    HEADER,
    MAGIC,
    MARKER,
    MARKER_DIRECTORY,
    MARKER_END,
    MARKER_FOOTER,
    MARKER_TABLE,
    NEWLINES,
    OVERHEAD_SECTORS,
    SECTOR_BYTES,
    TABLE_BYTES,
    TABLE_ENTRIES,
    VERSION,
)

COMPRESSION_LEVEL = 1  # the lab has no bytes to save, only time


def stream_optimized(reader: DiskReader, *, name: str = "disk.vmdk") -> Iterator[bytes]:
    """The whole stream in pieces of at most some 64 KiB; grains of zeros are left out."""
    return _Encoder(reader, name).stream()


class _Encoder:
    """State of one pass: where the stream is, the open table, the directory."""

    def __init__(self, reader: DiskReader, name: str) -> None:
        self._reader = reader
        self._name = name
        self._sector = 0
        tables = -(-reader.capacity_bytes // (GRAIN_BYTES * TABLE_ENTRIES))
        self._directory = array("I", bytes(4 * tables))
        self._table = array("I", bytes(TABLE_BYTES))
        self._table_number: int | None = None

    def stream(self) -> Iterator[bytes]:
        """See ``stream_optimized``."""
        yield self._out(self._header(DIRECTORY_AT_END) + self._descriptor())
        grain = bytearray(GRAIN_BYTES)
        zeros = bytes(GRAIN_BYTES)
        capacity = self._reader.capacity_bytes
        for area in rounded_out(self._reader.allocated(), GRAIN_BYTES, capacity):
            for offset in range(area.offset, area.end, GRAIN_BYTES):
                length = min(GRAIN_BYTES, capacity - offset)
                self._reader.read_into(offset, memoryview(grain)[:length])
                grain[length:] = zeros[length:]
                if grain != zeros:
                    yield from self._grain(offset // GRAIN_BYTES, grain)
        yield from self._finish_table()
        yield from self._end()

    def _grain(self, number: int, grain: bytearray) -> Iterator[bytes]:
        table, index = divmod(number, TABLE_ENTRIES)
        if table != self._table_number:
            yield from self._finish_table()
            self._table_number = table
        self._table[index] = self._sector
        packed = zlib.compress(grain, COMPRESSION_LEVEL)
        yield self._out(_padded(GRAIN_MARKER.pack(number * GRAIN_SECTORS, len(packed)) + packed))

    def _finish_table(self) -> Iterator[bytes]:
        if self._table_number is None:
            return
        yield self._out(MARKER.pack(TABLE_BYTES // SECTOR_BYTES, 0, MARKER_TABLE))
        self._directory[self._table_number] = self._sector
        yield self._out(self._table.tobytes())
        self._table = array("I", bytes(TABLE_BYTES))
        self._table_number = None

    def _end(self) -> Iterator[bytes]:
        directory = _padded(self._directory.tobytes())
        yield self._out(MARKER.pack(len(directory) // SECTOR_BYTES, 0, MARKER_DIRECTORY))
        place = self._sector
        yield self._out(directory)
        yield self._out(MARKER.pack(1, 0, MARKER_FOOTER))
        yield self._out(self._header(place))
        yield self._out(MARKER.pack(0, 0, MARKER_END))

    def _out(self, content: bytes) -> bytes:
        assert len(content) % SECTOR_BYTES == 0
        self._sector += len(content) // SECTOR_BYTES
        return content

    def _header(self, directory_sector: int) -> bytes:
        return HEADER.pack(
            MAGIC,
            VERSION,
            FLAG_NEWLINES | FLAG_COMPRESSED | FLAG_MARKERS,
            self._reader.capacity_bytes // SECTOR_BYTES,
            GRAIN_SECTORS,
            DESCRIPTOR_SECTOR,
            DESCRIPTOR_SECTORS,
            TABLE_ENTRIES,
            0,
            directory_sector,
            OVERHEAD_SECTORS,
            0,
            NEWLINES,
            DEFLATE,
        )

    def _descriptor(self) -> bytes:
        text = to_text(
            Descriptor(
                create_type=CreateType.STREAM,
                capacity_bytes=self._reader.capacity_bytes,
                extent_name=self._name,
                cid=new_cid(),
            )
        ).encode("utf-8")
        return text.ljust((OVERHEAD_SECTORS - DESCRIPTOR_SECTOR) * SECTOR_BYTES, b"\0")


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % SECTOR_BYTES)

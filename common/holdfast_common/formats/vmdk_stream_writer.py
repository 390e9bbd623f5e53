"""Writing a stream-optimised VMDK, version 3, in one pass and bounded memory.

What ESXi takes through a transfer lease. Layout:

    header · descriptor · fill up to sector 128
    per grain table:  its grains, each behind a marker · marker · table
    marker · grain directory · marker · footer (the header, knowing the directory) · end-of-stream marker
"""

from __future__ import annotations

import sys
import zlib
from array import array
from dataclasses import replace
from typing import Final, Protocol

from holdfast_common.errors import TargetFailed
from holdfast_common.formats.ascending import AscendingWrites, GrainGatherer
from holdfast_common.formats.vmdk_descriptor import NEW_DISK_CONTENT_ID, CreateType
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text, extents_of_one_file
from holdfast_common.formats.vmdk_markers import (
    GRAIN_MARKER,
    MarkerKind,
    filled_to_sector,
    metadata_marker,
)
from holdfast_common.formats.vmdk_sparse_header import (
    DIRECTORY_AT_END,
    ENTRIES_PER_TABLE,
    FLAG_COMPRESSED,
    FLAG_LINE_ENDS,
    FLAG_MARKERS,
    TABLE_SECTORS,
    SparseHeader,
    pack_sparse_header,
)
from holdfast_common.formats.zero_bytes import is_zero
from holdfast_common.units import KIB, SECTOR_BYTES

_GRAIN_SECTORS: Final = 128  # the only grain size that ESXi takes here
_OVERHEAD_SECTORS: Final = 128
_SECTOR_NUMBER_MAX: Final = 0xFFFFFFFF  # tables hold 32 bits: a stream has at most 2 TiB
_DEFLATE_LEVEL: Final = 1  # the stream is thrown away after the upload: speed counts
_SAMPLE_OFFSETS: Final = (0, 17 * KIB, 34 * KIB, 51 * KIB)
_SAMPLE_BYTES: Final = KIB


class WritableStream(Protocol):
    """Anything with `write`; fewer bytes taken than given means: call again with the rest."""

    def write(self, data: bytes, /) -> int | None:
        """Take bytes."""
        ...


class StreamOptimizedWriter:
    """A `BlockSink` that writes to ``stream``, which need not seek; never closes it.

    Zero grains are left out. Raises: TargetFailed, from every method; what the stream raises
    of our own errors passes through.
    """

    def __init__(
        self,
        stream: WritableStream,
        capacity_bytes: int,
        *,
        file_name: str = "disk.vmdk",
        adapter_type: str = "lsilogic",
        content_id: int = NEW_DISK_CONTENT_ID,
        disk_uuid: str = "",
        hardware_version: int = 14,
        deflate_level: int = _DEFLATE_LEVEL,
    ) -> None:
        self._stream = stream
        self._order = AscendingWrites(capacity_bytes)
        self._gatherer = GrainGatherer(grain_bytes=_GRAIN_SECTORS * SECTOR_BYTES)
        self._level = deflate_level
        self._next_sector = 0
        self._table_index = 0
        self._table = _empty_entries(ENTRIES_PER_TABLE)
        self._table_used = False
        text = descriptor_text(
            create_type=CreateType.STREAM_OPTIMIZED,
            extents=extents_of_one_file(
                CreateType.STREAM_OPTIMIZED, file_name=file_name, capacity_bytes=capacity_bytes
            ),
            adapter_type=adapter_type,
            content_id=content_id,
            disk_uuid=disk_uuid,
            hardware_version=hardware_version,
        ).encode()
        self._header = SparseHeader(
            version=3,
            flags=FLAG_LINE_ENDS | FLAG_COMPRESSED | FLAG_MARKERS,
            capacity_sectors=capacity_bytes // SECTOR_BYTES,
            grain_sectors=_GRAIN_SECTORS,
            descriptor_sector=1,
            descriptor_sectors=-(-len(text) // SECTOR_BYTES),
            redundant_directory_sector=0,
            directory_sector=DIRECTORY_AT_END,
            overhead_sectors=_OVERHEAD_SECTORS,
        )
        self._directory = _empty_entries(self._header.table_count)
        beginning = pack_sparse_header(self._header) + text
        self._put(beginning.ljust(_OVERHEAD_SECTORS * SECTOR_BYTES, b"\0"))

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._order.capacity_bytes

    @property
    def stream_bytes(self) -> int:
        """Bytes written to the stream so far."""
        return self._next_sector * SECTOR_BYTES

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors at ``offset``, not before the end of the last write."""
        self._order.accept(offset, len(data))
        for index, grain in self._gatherer.add(offset, data):
            self._put_grain(index, grain)

    def finish(self) -> None:
        """Write the last grain, the directory, the footer and the end-of-stream marker."""
        self._order.finish()
        for index, grain in self._gatherer.flush():
            self._put_grain(index, grain)
        self._put_table()
        directory = _little_endian(self._directory)
        directory += filled_to_sector(len(directory))
        self._put(
            metadata_marker(
                MarkerKind.GRAIN_DIRECTORY, length_sectors=len(directory) // SECTOR_BYTES
            )
        )
        footer = replace(self._header, directory_sector=self._next_sector)
        self._put(directory)
        self._put(metadata_marker(MarkerKind.FOOTER, length_sectors=1))
        self._put(pack_sparse_header(footer))
        self._put(metadata_marker(MarkerKind.END_OF_STREAM, length_sectors=0))

    def close(self) -> None:
        """Nothing to give back: the stream is its opener's."""

    def _put_grain(self, index: int, grain: memoryview) -> None:
        if is_zero(grain):
            return
        table_index, entry = divmod(index, ENTRIES_PER_TABLE)
        if table_index != self._table_index:
            self._put_table()
            self._table_index = table_index
        self._table[entry] = self._sector_number()
        self._table_used = True
        deflated = zlib.compress(grain, self._level if _looks_compressible(grain) else 0)
        marker = GRAIN_MARKER.pack(index * _GRAIN_SECTORS, len(deflated))
        self._put(b"".join((marker, deflated, filled_to_sector(GRAIN_MARKER.size + len(deflated)))))

    def _put_table(self) -> None:
        if not self._table_used:
            return
        self._put(metadata_marker(MarkerKind.GRAIN_TABLE, length_sectors=TABLE_SECTORS))
        self._directory[self._table_index] = self._sector_number()
        self._put(_little_endian(self._table))
        self._table = _empty_entries(ENTRIES_PER_TABLE)
        self._table_used = False

    def _sector_number(self) -> int:
        if self._next_sector > _SECTOR_NUMBER_MAX:
            raise TargetFailed(
                "a stream-optimised VMDK holds at most 2 TiB of deflated data",
                advice="restore this disk through another transport",
            )
        return self._next_sector

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            written = self._stream.write(data)
            while written is not None and written < len(rest):
                rest = rest[written:]
                written = self._stream.write(bytes(rest))
        except OSError as error:
            raise TargetFailed(
                "stream cannot be written", offset=self.stream_bytes, reason=str(error)
            ) from error
        self._next_sector += len(data) // SECTOR_BYTES


def _looks_compressible(grain: memoryview) -> bool:
    """Whether a sample deflates at all: what is random is stored ten times faster than deflated."""
    sample = b"".join(grain[start : start + _SAMPLE_BYTES] for start in _SAMPLE_OFFSETS)
    return len(zlib.compress(sample, 1)) < len(sample)


def _empty_entries(count: int) -> array[int]:
    entries = array("I", [0]) * count
    assert entries.itemsize == 4
    return entries


def _little_endian(entries: array[int]) -> bytes:
    if sys.byteorder == "little":
        return entries.tobytes()
    swapped = array("I", entries)
    swapped.byteswap()
    return swapped.tobytes()

"""Reading a stream-optimised VMDK in one pass over a stream that cannot seek.

What a transfer lease sends. Nothing is believed before it was checked: grains ascend, no grain
inflates to more than its size, every grain table names just the grains that came before it, the
directory just these tables, the footer repeats the header, and only the end-of-stream marker ends
the disk. So a grain that was lost on the way is an error, never a hole.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np

from holdfast_common.errors import FormatError, ShortRead, SourceFailed
from holdfast_common.formats.vmdk_descriptor import CreateType, Descriptor, parse_descriptor
from holdfast_common.formats.vmdk_limits import CAPACITY_BYTES_MAX
from holdfast_common.formats.vmdk_markers import (
    GRAIN_MARKER,
    METADATA_MARKER,
    MarkerKind,
    deflated_bytes_max,
    inflate_grain,
)
from holdfast_common.formats.vmdk_sparse_header import (
    ENTRIES_PER_TABLE,
    TABLE_SECTORS,
    SparseHeader,
    check_footer,
    parse_sparse_header,
)
from holdfast_common.units import KIB, MIB, SECTOR_BYTES

_GRAIN_BYTES_MIN: Final = 64 * KIB  # so that 64 TiB have at most 8 MiB of directory
_OVERHEAD_BYTES_MAX: Final = 2 * MIB  # header, descriptor of at most 1 MiB, fill
_DIRECTORY_PIECE_BYTES: Final = 64 * KIB
_WHAT: Final = "stream-optimised VMDK"


class ReadableStream(Protocol):
    """Anything with `read`: 1 to ``size`` bytes, and none at the end."""

    def read(self, size: int, /) -> bytes:
        """Give bytes."""
        ...


class StreamOptimizedReader:
    """A `SequentialSource` over ``stream``; never closes it.

    The constructor reads header and descriptor. ``capacity_bytes_max`` is what the inventory says
    of the disk.

    Raises: FormatError, ShortRead (the stream ended early), SourceFailed.
    """

    def __init__(
        self, stream: ReadableStream, *, capacity_bytes_max: int = CAPACITY_BYTES_MAX
    ) -> None:
        self._stream = stream
        self._position = 0
        self._header = self._read_header(capacity_bytes_max)
        self.descriptor = self._read_descriptor()
        self._check = _TableCheck(self._header)
        self._directory_sector = 0
        self._footer_seen = False

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._header.capacity_bytes

    @property
    def stream_bytes(self) -> int:
        """Bytes read from the stream so far."""
        return self._position

    def blocks(self) -> Iterator[tuple[int, memoryview]]:
        """Ascending (offset, bytes) of the grains, once; a view is valid until the next step.

        Ends only after the end-of-stream marker.
        """
        header = self._header
        next_grain = 0
        while True:
            marker_position = self._position
            sector = self._take(SECTOR_BYTES)
            value, size = GRAIN_MARKER.unpack_from(sector)
            if size == 0:
                if self._metadata(sector, marker_position):
                    return
                continue
            where = f"{_WHAT}: grain at stream offset {marker_position}"
            self._check_grain(value, size, next_grain, where)
            grain_index = value // header.grain_sectors
            next_grain = grain_index + 1
            self._check.saw_grain(grain_index, marker_position // SECTOR_BYTES, where)
            deflated = memoryview(sector)[GRAIN_MARKER.size : GRAIN_MARKER.size + size]
            missing = GRAIN_MARKER.size + size - SECTOR_BYTES
            if missing > 0:
                rest = self._take(-(-missing // SECTOR_BYTES) * SECTOR_BYTES)
                deflated = memoryview(b"".join((deflated, memoryview(rest)[:missing])))
            offset = value * SECTOR_BYTES
            wanted = min(header.grain_bytes, header.capacity_bytes - offset)
            data = inflate_grain(
                deflated, wanted=wanted, grain_bytes=header.grain_bytes, where=where
            )
            yield offset, memoryview(data)[:wanted]

    def close(self) -> None:
        """Nothing to give back: the stream is its opener's."""

    def _read_header(self, capacity_bytes_max: int) -> SparseHeader:
        header = parse_sparse_header(self._take(SECTOR_BYTES), what=_WHAT)
        if not header.compressed:
            raise FormatError(f"{_WHAT}: the stream is a sparse VMDK without markers")
        if not header.directory_at_end:
            raise FormatError(f"{_WHAT}: made for random access, not for a stream", offset=56)
        if header.grain_bytes < _GRAIN_BYTES_MIN:
            raise FormatError(
                f"{_WHAT}: grains below 64 KiB", offset=20, grain_bytes=header.grain_bytes
            )
        if header.capacity_bytes > capacity_bytes_max:
            raise FormatError(
                f"{_WHAT}: larger than the disk is known to be",
                capacity_bytes=header.capacity_bytes,
                capacity_bytes_max=capacity_bytes_max,
            )
        return header

    def _read_descriptor(self) -> Descriptor:
        header = self._header
        overhead_bytes = header.overhead_sectors * SECTOR_BYTES
        start = header.descriptor_sector
        end = start + header.descriptor_sectors
        if start < 1 or header.descriptor_sectors < 1 or end > header.overhead_sectors:
            raise FormatError(
                f"{_WHAT}: descriptor is not between header and first grain",
                first_sector=start,
                end_sector=end,
                overhead_sectors=header.overhead_sectors,
            )
        if overhead_bytes > _OVERHEAD_BYTES_MAX:
            raise FormatError(f"{_WHAT}: first grain beyond 2 MiB", overhead_bytes=overhead_bytes)
        beginning = self._take(overhead_bytes - SECTOR_BYTES)
        text = beginning[(start - 1) * SECTOR_BYTES : (end - 1) * SECTOR_BYTES]
        descriptor = parse_descriptor(text)
        if descriptor.create_type is not CreateType.STREAM_OPTIMIZED:
            raise FormatError(
                f"{_WHAT}: descriptor is of another kind", create_type=descriptor.create_type.value
            )
        if descriptor.capacity_bytes != header.capacity_bytes:
            raise FormatError(
                f"{_WHAT}: descriptor and header differ in capacity",
                descriptor_bytes=descriptor.capacity_bytes,
                header_bytes=header.capacity_bytes,
            )
        if descriptor.parent_content_id is not None:
            raise FormatError(f"{_WHAT}: the disk has a parent, so it is not whole")
        return descriptor

    def _check_grain(self, lba: int, size: int, next_grain: int, where: str) -> None:
        header = self._header
        if self._directory_sector:
            raise FormatError(f"{where}: after the grain directory")
        if lba % header.grain_sectors or lba >= header.capacity_sectors:
            raise FormatError(f"{where}: is not at a grain of the disk", sector=lba)
        if lba // header.grain_sectors < next_grain:
            raise FormatError(f"{where}: grains do not ascend", sector=lba)
        if size > deflated_bytes_max(header.grain_bytes):
            raise FormatError(f"{where}: deflated data is too long", length=size)

    def _metadata(self, sector: bytes, marker_position: int) -> bool:
        """Take in one table, directory or footer; True at the end of the stream."""
        length_sectors, _size, kind, _padding = METADATA_MARKER.unpack(sector)
        where = f"{_WHAT}: marker at stream offset {marker_position}"
        if kind == MarkerKind.END_OF_STREAM:
            if length_sectors or not self._footer_seen:
                raise FormatError(f"{where}: end of stream without a footer")
            return True
        if self._footer_seen:
            raise FormatError(f"{where}: something after the footer", kind=kind)
        if kind == MarkerKind.GRAIN_TABLE:
            self._expect_length(length_sectors, TABLE_SECTORS, where)
            if self._directory_sector:
                raise FormatError(f"{where}: grain table after the grain directory")
            table_sector = self._position // SECTOR_BYTES
            self._check.saw_table(self._take(TABLE_SECTORS * SECTOR_BYTES), table_sector, where)
        elif kind == MarkerKind.GRAIN_DIRECTORY:
            self._expect_length(length_sectors, self._header.directory_sectors, where)
            if self._directory_sector:
                raise FormatError(f"{where}: a second grain directory")
            self._read_directory(where)
        elif kind == MarkerKind.FOOTER:
            self._expect_length(length_sectors, 1, where)
            self._read_footer(where)
        else:
            raise FormatError(f"{where}: unknown kind", kind=kind)
        return False

    @staticmethod
    def _expect_length(length_sectors: int, expected_sectors: int, where: str) -> None:
        if length_sectors != expected_sectors:
            raise FormatError(
                f"{where}: wrong length",
                length_sectors=length_sectors,
                expected_sectors=expected_sectors,
            )

    def _read_directory(self, where: str) -> None:
        self._directory_sector = self._position // SECTOR_BYTES
        self._check.all_tables_seen(where)
        left = self._header.directory_sectors * SECTOR_BYTES
        first_index = 0
        while left:
            piece = self._take(min(left, _DIRECTORY_PIECE_BYTES))
            self._check.saw_directory(first_index, piece, where)
            first_index += len(piece) // 4
            left -= len(piece)

    def _read_footer(self, where: str) -> None:
        footer = parse_sparse_header(self._take(SECTOR_BYTES), what=f"{where}: footer")
        check_footer(self._header, footer, what=_WHAT)
        if footer.directory_sector != self._directory_sector:
            raise FormatError(
                f"{where}: footer names another place of the grain directory",
                said_sector=footer.directory_sector,
                seen_sector=self._directory_sector,
            )
        self._footer_seen = True

    def _take(self, length: int) -> bytes:
        """Exactly ``length`` bytes of the stream."""
        pieces: list[bytes] = []
        missing = length
        while missing:
            try:
                piece = self._stream.read(missing)
            except OSError as error:
                raise SourceFailed(
                    f"{_WHAT}: stream cannot be read", offset=self._position, reason=str(error)
                ) from error
            if not piece:
                raise ShortRead(
                    f"{_WHAT}: stream ended before its end-of-stream marker",
                    offset=self._position,
                    wanted=missing,
                )
            pieces.append(piece)
            missing -= len(piece)
            self._position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _TableCheck:
    """Compares grain tables and directory with the grains that really came.

    A table stands after its grains, so one table is kept at a time. Sector numbers are compared
    modulo 2**32, as wide as the tables hold them.
    """

    def __init__(self, header: SparseHeader) -> None:
        self._header = header
        self._current = -1  # the table whose grains come now; -1: none
        self._entries = np.zeros(ENTRIES_PER_TABLE, dtype="<u4")
        self._table_sectors = array("I")  # by table index, 0: no grains; as long as the last one
        self._empty_table_sectors = array("I")

    def saw_grain(self, grain_index: int, sector: int, where: str) -> None:
        """A grain came, whose marker is at ``sector`` of the stream."""
        table_index, entry = divmod(grain_index, ENTRIES_PER_TABLE)
        if table_index != self._current:
            if self._current >= 0:
                raise FormatError(f"{where}: the grains before it have no grain table")
            self._current = table_index
        self._entries[entry] = sector & 0xFFFFFFFF

    def saw_table(self, table: bytes, sector: int, where: str) -> None:
        """A grain table came, which starts at ``sector``."""
        found = np.frombuffer(table, dtype="<u4")
        grains = np.where(found == 1, 0, found)  # 1: a grain that is zero
        if not np.array_equal(grains, self._entries):
            entry = int(np.flatnonzero(grains != self._entries)[0])
            raise FormatError(
                f"{where}: grain table differs from the grains that came",
                entry=entry,
                said_sector=int(grains[entry]),
                came_sector=int(self._entries[entry]),
            )
        if self._current < 0:
            if len(self._empty_table_sectors) >= self._header.table_count:
                raise FormatError(f"{where}: more grain tables than the disk has")
            self._empty_table_sectors.append(sector & 0xFFFFFFFF)
            return
        self._table_sectors.extend([0] * (self._current + 1 - len(self._table_sectors)))
        self._table_sectors[self._current] = sector & 0xFFFFFFFF
        self._current = -1
        self._entries[:] = 0

    def all_tables_seen(self, where: str) -> None:
        """No grain may be left without its table."""
        if self._current >= 0:
            raise FormatError(f"{where}: the grains before it have no grain table")

    def saw_directory(self, first_index: int, piece: bytes, where: str) -> None:
        """A piece of the grain directory: it names just the tables that came, each at its place."""
        found = np.frombuffer(piece, dtype="<u4")
        expected = np.zeros(len(found), dtype=np.uint32)
        came = self._table_sectors[first_index : first_index + len(found)]
        expected[: len(came)] = came
        # a table without grains may be left out, or be written and named
        harmless = (expected == 0) & np.isin(found, self._empty_table_sectors)
        wrong = np.flatnonzero((found != expected) & ~harmless)
        if len(wrong):
            index = int(wrong[0])
            raise FormatError(
                f"{where}: grain directory differs from the tables that came",
                entry=first_index + index,
                said_sector=int(found[index]),
                came_sector=int(expected[index]),
            )

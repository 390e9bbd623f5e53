"""Reading hosted sparse VMDKs at any offset, compressed ones (stream-optimised files) too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from holdfast_common.errors import FormatError
from holdfast_common.formats.grain_map import (
    ABSENT,
    ZERO,
    GrainMap,
    GrainShape,
    Positions,
    Run,
    TableDirectory,
    checked_positions,
)
from holdfast_common.formats.image_file import ImageFile
from holdfast_common.formats.vmdk_descriptor import Descriptor, parse_descriptor
from holdfast_common.formats.vmdk_markers import (
    GRAIN_MARKER,
    METADATA_MARKER,
    MarkerKind,
    deflated_bytes_max,
    inflate_grain,
)
from holdfast_common.formats.vmdk_sparse_header import (
    ENTRIES_PER_TABLE,
    FLAG_ZEROED_GRAINS,
    SparseHeader,
    check_footer,
    parse_sparse_header,
)
from holdfast_common.formats.zero_bytes import is_zero
from holdfast_common.units import SECTOR_BYTES

_FOOTER_BYTES: Final = 3 * SECTOR_BYTES  # marker, footer, end-of-stream marker
_ZEROED_ENTRY: Final = 1


class SparseExtent:
    """One sparse file, read through its grain tables; closes the file.

    The constructor checks header, footer and directory. Raises: FormatError, SourceFailed.
    """

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        self._what = f"sparse VMDK {file.name}"
        self.header, directory_sector = self._read_header()
        self.capacity_bytes = self.header.capacity_bytes
        shape = GrainShape(
            capacity_bytes=self.capacity_bytes,
            grain_bytes=self.header.grain_bytes,
            grains_per_table=ENTRIES_PER_TABLE,
            contiguous=not self.header.compressed,
        )
        self._directory = TableDirectory(
            file,
            position=directory_sector * SECTOR_BYTES,
            entry_count=self.header.table_count,
            entry_type="<u4",
            table_bytes=ENTRIES_PER_TABLE * 4,
            what=self._what,
        )
        self._map = GrainMap(
            shape,
            load_table=self._load_table,
            next_table=self._directory.next_present,
            file_length=file.length,
            what=self._what,
        )
        self._inflated_position = -1
        self._inflated = b""

    def embedded_descriptor(self) -> Descriptor | None:
        """The descriptor inside the file; None if there is none. Raises: FormatError."""
        header = self.header
        if header.descriptor_sector == 0:
            return None
        text = self._file.read(
            header.descriptor_sector * SECTOR_BYTES, header.descriptor_sectors * SECTOR_BYTES
        )
        return parse_descriptor(bytes(text))

    def runs(self, offset: int, end: int) -> Iterator[Run]:
        """Runs that cover ``[offset, end)``. Raises: FormatError."""
        return self._map.runs(offset, end)

    def data_runs(self, offset: int, end: int) -> Iterator[Run]:
        """Like `runs`, for walking a whole disk. Raises: FormatError."""
        self._directory.check_count()
        return self._map.data_runs(offset, end)

    def read_run(self, run: Run, buffer: memoryview) -> None:
        """Fill ``buffer`` with a run's bytes. Raises: FormatError, SourceFailed."""
        if not self.header.compressed:
            self._file.read_into(run.position, buffer)
            return
        inside = run.offset % self.header.grain_bytes
        grain = self._inflated_grain(run.position, run.offset - inside)
        buffer[:] = memoryview(grain)[inside : inside + run.length]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_header(self) -> tuple[SparseHeader, int]:
        """The header, and the sector of the grain directory."""
        header = parse_sparse_header(self._file.read(0, SECTOR_BYTES), what=self._what)
        if header.unclean:
            raise FormatError(
                f"{self._what}: is open for writing, or was never completed",
                offset=72,
                advice="shut down what uses this disk, or make it again",
            )
        if not header.directory_at_end:
            return header, header.directory_sector
        tail_offset = self._file.length - _FOOTER_BYTES
        tail = memoryview(self._file.read(max(tail_offset, 0), _FOOTER_BYTES))
        markers = (
            METADATA_MARKER.unpack(tail[:SECTOR_BYTES])[:3],
            METADATA_MARKER.unpack(tail[2 * SECTOR_BYTES :])[:3],
        )
        if markers != ((1, 0, MarkerKind.FOOTER), (0, 0, MarkerKind.END_OF_STREAM)):
            raise FormatError(
                f"{self._what}: no footer and end-of-stream marker: the file is cut off",
                offset=tail_offset,
            )
        footer = parse_sparse_header(
            tail[SECTOR_BYTES : 2 * SECTOR_BYTES], what=f"{self._what}: footer"
        )
        check_footer(header, footer, what=self._what)
        return header, footer.directory_sector

    def _load_table(self, index: int) -> Positions | None:
        table_sector = self._directory.entry(index)
        if table_sector == 0:
            return None
        raw = self._file.read(table_sector * SECTOR_BYTES, ENTRIES_PER_TABLE * 4)
        if is_zero(raw):
            return None
        entries = np.frombuffer(raw, dtype="<u4").astype(np.int64)
        positions = np.where(entries == 0, ABSENT, entries * SECTOR_BYTES)
        if self.header.flags & FLAG_ZEROED_GRAINS:
            positions[entries == _ZEROED_ENTRY] = ZERO
        return checked_positions(
            positions,
            shape=self._map.shape,
            table_index=index,
            first_position=2 * SECTOR_BYTES,
            file_length=self._file.length,
            where=self._what,
        )

    def _inflated_grain(self, position: int, grain_offset: int) -> bytes:
        if position == self._inflated_position:
            return self._inflated
        header = self.header
        where = f"{self._what}: grain at offset {position}"
        lba, size = GRAIN_MARKER.unpack(self._file.read(position, GRAIN_MARKER.size))
        if lba * SECTOR_BYTES != grain_offset:
            raise FormatError(f"{where}: belongs to another place of the disk", sector=lba)
        if not 0 < size <= deflated_bytes_max(header.grain_bytes):
            raise FormatError(f"{where}: bad length of deflated data", length=size)
        self._inflated = inflate_grain(
            self._file.read(position + GRAIN_MARKER.size, size),
            wanted=min(header.grain_bytes, self.capacity_bytes - grain_offset),
            grain_bytes=header.grain_bytes,
            where=where,
        )
        self._inflated_position = position
        return self._inflated

"""Writing a hosted sparse VMDK (monolithicSparse): one file that grows with its data.

Layout: header · descriptor · redundant directory and tables · directory and tables · grains from a
multiple of 64 KiB on. Tables lie at fixed places, both copies; unused ones stay holes of the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

import numpy as np

from holdfast_common.errors import TargetFailed
from holdfast_common.formats.ascending import AscendingWrites, GrainGatherer
from holdfast_common.formats.vmdk_descriptor import NEW_DISK_CONTENT_ID, CreateType
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text, extents_of_one_file
from holdfast_common.formats.vmdk_flat import pwrite_all, sync
from holdfast_common.formats.vmdk_sparse_header import (
    ENTRIES_PER_TABLE,
    FLAG_LINE_ENDS,
    FLAG_REDUNDANT_DIRECTORY,
    TABLE_SECTORS,
    SparseHeader,
    pack_sparse_header,
)
from holdfast_common.formats.zero_bytes import is_zero
from holdfast_common.units import SECTOR_BYTES, round_up

_GRAIN_SECTORS: Final = 128
_GRAIN_BYTES: Final = _GRAIN_SECTORS * SECTOR_BYTES
_DESCRIPTOR_SECTORS: Final = 20  # room to grow, as VMware leaves it
_SECTOR_NUMBER_MAX: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentLink:
    """What a redo log says of its parent. ``hint`` is the parent's file name."""

    content_id: int
    hint: str


class SparseWriter:
    """A `BlockSink` that writes into ``file`` (new, empty, unbuffered, readable too); closes it.

    Without a parent zero grains are left out. With one, everything that is written is kept, and
    only whole grains (or up to the disk's end) may be written. Until `finish` the file is marked as
    not closed, and our reader refuses it. Raises: TargetFailed, from every method.
    """

    def __init__(
        self,
        file: BinaryIO,
        capacity_bytes: int,
        *,
        file_name: str,
        adapter_type: str = "lsilogic",
        content_id: int = NEW_DISK_CONTENT_ID,
        disk_uuid: str = "",
        hardware_version: int = 14,
        parent: ParentLink | None = None,
    ) -> None:
        self._file = file
        self._parent = parent
        self._order = AscendingWrites(capacity_bytes)
        self._gatherer = GrainGatherer(grain_bytes=_GRAIN_BYTES)
        text = descriptor_text(
            create_type=CreateType.MONOLITHIC_SPARSE,
            extents=extents_of_one_file(
                CreateType.MONOLITHIC_SPARSE, file_name=file_name, capacity_bytes=capacity_bytes
            ),
            adapter_type=adapter_type,
            content_id=content_id,
            parent_content_id=None if parent is None else parent.content_id,
            parent_hint="" if parent is None else parent.hint,
            disk_uuid=disk_uuid,
            hardware_version=hardware_version,
        ).encode()
        self._header = _layout(capacity_bytes, descriptor_bytes=len(text))
        self._next_sector = self._header.overhead_sectors
        self._table_index = -1
        self._table = np.zeros(ENTRIES_PER_TABLE, dtype="<u4")
        self._write_beginning(text)

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._order.capacity_bytes

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors at ``offset``, not before the end of the last write."""
        end = offset + len(data)
        part = offset % _GRAIN_BYTES or (end % _GRAIN_BYTES and end != self.capacity_bytes)
        if self._parent is not None and part:
            raise TargetFailed(
                "a part of a grain cannot be written above a parent",
                offset=offset,
                length=len(data),
            )
        self._order.accept(offset, len(data))
        for index, grain in self._gatherer.add(offset, data):
            self._put_grain(index, grain)

    def finish(self) -> None:
        """Write the last grain and table, make all durable, then mark the file as closed."""
        self._order.finish()
        for index, grain in self._gatherer.flush():
            self._put_grain(index, grain)
        self._put_table()
        sync(self._file)
        pwrite_all(self._file, 0, pack_sparse_header(self._header))
        sync(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_beginning(self, text: bytes) -> None:
        header = self._header
        try:
            os.ftruncate(self._file.fileno(), header.overhead_sectors * SECTOR_BYTES)
        except OSError as error:
            raise TargetFailed("sparse disk cannot be made", reason=str(error)) from error
        pwrite_all(self._file, 0, pack_sparse_header(replace(header, unclean=True)) + text)
        for directory_sector in (header.redundant_directory_sector, header.directory_sector):
            first_table = directory_sector + header.directory_sectors
            tables = np.arange(header.table_count, dtype="<u4") * TABLE_SECTORS + first_table
            pwrite_all(self._file, directory_sector * SECTOR_BYTES, tables.astype("<u4").tobytes())

    def _put_grain(self, index: int, grain: memoryview) -> None:
        if self._parent is None and is_zero(grain):
            return
        table_index, entry = divmod(index, ENTRIES_PER_TABLE)
        if table_index != self._table_index:
            self._put_table()
            self._table_index = table_index
        if self._next_sector > _SECTOR_NUMBER_MAX:
            raise TargetFailed(
                "a sparse VMDK holds at most 2 TiB of data", advice="restore to a flat VMDK"
            )
        pwrite_all(self._file, self._next_sector * SECTOR_BYTES, grain)
        self._table[entry] = self._next_sector
        self._next_sector += _GRAIN_SECTORS

    def _put_table(self) -> None:
        if self._table_index < 0:
            return
        header = self._header
        for directory_sector in (header.redundant_directory_sector, header.directory_sector):
            first_table = directory_sector + header.directory_sectors
            sector = first_table + self._table_index * TABLE_SECTORS
            pwrite_all(self._file, sector * SECTOR_BYTES, self._table.tobytes())
        self._table[:] = 0


def _layout(capacity_bytes: int, *, descriptor_bytes: int) -> SparseHeader:
    header = SparseHeader(
        version=1,
        flags=FLAG_LINE_ENDS | FLAG_REDUNDANT_DIRECTORY,
        capacity_sectors=capacity_bytes // SECTOR_BYTES,
        grain_sectors=_GRAIN_SECTORS,
        descriptor_sector=1,
        descriptor_sectors=max(_DESCRIPTOR_SECTORS, -(-descriptor_bytes // SECTOR_BYTES)),
        redundant_directory_sector=0,
        directory_sector=0,
        overhead_sectors=0,
    )
    copy_sectors = header.directory_sectors + header.table_count * TABLE_SECTORS
    redundant = 1 + header.descriptor_sectors
    return replace(
        header,
        redundant_directory_sector=redundant,
        directory_sector=redundant + copy_sectors,
        overhead_sectors=round_up(redundant + 2 * copy_sectors, _GRAIN_SECTORS),
    )

"""Grained redo logs: a directory of tables of grains; what is not listed comes from the parent.

COWD and SE sparse differ in their headers, entry sizes and places (``GrainLayout``); looking up,
allocating and writing grains is the same. Everything is written through: another process that
reads the files (the product, qemu) sees a consistent file between two calls.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from holdfast_lab.storage.errors import DescriptorError, OutOfRange
from holdfast_lab.storage.extent_file import ReadBelow, read_exactly, write_exactly
from holdfast_lab.storage.runs import Run, RunKind

TABLE_ENTRIES: Final = 4096  # in both formats
DIRECTORY_PIECE_ENTRIES: Final = 8192
COPY_BYTES: Final = 1024 * 1024
ABSENT: Final = -1
ZEROED: Final = -2


class GrainLayout(Protocol):
    """Where a format keeps its tables and grains. Positions are bytes in the file."""

    capacity_bytes: int
    grain_bytes: int
    entry_bytes: int  # 4 or 8, of directory and tables
    directory_position: int
    directory_entries: int
    zero_entry: int | None  # None: the format cannot say "zeros"

    def table_position(self, directory_entry: int) -> int:
        """Where the table lies; ``ABSENT`` when there is none yet."""
        ...

    def grain_positions(self, entries: Sequence[int]) -> list[int]:
        """Where the grains lie, or ``ABSENT``, or ``ZEROED``."""
        ...

    def grain_entry(self, position: int) -> int:
        """The table entry for a grain at the position."""
        ...

    def allocate_table(self, file: int) -> int:
        """Make room for a zeroed table; gives its directory entry."""
        ...

    def allocate_grains(self, file: int, count: int) -> int:
        """Make room for neighbouring grains; gives the first one's position."""
        ...


class GrainedExtent:
    """The data file of a COWD or SE sparse link."""

    def __init__(self, path: Path, file: int, layout: GrainLayout) -> None:
        self.path = path
        self.capacity_bytes = layout.capacity_bytes
        self._file = file
        self._layout = layout
        self._typecode = "I" if layout.entry_bytes == 4 else "Q"
        self._span = TABLE_ENTRIES * layout.grain_bytes  # bytes of disk per table

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Data, zeros, or left to the parent."""
        return coalesced(self._clipped_runs(offset, offset + length))

    def read_data(self, position: int, buffer: memoryview) -> None:
        """Fill the buffer from the file."""
        read_exactly(self._file, position, buffer)

    def write(self, offset: int, data: memoryview, below: ReadBelow) -> None:
        """Write whole grains; a grain written in part is completed from here or from below."""
        grain = self._layout.grain_bytes
        at = offset
        end = offset + len(data)
        while at < end:
            within = at % grain
            if within == 0 and end - at >= grain:
                count = (end - at) // grain * grain
                self._write_grains(at, data[at - offset : at - offset + count])
            else:
                count = min(grain - within, end - at)
                whole = bytearray(grain)
                self._read_grain(at - within, memoryview(whole), below)
                whole[within : within + count] = data[at - offset : at - offset + count]
                self._write_grains(at - within, memoryview(whole))
            at += count

    def write_zeros(self, offset: int, length: int, below: ReadBelow) -> None:
        """Zeroed grains where the format has them, otherwise grains full of zeros."""
        grain = self._layout.grain_bytes
        end = offset + length
        whole_start = -(-offset // grain) * grain
        # The last grain of an odd capacity is whole although the disk ends within it.
        whole_end = end if end == self.capacity_bytes else end // grain * grain
        if self._layout.zero_entry is None or whole_start >= whole_end:
            self._write_zero_data(offset, end, below)
            return
        self._write_zero_data(offset, whole_start, below)
        self._mark_zeroed(whole_start, -(-whole_end // grain) * grain, self._layout.zero_entry)
        self._write_zero_data(whole_end, end, below)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # -- looking up ------------------------------------------------------------------------

    def _clipped_runs(self, start: int, end: int) -> Iterator[Run]:
        if start < 0 or end > self.capacity_bytes:
            raise OutOfRange(f"[{start}, {end}) is not within {self.path.name}")
        for run in self._table_runs(start, end):
            first = max(run.offset, start)
            last = min(run.offset + run.length, end)
            if first < last:
                yield Run(run.kind, first, last - first, run.position + first - run.offset)

    def _table_runs(self, start: int, end: int) -> Iterator[Run]:
        index = start // self._span
        tables = -(-end // self._span)
        while index < tables:
            count = min(DIRECTORY_PIECE_ENTRIES, tables - index)
            directory = self._entries(self._directory_position(index), count)
            if not any(directory):
                yield Run(RunKind.ABSENT, index * self._span, count * self._span)
            else:
                for number, entry in enumerate(directory, start=index):
                    yield from self._grain_runs(number, entry, start, end)
            index += count

    def _grain_runs(self, number: int, directory_entry: int, start: int, end: int) -> Iterator[Run]:
        base = number * self._span
        table = self._layout.table_position(directory_entry)
        if table == ABSENT:
            yield Run(RunKind.ABSENT, base, self._span)
            return
        grain = self._layout.grain_bytes
        first = max(start - base, 0) // grain
        last = min(-(-(end - base) // grain), TABLE_ENTRIES)
        entries = self._entries(table + first * self._layout.entry_bytes, last - first)
        if not any(entries):
            yield Run(RunKind.ABSENT, base + first * grain, (last - first) * grain)
            return
        positions = self._layout.grain_positions(entries)
        for at, count, position in neighbours(positions, grain):
            offset = base + (first + at) * grain
            if position == ABSENT:
                yield Run(RunKind.ABSENT, offset, count * grain)
            elif position == ZEROED:
                yield Run(RunKind.ZERO, offset, count * grain)
            else:
                yield Run(RunKind.DATA, offset, count * grain, position)

    def _read_grain(self, offset: int, whole: memoryview, below: ReadBelow) -> None:
        end = min(offset + len(whole), self.capacity_bytes)
        for run in self.runs(offset, end - offset):
            part = whole[run.offset - offset : run.offset - offset + run.length]
            if run.kind is RunKind.DATA:
                self.read_data(run.position, part)
            elif run.kind is RunKind.ABSENT:
                below(run.offset, part)

    def _directory_position(self, index: int) -> int:
        return self._layout.directory_position + index * self._layout.entry_bytes

    def _entries(self, position: int, count: int) -> array[int]:
        entries = array(self._typecode, bytes(count * self._layout.entry_bytes))
        read_exactly(self._file, position, memoryview(entries).cast("B"))
        return entries

    # -- writing ---------------------------------------------------------------------------

    def _write_zero_data(self, start: int, end: int, below: ReadBelow) -> None:
        zeros = memoryview(bytes(min(COPY_BYTES, max(end - start, 0))))
        at = start
        while at < end:
            count = min(len(zeros), end - at)
            self.write(at, zeros[:count], below)
            at += count

    def _table_for_writing(self, index: int) -> int:
        if index >= self._layout.directory_entries:
            raise OutOfRange(f"{self.path.name} has no table {index}")
        position = self._directory_position(index)
        entry = self._entries(position, 1)[0]
        if self._layout.table_position(entry) == ABSENT:
            entry = self._layout.allocate_table(self._file)
            write_exactly(self._file, position, array(self._typecode, [entry]).tobytes())
        return self._layout.table_position(entry)

    def _write_grains(self, offset: int, data: memoryview) -> None:
        grain = self._layout.grain_bytes
        done = 0
        while done < len(data):
            index, within = divmod(offset + done, self._span)
            count = min((self._span - within) // grain, (len(data) - done) // grain)
            place = self._table_for_writing(index) + within // grain * self._layout.entry_bytes
            self._write_in_table(place, data[done : done + count * grain])
            done += count * grain

    def _write_in_table(self, place: int, data: memoryview) -> None:
        """Data first, then the entries: a reader never follows an entry to nothing."""
        grain = self._layout.grain_bytes
        entries = self._entries(place, len(data) // grain)
        positions = self._layout.grain_positions(entries)
        missing = [at for at, position in enumerate(positions) if position < 0]
        if missing:
            fresh = self._layout.allocate_grains(self._file, len(missing))
            for number, at in enumerate(missing):
                positions[at] = fresh + number * grain
                entries[at] = self._layout.grain_entry(positions[at])
        for at, count, position in neighbours(positions, grain):
            write_exactly(self._file, position, data[at * grain : (at + count) * grain])
        if missing:
            write_exactly(self._file, place, entries.tobytes())

    def _mark_zeroed(self, start: int, end: int, zero_entry: int) -> None:
        grain = self._layout.grain_bytes
        at = start
        while at < end:
            index, within = divmod(at, self._span)
            count = min(self._span - within, end - at) // grain
            place = self._table_for_writing(index) + within // grain * self._layout.entry_bytes
            write_exactly(self._file, place, array(self._typecode, [zero_entry]).tobytes() * count)
            at += count * grain


def neighbours(positions: Sequence[int], grain: int) -> Iterator[tuple[int, int, int]]:
    """Group grains that lie side by side: (index of the first, count, its position)."""
    at = 0
    while at < len(positions):
        position = positions[at]
        step = grain if position >= 0 else 0
        expected = position + step
        end = at + 1
        while end < len(positions) and positions[end] == expected:
            end += 1
            expected += step
        yield at, end - at, position
        at = end


def coalesced(runs: Iterable[Run]) -> Iterator[Run]:
    """Join neighbouring runs of one kind, data only where it lies side by side."""
    last: Run | None = None
    for run in runs:
        if last is None:
            last = run
        elif run.kind is last.kind and (
            run.kind is not RunKind.DATA or run.position == last.position + last.length
        ):
            last = last._replace(length=last.length + run.length)
        else:
            yield last
            last = run
    if last is not None:
        yield last


def check_size(path: Path, *, wanted: int, capacity_bytes: int) -> None:
    """Refuse a directory that does not cover the capacity."""
    if wanted < capacity_bytes:
        raise DescriptorError(f"{path.name}: its directory covers {wanted} of {capacity_bytes}")

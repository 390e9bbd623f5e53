"""Where a sparse image's grains lie: its tables, loaded when needed, read as runs.

All sparse formats are the same at heart: a directory of tables, a table of positions. They differ
in widths and markings, which their modules turn into `GrainMap` tables of byte positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from holdfast_common.errors import FormatError
from holdfast_common.formats.image_file import ImageFile
from holdfast_common.units import SECTOR_BYTES

ABSENT: Final = -1  # not in this image: the parent's bytes, or zero without a parent
ZERO: Final = -2  # zero, whatever the parent holds
_CACHED_BYTES_MAX: Final = 2 * 1024 * 1024  # tables of one image kept in memory

_WINDOW_ENTRIES: Final = 16384  # of a directory, at most 128 KiB

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes ``[offset, offset + length)`` of an image, all in one state.

    ``position`` is where they start in the image's file, or ABSENT, or ZERO.
    """

    offset: int
    length: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrainShape:
    """Sizes of a sparse image. ``contiguous``: grains that follow each other can be read at once."""

    capacity_bytes: int
    grain_bytes: int
    grains_per_table: int
    contiguous: bool = True

    @property
    def table_reach_bytes(self) -> int:
        """Bytes of the disk that one table covers."""
        return self.grain_bytes * self.grains_per_table

    @property
    def table_count(self) -> int:
        """Tables of the whole disk."""
        return -(-self.capacity_bytes // self.table_reach_bytes)


class GrainMap:
    """Runs of one sparse image. Keeps at most 2 MiB of tables in memory.

    ``load_table(index)`` gives the positions of one table, or None if the table does not exist;
    ``next_table(index)`` the first index at or after ``index`` of a table that exists (or the count).
    """

    def __init__(
        self,
        shape: GrainShape,
        *,
        load_table: Callable[[int], Positions | None],
        next_table: Callable[[int], int],
        file_length: int,
        what: str,
    ) -> None:
        self.shape = shape
        self._file_length = file_length
        self._what = what
        self._load_table = load_table
        self._next_table = next_table
        self._cache: OrderedDict[int, Positions] = OrderedDict()
        self._cached_max = max(_CACHED_BYTES_MAX // (8 * shape.grains_per_table), 2)

    def runs(self, offset: int, end: int) -> Iterator[Run]:
        """Runs that cover exactly ``[offset, end)``, ascending. Raises: FormatError."""
        reach = self.shape.table_reach_bytes
        while offset < end:
            index = offset // reach
            positions = self._table(index)
            if positions is None:
                following = min(self._next_table(index + 1) * reach, end)
                yield Run(offset, following - offset, ABSENT)
                offset = following
                continue
            table_end = min((index + 1) * reach, end)
            yield from self._runs_of_table(positions, index * reach, offset, table_end)
            offset = table_end

    def data_runs(self, offset: int, end: int) -> Iterator[Run]:
        """Like `runs`, for walking a whole disk: ends at an image whose grains overlap.

        Without that, a small file could stand for a disk that takes days to walk.
        Raises: FormatError.
        """
        present = 0
        for run in self.runs(offset, end):
            if run.position >= 0:
                present += run.length if self.shape.contiguous else SECTOR_BYTES
                if present > self._file_length + self.shape.grain_bytes:
                    raise FormatError(
                        f"{self._what}: grains overlap: there are more than the file can hold",
                        offset=run.offset,
                        file_length=self._file_length,
                    )
            yield run

    def _table(self, index: int) -> Positions | None:
        cached = self._cache.get(index)
        if cached is not None:
            self._cache.move_to_end(index)
            return cached
        positions = self._load_table(index)
        if positions is not None:
            self._cache[index] = positions
            if len(self._cache) > self._cached_max:
                self._cache.popitem(last=False)
        return positions

    def _runs_of_table(
        self, positions: Positions, table_offset: int, offset: int, end: int
    ) -> Iterator[Run]:
        grain = self.shape.grain_bytes
        first = (offset - table_offset) // grain
        last = -(-(end - table_offset) // grain)
        part = positions[first:last]
        if self.shape.contiguous:
            step = np.where(part[:-1] >= 0, part[:-1] + grain, part[:-1])
            breaks = np.flatnonzero(part[1:] != step) + 1
        else:
            breaks = np.flatnonzero((part[1:] != part[:-1]) | (part[1:] >= 0)) + 1
        starts = [0, *breaks.tolist()]
        stops = [*starts[1:], len(part)]
        for start, stop, position in zip(starts, stops, part[starts].tolist(), strict=True):
            run_offset = table_offset + (first + start) * grain
            run_end = min(table_offset + (first + stop) * grain, end)
            inside = max(offset - run_offset, 0)  # the first grain may begin before the range
            yield Run(
                run_offset + inside,
                run_end - run_offset - inside,
                position + inside if position >= 0 and self.shape.contiguous else position,
            )


def checked_positions(
    positions: Positions,
    *,
    shape: GrainShape,
    table_index: int,
    first_position: int,
    file_length: int,
    where: str,
) -> Positions:
    """The table's positions up to the disk's end, if every grain lies inside the file.

    Raises: FormatError.
    """
    first_grain = table_index * shape.grains_per_table
    grain_count = -(-shape.capacity_bytes // shape.grain_bytes)
    positions = positions[: grain_count - first_grain]
    present = positions >= 0
    if not present.any():
        return positions
    needed = np.full(len(positions), shape.grain_bytes, dtype=np.int64)
    if first_grain + len(positions) == grain_count:
        needed[-1] = shape.capacity_bytes - (grain_count - 1) * shape.grain_bytes
    if not shape.contiguous:
        needed[:] = 1  # deflated: its length stands before it and is checked there
    wrong = np.flatnonzero(
        present & ((positions < first_position) | (positions + needed > file_length))
    )
    if len(wrong):
        entry = int(wrong[0])
        raise FormatError(
            f"{where}: grain lies outside of the image file",
            table=table_index,
            entry=entry,
            position=int(positions[entry]),
            file_length=file_length,
        )
    return positions


class TableDirectory:
    """The directory of tables in an image file, read in windows, so never whole in memory."""

    def __init__(
        self,
        file: ImageFile,
        *,
        position: int,
        entry_count: int,
        entry_type: str,
        table_bytes: int,
        what: str,
    ) -> None:
        self._entry_bytes = np.dtype(entry_type).itemsize
        if position + entry_count * self._entry_bytes > file.length:
            raise FormatError(
                f"{what}: grain directory lies outside of the file",
                position=position,
                entries=entry_count,
                file_length=file.length,
            )
        self._file = file
        self._position = position
        self._entry_count = entry_count
        self._entry_type = entry_type
        self._table_bytes = table_bytes
        self._what = what
        self._counted = False
        self._window_first = 0
        self._window: npt.NDArray[np.unsignedinteger] = np.zeros(0, dtype=entry_type)

    def entry(self, index: int) -> int:
        """The raw entry of a table."""
        self._load_window_of(index)
        return int(self._window[index - self._window_first])

    def next_present(self, index: int) -> int:
        """The first index at or after ``index`` whose entry is not 0; the count if there is none."""
        while index < self._entry_count:
            self._load_window_of(index)
            found = np.flatnonzero(self._window[index - self._window_first :])
            if len(found):
                return index + int(found[0])
            index = self._window_first + len(self._window)
        return self._entry_count

    def check_count(self) -> None:
        """Refuse more tables than the file has room for. Raises: FormatError."""
        if self._counted:
            return
        count = 0
        for first in range(0, self._entry_count, _WINDOW_ENTRIES):
            self._load_window_of(first)
            count += int(np.count_nonzero(self._window))
            if count * self._table_bytes > self._file.length:
                raise FormatError(
                    f"{self._what}: grain tables overlap: there are more than the file can hold",
                    tables=count,
                    file_length=self._file.length,
                )
        self._counted = True

    def _load_window_of(self, index: int) -> None:
        if self._window_first <= index < self._window_first + len(self._window):
            return
        first = index // _WINDOW_ENTRIES * _WINDOW_ENTRIES
        count = min(_WINDOW_ENTRIES, self._entry_count - first)
        raw = self._file.read(self._position + first * self._entry_bytes, count * self._entry_bytes)
        self._window = np.frombuffer(raw, dtype=self._entry_type)
        self._window_first = first

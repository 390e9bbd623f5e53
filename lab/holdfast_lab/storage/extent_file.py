"""What the file behind one link can do, whatever its format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from holdfast_lab.storage.errors import StorageError
from holdfast_lab.storage.runs import Run

# Reads the range below a link (its parents) into the buffer; zeros without a parent.
ReadBelow = Callable[[int, memoryview], None]


class ExtentFile(Protocol):
    """One data file of a link. Offsets and lengths are whole sectors of the disk."""

    path: Path
    capacity_bytes: int

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Cover ``[offset, offset + length)`` without gaps, in order."""
        ...

    def read_data(self, position: int, buffer: memoryview) -> None:
        """Read from the file at a data run's ``position``; fills the buffer."""
        ...

    def write(self, offset: int, data: memoryview, below: ReadBelow) -> None:
        """Store data; ``below`` completes grains that are written in part."""
        ...

    def write_zeros(self, offset: int, length: int, below: ReadBelow) -> None:
        """Make the range read as zeros, with as little space as the format allows."""
        ...

    def close(self) -> None:
        """Give the file back; harmless when done twice."""
        ...


def read_exactly(file: int, position: int, buffer: memoryview) -> None:
    """Fill the buffer from the file. Raises: StorageError when the file ends early."""
    done = 0
    while done < len(buffer):
        count = os.preadv(file, [buffer[done:]], position + done)
        if count == 0:
            raise StorageError(f"the file ended early at {position + done}")
        done += count


def write_exactly(file: int, position: int, data: memoryview | bytes) -> None:
    """Write everything at the position."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], position + done)

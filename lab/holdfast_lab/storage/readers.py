"""Reading whole disks: a chain of links, or one raw file; also copying and comparing them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from holdfast_lab.storage.cowd import open_cowd
from holdfast_lab.storage.descriptor import CreateType, Descriptor, load
from holdfast_lab.storage.disk_values import DiskReader
from holdfast_lab.storage.errors import (
    ChainError,
    DescriptorError,
    FileExists,
    FileMissing,
    OutOfRange,
)
from holdfast_lab.storage.extent_file import ExtentFile, write_exactly
from holdfast_lab.storage.flat import FlatExtent, create_flat
from holdfast_lab.storage.runs import Area, Run, RunKind, joined, union
from holdfast_lab.storage.se_sparse import open_se_sparse

CHAIN_LINKS_MAX = 64  # vSphere allows 32; a loop of parents must end
COPY_BYTES = 1024 * 1024


def open_extent(path: Path, descriptor: Descriptor, *, writable: bool) -> ExtentFile:
    """Open the data file of a link; ``path`` is its descriptor's.

    Raises: FileMissing, DescriptorError.
    """
    file = path.parent / descriptor.extent_name
    try:
        extent: ExtentFile
        if descriptor.create_type is CreateType.FLAT:
            extent = FlatExtent(file, writable=writable)
        elif descriptor.create_type is CreateType.COWD:
            extent = open_cowd(file, writable=writable)
        elif descriptor.create_type is CreateType.SE_SPARSE:
            extent = open_se_sparse(file, writable=writable)
        else:
            raise DescriptorError(f"{path.name}: {descriptor.create_type.value} is not a live disk")
    except FileNotFoundError as error:
        raise FileMissing(f"{file.name} of {path.name} is missing") from error
    if extent.capacity_bytes < descriptor.capacity_bytes:
        extent.close()
        raise DescriptorError(f"{file.name} is smaller than its descriptor says")
    return extent


def load_chain(path: Path) -> list[tuple[Path, Descriptor]]:
    """The link's descriptor and its parents', base last. Raises: FileMissing, ChainError."""
    chain: list[tuple[Path, Descriptor]] = []
    at: Path | None = path
    while at is not None:
        if len(chain) == CHAIN_LINKS_MAX:
            raise ChainError(f"{path.name} has more than {CHAIN_LINKS_MAX} links")
        try:
            descriptor = load(at)
        except FileNotFoundError as error:
            raise FileMissing(f"{at.name} is missing") from error
        chain.append((at, descriptor))
        if descriptor.parent_name is None:
            at = None
        else:
            parent = Path(descriptor.parent_name)
            at = parent if parent.is_absolute() else at.parent / parent
    return chain


def chain_runs(
    extents: Sequence[ExtentFile], offset: int, length: int
) -> Iterator[tuple[ExtentFile | None, Run]]:
    """Resolve a range through a chain, topmost extent first; None with zeros of no file."""
    if not extents:
        yield None, Run(RunKind.ZERO, offset, length)
        return
    top, below = extents[0], extents[1:]
    known = max(min(length, top.capacity_bytes - offset), 0)
    if known:
        for run in top.runs(offset, known):
            if run.kind is RunKind.ABSENT:
                yield from chain_runs(below, run.offset, run.length)
            else:
                yield top, run
    if known < length:
        yield None, Run(RunKind.ZERO, offset + known, length - known)


def read_chain(extents: Sequence[ExtentFile], offset: int, buffer: memoryview) -> None:
    """Fill the buffer through a chain, topmost extent first."""
    for extent, run in chain_runs(extents, offset, len(buffer)):
        part = buffer[run.offset - offset : run.offset - offset + run.length]
        if extent is not None and run.kind is RunKind.DATA:
            extent.read_data(run.position, part)
        else:
            part[:] = bytes(len(part))


def chain_allocated(extents: Sequence[ExtentFile], capacity: int) -> Iterator[Area]:
    """Where any link decides that there is data, joined."""
    return joined(
        Area(run.offset, run.length)
        for _, run in chain_runs(extents, 0, capacity)
        if run.kind is RunKind.DATA
    )


class ChainReader:
    """A link with all its parents, opened read-only with files of its own. One thread."""

    def __init__(self, descriptor: Path, *, on_close: Callable[[], None] | None = None) -> None:
        self._on_close = on_close
        self._extents: list[ExtentFile] = []
        self._open = True
        try:
            for path, link in load_chain(descriptor):
                if not self._extents:
                    self._capacity_bytes = link.capacity_bytes
                self._extents.append(open_extent(path, link, writable=False))
        except BaseException:
            self.close()
            raise

    @property
    def capacity_bytes(self) -> int:
        """The size of the disk."""
        return self._capacity_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer. Raises: OutOfRange."""
        if offset < 0 or offset + len(buffer) > self._capacity_bytes:
            raise OutOfRange(f"[{offset}, {offset + len(buffer)}) is not within the disk")
        read_chain(self._extents, offset, buffer)

    def allocated(self) -> Iterator[Area]:
        """Areas that hold data, in order."""
        return chain_allocated(self._extents, self._capacity_bytes)

    def close(self) -> None:
        """Close the files; harmless when done twice."""
        if not self._open:
            return
        self._open = False
        for extent in self._extents:
            extent.close()
        if self._on_close is not None:
            self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class RawReader(ChainReader):
    """One raw file, or block device, as a disk."""

    def __init__(self, path: Path) -> None:
        extent = FlatExtent(path, writable=False)
        self._on_close = None
        self._extents = [extent]
        self._open = True
        self._capacity_bytes = extent.capacity_bytes


def copy_to_raw(reader: DiskReader, to: Path) -> None:
    """Write a disk as a new sparse raw file. Raises: FileExists."""
    try:
        create_flat(to, reader.capacity_bytes)
    except FileExistsError as error:
        raise FileExists(f"{to} is already there") from error
    copy_data_to(reader, to)


def copy_data_to(reader: DiskReader, to: Path) -> None:
    """Write a disk's data to their places in an existing, empty raw file."""
    file = os.open(to, os.O_RDWR)
    try:
        piece = bytearray(COPY_BYTES)
        for area in reader.allocated():
            for offset, length in pieces(area):
                view = memoryview(piece)[:length]
                reader.read_into(offset, view)
                write_exactly(file, offset, view)
    finally:
        os.close(file)


def pieces(area: Area, size: int = COPY_BYTES) -> Iterator[tuple[int, int]]:
    """The area in parts of bounded size: (offset, length)."""
    at = area.offset
    while at < area.end:
        length = min(size, area.end - at)
        yield at, length
        at += length


def first_difference(first: DiskReader, second: DiskReader) -> int | None:
    """The first offset where two disks differ, also in size; None when they are equal.

    Only what is allocated in one of them is read.
    """
    capacity = min(first.capacity_bytes, second.capacity_bytes)
    one = bytearray(COPY_BYTES)
    other = bytearray(COPY_BYTES)
    for area in union(first.allocated(), second.allocated()):
        for offset, wanted in pieces(area):
            length = min(wanted, capacity - offset)
            if length <= 0:
                break
            left = memoryview(one)[:length]
            right = memoryview(other)[:length]
            first.read_into(offset, left)
            second.read_into(offset, right)
            if left != right:
                return offset + _first_mismatch(left, right)
    return None if first.capacity_bytes == second.capacity_bytes else capacity


def _first_mismatch(left: memoryview, right: memoryview) -> int:
    """The index of the first different byte; there is one."""
    low, high = 0, len(left)
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low

"""A disk as its guest sees it: a base image and the redo logs above it, read through.

The files of a chain are named by the caller, base first, as the inventory (never a file) says. A
file is opened only inside the directory that came with its image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from holdfast_common.errors import FormatError, ShortRead
from holdfast_common.extents import Extent
from holdfast_common.formats.grain_map import ABSENT, ZERO, Run
from holdfast_common.formats.image_file import ImageFile, open_directory
from holdfast_common.formats.vmdk_cowd import CowdExtent
from holdfast_common.formats.vmdk_descriptor import (
    EMBEDDED_TYPES,
    Descriptor,
    ExtentKind,
    ExtentLine,
    parse_descriptor,
)
from holdfast_common.formats.vmdk_flat import FlatExtent
from holdfast_common.formats.vmdk_limits import DESCRIPTOR_BYTES_MAX
from holdfast_common.formats.vmdk_sesparse import SeSparseExtent
from holdfast_common.formats.vmdk_sparse import SparseExtent
from holdfast_common.formats.vmdk_sparse_header import SPARSE_MAGIC
from holdfast_common.formats.zero_bytes import fill_zero
from holdfast_common.units import KIB

CHAIN_LENGTH_MAX: Final = 256  # vSphere stops at 32 snapshots; linked clones add some
_ALLOCATED_COUNT_MAX: Final = 65536  # some 10 MiB; more are joined over growing gaps
_FIRST_GAP_BYTES: Final = 64 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """A descriptor or monolithic VMDK: a bare name in an open directory."""

    directory_fd: int
    name: str


class _ExtentReader(Protocol):
    """What every kind of extent can do; offsets are the extent's own."""

    capacity_bytes: int

    def runs(self, offset: int, end: int) -> Iterator[Run]: ...

    def data_runs(self, offset: int, end: int) -> Iterator[Run]: ...

    def read_run(self, run: Run, buffer: memoryview) -> None: ...

    def close(self) -> None: ...


class _ZeroExtent:
    """An extent without a file."""

    def __init__(self, length: int) -> None:
        self.capacity_bytes = length

    def runs(self, offset: int, end: int) -> Iterator[Run]:
        yield Run(offset, end - offset, ZERO)

    data_runs = runs

    def read_run(self, run: Run, buffer: memoryview) -> None:
        fill_zero(buffer)

    def close(self) -> None:
        pass


class _Layer:
    """One image of the chain: its extents, one after the other."""

    def __init__(self, name: str, descriptor: Descriptor, extents: Sequence[_ExtentReader]) -> None:
        self.name = name
        self.descriptor = descriptor
        self.capacity_bytes = descriptor.capacity_bytes
        self._placed: list[tuple[int, _ExtentReader]] = []
        start = 0
        for extent, line in zip(extents, descriptor.extents, strict=True):
            if extent.capacity_bytes != line.length:
                raise FormatError(
                    "VMDK: descriptor and extent differ in size",
                    name=name,
                    descriptor_bytes=line.length,
                    extent_bytes=extent.capacity_bytes,
                )
            self._placed.append((start, extent))
            start += extent.capacity_bytes

    @property
    def extents(self) -> list[_ExtentReader]:
        """In their order."""
        return [extent for _, extent in self._placed]

    def pieces(
        self, offset: int, end: int, *, only_states: bool = False
    ) -> Iterator[tuple[int, Run, _ExtentReader]]:
        """(offset in the disk, run, the extent that can read it) for ``[offset, end)``."""
        for start, extent in self._placed:
            if start >= end or start + extent.capacity_bytes <= offset:
                continue
            runs = extent.data_runs if only_states else extent.runs
            first = max(offset - start, 0)
            last = min(end - start, extent.capacity_bytes)
            for run in runs(first, last):
                yield start + run.offset, run, extent


class VmdkChain:
    """A `BlockSource` over a chain. One thread at a time; close it, or use it with ``with``."""

    def __init__(self, layers: Sequence[_Layer], files: ExitStack) -> None:
        self._layers = layers
        self._files = files

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._layers[-1].capacity_bytes

    @property
    def reads_side_by_side(self) -> bool:
        """Whether several threads may read at once: of a flat disk, not through tables of grains."""
        return all(
            isinstance(extent, (FlatExtent, _ZeroExtent))
            for layer in self._layers
            for extent in layer.extents
        )

    @property
    def descriptor(self) -> Descriptor:
        """The newest image's descriptor."""
        return self._layers[-1].descriptor

    @property
    def base_descriptor(self) -> Descriptor:
        """The base image's descriptor."""
        return self._layers[0].descriptor

    def allocated(self) -> list[Extent]:
        """Merged ascending extents outside of which everything is zero.

        Of a disk in very many pieces neighbours are joined, so that the list stays bounded.
        Raises: FormatError, SourceFailed.
        """
        collector = _ExtentCollector()
        for offset, length in self._data_ranges(len(self._layers) - 1, 0, self.capacity_bytes):
            collector.add(offset, length)
        return collector.extents()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; holes read as zeros.

        Raises: ShortRead (past the disk's end), FormatError, SourceFailed.
        """
        if offset < 0 or offset + len(buffer) > self.capacity_bytes:
            raise ShortRead(
                "read past the end of the disk",
                offset=offset,
                wanted=len(buffer),
                capacity_bytes=self.capacity_bytes,
            )
        self._fill(len(self._layers) - 1, offset, buffer)

    def close(self) -> None:
        """Close all files; a second time does nothing."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _fill(self, level: int, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        for disk_offset, run, extent in self._layers[level].pieces(offset, end):
            inside = disk_offset - offset
            piece = buffer[inside : inside + run.length]
            if run.position >= 0:
                extent.read_run(run, piece)
            elif run.position == ABSENT and level > 0:
                self._fill(level - 1, disk_offset, piece)
            else:
                fill_zero(piece)

    def _data_ranges(self, level: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
        for disk_offset, run, _extent in self._layers[level].pieces(offset, end, only_states=True):
            if run.position >= 0:
                yield disk_offset, run.length
            elif run.position == ABSENT and level > 0:
                yield from self._data_ranges(level - 1, disk_offset, disk_offset + run.length)


class _ExtentCollector:
    """Joins ranges that touch; when there are too many, those with small gaps between them too."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._gap_bytes = 0

    def add(self, offset: int, length: int) -> None:
        if self._ends and offset - self._ends[-1] <= self._gap_bytes:
            self._ends[-1] = offset + length
            return
        self._starts.append(offset)
        self._ends.append(offset + length)
        while len(self._starts) > _ALLOCATED_COUNT_MAX:
            self._join()

    def extents(self) -> list[Extent]:
        return [
            Extent(offset=start, length=end - start)
            for start, end in zip(self._starts, self._ends, strict=True)
        ]

    def _join(self) -> None:
        self._gap_bytes = max(self._gap_bytes * 2, _FIRST_GAP_BYTES)
        starts, ends = self._starts, self._ends
        self._starts, self._ends = starts[:1], ends[:1]
        for start, end in zip(starts[1:], ends[1:], strict=True):
            if start - self._ends[-1] <= self._gap_bytes:
                self._ends[-1] = end
            else:
                self._starts.append(start)
                self._ends.append(end)


def open_chain(
    images: Sequence[ImageName],
    *,
    capacity_bytes: int | None = None,
    check_links: bool = True,
    direct: bool = False,
) -> VmdkChain:
    """Open a chain, base first. The directories stay the caller's and may be closed afterwards.

    Args:
        images: the base, then each redo log above it.
        capacity_bytes: what the inventory says; None: not known.
        check_links: whether each image's parent id must be the id of the image below it.
        direct: read past the page cache.

    Raises: FormatError, SourceFailed.
    """
    if not 0 < len(images) <= CHAIN_LENGTH_MAX:
        raise FormatError("a chain has 1 to 256 images", count=len(images))
    with ExitStack() as files:
        layers = [_open_layer(image, files, direct=direct) for image in images]
        _check_chain(layers, check_links=check_links)
        chain = VmdkChain(layers, files.pop_all())
    if capacity_bytes is not None and chain.capacity_bytes != capacity_bytes:
        found = chain.capacity_bytes
        chain.close()
        raise FormatError(
            "disk has another size than the inventory says",
            name=images[-1].name,
            capacity_bytes=found,
            wanted=capacity_bytes,
        )
    return chain


def open_chain_at(
    paths: Sequence[Path],
    *,
    capacity_bytes: int | None = None,
    check_links: bool = True,
    direct: bool = False,
) -> VmdkChain:
    """`open_chain` for paths that are trusted. Raises: FormatError, SourceFailed."""
    with ExitStack() as directories:
        images = []
        for path in paths:
            directory_fd = open_directory(path.parent)
            directories.callback(os.close, directory_fd)
            images.append(ImageName(directory_fd=directory_fd, name=path.name))
        return open_chain(
            images, capacity_bytes=capacity_bytes, check_links=check_links, direct=direct
        )


def read_descriptor(image: ImageName) -> Descriptor:
    """Only the descriptor of an image, separate or embedded. Raises: FormatError, SourceFailed."""
    with ExitStack() as files:
        file = ImageFile(image.directory_fd, image.name)
        files.callback(file.close)
        if _is_sparse(file):
            return _embedded(SparseExtent(file), image.name)
        return _separate(file)


def _open_layer(image: ImageName, files: ExitStack, *, direct: bool) -> _Layer:
    file = ImageFile(image.directory_fd, image.name, direct=direct)
    files.callback(file.close)
    if _is_sparse(file):
        sparse = SparseExtent(file)
        return _Layer(image.name, _embedded(sparse, image.name), [sparse])
    descriptor = _separate(file)
    extents = [_open_extent(line, image, files, direct=direct) for line in descriptor.extents]
    return _Layer(image.name, descriptor, extents)


def _is_sparse(file: ImageFile) -> bool:
    magic_length = len(SPARSE_MAGIC)
    return file.length >= magic_length and file.read(0, magic_length) == SPARSE_MAGIC


def _embedded(sparse: SparseExtent, name: str) -> Descriptor:
    descriptor = sparse.embedded_descriptor()
    if descriptor is None:
        raise FormatError("sparse VMDK is an extent without a descriptor", name=name)
    if descriptor.create_type not in EMBEDDED_TYPES:
        raise FormatError(
            "embedded descriptor is of another kind",
            name=name,
            create_type=descriptor.create_type.value,
        )
    return descriptor


def _separate(file: ImageFile) -> Descriptor:
    if file.length > DESCRIPTOR_BYTES_MAX:
        raise FormatError(
            "no VMDK: neither a sparse header nor a descriptor of at most 1 MiB",
            name=file.name,
            file_length=file.length,
        )
    descriptor = parse_descriptor(bytes(file.read(0, file.length)))
    if descriptor.create_type in EMBEDDED_TYPES:
        raise FormatError("descriptor of a monolithic VMDK stands alone", name=file.name)
    return descriptor


_SPARSE_KINDS: Final[Mapping[ExtentKind, Callable[[ImageFile], _ExtentReader]]] = {
    ExtentKind.SPARSE: SparseExtent,
    ExtentKind.VMFS_SPARSE: CowdExtent,
    ExtentKind.SE_SPARSE: SeSparseExtent,
}


def _open_extent(
    line: ExtentLine, image: ImageName, files: ExitStack, *, direct: bool
) -> _ExtentReader:
    if line.kind is ExtentKind.ZERO:
        return _ZeroExtent(line.length)
    file = ImageFile(image.directory_fd, line.file_name, direct=direct)
    files.callback(file.close)
    if line.kind in _SPARSE_KINDS:
        return _SPARSE_KINDS[line.kind](file)
    return FlatExtent(file, length=line.length, file_offset=line.file_offset)


def _check_chain(layers: Sequence[_Layer], *, check_links: bool) -> None:
    base = layers[0]
    if base.descriptor.parent_content_id is not None:
        raise FormatError("the first image of the chain has a parent itself", name=base.name)
    for parent, child in pairwise(layers):
        said = child.descriptor.parent_content_id
        if said is None:
            raise FormatError("an image above the base has no parent", name=child.name)
        if check_links and said != parent.descriptor.content_id:
            raise FormatError(
                "an image belongs to another state of its parent",
                name=child.name,
                parent=parent.name,
                said=f"{said:08x}",
                found=f"{parent.descriptor.content_id:08x}",
            )
        if child.capacity_bytes != parent.capacity_bytes:
            raise FormatError(
                "images of one chain differ in size",
                name=child.name,
                capacity_bytes=child.capacity_bytes,
                parent_bytes=parent.capacity_bytes,
            )
        if any(
            extent.kind in {ExtentKind.FLAT, ExtentKind.VMFS} for extent in child.descriptor.extents
        ):
            raise FormatError("a flat image cannot lie above another", name=child.name)

"""The bytes of one disk on their way into a point. After `transport_table`, before the repository's writer.

A disk that can be read anywhere is read by the writer's workers, straight into the buffers that they work
on; one that only comes in order is read ahead by a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_agent.pipelines.progress import Progress
from holdfast_agent.transport_table import OpenedDisk, RandomDisk
from holdfast_common.blocks.read_ahead import Block
from holdfast_common.extents import Extent
from holdfast_common.repository.disk_writer import DiskWriter
from holdfast_common.units import MIB

_READ_STEP_BYTES: Final = 16 * MIB  # how much is asked for between two looks at the job


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedParts:
    """What is to be copied. ``only_changes``: outside of the areas all stays; otherwise it is zero there.

    ``tell_zeros``: whether there is a previous point; without one, zero is what a new disk is.
    """

    areas: Sequence[Extent]
    capacity_bytes: int
    only_changes: bool
    tell_zeros: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Bytes that were read of the source, and bytes that it says, or shows in order, to be zero."""

    read_bytes: int
    zero_bytes: int


def copy_disk(
    source: OpenedDisk,
    target: DiskWriter,
    wanted: WantedParts,
    *,
    progress: Progress,
    check: Callable[[], None],
    pace: Callable[[int], int],
) -> Copied:
    """All wanted parts into the repository; when it returns, the source is read no more.

    ``pace``: how many of so many bytes may be read now, whole MiB unless all; it waits, and checks meanwhile.
    Raises: what the source, the writer, ``check`` and ``pace`` raise.
    """
    if not isinstance(source, RandomDisk):
        return _copied_in_order(source, target, wanted, progress=progress, check=check, pace=pace)
    try:
        copied = _copied_by_workers(source, target, wanted, progress=progress, pace=pace)
    finally:
        target.wait()  # only then may the source be closed
    return copied


def _copied_by_workers(
    source: RandomDisk,
    target: DiskWriter,
    wanted: WantedParts,
    *,
    progress: Progress,
    pace: Callable[[int], int],
) -> Copied:
    read_bytes = zero_bytes = end = 0
    for part, is_allocated in source.parts(wanted.areas):
        if not wanted.only_changes and part.offset > end:
            zero_bytes += _zero(target, end, part.offset, wanted, progress)
        end = part.end
        if not is_allocated:
            zero_bytes += _zero(target, part.offset, end, wanted, progress)
            continue
        offset = part.offset
        while offset < end:
            length = pace(min(_READ_STEP_BYTES, end - offset))
            target.read(offset, length, source.read_into)
            offset += length
            read_bytes += length
            progress.add(length)
    if not wanted.only_changes and end < wanted.capacity_bytes:
        zero_bytes += _zero(target, end, wanted.capacity_bytes, wanted, progress)
    target.settle()
    return Copied(read_bytes=read_bytes, zero_bytes=zero_bytes)


def _zero(
    target: DiskWriter, offset: int, end: int, wanted: WantedParts, progress: Progress
) -> int:
    if wanted.tell_zeros:
        target.zero(offset, end - offset)
    progress.add(end - offset)
    return end - offset


def _copied_in_order(
    source: OpenedDisk,
    target: DiskWriter,
    wanted: WantedParts,
    *,
    progress: Progress,
    check: Callable[[], None],
    pace: Callable[[int], int],
) -> Copied:
    zero_bytes = 0
    with source.stream(wanted.areas, check=check) as stream:
        blocks = iter(stream)
        if not wanted.only_changes:
            blocks = _with_gaps(blocks, wanted.capacity_bytes)
        for block in blocks:
            if block.data is None:
                zero_bytes += _zero(target, block.offset, block.end, wanted, progress)
            else:
                pace(block.length)  # it is in memory already: what is slowed is the next one
                target.write(block.offset, block.data)
                progress.add(block.length)
    return Copied(read_bytes=stream.read_bytes, zero_bytes=zero_bytes)


def _with_gaps(blocks: Iterable[Block], capacity_bytes: int) -> Iterator[Block]:
    """The blocks, and between them zeros up to the disk's end."""
    end = 0
    for block in blocks:
        if block.offset > end:
            yield Block(end, block.offset - end, None)
        yield block
        end = block.end
    if end < capacity_bytes:
        yield Block(end, capacity_bytes - end, None)

"""Change tracking is a hint, not the truth: some of what it calls unchanged is read again and compared.

Before `disk_copy`, for a disk of which only the changes are read. The disk is cut into units of 4 MiB; each
belongs to one of as many turns as there are shares, in an order that is another one in each cycle. So one
audit is a random sample, and as many audits in a row as there are shares have read everything.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

import numpy as np
import numpy.typing as npt

from holdfast_agent.pipelines.repository_access import WORKERS
from holdfast_agent.transport_table import RandomDisk
from holdfast_common.blocks.wanted import told_apart
from holdfast_common.direct_writes import page_aligned
from holdfast_common.extents import Extent, merged, split, total_length
from holdfast_common.job_spec import TrackingAudit
from holdfast_common.repository.previous_digests import BlockDigests, PreviousBlocks
from holdfast_common.units import GIB, MIB

TRACKING_LIED: Final = "tracking_lied"  # the warning's code
AUDIT_UNIT_BYTES: Final = 4 * MIB  # few seeks, and yet a sample of a small disk is one
_READ_BYTES: Final = MIB
_HOLE_BYTES: Final = GIB
_UNITS_AT_ONCE: Final = 1 << 20
_ALL: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What an audit found. It ends at the first MiB that differs; ``differing`` are blocks of that one."""

    compared_bytes: int = 0
    unknown_bytes: int = 0  # of which the repository cannot say any more what they were
    differing: tuple[Extent, ...] = ()


def audit_tracking(
    source: RandomDisk,
    previous: PreviousBlocks,
    sample: Iterable[Extent],
    *,
    check: Callable[[int], None],
) -> Audited:
    """Read the sample and compare it with the previous point, until something differs.

    ``check`` is called before each read, with its length. Raises: what it raises; SourceFailed, ShortRead,
    IntegrityError and others. When it returns or raises, the source is read no more.
    """
    compared_bytes = unknown_bytes = 0
    differing: list[Extent] = []
    with closing(_read_ahead(source, previous, sample, check=check)) as pieces:
        for piece, digests in pieces:
            found = previous.compared(piece, digests())
            compared_bytes += piece.length - found.unknown_bytes
            unknown_bytes += found.unknown_bytes
            differing += found.differing
            if differing:
                break
    return Audited(
        compared_bytes=compared_bytes,
        unknown_bytes=unknown_bytes,
        differing=tuple(merged(differing)),
    )


def audit_sample(
    audit: TrackingAudit, *, disk_uuid: str, capacity_bytes: int, changed: Iterable[Extent]
) -> Iterator[Extent]:
    """This turn's units of a disk, ascending, without what changed. ``changed``: ascending, whole blocks."""
    if audit.share_millionths:
        for extent, is_changed in told_apart(_units(audit, disk_uuid, capacity_bytes), changed):
            if not is_changed:
                yield extent


def lie_text(differing: Iterable[Extent]) -> str:
    """For people: what the audit found."""
    blocks = list(differing)
    return (
        f"change tracking had not told of changes at offset {blocks[0].offset}"
        f" ({total_length(blocks)} bytes there alone), so the disk was read whole and compared"
    )


_Piece = tuple[Extent, Callable[[], BlockDigests | None]]  # waits for its digests; None: a hole


def _read_ahead(
    source: RandomDisk,
    previous: PreviousBlocks,
    sample: Iterable[Extent],
    *,
    check: Callable[[int], None],
) -> Generator[_Piece]:
    """The sample's pieces in order, some of them ahead: reading and hashing take several threads."""
    buffers: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(WORKERS):
        buffers.put(page_aligned(_READ_BYTES))

    def digests(piece: Extent) -> BlockDigests:
        buffer = buffers.get()
        try:
            data = buffer[: piece.length]
            source.read_into(piece.offset, data)
            return previous.digests_of(data)
        finally:
            buffers.put(buffer)

    ahead: deque[_Piece] = deque()
    readers = ThreadPoolExecutor(WORKERS, thread_name_prefix="tracking-audit")
    try:
        for unit in sample:
            for part, is_allocated in source.parts([unit]):
                for piece in split([part], unit=_READ_BYTES if is_allocated else _HOLE_BYTES):
                    check(piece.length)
                    reading = readers.submit(digests, piece).result if is_allocated else _no_digests
                    ahead.append((piece, reading))
                    if len(ahead) > 2 * WORKERS:
                        yield ahead.popleft()
        yield from ahead
    finally:
        readers.shutdown(cancel_futures=True)


def _no_digests() -> None:
    return None


def _units(audit: TrackingAudit, disk_uuid: str, capacity_bytes: int) -> Iterator[Extent]:
    turns = -(-_ALL // min(audit.share_millionths, _ALL))
    if turns == 1:
        yield Extent(offset=0, length=capacity_bytes)
        return
    cycle, turn = divmod(audit.turn, turns)
    seed = hashlib.sha256(f"{disk_uuid} {cycle}".encode()).digest()[:8]
    count = -(-capacity_bytes // AUDIT_UNIT_BYTES)
    for first in range(0, count, _UNITS_AT_ONCE):
        numbers = np.arange(first, min(first + _UNITS_AT_ONCE, count), dtype=np.uint64)
        chosen = np.flatnonzero(_mixed(numbers, int.from_bytes(seed, "little")) % turns == turn)
        for number in chosen.tolist():
            offset = (first + number) * AUDIT_UNIT_BYTES
            yield Extent(offset=offset, length=min(AUDIT_UNIT_BYTES, capacity_bytes - offset))


def _mixed(numbers: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): a sample has to be even, not secret."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))

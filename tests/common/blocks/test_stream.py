from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.blocks.read_ahead import READ_AHEAD_WINDOWS, WINDOW_BYTES, Block
from holdfast_common.blocks.stream import (
    UNIT_BYTES,
    BlockStream,
    random_stream,
    sequential_stream,
    whole,
)
from holdfast_common.errors import Cancelled, FormatError, SourceFailed
from holdfast_common.extents import Extent, merged
from holdfast_common.units import MIB, TIB
from support.memory_disks import MemorySequentialSource, MemorySource

CAPACITY = 3 * WINDOW_BYTES + 5 * UNIT_BYTES + 512


def disk_with(used: list[Extent], capacity: int = CAPACITY) -> bytes:
    content = bytearray(capacity)
    for number, extent in enumerate(used):
        fill = bytes([number % 255 + 1]) * extent.length
        content[extent.offset : extent.end] = fill[: max(capacity - extent.offset, 0)]
    return bytes(content[:capacity])


def goes_on() -> None:
    """A job that nobody stops."""


def collected(stream: BlockStream) -> list[Block]:
    with stream:
        return [
            Block(b.offset, b.length, None if b.data is None else memoryview(bytes(b.data)))
            for b in stream
        ]


def rebuilt(blocks: list[Block], capacity: int = CAPACITY) -> bytes:
    content = bytearray(capacity)
    for block in blocks:
        if block.data is not None:
            assert len(block.data) == block.length
            content[block.offset : block.end] = block.data
    return bytes(content)


def covered(blocks: list[Block]) -> list[Extent]:
    return merged(Extent(offset=b.offset, length=b.length) for b in blocks)


ranges = st.lists(
    st.builds(
        Extent,
        offset=st.integers(0, CAPACITY + UNIT_BYTES),
        length=st.integers(1, WINDOW_BYTES + UNIT_BYTES),
    ),
    max_size=6,
)


def check_blocks(blocks: list[Block], wanted: list[Extent], content: bytes) -> None:
    for before, after in pairwise(blocks):
        assert before.end <= after.offset
    parts = covered(blocks)
    for block in blocks:
        assert block.offset % UNIT_BYTES == 0
        assert block.end % UNIT_BYTES == 0 or block.end == len(content)
        if block.data is None:
            assert not any(content[block.offset : block.end])
            continue
        assert block.offset // WINDOW_BYTES == (block.end - 1) // WINDOW_BYTES
        assert bytes(block.data) == content[block.offset : block.end]
        for start in range(0, block.length, UNIT_BYTES):
            assert any(block.data[start : start + UNIT_BYTES]), "zeros were sent as data"
    for extent in wanted:
        end = min(extent.end, len(content))
        if end > extent.offset:
            assert any(p.offset <= extent.offset and end <= p.end for p in parts)


@given(used=ranges, wanted=ranges, know=st.booleans())
def test_blocks_of_a_random_source_are_the_wanted_bytes_in_order(
    used: list[Extent], wanted: list[Extent], know: bool
) -> None:
    content = disk_with(used)
    source = MemorySource(content, allocated=merged(used) if know else None)
    parts = sorted(wanted)
    blocks = collected(random_stream(source, parts, check=goes_on))
    check_blocks(blocks, parts, content)


@given(used=ranges, wanted=ranges, step=st.sampled_from([512, 4096, UNIT_BYTES, 3 * 512 * 401]))
def test_blocks_of_a_sequential_source_are_the_wanted_bytes_in_order(
    used: list[Extent], wanted: list[Extent], step: int
) -> None:
    used = [extent for extent in used if extent.end <= CAPACITY][:2]
    content = disk_with(used)
    pieces = [
        Extent(offset=offset, length=min(step, extent.end - offset))
        for extent in merged(used)
        for offset in range(extent.offset, extent.end, step)
    ]
    source = MemorySequentialSource(content, pieces)
    parts = sorted(wanted)
    blocks = collected(sequential_stream(source, parts, check=goes_on))
    check_blocks(blocks, parts, content)


def test_a_whole_stream_covers_the_whole_disk_and_counts_what_was_read() -> None:
    content = disk_with([Extent(offset=WINDOW_BYTES, length=10)])
    stream = random_stream(MemorySource(content), whole(CAPACITY), check=goes_on)
    blocks = collected(stream)
    assert rebuilt(blocks) == content
    assert covered(blocks) == whole(CAPACITY)
    assert stream.read_bytes == CAPACITY


def test_what_the_source_knows_to_be_zero_is_not_read() -> None:
    used = [Extent(offset=2 * WINDOW_BYTES + 100, length=10)]
    source = MemorySource(disk_with(used), allocated=used)
    stream = random_stream(source, whole(CAPACITY), check=goes_on)
    assert covered(collected(stream)) == whole(CAPACITY)
    assert source.reads == [Extent(offset=2 * WINDOW_BYTES, length=UNIT_BYTES)]
    assert stream.read_bytes == UNIT_BYTES


def test_a_sparse_disk_of_a_tebibyte_is_said_in_few_blocks() -> None:
    class Huge(MemorySource):
        capacity_bytes = TIB

        def read_into(self, offset: int, buffer: memoryview) -> None:
            buffer[:] = b"x" * len(buffer)

    last = Extent(offset=TIB - UNIT_BYTES, length=UNIT_BYTES)
    blocks = collected(random_stream(Huge(b"", allocated=[last]), whole(TIB), check=goes_on))
    assert [(b.offset, b.length, b.data is None) for b in blocks] == [
        (0, TIB - UNIT_BYTES, True),
        (TIB - UNIT_BYTES, UNIT_BYTES, False),
    ]


@pytest.mark.parametrize("at", range(4))
def test_an_error_of_the_source_comes_after_the_blocks_read_before_it(at: int) -> None:
    error = SourceFailed("disk broke")
    content = b"x" * CAPACITY
    source = MemorySource(content, error=error, error_at_read=at)
    seen: list[int] = []
    with (
        random_stream(source, whole(CAPACITY), check=goes_on) as stream,
        pytest.raises(SourceFailed, match="disk broke"),
    ):
        seen.extend(block.offset for block in stream)
    assert seen == [number * WINDOW_BYTES for number in range(at)]


def test_an_error_in_a_sequential_stream_reaches_the_consumer() -> None:
    pieces = [Extent(offset=n * UNIT_BYTES, length=UNIT_BYTES) for n in range(40)]
    source = MemorySequentialSource(
        b"x" * CAPACITY, pieces, error=SourceFailed("cut"), error_at_piece=39
    )
    with (
        sequential_stream(source, whole(CAPACITY), check=goes_on) as stream,
        pytest.raises(SourceFailed, match="cut"),
    ):
        list(stream)


@pytest.mark.parametrize(
    "pieces",
    [
        [Extent(offset=UNIT_BYTES, length=10), Extent(offset=0, length=10)],
        [Extent(offset=0, length=10), Extent(offset=5, length=10)],
        [Extent(offset=CAPACITY, length=10)],
    ],
)
def test_a_stream_that_goes_back_or_leaves_the_disk_is_refused(pieces: list[Extent]) -> None:
    class Wrong(MemorySequentialSource):
        def blocks(self) -> Iterator[tuple[int, memoryview]]:
            for piece in self.pieces:
                yield piece.offset, memoryview(bytes(piece.length))

    with (
        sequential_stream(Wrong(bytes(CAPACITY), pieces), whole(CAPACITY), check=goes_on) as stream,
        pytest.raises(FormatError),
    ):
        list(stream)


def test_areas_that_are_not_ascending_are_refused() -> None:
    wanted = [Extent(offset=WINDOW_BYTES, length=10), Extent(offset=0, length=10)]
    with (
        random_stream(MemorySource(bytes(CAPACITY)), wanted, check=goes_on) as stream,
        pytest.raises(FormatError, match="ascending"),
    ):
        list(stream)


def test_reading_ahead_is_bounded() -> None:
    capacity = 40 * WINDOW_BYTES
    source = MemorySource(b"x" * capacity)
    with random_stream(source, whole(capacity), check=goes_on) as stream:
        for count, _block in enumerate(stream, start=1):
            assert len(source.reads) <= count + READ_AHEAD_WINDOWS


class EndlessZeros:
    """A stream of a disk of a tebibyte without any data."""

    capacity_bytes = TIB

    def blocks(self) -> Iterator[tuple[int, memoryview]]:
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


def test_a_hole_with_very_many_wanted_parts_takes_no_memory() -> None:
    parts = 200_000
    wanted = (Extent(offset=2 * at * UNIT_BYTES, length=UNIT_BYTES) for at in range(parts))
    source = EndlessZeros()
    tracemalloc.start()
    try:
        with sequential_stream(source, wanted, check=goes_on) as stream:
            assert sum(block.length for block in stream) == parts * UNIT_BYTES
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB  # all blocks at once would be some 30 MiB


def test_a_stop_is_heard_before_the_next_block() -> None:
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise Cancelled("job was cancelled")

    capacity = 20 * WINDOW_BYTES
    with random_stream(MemorySource(b"x" * capacity), whole(capacity), check=check) as stream:
        blocks = iter(stream)
        for _ in range(3):
            next(blocks)
        stopped.set()
        with pytest.raises(Cancelled):
            next(blocks)


def test_a_stop_is_heard_while_the_source_hangs() -> None:
    hanging, released = threading.Event(), threading.Event()

    class Hanging(MemorySource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            hanging.set()
            released.wait(20)

    def check() -> None:
        if hanging.is_set():
            released.set()
            raise Cancelled("job was cancelled")

    with (
        pytest.raises(Cancelled),
        random_stream(Hanging(bytes(CAPACITY)), whole(CAPACITY), check=check) as stream,
    ):
        list(stream)


def test_the_thread_ends_when_the_consumer_leaves_early() -> None:
    capacity = 40 * WINDOW_BYTES
    with random_stream(MemorySource(b"x" * capacity), whole(capacity), check=goes_on) as stream:
        next(iter(stream))
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]

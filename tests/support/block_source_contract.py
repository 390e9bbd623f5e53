"""What every source and every sink of blocks must do, whatever carries the bytes.

A transport's test makes a subclass, which says how a disk of given content comes into being.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from holdfast_common.blocks.sink import BlockSink, NewDisk, UnorderedSink, UnorderedWrites
from holdfast_common.blocks.source import BlockSource, SequentialSource
from holdfast_common.direct_writes import page_aligned
from holdfast_common.errors import ShortRead, SourceFailed, TargetFailed
from holdfast_common.extents import merged
from holdfast_common.units import KIB, MIB, SECTOR_BYTES

CAPACITY = 5 * MIB + 3 * SECTOR_BYTES
DISK_UUID = "6000c29a-1b2c-3d4e-5f60-718293a4b5c6"


def sample_content(seed: int = 1) -> bytes:
    """Data at the start and the end, over window edges, in single sectors; zeros between."""
    chance = random.Random(seed)
    content = bytearray(CAPACITY)
    for offset, length in (
        (0, 70 * KIB),
        (MIB - SECTOR_BYTES, 2 * SECTOR_BYTES),
        (2 * MIB + 64 * KIB, 64 * KIB),
        (3 * MIB + 5 * SECTOR_BYTES, SECTOR_BYTES),
        (CAPACITY - SECTOR_BYTES, SECTOR_BYTES),
    ):
        content[offset : offset + length] = chance.randbytes(length)
    return bytes(content)


class BlockSourceContract:
    """For sources that can be read anywhere."""

    @contextmanager
    def source_of(self, content: bytes, tmp_path: Path) -> Iterator[BlockSource]:
        """A source of a disk with this content; the contract closes it."""
        raise NotImplementedError
        yield

    @pytest.fixture
    def content(self) -> bytes:
        return sample_content()

    @pytest.fixture
    def source(self, content: bytes, tmp_path: Path) -> Iterator[BlockSource]:
        with self.source_of(content, tmp_path) as source, closing(source):
            yield source

    def test_the_capacity_is_the_disks_size(self, source: BlockSource) -> None:
        assert source.capacity_bytes == CAPACITY

    def test_the_whole_disk_reads_as_it_was_written(
        self, source: BlockSource, content: bytes
    ) -> None:
        buffer = memoryview(bytearray(b"\xff") * CAPACITY)
        source.read_into(0, buffer)
        assert bytes(buffer) == content

    def test_any_range_reads_whole(self, source: BlockSource, content: bytes) -> None:
        chance = random.Random(2)
        for _ in range(60):
            offset = chance.randrange(CAPACITY)
            length = chance.randint(1, min(CAPACITY - offset, 300 * KIB))
            buffer = memoryview(bytearray(b"\xff") * length)
            source.read_into(offset, buffer)
            assert bytes(buffer) == content[offset : offset + length]

    @pytest.mark.parametrize(
        ("offset", "length"), [(CAPACITY - 511, 512), (CAPACITY, 1), (CAPACITY + MIB, 1)]
    )
    def test_a_read_past_the_end_raises(
        self, source: BlockSource, offset: int, length: int
    ) -> None:
        with pytest.raises(ShortRead):
            source.read_into(offset, memoryview(bytearray(length)))

    def test_everything_outside_of_what_is_allocated_is_zero(
        self, source: BlockSource, content: bytes
    ) -> None:
        allocated = source.allocated()
        if allocated is None:
            return
        rest = bytearray(content)
        for extent in allocated:
            rest[extent.offset : extent.end] = bytes(min(extent.end, CAPACITY) - extent.offset)
        assert not any(rest)
        assert list(allocated) == merged(allocated)

    def test_closing_twice_is_harmless(self, source: BlockSource) -> None:
        source.close()
        source.close()


class SequentialSourceContract:
    """For sources that only come whole."""

    @contextmanager
    def source_of(self, content: bytes, tmp_path: Path) -> Iterator[SequentialSource]:
        """A source of a disk with this content; the contract closes it."""
        raise NotImplementedError
        yield

    @contextmanager
    def cut_source_of(self, content: bytes, tmp_path: Path) -> Iterator[SequentialSource]:
        """Like `source_of`, but what carries the bytes ends before the last of them."""
        raise NotImplementedError
        yield

    def test_the_capacity_is_the_disks_size(self, tmp_path: Path) -> None:
        with self.source_of(sample_content(), tmp_path) as source, closing(source):
            assert source.capacity_bytes == CAPACITY

    def test_the_blocks_ascend_and_make_up_the_disk(self, tmp_path: Path) -> None:
        content = sample_content()
        found = bytearray(CAPACITY)
        end = 0
        with self.source_of(content, tmp_path) as source, closing(source):
            for offset, data in source.blocks():
                assert offset >= end
                end = offset + len(data)
                found[offset:end] = data
        assert len(found) == CAPACITY
        assert bytes(found) == content

    def test_an_empty_disk_has_no_blocks_with_data(self, tmp_path: Path) -> None:
        with self.source_of(bytes(CAPACITY), tmp_path) as source, closing(source):
            assert not any(any(data) for _, data in source.blocks())

    def test_a_stream_that_ends_early_is_an_error_and_no_disk(self, tmp_path: Path) -> None:
        with (
            self.cut_source_of(sample_content(), tmp_path) as source,
            closing(source),
            pytest.raises((ShortRead, SourceFailed)),
        ):
            list(source.blocks())

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        with self.source_of(sample_content(), tmp_path) as source:
            source.close()
            source.close()


class BlockSinkContract:
    """For sinks."""

    def open_sink(self, disk: NewDisk, tmp_path: Path) -> BlockSink:
        """A sink of a new disk."""
        raise NotImplementedError

    def content_of(self, tmp_path: Path) -> bytes | None:
        """The content of the disk as somebody else sees it; None: there is no complete disk."""
        raise NotImplementedError

    @pytest.fixture
    def disk(self) -> NewDisk:
        return NewDisk(capacity_bytes=CAPACITY, adapter_type="lsilogic", disk_uuid=DISK_UUID)

    @pytest.fixture
    def sink(self, disk: NewDisk, tmp_path: Path) -> Iterator[BlockSink]:
        with closing(self.open_sink(disk, tmp_path)) as sink:
            yield sink

    def test_the_capacity_is_the_disks_size(self, sink: BlockSink) -> None:
        assert sink.capacity_bytes == CAPACITY

    def test_a_finished_disk_holds_what_was_written_and_zeros_elsewhere(
        self, sink: BlockSink, tmp_path: Path
    ) -> None:
        content = sample_content()
        write_used_sectors(sink, content)
        sink.finish()
        sink.close()
        assert self.content_of(tmp_path) == content

    def test_a_disk_to_which_nothing_was_written_is_empty_and_keeps_its_size(
        self, sink: BlockSink, tmp_path: Path
    ) -> None:
        sink.finish()
        sink.close()
        assert self.content_of(tmp_path) == bytes(CAPACITY)

    def test_a_write_that_goes_back_is_refused(self, sink: BlockSink) -> None:
        sink.write(MIB, memoryview(b"x" * SECTOR_BYTES))
        with pytest.raises(TargetFailed):
            sink.write(0, memoryview(b"x" * SECTOR_BYTES))

    def test_a_write_past_the_end_is_refused(self, sink: BlockSink) -> None:
        with pytest.raises(TargetFailed):
            sink.write(CAPACITY, memoryview(b"x" * SECTOR_BYTES))

    def test_a_write_of_half_a_sector_is_refused(self, sink: BlockSink) -> None:
        with pytest.raises(TargetFailed):
            sink.write(0, memoryview(b"x" * 100))

    def test_closing_twice_is_harmless(self, sink: BlockSink) -> None:
        sink.close()
        sink.close()


class UnorderedSinkContract(BlockSinkContract):
    """For sinks that may also be written otherwise than in order."""

    def test_what_is_written_in_any_order_by_several_threads_is_the_disk(
        self, sink: BlockSink, tmp_path: Path
    ) -> None:
        writes = unordered(sink)
        content = sample_content()  # it ends with what is no whole page
        parts = [*range(0, CAPACITY, 64 * KIB)]
        random.Random(1).shuffle(parts)

        def write(offset: int) -> None:
            piece = content[offset : offset + 64 * KIB]
            room = page_aligned(64 * KIB)[: len(piece)]
            room[:] = piece
            if any(piece):
                writes.reserve(offset, len(piece))
                writes.write(offset, room)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, parts))
        sink.finish()
        sink.close()
        assert self.content_of(tmp_path) == content

    def test_what_is_written_in_any_order_stays_within_the_disk_and_in_whole_sectors(
        self, sink: BlockSink
    ) -> None:
        writes = unordered(sink)
        for offset, length in ((CAPACITY, SECTOR_BYTES), (-SECTOR_BYTES, SECTOR_BYTES), (0, 100)):
            with pytest.raises(TargetFailed):
                writes.write(offset, memoryview(bytes(length)))


class NewDiskSinkContract(BlockSinkContract):
    """For sinks that make the disk themselves, so that it can be there or not."""

    def test_a_disk_that_was_not_finished_does_not_count_as_complete(
        self, sink: BlockSink, tmp_path: Path
    ) -> None:
        write_used_sectors(sink, sample_content())
        sink.close()
        assert self.content_of(tmp_path) is None


def unordered(sink: BlockSink) -> UnorderedWrites:
    assert isinstance(sink, UnorderedSink)
    writes = sink.unordered()
    assert writes is not None
    return writes


def write_used_sectors(sink: BlockSink, content: bytes) -> None:
    """Write what is not zero, as a restore does, in pieces of at most 64 KiB."""
    step = 64 * KIB
    for offset in range(0, len(content), step):
        piece = content[offset : offset + step]
        if any(piece):
            sink.write(offset, memoryview(piece))

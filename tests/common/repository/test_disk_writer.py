"""A disk's ranges by all three ways (written, read by the workers, said to be zero), and the ends of waiting."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_common.errors import Cancelled, SourceFailed, UsageError
from holdfast_common.repository.disk_writer import DiskWriter
from holdfast_common.repository.manifest import ManifestFacts, PointDisk
from holdfast_common.repository.points import Point
from holdfast_common.repository.window import WindowBuffer
from holdfast_common.units import MIB
from support.memory_store import MemoryStore
from support.repositories import BLOCK, Repository, disk_header, new_repository, patterned

CAPACITY = 3 * MIB + 5 * BLOCK + 1536
BLOCKS = -(-CAPACITY // BLOCK)
PATIENCE_SECONDS = 60.0
WAYS = ("left", "written", "read", "zero", "read zeros")


class ReadDisk:
    """A disk that workers read. ``hold``: reads wait until it is set."""

    def __init__(self, image: bytes | bytearray, *, hold: threading.Event | None = None) -> None:
        self.image = memoryview(image)
        self.hold = hold
        self.entered = threading.Event()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.entered.set()
        if self.hold is not None:
            assert self.hold.wait(PATIENCE_SECONDS)
        buffer[:] = self.image[offset : offset + len(buffer)]


def stored(
    repository: Repository,
    image: bytes | bytearray,
    ways: list[str],
    *,
    previous: PointDisk | None = None,
    compare: bool = False,
) -> Point:
    """A point whose blocks went in by the ways given, one after the other."""
    disk = ReadDisk(image)
    with repository.writer() as writer:
        target = writer.begin_disk(disk_header(len(image)), previous=previous, compare=compare)
        for block, way in enumerate(ways):
            start = block * BLOCK
            end = min(start + BLOCK, len(image))
            if way == "written":
                target.write(start, memoryview(image)[start:end])
            elif way in ("read", "read zeros"):
                target.read(start, end - start, disk.read_into)
            elif way == "zero":
                target.zero(start, end - start)
        target.finish()
        prepared = writer.prepare(ManifestFacts(order=repository.jobs))
        point_id = writer.publish(prepared, repository.grant(prepared))
    with repository.reader() as reader:
        return reader.load_point(point_id)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ways=st.lists(st.sampled_from(WAYS), min_size=BLOCKS, max_size=BLOCKS),
    workers=st.sampled_from([0, 3]),
    with_previous=st.booleans(),
    compare=st.booleans(),
)
def test_blocks_come_back_by_whatever_way_they_went_in(
    ways: list[str], workers: int, with_previous: bool, compare: bool
) -> None:
    repository = new_repository(MemoryStore(), workers=workers)
    before = patterned(CAPACITY, "before") if with_previous else bytearray(CAPACITY)
    previous = None
    if with_previous:
        previous = repository.backup(before).disks[0]
    image = bytearray(before)
    for block, way in enumerate(ways):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, CAPACITY))
        length = part.stop - part.start
        if way in ("zero", "read zeros"):
            image[part] = bytes(length)
        elif way != "left" and block % 3:  # every third block is given as it was
            image[part] = patterned(length, f"after {block}")
    point = stored(
        repository, image, ways, previous=previous, compare=compare and previous is not None
    )
    assert repository.restored(point) == image


def test_a_block_of_which_only_the_last_byte_is_not_zero_is_not_taken_for_zero() -> None:
    buffer = WindowBuffer()
    assert buffer.nonzero(0xFFFF) == 0
    for block in range(16):
        buffer.blocks[block][-1] = 1
        assert buffer.nonzero(0xFFFF) == 1 << block
        assert buffer.nonzero(0xFFFF & ~(1 << block)) == 0
        buffer.blocks[block][-1] = 0


def test_what_an_earlier_window_left_in_a_buffer_is_never_stored_with_the_disks_short_end() -> None:
    repository = new_repository(MemoryStore(), workers=3)
    image = bytearray(b"\xff" * CAPACITY)
    image[BLOCKS * BLOCK - BLOCK :] = bytes(len(image) - (BLOCKS - 1) * BLOCK)
    point = stored(repository, image, ["read"] * BLOCKS)
    assert repository.restored(point) == image
    assert point.disks[0].summary.zero_bytes == len(image) % BLOCK


def test_after_settling_nothing_is_read_any_more() -> None:
    repository = new_repository(MemoryStore(), workers=3)
    disk = ReadDisk(patterned(8 * MIB, "image"))
    with repository.writer() as writer:
        target = writer.begin_disk(disk_header(8 * MIB))
        target.read(0, 8 * MIB, disk.read_into)
        target.settle()
        disk.image.release()  # a read from now on would raise
        target.finish()
        prepared = writer.prepare(ManifestFacts(order=1))
        writer.publish(prepared, repository.grant(prepared))


@pytest.mark.parametrize("workers", [0, 3])
def test_what_a_read_raises_ends_the_attempt(workers: int) -> None:
    repository = new_repository(MemoryStore(), workers=workers)

    def fails(offset: int, buffer: memoryview) -> None:
        raise SourceFailed("read error")

    with repository.writer() as writer:
        target = writer.begin_disk(disk_header(64 * MIB))
        with pytest.raises(SourceFailed):
            target.read(0, 64 * MIB, fails)
            target.settle()
        assert target.wait()
        with pytest.raises(SourceFailed):
            target.finish()


@pytest.mark.parametrize("workers", [0, 3])
def test_a_window_that_comes_after_the_failure_is_not_waited_for(workers: int) -> None:
    repository = new_repository(MemoryStore(), workers=workers)
    disk = ReadDisk(patterned(4 * MIB, "image"))
    with repository.writer() as writer:
        target = writer.begin_disk(disk_header(4 * MIB))
        target.read(0, MIB, disk.read_into)
        writer._pool.fail(SourceFailed("read error"))
        with pytest.raises(SourceFailed):
            target.read(MIB, MIB, disk.read_into)
        assert not disk.entered.is_set()
        assert target.wait()


def test_a_stopped_job_does_not_wait_for_a_read_that_hangs_but_its_source_does() -> None:
    repository = new_repository(MemoryStore(), workers=2)
    hold = threading.Event()
    disk = ReadDisk(patterned(64 * MIB, "image"), hold=hold)
    is_stopped = threading.Event()

    def check() -> None:
        if is_stopped.is_set():
            raise Cancelled("cancelled")

    with repository.writer() as writer:
        target = writer.begin_disk(disk_header(64 * MIB), check=check)

        def stop_when_entered() -> None:
            if disk.entered.wait(PATIENCE_SECONDS):
                is_stopped.set()

        stop = threading.Thread(target=stop_when_entered)
        stop.start()
        with pytest.raises(Cancelled):
            target.read(0, 64 * MIB, disk.read_into)
        stop.join()
        waited: list[bool] = []
        wait = threading.Thread(target=lambda: waited.append(target.wait()))
        wait.start()
        assert not waited
        hold.set()
        wait.join(PATIENCE_SECONDS)
        assert waited == [True]


def test_a_read_that_never_comes_back_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_common.repository.disk_writer.STOP_SECONDS_MAX", 0.0)
    monkeypatch.setattr("holdfast_common.repository.worker_pool.STOP_SECONDS_MAX", 0.0)
    repository = new_repository(MemoryStore(), workers=1)
    hold = threading.Event()
    disk = ReadDisk(patterned(MIB, "image"), hold=hold)
    try:
        with repository.writer() as writer:
            target: DiskWriter = writer.begin_disk(disk_header(2 * MIB))
            target.read(0, MIB, disk.read_into)
            target.zero(MIB, MIB)  # submits the window
            assert disk.entered.wait(PATIENCE_SECONDS)
            assert not target.wait()
    finally:
        hold.set()


def test_ranges_that_go_back_or_are_not_aligned_are_refused_by_every_way() -> None:
    repository = new_repository(MemoryStore())
    disk = ReadDisk(bytes(4 * MIB))
    with repository.writer() as writer:
        target = writer.begin_disk(disk_header(4 * MIB))
        target.read(MIB, BLOCK, disk.read_into)
        for offset, length in [(MIB, BLOCK), (0, BLOCK), (2 * MIB, 512), (2 * MIB + 512, BLOCK)]:
            with pytest.raises(UsageError):
                target.read(offset, length, disk.read_into)
            with pytest.raises(UsageError):
                target.zero(offset, length)
            with pytest.raises(UsageError):
                target.write(offset, bytes(length))
        with pytest.raises(UsageError):
            target.read(4 * MIB - BLOCK, 2 * BLOCK, disk.read_into)


def test_buffers_for_written_bytes_are_bounded_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    class Counted(WindowBuffer):
        def __init__(self) -> None:
            made.append(1)
            super().__init__()

    monkeypatch.setattr("holdfast_common.repository.worker_pool.WindowBuffer", Counted)
    workers = 3
    repository = new_repository(MemoryStore(), workers=workers)
    image = random.Random(1).randbytes(48 * MIB)
    point = repository.backup(image)
    assert repository.restored(point) == image
    assert len(made) <= 2 * workers + 1

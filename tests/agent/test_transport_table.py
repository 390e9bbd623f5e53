"""Which disks several of the writer's workers read at once, and which one after the other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from holdfast_agent.transport_table import RandomDisk
from support.memory_disks import MemorySource

READERS = 4
PATIENCE_SECONDS = 60.0


@dataclass
class Watched:
    """A disk of one byte that counts who reads at once; it waits for them all, if they may come."""

    reads_side_by_side: bool
    inside: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(READERS))
    capacity_bytes: int = 1

    def allocated(self) -> None:
        return None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        if self.reads_side_by_side:
            self.together.wait(PATIENCE_SECONDS)
        buffer[:] = b"x"
        with self.lock:
            self.inside -= 1

    def close(self) -> None:
        return None


@pytest.mark.parametrize(("side_by_side", "at_once"), [(True, READERS), (False, 1)])
def test_a_disk_is_read_by_several_threads_only_if_it_says_so(
    side_by_side: bool, at_once: int
) -> None:
    source = Watched(side_by_side)
    disk = RandomDisk(source)
    buffers = [bytearray(1) for _ in range(READERS * 25)]
    with ThreadPoolExecutor(READERS) as threads:
        list(threads.map(lambda buffer: disk.read_into(0, memoryview(buffer)), buffers))
    assert source.most == at_once
    assert all(buffer == b"x" for buffer in buffers)


def test_a_disk_that_says_nothing_of_threads_is_read_by_one_at_a_time() -> None:
    source = MemorySource(bytes(64))
    disk = RandomDisk(source)
    with ThreadPoolExecutor(READERS) as threads:
        list(
            threads.map(lambda offset: disk.read_into(offset, memoryview(bytearray(1))), range(64))
        )
    assert sorted(read.offset for read in source.reads) == list(range(64))

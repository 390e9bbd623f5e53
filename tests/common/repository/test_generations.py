"""Random histories of one disk: every point of every generation restores to what was backed up."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast_common.repository.check import check_data, check_structure
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import Point
from holdfast_common.repository.writer import PointWriter
from support.memory_store import MemoryStore
from support.repositories import BLOCK, Repository, disk_header, new_repository, patterned

CAPACITIES = st.sampled_from([512, BLOCK - 512, BLOCK, 3 * BLOCK + 1024, 20 * BLOCK, 300 * BLOCK])
runs = st.lists(st.tuples(st.integers(0, 299), st.integers(1, 20)), min_size=1, max_size=4)


class Generations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.repository: Repository = new_repository(self.store)
        self.points: list[tuple[Point, bytes]] = []
        self.image = bytearray()
        self.dirty: set[int] = set()
        self.writes = 0

    @initialize(capacity=CAPACITIES)
    def make_disk(self, capacity: int) -> None:
        self.image = bytearray(capacity)
        self.blocks = -(-capacity // BLOCK)

    @rule(places=runs, kind=st.sampled_from(["text", "noise", "zero", "same"]))
    def guest_writes(self, places: list[tuple[int, int]], kind: str) -> None:
        for first, count in places:
            for block in range(first % self.blocks, min(first % self.blocks + count, self.blocks)):
                start = block * BLOCK
                end = min(start + BLOCK, len(self.image))
                self.writes += 1
                self.dirty.add(block)
                if kind == "zero":
                    self.image[start:end] = bytes(end - start)
                elif kind == "noise":
                    self.image[start:end] = random.Random(self.writes).randbytes(end - start)
                elif kind == "text":
                    self.image[start:end] = patterned(end - start, str(self.writes % 7))

    @precondition(lambda self: len(self.points) < 6)
    @rule()
    def back_up_everything(self) -> None:
        self.keep(self.repository.backup(self.image))

    @precondition(lambda self: 0 < len(self.points) < 8)
    @rule(extra=st.lists(st.integers(0, 299), max_size=3), zeros_said=st.booleans())
    def back_up_changes(self, extra: list[int], zeros_said: bool) -> None:
        wanted = sorted(self.dirty | {block % self.blocks for block in extra})
        if not wanted:
            return
        with self.repository.writer() as writer:
            previous = self.points[-1][0].disks[0]
            disk = writer.begin_disk(previous.header, previous=previous)
            for block in wanted:
                start = block * BLOCK
                data = self.image[start : start + BLOCK]
                if zeros_said and not any(data):
                    disk.zero(start, len(data))
                else:
                    disk.write(start, data)
            disk.finish()
            self.publish(writer)

    @precondition(lambda self: 0 < len(self.points) < 8)
    @rule()
    def back_up_by_comparing(self) -> None:
        self.keep(
            self.repository.backup(self.image, previous=self.points[-1][0].disks[0], compare=True)
        )

    @rule()
    def an_attempt_is_abandoned(self) -> None:
        with self.repository.writer() as writer:
            disk = writer.begin_disk(
                self.points[-1][0].disks[0].header if self.points else disk_header(len(self.image))
            )
            disk.write(0, self.image[: len(self.image) // BLOCK * BLOCK] or self.image)

    @invariant()
    def the_newest_point_is_whole(self) -> None:
        if self.points:
            point, image = self.points[-1]
            assert self.repository.restored(point) == image

    def teardown(self) -> None:
        for point, image in self.points:
            assert self.repository.restored(point) == image
        assert check_structure(self.store, self.repository.keys).is_clean
        report = check_data(self.store, self.repository.keys, segment_keys=self.repository.keys)
        assert report.is_clean
        assert report.points == len(self.points)

    def keep(self, point: Point) -> None:
        self.points.append((point, bytes(self.image)))
        self.dirty.clear()

    def publish(self, writer: PointWriter) -> None:
        prepared = writer.prepare(ManifestFacts(order=self.repository.jobs))
        writer.publish(prepared, self.repository.grant(prepared))
        with self.repository.reader() as reader:
            self.keep(reader.load_point(prepared.point_id))


Generations.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, derandomize=True
)
TestGenerations = Generations.TestCase

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing

import pytest

from holdfast_common.blocks.wanted import ascending
from holdfast_common.errors import Cancelled
from holdfast_common.extents import Extent
from holdfast_common.repository import frame_reader
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.disk_pieces import PiecePlan
from holdfast_common.repository.reader import RepositoryReader
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.units import KIB, MIB
from support.memory_store import MemoryStore
from support.repositories import BLOCK, DEVICE_KEY, LINEAGE, Repository, new_repository, patterned

CAPACITY = 37 * MIB + 5 * 512  # three leaves, and an odd end
GENERATIONS = 6


def goes_on() -> None:
    """A job that nobody stops."""


class History:
    """A disk that changed in many places, some to zeros, and all points of it."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.repository: Repository = new_repository(self.store)
        chance = random.Random(4)
        image = patterned(CAPACITY, "first")
        image[18 * MIB : 34 * MIB] = bytes(16 * MIB)  # a leaf and more of zeros
        point = self.repository.backup(image)
        self.points = [(point, bytes(image))]
        for generation in range(GENERATIONS):
            ranges = []
            for block in sorted(chance.sample(range(CAPACITY // BLOCK), 40)):
                start, end = block * BLOCK, min((block + 1) * BLOCK, CAPACITY)
                data = patterned(end - start, f"{generation} {block}")
                image[start:end] = bytes(end - start) if block % 5 == 0 else data
                ranges.append((start, end - start))
            point = self.repository.backup(image, ranges=ranges, previous=point.disks[0])
            self.points.append((point, bytes(image)))

    def reader(self, workers: int) -> RepositoryReader:
        return RepositoryReader(
            self.store,
            self.repository.keys.reader_keys(LINEAGE),
            segment_keys=self.repository.keys,
            workers=workers,
        )


@pytest.fixture(scope="module")
def history() -> History:
    return History()


@pytest.mark.parametrize("workers", [0, 3])
def test_everything_comes_once_in_order_and_right_after_many_generations(
    history: History, workers: int
) -> None:
    with history.reader(workers) as reader:
        for point, image in history.points:
            found = bytearray(CAPACITY)
            worked: list[int] = []

            def work(plan: PiecePlan, buffer: memoryview, worked: list[int] = worked) -> None:
                assert len(buffer) >= plan.length
                worked.append(plan.offset)

            source = reader.open_disk(point, DEVICE_KEY)
            end = 0
            with closing(source.everything(check=goes_on, work=work)) as pieces:
                for plan, buffer in pieces:
                    for extent in plan.mapped:
                        assert extent.offset >= end
                        end = extent.end
                        data = plan.part(buffer, extent)
                        assert any(data[:BLOCK]), "zeros are not handed out"
                        found[extent.offset : extent.end] = data
            assert found == image
            assert len(set(worked)) == len(worked)


def test_what_the_pieces_will_hold_is_told_at_once_before_the_first_of_them(
    history: History,
) -> None:
    point, _ = history.points[-1]
    told: list[Extent] = []
    with history.reader(3) as reader:
        source = reader.open_disk(point, DEVICE_KEY)
        with closing(source.everything(check=goes_on, coming=told.extend)) as pieces:
            held = [
                extent for plan, _ in pieces for extent in plan.mapped if _covered(extent, told)
            ]
        assert list(ascending(held, unit=1, capacity_bytes=CAPACITY)) == told == source.allocated()


def _covered(extent: Extent, told: list[Extent]) -> bool:
    return any(each.offset <= extent.offset and extent.end <= each.end for each in told)


@pytest.mark.parametrize("workers", [0, 3])
def test_wanted_parts_come_as_they_are_with_zeros_told_apart(
    history: History, workers: int
) -> None:
    chance = random.Random(workers)
    point, image = history.points[-1]
    with history.reader(workers) as reader:
        for _ in range(6):
            places = sorted(chance.sample(range(CAPACITY // 512), 12))
            asked = [
                Extent(offset=512 * place, length=chance.choice([1, BLOCK, 2 * MIB]))
                for place in places
            ]
            parts = list(ascending(asked, unit=BLOCK, capacity_bytes=CAPACITY))
            covered = []
            source = reader.open_disk(point, DEVICE_KEY)
            with closing(source.blocks(parts, check=goes_on)) as blocks:
                for block in blocks:
                    right = image[block.offset : block.end]
                    assert (block.data is None) == (not any(right))
                    assert block.data is None or block.data == right
                    covered.append(Extent(offset=block.offset, length=block.length))
            assert list(ascending(covered, unit=1, capacity_bytes=CAPACITY)) == parts


def test_any_range_reads_right_whatever_was_read_before(history: History) -> None:
    chance = random.Random(2)
    with history.reader(3) as reader:
        for point, image in history.points[-2:]:
            source = reader.open_disk(point, DEVICE_KEY)
            for _ in range(60):
                length = chance.choice([1, 512, 5 * KIB, MIB, 3 * MIB])
                offset = chance.randrange(CAPACITY - length)
                offset -= chance.choice([0, offset % BLOCK, offset % MIB])
                buffer = bytearray(b"x" * length)
                source.read_into(offset, memoryview(buffer))
                assert buffer == image[offset : offset + length]


@pytest.mark.parametrize("at", range(4))
def test_a_job_that_must_stop_stops_and_no_thread_writes_after_it(
    history: History, at: int
) -> None:
    checks = running = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks > at:
            raise Cancelled("cancelled")

    def work(plan: PiecePlan, buffer: memoryview) -> None:
        nonlocal running
        running += 1
        assert not stopped, "a write after the end"
        running -= 1

    stopped = False
    with history.reader(3) as reader:
        source = reader.open_disk(history.points[0][0], DEVICE_KEY)
        with (
            pytest.raises(Cancelled),
            closing(source.everything(check=check, work=work)) as pieces,
        ):
            for _ in pieces:
                pass
        stopped = True
        assert running == 0


def test_keys_of_a_whole_disk_are_asked_for_at_once(history: History) -> None:
    asked: list[int] = []
    keys = history.repository.keys
    with history.reader(3) as reader:
        opener = keys.open_segment_keys

        class Counting:
            def open_segment_keys(self, requests):  # type: ignore[no-untyped-def]  # as the protocol
                asked.append(len(requests))
                return opener(requests)

        reader.frames._segment_keys = Counting()
        source = reader.open_disk(history.points[-1][0], DEVICE_KEY)
        with closing(source.everything(check=goes_on)) as pieces:
            assert sum(1 for _ in pieces) > 5
    assert len(asked) == 1
    assert asked[0] >= GENERATIONS


def test_where_chunks_lie_is_asked_of_the_index_for_many_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = new_repository(MemoryStore())
    repository.backup(patterned(5 * MIB, "five frames"))
    asked: list[int] = []
    find_many = RepositoryIndex.find_many

    def counted(index: RepositoryIndex, ids: Sequence[bytes]) -> dict[bytes, list[ChunkLocation]]:
        asked.append(len(ids))
        return find_many(index, ids)

    with repository.reader() as reader:
        places = [
            each
            for found in reader.index.by_pack(
                [pack.digest for pack in reader.index.packs()]
            ).values()
            for each in found
        ]
        wanted = [place.chunk_id for place in places]
        monkeypatch.setattr(RepositoryIndex, "find_many", counted)
        monkeypatch.setattr(frame_reader, "LOOKUP_BATCH", 3)
        located = reader.frames.locate([*wanted, bytes(32), wanted[0]])
    assert located == {place.chunk_id: place for place in places}
    assert asked[:2] == [3, 3], "five frames and one that nobody knows"
    assert sum(asked[2:]) <= 1, "only the unknown one is asked for again"

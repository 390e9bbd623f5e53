from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_agent.pipelines.tracking_audit import AUDIT_UNIT_BYTES, TRACKING_LIED, audit_sample
from holdfast_common.extents import Extent, merged, total_length
from holdfast_common.identity import PointId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import AreaSource, TrackingAudit
from holdfast_common.repository.layout import BLOCK_BYTES
from holdfast_common.repository.previous_digests import UNKNOWN, PreviousBlocks
from holdfast_common.units import GIB, MIB
from support.backup_jobs import LINEAGE, Site, make_site, point_of
from support.local_job_context import LocalJobContext
from support.memory_store import MemoryStore
from support.repositories import new_repository

KEY = 2000
SIZE = 9 * MIB + 512  # an odd end: the last unit is a short one
WHOLE = TrackingAudit(share_millionths=1_000_000)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = make_site(tmp_path)
    noise = random.Random(7).randbytes(3 * MIB)
    made.make_disk(KEY, noise + bytes(SIZE - len(noise) - 512) + b"e" * 512)
    return made


def incremental(
    site: Site, previous: PointId, told: list[Extent], audit: TrackingAudit = WHOLE
) -> tuple[JobResult, LocalJobContext]:
    """A backup of what change tracking tells, with an audit of the rest."""
    disk = site.disk_to_back_up(KEY, areas=AreaSource.CHANGED, areas_reason="changes")
    work = replace(site.backup_work([disk], previous=previous, level="incremental"), audit=audit)
    context = site.context(extents={KEY: told})
    return back_up_disks(site.spec(work), context), context


def restored(site: Site, result: JobResult, name: str = "restored") -> bytes:
    work = site.restore_work(point_of(result), {KEY: site.file_ticket(f"{name}.vmdk")})
    restore_disks(site.spec(work), site.context())
    return (site.root / "restores" / f"{name}-flat.vmdk").read_bytes()


def test_an_honest_change_list_passes_and_nothing_else_is_stored(site: Site) -> None:
    first = point_of(site.back_up())
    told = [site.write(KEY, MIB, b"n" * 700)]
    result, context = incremental(site, first, told)
    (disk,) = result.disks
    assert disk.differing == ()
    assert disk.compared_bytes == SIZE - BLOCK_BYTES  # all but what was read as changed
    assert disk.read_bytes == disk.changed_bytes == BLOCK_BYTES
    assert context.warnings == []
    assert restored(site, result) == site.content(KEY)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (2 * MIB + 512, b"x" * 512),  # other data
        (2 * MIB, bytes(BLOCK_BYTES)),  # became zero
        (6 * MIB, b"new"),  # was a hole
        (SIZE - 1, b"!"),  # in the short last block
    ],
)
def test_rule_38_a_change_that_tracking_did_not_tell_is_found_told_and_mended_at_once(
    site: Site, offset: int, data: bytes
) -> None:
    first = point_of(site.back_up())
    told = [site.write(KEY, 0, b"told")]
    hidden = site.write(KEY, offset, data)
    another = site.write(KEY, 4 * MIB, b"and another one")
    result, context = incremental(site, first, told)
    (disk,) = result.disks
    assert disk.differing
    assert disk.differing[0].offset // AUDIT_UNIT_BYTES == min(
        hidden.offset // AUDIT_UNIT_BYTES, another.offset // AUDIT_UNIT_BYTES
    )
    assert [code for code, _ in context.warnings] == [TRACKING_LIED]
    assert f"offset {disk.differing[0].offset}" in disk.level_reason
    assert restored(site, result) == site.content(KEY), "the whole disk was compared"
    assert disk.changed_bytes <= 4 * BLOCK_BYTES, "and only what differs is new"


def test_without_an_audit_nothing_more_is_read(site: Site) -> None:
    first = point_of(site.back_up())
    site.write(KEY, 2 * MIB, b"hidden")
    result, _ = incremental(site, first, [], TrackingAudit(share_millionths=0))
    assert (result.disks[0].compared_bytes, result.disks[0].differing) == (0, ())
    assert restored(site, result) != site.content(KEY), "that is what an audit is for"


def test_audits_in_a_row_find_every_lie(site: Site) -> None:
    point = point_of(site.back_up())
    site.write(KEY, 2 * MIB, b"hidden")
    found = []
    for turn in range(4):
        audit = TrackingAudit(share_millionths=250_000, turn=turn)
        result, _ = incremental(site, point, [], audit)
        found.append(bool(result.disks[0].differing))
        point = point_of(result)
    assert sum(found) == 1


def test_a_disk_that_is_read_whole_is_not_audited_besides(site: Site) -> None:
    first = point_of(site.back_up())
    disk = site.disk_to_back_up(KEY)
    work = replace(site.backup_work([disk], previous=first), audit=WHOLE)
    result = back_up_disks(site.spec(work), site.context())
    assert result.disks[0].compared_bytes == 0


def test_what_nobody_knows_any_more_is_no_lie() -> None:
    hasher = new_repository(MemoryStore()).keys.reader_keys(LINEAGE).hasher()
    same = b"s" * BLOCK_BYTES
    digests = (hasher.block_digest(same), UNKNOWN, None, hasher.block_digest(b"z"))
    blocks = PreviousBlocks(lambda _: digests + (None,) * 12, hasher)
    data = memoryview(same + b"?" * BLOCK_BYTES + bytes(2 * BLOCK_BYTES))
    found = blocks.compared(Extent(offset=0, length=4 * BLOCK_BYTES), blocks.digests_of(data))
    assert found.unknown_bytes == BLOCK_BYTES
    assert found.differing == (Extent(offset=3 * BLOCK_BYTES, length=BLOCK_BYTES),)
    zeros = blocks.compared(Extent(offset=0, length=4 * BLOCK_BYTES), None)
    assert [each.offset for each in zeros.differing] == [0, 3 * BLOCK_BYTES]


changes = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=8).map(
    lambda pairs: merged(
        Extent(offset=start * BLOCK_BYTES, length=count * BLOCK_BYTES) for start, count in pairs
    )
)


@settings(max_examples=60, deadline=None)
@given(
    share=st.integers(1, 400_000).map(lambda percent: max(percent, 20_000)),
    capacity_blocks=st.integers(1, 500),
    odd=st.sampled_from([0, 512]),
    cycle=st.integers(0, 5),
    changed=changes,
)
def test_as_many_turns_as_shares_read_all_that_did_not_change_once(
    share: int, capacity_blocks: int, odd: int, cycle: int, changed: list[Extent]
) -> None:
    capacity = capacity_blocks * BLOCK_BYTES + odd
    told = [each for each in changed if each.end <= capacity]
    turns = -(-1_000_000 // share)
    seen: list[Extent] = []
    for turn in range(turns):
        audit = TrackingAudit(share_millionths=share, turn=cycle * turns + turn)
        sample = list(audit_sample(audit, disk_uuid="u", capacity_bytes=capacity, changed=told))
        assert all(before.end <= after.offset for before, after in pairwise(sample))
        seen += sample
    assert total_length(seen) == capacity - total_length(told)
    assert merged([*seen, *told]) == [Extent(offset=0, length=capacity)]


def test_a_sample_is_as_large_as_its_share_and_another_one_in_each_cycle_and_of_each_disk() -> None:
    def units(uuid: str, turn: int) -> set[int]:
        audit = TrackingAudit(share_millionths=10_000, turn=turn)
        sample = audit_sample(audit, disk_uuid=uuid, capacity_bytes=400 * GIB, changed=[])
        return {each.offset for each in sample}

    first = units("a", 0)
    assert 0.9 * 1024 < len(first) < 1.1 * 1024  # of 102,400 units
    for other in (units("a", 100), units("b", 0)):
        assert len(first & other) < 60  # by chance: 10

"""The lists of what checks found: whole, in rows of bounded length, for the latest jobs only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.extents import Extent
from holdfast_common.identity import JobId
from holdfast_common.job_result import DamageFound, JobResult, Outcome
from holdfast_controller.store import damages
from holdfast_controller.store.damages import DamageTable
from holdfast_controller.store.database import Database

JOB = JobId("J1")


@pytest.fixture
def table(tmp_path: Path) -> Iterator[DamageTable]:
    database = Database(tmp_path / "controller.sqlite", [damages.MIGRATIONS])
    yield DamageTable(database)
    database.close()


def result(*found: DamageFound, objects: int = 0, losses: int = 0) -> JobResult:
    return JobResult(
        outcome=Outcome.FAILED, damages=found, objects_left_out=objects, losses_left_out=losses
    )


def disk(ranges: int, point: str = "p") -> DamageFound:
    lost = tuple(Extent(offset=n << 20, length=65536) for n in range(ranges))
    return DamageFound(
        object_name="points/a/p",
        problem="ranges of a disk are lost",
        point_id=point,
        device_key=2000,
        lost=lost,
        ranges_left_out=3,
        bytes_left_out=300,
    )


PACK = DamageFound(object_name="packs/1", problem="torn")


def test_a_list_comes_back_as_it_was_in_rows_of_bounded_length(table: DamageTable) -> None:
    many = disk(10_000)
    table.keep(JOB, result(PACK, many, disk(0, "q")))
    rows = table.rows(JOB, start=0, count=100)
    assert [len(row.lost) for row in rows] == [0, 4096, 4096, 1808, 0]
    assert rows[0] == PACK
    assert tuple(extent for row in rows[1:4] for extent in row.lost) == many.lost
    assert [row.ranges_left_out for row in rows] == [0, 0, 0, 3, 3], "only a disk's last row"
    assert rows[4] == disk(0, "q")
    assert table.rows(JOB, start=1, count=2) == rows[1:3]
    assert table.rows(JOB, start=5, count=2) == []


def test_totals_count_what_is_listed_and_what_is_not(table: DamageTable) -> None:
    table.keep(JOB, result(PACK, disk(10), disk(2, "q"), objects=7, losses=5))
    totals = table.totals(JOB)
    assert totals is not None
    assert (totals.objects, totals.points) == (8, 2)
    assert (totals.ranges, totals.ranges_left_out) == (12 + 6, 6)
    assert (totals.lost_bytes, totals.bytes_left_out) == (12 * 65536 + 600, 600)
    assert (totals.objects_left_out, totals.losses_left_out) == (7, 5)


def test_a_job_that_found_nothing_has_no_list_also_if_it_had_one_before(table: DamageTable) -> None:
    table.keep(JOB, result(PACK))
    table.keep(JOB, result())
    assert table.totals(JOB) is None
    assert table.rows(JOB, start=0, count=9) == []


def test_only_the_latest_lists_are_kept(
    table: DamageTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damages, "LISTS_KEPT_MAX", 2)
    for number in range(4):
        table.keep(JobId(f"J{number}"), result(PACK, disk(1)))
    kept = [n for n in range(4) if table.totals(JobId(f"J{n}")) is not None]
    assert kept == [2, 3]
    assert [len(table.rows(JobId(f"J{n}"), start=0, count=9)) for n in range(4)] == [0, 0, 2, 2]

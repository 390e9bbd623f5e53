from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import NotFound
from holdfast_common.identity import JobId, LineageId, PointId, RepositoryId
from holdfast_controller.store import catalogue
from holdfast_controller.store.catalogue import Catalogue, PointRow
from holdfast_controller.store.database import Database


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Catalogue]:
    database = Database(tmp_path / "controller.sqlite", [catalogue.MIGRATIONS])
    yield Catalogue(database)
    database.close()


def point(number: int, lineage: str = "L") -> PointRow:
    return PointRow(
        point_id=PointId(f"POINT{number:06}"),
        repository_id=RepositoryId("r"),
        lineage_id=LineageId(lineage),
        job_id=JobId(f"job{number}"),
        vcenter_id="v",
        instance_uuid="i",
        vm_name="web",
        created_at=f"2026-01-0{number}T00:00:00.000000Z",
        record='{"level": "full"}',
    )


def test_the_latest_point_of_a_lineage_is_found(table: Catalogue) -> None:
    assert table.latest(LineageId("L")) is None
    for number in (1, 3, 2):
        table.add(point(number))
    latest = table.latest(LineageId("L"))
    assert latest is not None and latest.point_id == "POINT000003"
    assert [row.point_id[-1] for row in table.points(vm_name="web")] == ["3", "2", "1"]
    assert table.of_job(JobId("job2")) == point(2)


def test_adding_a_point_twice_is_harmless(table: Catalogue) -> None:
    table.add(point(1))
    table.add(point(1))
    assert table.points() == [point(1)]


def test_a_full_stays_needed_until_a_point_is_committed(table: Catalogue) -> None:
    table.require_full(LineageId("L"), "restored in place")
    assert table.full_needed(LineageId("L")) == "restored in place"
    table.add(point(1))
    assert table.full_needed(LineageId("L")) == ""


def test_a_point_is_found_by_the_end_of_its_id_when_only_one_fits(table: Catalogue) -> None:
    table.add(point(1))
    table.add(point(2))
    assert table.point("000001") == point(1)
    with pytest.raises(NotFound):
        table.point("00001")
    with pytest.raises(NotFound):
        table.point("%%%%%%")

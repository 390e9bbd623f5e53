import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import IntegrityError, NotFound
from holdfast_common.identity import JobId, LineageId, PointId, RepositoryId
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.store.catalogue import Catalogue, PointRow
from holdfast_controller.store.database import Database
from holdfast_controller.store.jobs import JobTable
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.store.schema import open_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path / "controller.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def table(database: Database) -> Catalogue:
    return Catalogue(database)


def snapshot_taken(database: Database) -> JobId:
    """A job that has come to its snapshot."""
    jobs = JobTable(database, SystemClock())
    run = jobs.create_run(kind="backup", request={}, jobs=[NewJob(kind="backup", subject="web")])
    (job,) = jobs.jobs_of_run(run)
    for event in (JobEvent.QUEUE, JobEvent.START, JobEvent.QUIESCE, JobEvent.SNAPSHOT):
        jobs.advance(job.job_id, event)
    return job.job_id


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


def test_the_latest_full_point_of_a_lineage_is_found(table: Catalogue) -> None:
    assert table.latest_full(LineageId("L")) is None
    for number, level in ((1, "full"), (2, "full"), (3, "differential"), (4, "incremental")):
        table.add(replace(point(number), record=json.dumps({"level": level})))
    table.add(point(5, "another"))
    latest = table.latest_full(LineageId("L"))
    assert latest is not None and latest.point_id == "POINT000002"


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


def test_a_full_stays_needed_until_a_point_of_a_later_snapshot_is_committed(
    table: Catalogue, database: Database
) -> None:
    earlier = snapshot_taken(database)
    table.require_full(LineageId("L"), "restored in place")
    assert table.full_needed(LineageId("L")) == "restored in place"
    table.add(replace(point(1), job_id=earlier))
    table.add(point(2))  # of a job that nobody knows
    assert table.full_needed(LineageId("L")) == "restored in place"
    table.add(replace(point(3), job_id=snapshot_taken(database)))
    assert table.full_needed(LineageId("L")) == ""


def test_nobody_can_put_his_point_in_the_place_of_another(table: Catalogue) -> None:
    table.add(point(1))
    for other in (replace(point(1), job_id=JobId("job2")), point(1, "other")):
        with pytest.raises(IntegrityError):
            table.add(other)
    table.add(replace(point(1), record="{}", created_at="2099"))
    assert table.points() == [point(1)]


def test_a_point_is_found_by_the_end_of_its_id_when_only_one_fits(table: Catalogue) -> None:
    table.add(point(1))
    table.add(point(2))
    assert table.point("000001") == point(1)
    with pytest.raises(NotFound):
        table.point("00001")
    with pytest.raises(NotFound):
        table.point("%%%%%%")

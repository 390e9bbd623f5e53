"""The newest good point of each VM, and VMs whose change tracking is not believed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock, utc_text
from holdfast_controller.decide.confidence import (
    DiskEvidence,
    evidence_text,
    point_confidence,
)
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.database import Database
from holdfast_controller.store.jobs import JobTable
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.store.protection import NewestOfVm, Protection
from holdfast_controller.store.schema import open_database
from support.many_vms import add_point, add_vcenter, add_vms, lineage

MONDAY = datetime(2026, 3, 2, 22, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path / "controller.sqlite")
    add_vcenter(opened)
    add_vms(opened, range(3), taken_at=MONDAY)
    yield opened
    opened.close()


def last_good(database: Database) -> list[str]:
    return [vm.last_good_at for vm in Protection(database).vms()]


def test_the_newest_point_of_each_vm_counts(database: Database) -> None:
    add_point(database, 0, MONDAY)
    add_point(database, 0, MONDAY + DAY)
    add_point(database, 2, MONDAY)
    assert last_good(database) == [utc_text(MONDAY + DAY), "", utc_text(MONDAY)]
    assert [vm.has_points for vm in Protection(database).vms()] == [True, False, True]
    assert Protection(database).points() == 3


def test_a_point_in_doubt_or_of_a_partial_backup_is_no_good_one(database: Database) -> None:
    jobs = JobTable(database, SystemClock())
    run = jobs.create_run(kind="backup", request={}, jobs=[NewJob(kind="backup", subject="vm")])
    (job,) = jobs.jobs_of_run(run)
    for event in (JobEvent.QUEUE, JobEvent.START, JobEvent.TRANSFER, JobEvent.CLEAN):
        jobs.advance(job.job_id, event)
    jobs.advance(job.job_id, JobEvent.END_PARTIAL)
    add_point(database, 0, MONDAY)
    doubted = add_point(database, 0, MONDAY + DAY)
    add_point(database, 0, MONDAY + 2 * DAY, job_id=job.job_id)
    Catalogue(database).doubt_tracking(lineage(0), "caught", suspects=[doubted.point_id])
    assert last_good(database)[0] == utc_text(MONDAY)
    assert Protection(database).points_in_doubt() == 1


def test_a_vm_in_another_vcenter_with_the_same_uuid_has_its_own_points(database: Database) -> None:
    add_point(database, 1, MONDAY)
    database.execute("UPDATE vcenters SET instance_uuid = 'another'")
    assert last_good(database) == ["", "", ""]


def test_the_newest_point_and_the_last_result_of_each_vm_come_together(database: Database) -> None:
    jobs = JobTable(database, SystemClock())
    for ends in (JobEvent.END_FAILED, JobEvent.END_CANCELLED, None):
        backup = NewJob(kind="backup", subject="vm", vcenter_id="vc", instance_uuid="uuid-1")
        (job,) = jobs.jobs_of_run(jobs.create_run(kind="backup", request={}, jobs=[backup]))
        if ends is not None:
            jobs.advance(job.job_id, ends)
    add_point(database, 0, MONDAY)
    newest = add_point(database, 0, MONDAY + DAY)
    found = Protection(database).newest()
    assert found == {
        ("vc", "uuid-0"): NewestOfVm(point_id=newest.point_id, result=""),
        ("vc", "uuid-1"): NewestOfVm(point_id="", result="cancelled"),  # the last has not ended
        ("vc", "uuid-2"): NewestOfVm(point_id="", result=""),
    }
    database.execute("UPDATE vcenters SET instance_uuid = 'another'")
    assert Protection(database).newest()["vc", "uuid-0"].point_id == ""


def test_doubt_stands_until_tracking_was_begun_anew(database: Database) -> None:
    catalogue, protection = Catalogue(database), Protection(database)
    point = add_point(database, 1, MONDAY)
    assert protection.doubted() == []
    catalogue.doubt_tracking(lineage(1), "caught", suspects=[point.point_id])
    (found,) = protection.doubted()
    assert (found.lineage_id, found.name, found.reason, found.points) == (
        lineage(1),
        "vm00001",
        "caught",
        1,
    )
    catalogue.trust_tracking_again(lineage(1))
    assert protection.doubted() == []


def evidence_for(database: Database, point_id: str, *shares: float, is_known: bool = True) -> None:
    """As `catalogue` writes it with a point."""
    evidence = {(2000, "u"): DiskEvidence(shares=shares, is_known=is_known)}
    database.execute(
        "INSERT INTO tracking_evidence (point_id, evidence, confidence) VALUES (?, ?, ?)",
        (point_id, evidence_text(evidence), point_confidence(evidence)),
    )


def test_the_confidence_is_that_of_the_newest_good_point_and_not_of_any_other(
    database: Database,
) -> None:
    good = add_point(database, 0, MONDAY)
    evidence_for(database, good.point_id, 0.5)
    doubted = add_point(database, 0, MONDAY + DAY)
    evidence_for(database, doubted.point_id)
    Catalogue(database).doubt_tracking(lineage(0), "caught", suspects=[doubted.point_id])
    unknown = add_point(database, 1, MONDAY)
    evidence_for(database, unknown.point_id, is_known=False)
    assert [vm.confidence for vm in Protection(database).vms()] == [0.5, None, None]


def test_the_number_of_points_from_before_it_was_kept_is_found_when_the_database_is_opened(
    tmp_path: Path, database: Database
) -> None:
    point = add_point(database, 0, MONDAY)
    evidence_for(database, point.point_id, 0.25)
    database.execute("ALTER TABLE tracking_evidence DROP COLUMN confidence")
    database.execute("DELETE FROM _sqlite_migrations WHERE name = 'keep_the_number_too'")
    database.close()
    again = open_database(tmp_path / "controller.sqlite")
    assert Protection(again).vms()[0].confidence == 0.25
    again.close()

"""Jobs counted, and those that ended since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.identity import JobId
from holdfast_common.job_result import DiskResult, ErrorReport, Warned
from holdfast_controller.decide.job_state import JobEvent, JobState
from holdfast_controller.store.database import Database
from holdfast_controller.store.job_figures import JobFigures
from holdfast_controller.store.jobs import JobRow, JobTable
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.store.schema import open_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path / "controller.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def jobs(database: Database) -> JobTable:
    return JobTable(database, SystemClock())


@pytest.fixture
def figures(database: Database) -> JobFigures:
    return JobFigures(database)


def planned(jobs: JobTable, *subjects: str, kind: str = "backup") -> list[JobRow]:
    run = jobs.create_run(
        kind=kind, request={}, jobs=[NewJob(kind=kind, subject=each) for each in subjects]
    )
    return jobs.jobs_of_run(run)


def ended(jobs: JobTable, job_id: JobId, end: JobEvent) -> None:
    for event in (JobEvent.QUEUE, JobEvent.START, JobEvent.TRANSFER, JobEvent.CLEAN, end):
        jobs.advance(job_id, event)


def test_unfinished_jobs_are_counted_by_kind_and_state(jobs: JobTable, figures: JobFigures) -> None:
    assert figures.unfinished() == []
    assert figures.oldest_waiting_at() == ""
    first, second, third = planned(jobs, "web", "db", "mail")
    jobs.advance(second.job_id, JobEvent.QUEUE)
    jobs.set_progress(second.job_id, done_bytes=7, total_bytes=10)
    ended(jobs, third.job_id, JobEvent.END_DONE)
    found = {(each.kind, each.state): (each.jobs, each.done_bytes) for each in figures.unfinished()}
    assert found == {
        ("backup", JobState.PLANNED): (1, 0),
        ("backup", JobState.QUEUED): (1, 7),
    }
    assert figures.oldest_waiting_at() == first.created_at


def test_each_end_is_told_once_to_who_asks_from_there_on(
    jobs: JobTable, figures: JobFigures
) -> None:
    web, database_vm = planned(jobs, "web", "db")
    before = figures.newest_event()
    jobs.set_result(
        web.job_id,
        error=ErrorReport(code="failed", message="no"),
        disks=[DiskResult(device_key=2000, transport="nfc", read_bytes=5)],
        warnings=[Warned(code="w", message="careful")],
    )
    ended(jobs, web.job_id, JobEvent.END_FAILED)
    (found,) = figures.ended_after(before)
    assert (found.subject, found.state, found.warnings) == ("web", JobState.FAILED, 1)
    assert found.error is not None and found.error.message == "no"
    assert found.disks[0].read_bytes == 5
    ended(jobs, database_vm.job_id, JobEvent.END_DONE)
    (later,) = figures.ended_after(found.event_id)
    assert (later.subject, later.state) == ("db", JobState.DONE)
    assert figures.ended_after(later.event_id) == []
    assert figures.newest_event() == later.event_id
    assert figures.of_run(web.run_id) == {JobState.DONE: 1, JobState.FAILED: 1}


def test_a_job_that_was_refused_at_once_has_ended_too(jobs: JobTable, figures: JobFigures) -> None:
    refused = ErrorReport(code="refused", message="not now")
    jobs.create_run(
        kind="backup",
        request={},
        jobs=[
            NewJob(kind="backup", subject="web"),
            NewJob(kind="backup", subject="db", refused=refused),
        ],
    )
    (found,) = figures.ended_after(0)
    assert (found.subject, found.error) == ("db", refused)


def test_ends_are_told_in_portions(jobs: JobTable, figures: JobFigures) -> None:
    for job in planned(jobs, "a", "b", "c"):
        ended(jobs, job.job_id, JobEvent.END_CANCELLED)
    first = figures.ended_after(0, limit=2)
    rest = figures.ended_after(first[-1].event_id, limit=2)
    assert [each.subject for each in [*first, *rest]] == ["a", "b", "c"]


def test_only_a_check_of_everything_that_found_nothing_counts(
    jobs: JobTable, figures: JobFigures
) -> None:
    some, whole, bad = (
        *planned(jobs, "some points", kind="check"),
        *planned(jobs, "repository", kind="check"),
        *planned(jobs, "repository", kind="check"),
    )
    ended(jobs, some.job_id, JobEvent.END_DONE)
    ended(jobs, bad.job_id, JobEvent.END_FAILED)
    assert figures.last_good_check_at() == ""
    ended(jobs, whole.job_id, JobEvent.END_DONE)
    assert figures.last_good_check_at() == jobs.job(whole.job_id).finished_at

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import NotFound
from holdfast_common.identity import RunId, first_ulid_of, new_ulid
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.decide.policy_checks import RunLengths
from holdfast_controller.store import job_tables
from holdfast_controller.store.database import Database
from holdfast_controller.store.jobs import JobTable
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.store.runs import LENGTHS, RunTable


class HandClock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.time = SystemClock().now()

    def now(self) -> datetime:
        return self.time

    def monotonic_seconds(self) -> float:
        return 0.0


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "controller.sqlite", [job_tables.MIGRATIONS])
    yield made
    made.close()


@pytest.fixture
def jobs(database: Database, clock: HandClock) -> JobTable:
    return JobTable(database, clock)


@pytest.fixture
def runs(database: Database) -> RunTable:
    return RunTable(database)


def ran(
    jobs: JobTable,
    clock: HandClock,
    *lengths: float,
    vm: str = "i",
    kind: str = "backup",
    end: JobEvent = JobEvent.END_DONE,
) -> None:
    """A job that waits for an hour, and then works so long in each of its attempts."""
    new = NewJob(kind=kind, subject=vm, vcenter_id="v", instance_uuid=vm)
    (job,) = jobs.jobs_of_run(jobs.create_run(kind=kind, request={}, jobs=[new]))
    jobs.advance(job.job_id, JobEvent.QUEUE)
    clock.time += timedelta(hours=1)
    for number, seconds in enumerate(lengths, start=1):
        jobs.advance(job.job_id, JobEvent.START)
        clock.time += timedelta(seconds=seconds)
        if number < len(lengths):
            jobs.advance(job.job_id, JobEvent.CLEAN)
            jobs.advance(job.job_id, JobEvent.TRY_AGAIN)
    if end is JobEvent.END_DONE:
        for event in (JobEvent.QUIESCE, JobEvent.SNAPSHOT, JobEvent.TRANSFER, JobEvent.COMMIT):
            jobs.advance(job.job_id, event)
    jobs.advance(job.job_id, JobEvent.CLEAN)
    jobs.advance(job.job_id, end)


def test_how_long_backups_took_is_known_of_each_vm_without_what_they_waited(
    jobs: JobTable, clock: HandClock, runs: RunTable
) -> None:
    for seconds in (300, 60, 900):
        ran(jobs, clock, seconds, vm="a")
    ran(jobs, clock, 10, vm="b")
    found = runs.backup_lengths(clock.now() - timedelta(days=1))
    assert set(found) == {("v", "a"), ("v", "b")}
    assert found["v", "a"].shortest_seconds == pytest.approx(60, abs=0.01)
    assert found["v", "a"].longest_seconds == pytest.approx(900, abs=0.01)
    assert found["v", "b"].shortest_seconds == pytest.approx(10, abs=0.01)


def test_of_a_backup_that_was_tried_again_the_attempt_that_brought_the_point_counts(
    jobs: JobTable, clock: HandClock, runs: RunTable
) -> None:
    ran(jobs, clock, 5000, 70)
    (found,) = runs.backup_lengths(clock.now() - timedelta(days=1)).values()
    assert isinstance(found, RunLengths)
    assert found.longest_seconds == pytest.approx(70, abs=0.01)


def test_how_long_backups_took_is_asked_of_the_jobs_of_these_weeks_and_of_the_starts_among_their_events(
    database: Database,
) -> None:
    rows = database.execute(f"EXPLAIN QUERY PLAN {LENGTHS}", ("", "done", "partial"))
    looked = [row[3] for row in rows if row[3].startswith(("SEARCH", "SCAN"))]
    assert len(looked) == 2
    assert "(job_id>?)" in looked[0]
    assert "job_events_starts (job_id=?)" in looked[1]


def test_what_brought_no_point_is_no_measure(
    jobs: JobTable, clock: HandClock, runs: RunTable
) -> None:
    ran(jobs, clock, 5, end=JobEvent.END_FAILED)
    assert runs.backup_lengths(clock.now() - timedelta(days=1)) == {}


def test_backups_that_were_planned_before_are_not_looked_at(
    jobs: JobTable, clock: HandClock, runs: RunTable
) -> None:
    ran(jobs, clock, 5)
    assert runs.backup_lengths(SystemClock().now() - timedelta(minutes=1))
    assert runs.backup_lengths(SystemClock().now() + timedelta(minutes=1)) == {}


def test_the_first_id_of_a_moment_is_not_above_those_made_then_and_above_those_before() -> None:
    before = SystemClock().now()
    made = new_ulid()
    assert first_ulid_of(before) <= made < first_ulid_of(before + timedelta(minutes=1))
    assert first_ulid_of(datetime(1960, 1, 1, tzinfo=UTC)) == "0" * 26


def test_a_run_that_is_not_there_is_not_found(runs: RunTable) -> None:
    with pytest.raises(NotFound):
        runs.run(RunId("nosuch"))

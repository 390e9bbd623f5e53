import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast_common import identity
from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import InvalidTransition, Locked, NotFound, Refused
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, JobId, PointId
from holdfast_common.job_result import DiskResult, ErrorReport, Warned
from holdfast_controller.decide.job_state import JobEvent, JobState
from holdfast_controller.store import job_tables
from holdfast_controller.store.database import Database
from holdfast_controller.store.jobs import JobTable
from holdfast_controller.store.new_jobs import NewJob
from support.repositories import FixedClock

WEB = NewJob(
    kind="backup", subject="web", vcenter_id="v", instance_uuid="i", level_asked="incremental"
)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[JobTable]:
    database = Database(tmp_path / "controller.sqlite", [job_tables.MIGRATIONS])
    yield JobTable(database, SystemClock())
    database.close()


def test_a_run_is_planned_with_its_jobs_and_each_step_is_told(table: JobTable) -> None:
    run_id = table.create_run(kind="backup", request={"vms": ["web"]}, jobs=[WEB])
    (job,) = table.jobs_of_run(run_id)
    assert job.state is JobState.PLANNED and job.attempt == 1 and not job.ended
    table.advance(job.job_id, JobEvent.QUEUE)
    table.advance(job.job_id, JobEvent.START, "on proxy")
    assert [event.event for event in table.events(job.job_id)] == ["planned", "queued", "preflight"]
    assert table.job(job.job_id).state is JobState.PREFLIGHT


def test_one_vm_has_one_job_at_a_time(table: JobTable) -> None:
    run_id = table.create_run(kind="backup", request={}, jobs=[WEB])
    with pytest.raises(Refused, match="another job"):
        table.create_run(kind="backup", request={}, jobs=[WEB])
    (job,) = table.jobs_of_run(run_id)
    table.advance(job.job_id, JobEvent.END_CANCELLED)
    assert table.create_run(kind="backup", request={}, jobs=[WEB])
    assert len(table.unfinished()) == 1


def test_of_jobs_that_exclude_each_other_one_begins_however_they_race(table: JobTable) -> None:
    kinds = ("prune", "repair")
    for _ in range(5):
        together = threading.Barrier(4)

        def begin(kind: str, together: threading.Barrier = together) -> str:
            together.wait(10)
            job = NewJob(kind=kind, subject="repository", excluded_by=kinds)
            try:
                return table.create_run(kind=kind, request={}, jobs=[job])
            except Locked as error:
                return str(error)

        with ThreadPoolExecutor(4) as pool:
            told = sorted(pool.map(begin, kinds * 2))
        (job,) = table.unfinished()
        assert sum("has not ended" in line for line in told) == 3
        assert f"another {job.kind} has not ended (job={job.job_id})" in told
        assert sum(line.startswith(f"a {job.kind} has not ended") for line in told) == 2
        assert table.create_run(kind="backup", request={}, jobs=[WEB])
        for each in table.unfinished():
            table.advance(each.job_id, JobEvent.END_CANCELLED)


def test_a_job_that_is_refused_holds_up_no_other_and_is_written_down_as_failed(
    table: JobTable,
) -> None:
    other = NewJob(kind="backup", subject="db", vcenter_id="v", instance_uuid="j")
    refused = ErrorReport.of(Refused("a rule forbids it"))
    third = NewJob(kind="backup", subject="app", refused=refused)
    table.create_run(kind="backup", request={}, jobs=[WEB])
    run_id = table.create_run(kind="backup", request={}, jobs=[other, WEB, third])
    db, web, app = table.jobs_of_run(run_id)
    assert [job.state for job in (db, web, app)] == ["planned", "failed", "failed"]
    assert web.error is not None and "another job" in web.error.message and web.ended
    assert web.error.exit_status == 15 and web.finished_at
    assert app.error == refused
    assert [event.event for event in table.events(web.job_id)] == ["planned", "failed"]
    table.advance(db.job_id, JobEvent.END_CANCELLED)
    assert [job.subject for job in table.unfinished()] == ["web"]


def test_a_run_of_which_every_job_is_refused_leaves_nothing(table: JobTable) -> None:
    other = NewJob(kind="backup", subject="db", vcenter_id="v", instance_uuid="j")
    table.create_run(kind="backup", request={}, jobs=[WEB, other])
    with pytest.raises(Refused, match=r"web has another job.*db has another job"):
        table.create_run(kind="backup", request={}, jobs=[other, WEB][::-1])
    assert sorted(job.subject for job in table.latest()) == ["db", "web"]


def test_an_invalid_transition_changes_nothing_and_tells_the_story(table: JobTable) -> None:
    run_id = table.create_run(kind="backup", request={}, jobs=[WEB])
    (job,) = table.jobs_of_run(run_id)
    with pytest.raises(InvalidTransition, match="planned"):
        table.advance(job.job_id, JobEvent.COMMIT)
    assert table.job(job.job_id).state is JobState.PLANNED


def test_a_result_comes_back_as_it_was_stored(table: JobTable) -> None:
    run_id = table.create_run(kind="restore", request={}, jobs=[WEB])
    (job,) = table.jobs_of_run(run_id)
    error = ErrorReport(code="integrity", message="differs", exit_status=13, facts=(("a", "1"),))
    disk = DiskResult(device_key=2000, transport="nfc", differing=(Extent(offset=512, length=512),))
    warned = Warned(code="cbt", message="read everything")
    table.set_plan(
        job.job_id, level="full", level_reason="first", transport="nfc", agent_id=AgentId("a")
    )
    table.set_result(
        job.job_id, error=error, disks=[disk], warnings=[warned], point_id=PointId("p")
    )
    found = table.job(job.job_id)
    assert (found.error, found.disks, found.warnings) == (error, (disk,), (warned,))
    assert (found.level, found.agent_id, found.point_id) == ("full", "a", "p")


def test_a_retry_counts_the_attempt(table: JobTable) -> None:
    run_id = table.create_run(kind="backup", request={}, jobs=[WEB])
    (job,) = table.jobs_of_run(run_id)
    for event in (JobEvent.QUEUE, JobEvent.START, JobEvent.CLEAN, JobEvent.TRY_AGAIN):
        table.advance(job.job_id, event)
    assert table.job(job.job_id).attempt == 2


def test_cancelling_what_has_ended_or_is_unknown_is_refused(table: JobTable) -> None:
    run_id = table.create_run(kind="backup", request={}, jobs=[WEB])
    (job,) = table.jobs_of_run(run_id)
    assert table.ask_cancel(job.job_id).cancel_asked
    table.advance(job.job_id, JobEvent.END_CANCELLED)
    with pytest.raises(Refused, match="has ended"):
        table.ask_cancel(job.job_id)
    with pytest.raises(NotFound):
        table.job(JobId("nothing"))


def test_what_was_written_last_is_known_although_a_clock_ran_ahead_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "clock.sqlite", [job_tables.MIGRATIONS])
    clock = FixedClock()
    table = JobTable(database, clock)
    assert table.last_written_at() == ""
    ahead, right = timedelta(days=400), time.time_ns()
    monkeypatch.setattr(identity, "_last", 0)
    monkeypatch.setattr(time, "time_ns", lambda: right + 400 * 86_400 * 10**9)
    clock.advance(ahead.total_seconds())
    table.create_run(kind="forget", request={}, jobs=[NewJob(kind="forget", subject="points")])
    assert table.last_written_at() == utc_text(clock.now())
    # it is put right, and the program begins anew
    monkeypatch.setattr(time, "time_ns", lambda: right)
    monkeypatch.setattr(identity, "_last", 0)
    clock.advance(-ahead.total_seconds())
    table.create_run(kind="forget", request={}, jobs=[NewJob(kind="forget", subject="points")])
    assert table.last_written_at() == utc_text(clock.now())
    database.close()

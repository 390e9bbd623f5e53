"""Results that nobody waits for: they are heard from the job's own agent only, and its word is no point."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from holdfast_common.errors import FormatError
from holdfast_common.identity import AgentId, JobId, PointId
from holdfast_common.job_result import JobResult, Outcome, Warned
from holdfast_common.job_spec import Attempt
from holdfast_common.point_record import PointRecord
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.results import record_point
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_round

OTHER = AgentId("another agent")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    disks = (DiskPlan(size_bytes=1 << 16),)
    plan = InventoryPlan(
        machines=(
            MachinePlan(name="web", datastore="nfs1", disks=disks),
            MachinePlan(name="db", datastore="nfs1", disks=disks),
            MachinePlan(name="proxy", datastore="vmfs1", disks=()),
        )
    )
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running


def heard(holdfast: OneProcess, agent_id: AgentId, job_id: JobId, record: PointRecord) -> Orphans:
    orphans = Orphans()
    orphans.attach(holdfast.world)
    result = JobResult(
        outcome=Outcome.DONE,
        point_id=PointId(record.point_id),
        record=record.encode(),
        warnings=(Warned(code="late", message="heard late"),),
    )
    orphans.finished(agent_id, Attempt(job_id=job_id, number=1), result)
    return orphans


def forgotten(holdfast: OneProcess, job: JobRow) -> None:
    """Its controller was killed before it wrote down that the point is there."""
    with holdfast.world.jobs._database.transaction() as connection:
        connection.execute("DELETE FROM points WHERE job_id = ?", (job.job_id,))
        connection.execute(
            "UPDATE jobs SET state = 'committing', finished_at = '', point_id = ''"
            " WHERE job_id = ?",
            (job.job_id,),
        )


def test_no_agent_rewrites_the_point_of_another_vm(holdfast: OneProcess) -> None:
    web, db = holdfast.back_up("web"), holdfast.back_up("db")
    true = holdfast.record(web)
    before = holdfast.world.catalogue.points()
    forged = replace(
        true, disks=tuple(replace(disk, change_id="52 99/999999") for disk in true.disks)
    )
    for job in (web, db):
        for agent_id in (OTHER, holdfast.agent.agent.agent_id):
            heard(holdfast, agent_id, job.job_id, replace(forged, job_id=job.job_id))
            heard(holdfast, agent_id, job.job_id, forged)
    one_round(holdfast.reconciler)
    assert holdfast.world.catalogue.points() == before
    assert holdfast.record(web) == true


def test_a_late_result_clears_no_error_and_no_need_of_a_full(holdfast: OneProcess) -> None:
    job = holdfast.back_up("web")
    world = holdfast.world
    world.catalogue.require_full(world.jobs.job(job.job_id).lineage_id, "restored in place")  # type: ignore[arg-type]  # a row has plain text
    heard(holdfast, holdfast.agent.agent.agent_id, job.job_id, holdfast.record(job))
    one_round(holdfast.reconciler)
    assert world.catalogue.full_needed(job.lineage_id) == "restored in place"  # type: ignore[arg-type]  # as above


def test_the_point_of_a_late_result_is_taken_from_the_repository(holdfast: OneProcess) -> None:
    job = holdfast.back_up("web")
    true = holdfast.record(job)
    forgotten(holdfast, job)
    orphans = heard(
        holdfast,
        holdfast.agent.agent.agent_id,
        job.job_id,
        replace(true, vm_name="forged", created_at="2099-01-01T00:00:00.000000Z"),
    )
    one_round(Reconciler(holdfast.world, orphans))
    after = holdfast.world.jobs.job(job.job_id)
    assert after.state is JobState.DONE
    assert [warning.code for warning in after.warnings][-1] == "late"
    assert holdfast.record(after) == true


def test_a_late_result_of_another_agent_is_not_used(holdfast: OneProcess) -> None:
    job = holdfast.back_up("web")
    true = holdfast.record(job)
    orphans = heard(holdfast, OTHER, job.job_id, true)
    assert orphans.result(job.job_id) is None
    assert heard(holdfast, OTHER, JobId("no such job"), true).result(JobId("no such job")) is None


@pytest.mark.parametrize("field", ["job_id", "lineage_id", "agent_id", "point_id"])
def test_a_record_of_something_else_is_refused(holdfast: OneProcess, field: str) -> None:
    job = holdfast.back_up("web")
    document = json.loads(holdfast.record(job).encode()) | {field: "another"}
    other = PointRecord.decode(json.dumps(document))
    result = JobResult(outcome=Outcome.DONE, point_id=PointId(job.point_id), record=other.encode())
    with pytest.raises(FormatError):
        record_point(holdfast.world, job.job_id, result)

"""A point whose agent died before it could tell of it is found: at once, or as soon as anybody can look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.errors import SourceFailed
from holdfast_common.job_result import ErrorReport, JobResult, Outcome
from holdfast_common.job_spec import JobSpec
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_round


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    web = MachinePlan(name="web", datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 20),))
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    with running_lab(tmp_path / "lab", inventory=InventoryPlan(machines=(web, proxy))) as running:
        yield running


def lost(_: JobSpec, result: JobResult) -> JobResult:
    error = ErrorReport.of(SourceFailed("the agent ended right after it had published"))
    return replace(result, outcome=Outcome.FAILED, error=error, record=b"", point_id=None)


def test_a_point_that_was_committed_before_its_agent_died_makes_its_job_done(
    holdfast: OneProcess,
) -> None:
    holdfast.agent.after = lost
    job = holdfast.back_up("web")
    assert (str(job.state), job.error) == ("done", None)
    assert holdfast.world.catalogue.point(job.point_id).job_id == job.job_id


def test_a_point_that_could_not_be_looked_for_is_found_later(holdfast: OneProcess) -> None:
    there = holdfast.agent.agent

    def lost_and_away(spec: JobSpec, result: JobResult) -> JobResult:
        holdfast.agent.agent = replace(there, repositories=())
        return lost(spec, result)

    holdfast.agent.after = lost_and_away
    job = holdfast.back_up("web")
    assert str(job.state) == "failed"
    orphans = Orphans()
    orphans.attach(holdfast.world)
    reconciler = Reconciler(holdfast.world, orphans)
    one_round(reconciler)
    assert holdfast.world.catalogue.of_job(job.job_id) is None
    holdfast.agent.agent = there
    one_round(reconciler)
    point = holdfast.world.catalogue.of_job(job.job_id)
    assert point is not None
    assert holdfast.world.jobs.job(job.job_id).point_id == point.point_id
    asked = len(holdfast.agent.specs)
    one_round(reconciler)
    assert len(holdfast.agent.specs) == asked

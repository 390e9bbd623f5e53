"""Room is given back only behind a fence, after everybody who might still need it, and by a clock that is believed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from holdfast_common.clock import utc_text
from holdfast_common.errors import NotFound, PointsMissing, Refused
from holdfast_common.identity import JobId
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.requests import CheckRequest, Started
from holdfast_controller.service.point_actions import PointActions
from holdfast_controller.service.repository_actions import RepositoryActions
from holdfast_controller.store import settings as names
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.prunes import PruneEnd, PruneRow
from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes

UNIT = 64 * 1024


def objects(holdfast: OneProcess, kind: str) -> set[Path]:
    return {path for path in (holdfast.folder / "repository" / kind).rglob("*") if path.is_file()}


def prune(
    holdfast: OneProcess, *, dry_run: bool = False, accept_clock: bool = False
) -> tuple[JobRow, PruneRow]:
    wanted = operator_pb2.PruneRequest(grace_minutes=0, dry_run=dry_run, accept_clock=accept_clock)
    (started,) = RepositoryActions(holdfast.world, holdfast.engine).start_prune(wanted).jobs
    job_id = JobId(started.job_id)
    job = holdfast.ended(Started(run_id=None, job_ids=(job_id,), plan=()))
    row = holdfast.world.prunes.of_job(job_id)
    assert row is not None
    return job, row


def test_rule_32_what_a_forgotten_point_needed_goes_and_the_rest_is_restored(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    points = PointActions(holdfast.world, holdfast.engine.care)
    first = holdfast.back_up("web")
    guest_writes(lab, "web", 3 * UNIT)
    second = holdfast.back_up("web")
    assert first.point_id is not None
    assert second.point_id is not None
    planned = actions.forget(operator_pb2.ForgetRequest(keep_last=1, dry_run=True))
    assert list(planned.names) == [first.point_id]
    assert len(objects(holdfast, "points")) == 2, "a dry run"
    points.hold(operator_pb2.HoldRequest(point_id=first.point_id, reason="a court asked"))
    assert not actions.forget(operator_pb2.ForgetRequest(point_ids=[first.point_id])).names
    points.hold(operator_pb2.HoldRequest(point_id=first.point_id, release=True))
    done = actions.forget(operator_pb2.ForgetRequest(point_ids=[first.point_id]))
    assert list(done.names) == [first.point_id]
    with pytest.raises(NotFound):
        holdfast.world.catalogue.point(first.point_id)
    before = objects(holdfast, "maps") | objects(holdfast, "packs")
    assert prune(holdfast, dry_run=True)[1].counts["fence"] == 0
    assert before == objects(holdfast, "maps") | objects(holdfast, "packs")
    rounds = [prune(holdfast)[1] for _ in range(4)]
    assert sum(each.counts["deleted"] for each in rounds) > 0
    assert not before <= objects(holdfast, "maps") | objects(holdfast, "packs")
    assert holdfast.world.prunes.latest() == rounds[-1]
    assert rounds[-1].ended_at
    assert disk_content(holdfast, second) == disk_truth(lab, "web")
    guest_writes(lab, "web", 5 * UNIT)
    third = holdfast.back_up("web")
    assert third.level == "incremental"
    assert disk_content(holdfast, third) == disk_truth(lab, "web")
    started = holdfast.engine.start_check(CheckRequest(read_data=True))
    assert holdfast.ended(started).error is None


def test_rule_32_a_clock_that_jumped_deletes_nothing(holdfast: OneProcess) -> None:
    holdfast.back_up("web")
    future = utc_text(holdfast.world.clock.now() + timedelta(days=3))
    prunes = holdfast.world.prunes
    prunes.end(prunes.begin(at=future), PruneEnd(counts={}), at=future)
    job, row = prune(holdfast)
    assert job.error is not None
    assert job.error.code == Refused.code
    assert "the clock went back" in job.error.message
    assert "the clock went back" in row.problem
    assert prune(holdfast, accept_clock=True)[0].error is None


def test_rule_32_what_is_asked_for_by_hand_believes_no_clock_that_is_in_doubt(
    holdfast: OneProcess,
) -> None:
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    first = holdfast.back_up("web").point_id
    holdfast.back_up("web")
    assert first is not None
    holdfast.world.settings.set(names.CLOCK_DOUBT, "the clock went ahead by 9:00:00 within 0:00:15")
    job, row = prune(holdfast)
    assert job.error is not None
    assert job.error.code == Refused.code
    assert "went ahead by 9:00:00" in row.problem
    assert not actions.forget(operator_pb2.ForgetRequest(keep_last=1)).names
    assert list(
        actions.forget(operator_pb2.ForgetRequest(keep_last=1, accept_clock=True)).names
    ) == [first]
    assert prune(holdfast, accept_clock=True)[0].error is None
    assert prune(holdfast)[0].error is None, "it stays accepted"


def test_the_catalogue_is_made_anew_from_the_repository_alone(holdfast: OneProcess) -> None:
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    point_id = holdfast.back_up("web").point_id
    assert point_id is not None
    known = holdfast.world.catalogue.point(point_id)
    holdfast.world.catalogue.remove(known.point_id)
    assert actions.rebuild(operator_pb2.RebuildRequest(dry_run=True)).counts["added"] == 1
    assert not holdfast.world.catalogue.points()
    assert actions.rebuild(operator_pb2.RebuildRequest()).counts["added"] == 1
    assert holdfast.world.catalogue.point(point_id) == known


def test_a_catalogue_that_is_made_anew_still_misses_what_is_missing(holdfast: OneProcess) -> None:
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    point_id = holdfast.back_up("web").point_id
    assert point_id is not None
    assert holdfast.back_up("web").point_id is not None
    (manifest,) = (holdfast.folder / "repository" / "points").rglob(point_id)
    taken = manifest.rename(holdfast.folder / "taken")
    for dry_run in (True, False):
        told = actions.rebuild(operator_pb2.RebuildRequest(dry_run=dry_run))
        assert told.counts == {"added": 0, "missing": 1, "unusable": 0}
        assert told.plan[0].startswith(f"missing: {point_id}, which the catalogue keeps")
    job, _ = prune(holdfast)
    assert job.error is not None
    assert job.error.code == PointsMissing.code
    taken.rename(manifest)
    assert prune(holdfast)[0].error is None
    assert actions.rebuild(operator_pb2.RebuildRequest()).counts["missing"] == 0
    assert holdfast.ended(holdfast.engine.start_check(CheckRequest(read_data=True))).error is None

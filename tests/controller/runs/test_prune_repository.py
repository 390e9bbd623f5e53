"""A prune is a job of the controller: seen, followed, cancelled, beside backups, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import Locked, StoreFailed
from holdfast_common.identity import PointId
from holdfast_common.repository.prune_progress import DELETING, MARKING
from holdfast_common.repository.prune_report import PruneLimits, PruneReport
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands import following
from holdfast_controller.commands.output import Output
from holdfast_controller.decide.job_state import JobEvent, JobState
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.prune_repository import TOLD_MAX, prune_lines
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.requests import PruneRequest, RepairRequest, Started
from holdfast_controller.service.follower import RunFollower
from holdfast_controller.service.point_actions import PointActions
from holdfast_controller.service.repository_actions import RepositoryActions
from holdfast_controller.store.jobs import JobTable
from holdfast_controller.store.new_jobs import NewJob
from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, guest_writes, one_process, one_round

SECONDS = 30.0
NOW = PruneLimits().grace * 0


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab) as ready:
        yield ready


class HeldClock(SystemClock):
    """Holds whoever asks it for the time that passed, until it is let go."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go = threading.Event()

    def monotonic_seconds(self) -> float:
        self.asked.set()
        assert self.go.wait(SECONDS), "the clock was never let go"
        return super().monotonic_seconds()


def start(engine: Engine, *, dry_run: bool = False) -> Started:
    limits = PruneLimits(grace=NOW, dry_run=dry_run)
    return engine.start_prune(PruneRequest(limits=limits, actor="somebody"))


def forgotten_point(holdfast: OneProcess, lab: RunningLab) -> PointId:
    """A point that was forgotten, with one beside it that was not."""
    first = holdfast.back_up("web").point_id
    guest_writes(lab, "web", 0, length=1 << 17)
    holdfast.back_up("web")
    assert first is not None
    holdfast.engine.care.forget([PointId(first)], actor="somebody", dry_run=False)
    return PointId(first)


def test_a_prune_is_followed_to_its_result_and_a_dry_run_is_the_same_job(
    holdfast: OneProcess,
    lab: RunningLab,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgotten_point(holdfast, lab)
    world = holdfast.world

    def failing(*_: object) -> None:
        raise StoreFailed("the disk fails")

    with monkeypatch.context() as broken:  # its steps cannot be written down: that ends no prune
        broken.setattr(JobTable, "note", failing)
        looked = holdfast.ended(start(holdfast.engine, dry_run=True))
    assert looked.state is JobState.DONE
    planned = world.prunes.of_job(looked.job_id)
    assert planned is not None
    assert planned.counts["doomed"] > 0
    assert planned.dry_run
    assert world.prunes.latest_change() is None
    holdfast.ended(start(holdfast.engine))
    job = holdfast.ended(start(holdfast.engine))
    steps = [event.event for event in world.jobs.events(job.job_id)]
    assert (MARKING in steps, DELETING in steps) == (True, True), steps
    events = RunFollower(world, job.run_id).next_events()
    (finished,) = (event.finished for event in events if event.WhichOneof("event") == "finished")
    assert finished.change.done
    assert finished.change.counts["deleted"] >= planned.counts["doomed"]
    assert finished.change.names
    following.show_finished(finished, Output(as_json=False))
    assert f"{finished.change.counts['deleted']} objects were deleted" in capsys.readouterr().out
    last = world.prunes.latest_change()
    assert last is not None
    assert (last.job_id, last.problem, bool(last.ended_at)) == (job.job_id, "", True)


def test_beside_a_prune_backups_and_holds_go_on_a_second_is_refused_and_cancelling_loses_nothing(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    gone = forgotten_point(holdfast, lab)
    world = holdfast.world
    clock = HeldClock()
    engine = Engine(replace(world, clock=clock))
    engine.reconciled()
    points = PointActions(world, engine.care)
    first = start(engine)
    try:
        assert clock.asked.wait(SECONDS)
        with pytest.raises(Locked, match="another prune has not ended"):
            start(holdfast.engine, dry_run=True)
        with pytest.raises(Locked, match="a prune has not ended") as refused:
            holdfast.engine.start_repair(RepairRequest(source_folder="", dry_run=False))
        assert f"holdfast job follow {first.job_ids[0]}" in refused.value.advice
        beside = holdfast.back_up("web")
        assert beside.state is JobState.DONE
        assert beside.point_id is not None
        points.hold(operator_pb2.HoldRequest(point_id=beside.point_id, reason="a court asked"))
        with pytest.raises(Locked, match="being pruned"):
            engine.care.forget([PointId(beside.point_id)], actor="somebody", dry_run=False)
        engine.cancel(first.job_ids[0])
    finally:
        clock.go.set()
    assert holdfast.ended(first).state is JobState.CANCELLED
    cut = world.prunes.of_job(first.job_ids[0])
    assert cut is not None
    assert cut.problem.startswith("cancelled: ")
    for _ in range(2):
        assert holdfast.ended(start(holdfast.engine)).error is None
    last = world.prunes.latest_change()
    assert last is not None
    assert last.counts["deleted"] > 0
    listed = points.list_points(operator_pb2.PointQuery()).points
    assert [point.held for point in listed] == [True, False]
    assert gone not in {point.point_id for point in listed}
    shown = points.show_point(operator_pb2.PointName(point_id=beside.point_id))
    assert (shown.point.held, shown.hold_reason) == (True, "a court asked")


@pytest.mark.parametrize("kind", ["prune", "repair"])
def test_a_prune_or_repair_that_a_crash_cut_off_ends_as_interrupted_and_a_prune_may_begin(
    holdfast: OneProcess, kind: str
) -> None:
    world = holdfast.world
    cut = NewJob(kind=kind, subject="repository")
    run_id = world.jobs.create_run(kind=kind, request={}, jobs=[cut])
    (left,) = world.jobs.jobs_of_run(run_id)
    for event in (JobEvent.QUEUE, JobEvent.START, JobEvent.TRANSFER):
        world.jobs.advance(left.job_id, event)
    if kind == "prune":
        world.prunes.begin(at=utc_text(world.clock.now()), job_id=left.job_id)
    with pytest.raises(Locked, match=f"(a|another) {kind} has not ended"):
        start(holdfast.engine)
    one_round(Reconciler(world, Orphans()))
    assert world.jobs.job(left.job_id).state is JobState.INTERRUPTED
    assert holdfast.ended(start(holdfast.engine)).error is None


def test_a_point_that_is_missing_stops_a_prune_until_it_is_back_or_somebody_lets_it_go(
    holdfast: OneProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    world = holdfast.world
    point_id = holdfast.back_up("web").point_id
    assert point_id is not None
    (manifest,) = (each for each in (holdfast.folder / "repository" / "points").rglob(point_id))
    name = str(manifest.relative_to(holdfast.folder / "repository"))
    taken = manifest.rename(holdfast.folder / "taken")
    for dry_run in (True, False):
        job = holdfast.ended(start(holdfast.engine, dry_run=dry_run))
        assert job.error is not None
        assert (job.error.code, job.error.exit_status) == ("points_missing", 13)
        events = RunFollower(world, job.run_id).next_events()
        (finished,) = (each.finished for each in events if each.WhichOneof("event") == "finished")
        assert list(finished.change.names) == [name]
        assert finished.change.counts["missing_points"] == 1
        assert not finished.change.done
        following.show_finished(finished, Output(as_json=False))
        told = capsys.readouterr()
        assert f"missing: point {point_id} of web, taken " in told.out
        assert "holdfast repo forget" in told.err
    taken.rename(manifest)
    assert holdfast.ended(start(holdfast.engine)).error is None
    manifest.unlink()
    actions = RepositoryActions(world, holdfast.engine)
    planned = actions.forget(operator_pb2.ForgetRequest(point_ids=[point_id], dry_run=True))
    assert list(planned.names) == [point_id]
    assert "it is not in the repository" in planned.plan[0]
    assert world.catalogue.points(), "that was a dry run"
    assert actions.forget(operator_pb2.ForgetRequest(point_ids=[point_id])).done
    assert not world.catalogue.points()
    assert holdfast.ended(start(holdfast.engine)).error is None


def test_a_manifest_that_cannot_be_read_is_not_forgotten_as_a_missing_one(
    holdfast: OneProcess,
) -> None:
    point_id = holdfast.back_up("web").point_id
    assert point_id is not None
    (manifest,) = (each for each in (holdfast.folder / "repository" / "points").rglob(point_id))
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes()[:-100] + bytes(100))
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    kept = actions.forget(operator_pb2.ForgetRequest(point_ids=[point_id]))
    assert (list(kept.names), kept.counts["kept"]) == ([], 1)
    assert "repair the repository first" in kept.plan[0]
    assert manifest.exists()
    assert holdfast.world.catalogue.points()


def test_an_index_object_that_cannot_be_used_is_named_in_what_a_prune_tells(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    forgotten_point(holdfast, lab)
    index = min((holdfast.folder / "repository" / "index").rglob("*"))
    index.chmod(0o600)
    index.write_bytes(index.read_bytes()[:-100] + bytes(100))
    name = str(index.relative_to(holdfast.folder / "repository"))
    for dry_run in (True, False):
        job = holdfast.ended(start(holdfast.engine, dry_run=dry_run))
        row = holdfast.world.prunes.of_job(job.job_id)
        assert job.error is None
        assert row is not None
        assert f"{name} is missing or cannot be used" in row.plan
        assert row.counts["refused_indexes"] == 1
        (warned,) = (each for each in job.warnings if each.code == "index")
        assert warned.message.startswith(name)
        assert "`holdfast repo repair`" in warned.message


def test_many_index_objects_are_told_by_some_names_and_their_number() -> None:
    refused = tuple(f"index/{number:032x}" for number in range(TOLD_MAX + 7))
    lines = prune_lines(PruneReport(refused_indexes=refused), dry_run=False)
    assert "and 7 more index objects" in lines
    assert sum(line.startswith("index/") for line in lines) == TOLD_MAX


def test_points_are_listed_while_nobody_can_say_which_are_held(
    holdfast: OneProcess,
) -> None:
    holdfast.back_up("web")
    repository = holdfast.folder / "repository"
    repository.rename(holdfast.folder / "elsewhere")
    points = PointActions(holdfast.world, holdfast.engine.care)
    listed = points.list_points(operator_pb2.PointQuery())
    assert [point.held for point in listed.points] == [False]
    assert listed.holds_problem.startswith("no_repository: ")
    shown = points.show_point(operator_pb2.PointName(point_id=listed.points[0].point_id))
    assert shown.holds_problem.startswith("no_repository: ")

"""Jobs over a real session: start, extents, keys, commit, result, cancel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.pipelines.context import JobContext
from holdfast_common.errors import Refused, RepositoryFull, TimedOut
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, JobId, LineageId, PointId, new_ulid
from holdfast_common.job_result import DamageFound, JobResult, Outcome, PointFound
from holdfast_common.job_spec import JobSpec
from support.session_rig import (
    ControllerRig,
    GatedPipeline,
    RecordingHandler,
    agent_rig,
    check_spec,
    controller_rig,
    done_at_once,
    new_attempt,
    patience,
)


@pytest.fixture(name="controller")
def listening_controller(tmp_path: Path) -> Iterator[ControllerRig]:
    with controller_rig(tmp_path / "controller") as rig:
        yield rig


def test_a_job_is_carried_out_and_its_result_acknowledged(
    controller: ControllerRig, tmp_path: Path
) -> None:
    with agent_rig(controller, tmp_path / "agent", done_at_once) as agent:
        [connected] = controller.sessions.connected()
        assert connected.agent_id == agent.agent_id
        assert connected.role == "proxy"
        assert connected.repositories == ("repository",)
        handler = RecordingHandler()
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert handler.has_finished.wait(30)
        assert [result.outcome for result in handler.results] == [Outcome.DONE]
        assert handler.results[0].started_at
        patience(lambda: not list((agent.places.agent_state / "attempts").iterdir()))
        assert not agent.daemon.runner.results()


def test_an_agent_that_is_away_gets_no_job(controller: ControllerRig) -> None:
    with pytest.raises(TimedOut, match="not connected"):
        controller.sessions.start(
            AgentId(new_ulid()), new_attempt(), check_spec(), RecordingHandler()
        )


def test_a_job_asks_for_extents_keys_and_tickets(controller: ControllerRig, tmp_path: Path) -> None:
    wanted = [Extent(offset=number * 131072, length=65536) for number in range(45_000)]
    seen: dict[str, object] = {}

    def ask(_spec: JobSpec, context: JobContext) -> JobResult:
        seen["extents"] = list(context.fetch_extents(2000))
        seen["keys"] = context.open_segment_keys([b"abc", b"def"])
        seen["ticket"] = context.renew_ticket(2000)
        try:
            context.open_segment_keys([])
        except Refused as error:
            seen["refused"] = error.message
        context.warn("odd", "something was odd")
        return JobResult(outcome=Outcome.DONE)

    with agent_rig(controller, tmp_path / "agent", ask) as agent:
        handler = RecordingHandler(disk_extents=wanted)
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert handler.has_finished.wait(30)
        [result] = handler.results
        assert result.error is None
        assert [warned.code for warned in result.warnings] == ["odd"]
        assert seen["extents"] == wanted
        assert seen["keys"] == [b"cba", b"fed"]
        assert seen["refused"] == "this kind of job gets no keys"


def test_nothing_is_committed_without_a_grant(controller: ControllerRig, tmp_path: Path) -> None:
    pipeline = GatedPipeline(commit=b"digest")
    pipeline.gate.set()
    with agent_rig(controller, tmp_path / "agent", pipeline) as agent:
        granting, refusing = (
            RecordingHandler(),
            RecordingHandler(grant_error=RepositoryFull("no room")),
        )
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), granting)
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), refusing)
        assert granting.has_finished.wait(30)
        assert refusing.has_finished.wait(30)
        assert granting.results[0].record == b"signed digest"
        error = refusing.results[0].error
        assert error is not None
        assert (error.code, refusing.results[0].outcome) == ("repository_full", Outcome.FAILED)


def test_progress_arrives_and_the_latest_wins(controller: ControllerRig, tmp_path: Path) -> None:
    pipeline = GatedPipeline()
    with agent_rig(controller, tmp_path / "agent", pipeline) as agent:
        handler = RecordingHandler()
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        patience(lambda: len(handler.progress) >= 2)
        pipeline.gate.set()
        assert handler.has_finished.wait(30)
        sequences = [report.sequence for report in handler.progress]
        assert sequences == sorted(set(sequences))


def test_a_cancelled_job_ends_as_cancelled(controller: ControllerRig, tmp_path: Path) -> None:
    pipeline = GatedPipeline()
    with agent_rig(controller, tmp_path / "agent", pipeline) as agent:
        handler, attempt = RecordingHandler(), new_attempt()
        controller.sessions.start(agent.agent_id, attempt, check_spec(), handler)
        assert pipeline.began.wait(30)
        controller.sessions.cancel(attempt)
        controller.sessions.cancel(attempt)
        assert handler.has_finished.wait(30)
        assert handler.results[0].outcome is Outcome.CANCELLED
        controller.sessions.cancel(attempt)


def test_errors_and_bugs_of_a_job_become_its_result(
    controller: ControllerRig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(spec: JobSpec, _context: JobContext) -> JobResult:
        if spec.run_id.endswith("0"):
            raise RepositoryFull("no room", free=0)
        raise ZeroDivisionError("oops")

    with agent_rig(controller, tmp_path / "agent", fail) as agent:
        full, bug = RecordingHandler(), RecordingHandler()
        base = new_ulid()[:-1]
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(base + "0"), full)
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(base + "1"), bug)
        assert full.has_finished.wait(30)
        assert bug.has_finished.wait(30)
        assert full.results[0].error is not None
        assert full.results[0].error.code == "repository_full"
        assert full.results[0].error.facts == (("free", "0"),)
        assert bug.results[0].error is not None
        assert bug.results[0].error.code == "failed"
        assert "ZeroDivisionError: oops" in bug.results[0].error.message
        assert "Traceback" in caplog.text


def test_a_stopped_agent_interrupts_its_jobs_and_tells(
    controller: ControllerRig, tmp_path: Path
) -> None:
    pipeline = GatedPipeline()
    with agent_rig(controller, tmp_path / "agent", pipeline) as agent:
        handler = RecordingHandler()
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert pipeline.began.wait(30)
        began = time.monotonic()
        agent.stop()
        assert time.monotonic() - began < 10
        assert handler.has_finished.wait(5)
        assert handler.results[0].outcome is Outcome.INTERRUPTED
        patience(lambda: not controller.sessions.connected())


def test_what_the_agent_reaches_is_told_anew_when_its_configuration_changes(
    controller: ControllerRig, tmp_path: Path
) -> None:
    pipeline = GatedPipeline()
    with agent_rig(controller, tmp_path / "agent", pipeline) as agent:
        handler = RecordingHandler()
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert pipeline.began.wait(30)
        text = agent.places.agent_configuration.read_text()
        agent.places.agent_configuration.write_text("broken =")
        agent.places.agent_configuration.write_text(text.replace("repository =", "another ="))
        patience(
            lambda: any(
                found.repositories == ("another",) for found in controller.sessions.connected()
            )
        )
        pipeline.gate.set()
        assert handler.has_finished.wait(30)
        assert handler.results[0].outcome is Outcome.DONE


def test_a_long_result_comes_in_parts_and_whole(controller: ControllerRig, tmp_path: Path) -> None:
    points = tuple(
        PointFound(
            point_id=PointId(f"p{number}"),
            job_id=JobId(new_ulid()),
            lineage_id=LineageId("l"),
            record=bytes([number % 251]) * 2000,
        )
        for number in range(3000)
    )
    damages = tuple(
        DamageFound(object_name=f"packs/{number}", problem="torn " * 100) for number in range(900)
    )
    ranges = tuple(Extent(offset=number << 20, length=131072) for number in range(60_000))
    damages += (
        DamageFound(
            object_name="points/p",
            problem="lost",
            point_id="p",
            device_key=2000,
            lost=ranges,
            ranges_left_out=7,
        ),
    )
    answer = JobResult(
        outcome=Outcome.DONE, points=points, damages=damages, objects_checked=7, record=b"r"
    )

    with agent_rig(controller, tmp_path / "agent", lambda _spec, _context: answer) as agent:
        handler = RecordingHandler()
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert handler.has_finished.wait(30)
        [result] = handler.results
        assert result.points == points
        assert result.damages == damages
        assert (result.objects_checked, result.record, result.outcome) == (7, b"r", Outcome.DONE)
        patience(lambda: not agent.daemon.runner.results())


def test_an_agent_at_work_reads_as_slowly_as_it_is_told(
    controller: ControllerRig, tmp_path: Path
) -> None:
    granted: list[int] = []

    def read(_spec: JobSpec, context: JobContext) -> JobResult:
        while len(granted) < 3:
            granted.append(context.pace(2000, 16 << 20))
            while granted == [16 << 20] and context.pace(2000, 16 << 20) == 16 << 20:
                context.check()
        return JobResult(outcome=Outcome.DONE)

    with agent_rig(controller, tmp_path / "agent", read) as agent:
        handler, attempt = RecordingHandler(), new_attempt()
        controller.sessions.start(agent.agent_id, attempt, check_spec(), handler)
        patience(lambda: granted)
        assert controller.sessions.limit(attempt, {2000: 8 << 20})
        assert handler.has_finished.wait(30)
        assert granted == [16 << 20, 2 << 20, 2 << 20]

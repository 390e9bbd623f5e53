"""The network or a side goes away, and comes back: nothing is done twice, nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from holdfast_agent.pipelines.context import JobContext
from holdfast_common.errors import HoldfastError, Refused, TimedOut
from holdfast_common.extents import Extent
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import JobSpec
from support.fault_proxy import FaultProxy, fault_proxy
from support.session_rig import (
    FAST,
    FAST_AGENT,
    AgentRig,
    ControllerRig,
    GatedPipeline,
    RecordingHandler,
    agent_rig,
    check_spec,
    controller_rig,
    new_attempt,
    patience,
)


@dataclass
class Link:
    """A controller, an agent that dials it through a bad network, and what the agent does."""

    controller: ControllerRig
    network: FaultProxy
    agent: AgentRig
    pipeline: GatedPipeline

    def restart_controller(self) -> None:
        self.controller.restart()
        self.network.retarget(self.controller.bound.session)


@pytest.fixture(name="link")
def linked(tmp_path: Path) -> Iterator[Link]:
    pipeline = GatedPipeline(commit=b"digest")
    with (
        controller_rig(tmp_path / "controller") as controller,
        fault_proxy(controller.bound.session) as network,
        agent_rig(controller, tmp_path / "agent", pipeline, session_port=network.port) as agent,
    ):
        yield Link(controller, network, agent, pipeline)
        pipeline.gate.set()


def test_a_cut_connection_does_not_disturb_a_job(link: Link) -> None:
    handler = RecordingHandler()
    link.controller.sessions.start(link.agent.agent_id, new_attempt(), check_spec(), handler)
    assert link.pipeline.began.wait(30)
    for _ in range(3):
        link.network.cut()
        patience(lambda: not link.agent.daemon.session.connected.is_set())
        link.agent.wait_connected()
    link.pipeline.gate.set()
    assert handler.has_finished.wait(30)
    assert handler.results[0].outcome is Outcome.DONE
    assert link.pipeline.runs == 1
    assert handler.losses == 0


def test_both_sides_notice_a_silent_network(link: Link) -> None:
    link.network.fall_silent()
    patience(lambda: not link.controller.sessions.connected(), seconds=15)
    patience(lambda: not link.agent.daemon.session.connected.is_set(), seconds=15)
    link.network.speak_again()
    link.agent.wait_connected()


def test_a_job_pauses_when_its_lease_is_over_and_goes_on_when_it_is_told_to(
    tmp_path: Path,
) -> None:
    pipeline, handler = GatedPipeline(), RecordingHandler()
    patient = replace(FAST, lost_after_lease=20.0)
    patient_agent = replace(FAST_AGENT, lease_wait=25.0)
    with (
        controller_rig(tmp_path / "controller", timing=patient) as controller,
        fault_proxy(controller.bound.session) as network,
        agent_rig(
            controller,
            tmp_path / "agent",
            pipeline,
            session_port=network.port,
            timing=patient_agent,
        ) as agent,
    ):
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        patience(lambda: pipeline.turns > 3)
        network.fall_silent()
        turns = [-1]

        def standing_still() -> bool:
            turns.append(pipeline.turns)
            threading.Event().wait(0.5)
            return pipeline.turns == turns[-1]

        patience(standing_still)
        network.speak_again()
        patience(lambda: pipeline.turns > turns[-1])
        pipeline.gate.set()
        assert handler.has_finished.wait(30)
        assert handler.results[0].outcome is Outcome.DONE
        assert (pipeline.runs, handler.losses) == (1, 0)


def test_a_job_with_a_longer_lease_works_on_through_a_longer_silence(link: Link) -> None:
    handler, pipeline = RecordingHandler(), link.pipeline
    link.controller.sessions.start(
        link.agent.agent_id, new_attempt(), check_spec(), handler, lease_seconds=120
    )
    patience(lambda: pipeline.turns > 3)
    link.network.fall_silent()
    usual = FAST.job_lease + FAST.lost_after_lease
    assert not handler.was_lost.wait(usual + 1)
    turns = pipeline.turns
    patience(lambda: pipeline.turns > turns)
    link.network.speak_again()
    pipeline.gate.set()
    assert handler.has_finished.wait(30)
    assert handler.results[0].outcome is Outcome.DONE
    assert (pipeline.runs, handler.losses) == (1, 0)


def test_an_attempt_that_is_away_too_long_is_lost_once_and_commits_nothing(link: Link) -> None:
    handler = RecordingHandler()
    attempt = new_attempt()
    link.controller.sessions.start(link.agent.agent_id, attempt, check_spec(), handler)
    assert link.pipeline.began.wait(30)
    link.network.fall_silent()
    assert handler.was_lost.wait(30)
    link.pipeline.gate.set()
    link.network.speak_again()
    patience(lambda: link.controller.orphans.results)
    [(lost, result)] = link.controller.orphans.results
    assert lost == attempt
    assert result.outcome is Outcome.INTERRUPTED
    assert result.error is not None
    assert result.error.code == "lease_expired"
    assert result.error.retryable
    assert (handler.losses, handler.grants, handler.results) == (1, [], [])
    patience(lambda: not link.agent.daemon.runner.results())
    with pytest.raises(Refused):
        link.controller.sessions.start(
            link.agent.agent_id, attempt, check_spec(), RecordingHandler()
        )
    again = RecordingHandler()
    link.controller.sessions.start(
        link.agent.agent_id, new_attempt(2, attempt.job_id), check_spec(), again
    )
    assert again.has_finished.wait(30)
    assert again.results[0].outcome is Outcome.DONE


def test_a_commit_is_asked_again_after_a_cut_and_gets_the_same_answer(link: Link) -> None:
    handler = RecordingHandler(hold_grant=threading.Event())
    link.controller.sessions.start(link.agent.agent_id, new_attempt(), check_spec(), handler)
    link.pipeline.gate.set()
    patience(link.agent.daemon.runner.pending_commits)
    link.network.cut()
    patience(lambda: not link.agent.daemon.session.connected.is_set())
    link.agent.wait_connected()
    assert handler.hold_grant is not None
    handler.hold_grant.set()
    assert handler.has_finished.wait(30)
    assert handler.results[0].record == b"signed digest"
    assert set(handler.grants) == {b"digest"}


def test_a_result_that_was_made_while_away_is_sent_at_the_next_welcome(tmp_path: Path) -> None:
    pipeline, handler = GatedPipeline(), RecordingHandler()
    with (
        controller_rig(tmp_path / "controller") as controller,
        fault_proxy(controller.bound.session) as network,
        agent_rig(controller, tmp_path / "agent", pipeline, session_port=network.port) as agent,
    ):
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert pipeline.began.wait(30)
        network.refuse(True)
        network.cut()
        patience(lambda: not agent.daemon.session.connected.is_set())
        pipeline.gate.set()
        patience(agent.daemon.runner.results)
        assert not handler.results
        network.refuse(False)
        assert handler.has_finished.wait(30)
        patience(lambda: not agent.daemon.runner.results())


@pytest.mark.parametrize(
    "error", [TimedOut("the database is busy"), HoldfastError("the database is broken")]
)
def test_a_result_is_acknowledged_only_when_it_is_kept(link: Link, error: HoldfastError) -> None:
    handler = RecordingHandler(finish_error=error)
    link.controller.sessions.start(link.agent.agent_id, new_attempt(), check_spec(), handler)
    link.pipeline.gate.set()
    patience(link.agent.daemon.runner.results)
    threading.Event().wait(0.5)
    assert link.agent.daemon.runner.results()
    handler.finish_error = None
    assert handler.has_finished.wait(30)
    patience(lambda: not link.agent.daemon.runner.results())
    assert len(handler.results) == 1


def test_after_the_controllers_restart_unknown_attempts_end(link: Link) -> None:
    handler = RecordingHandler()
    attempt = new_attempt()
    link.controller.sessions.start(link.agent.agent_id, attempt, check_spec(), handler)
    assert link.pipeline.began.wait(30)
    link.restart_controller()
    patience(lambda: link.controller.orphans.results)
    [(orphan, result)] = link.controller.orphans.results
    assert orphan == attempt
    assert result.outcome is Outcome.INTERRUPTED
    assert handler.results == []


def test_after_the_controllers_restart_a_granted_commit_may_end(tmp_path: Path) -> None:
    granted, publish = threading.Event(), threading.Event()

    def commit(_spec: JobSpec, context: JobContext) -> JobResult:
        grant = context.request_commit(b"digest")
        granted.set()
        assert publish.wait(30)
        context.check()
        return JobResult(outcome=Outcome.DONE, record=grant.signature)

    with (
        controller_rig(tmp_path / "controller") as controller,
        fault_proxy(controller.bound.session) as network,
        agent_rig(controller, tmp_path / "agent", commit, session_port=network.port) as agent,
    ):
        attempt = new_attempt()
        controller.sessions.start(agent.agent_id, attempt, check_spec(), RecordingHandler())
        assert granted.wait(30)
        controller.restart()
        network.retarget(controller.bound.session)
        agent.wait_connected()
        publish.set()
        patience(lambda: controller.orphans.results)
        assert controller.orphans.results[0][1].outcome is Outcome.DONE
        patience(lambda: not agent.daemon.runner.results())


def test_a_start_that_is_cut_off_is_sent_again(link: Link) -> None:
    handler = RecordingHandler()
    link.network.fall_silent()
    outcome: list[object] = []

    def start() -> None:
        try:
            link.controller.sessions.start(
                link.agent.agent_id, new_attempt(), check_spec(), handler
            )
            outcome.append("started")
        except TimedOut as error:
            outcome.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    threading.Event().wait(0.2)
    link.network.speak_again()
    thread.join(30)
    link.pipeline.gate.set()
    assert outcome == ["started"]
    assert handler.has_finished.wait(30)
    assert link.pipeline.runs == 1


def test_a_start_without_an_answer_fails_only_when_the_agent_cannot_be_at_work(link: Link) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    link.network.fall_silent()
    began = time.monotonic()
    with pytest.raises(TimedOut, match="did not answer"):
        link.controller.sessions.start(link.agent.agent_id, attempt, check_spec(), handler)
    assert time.monotonic() - began > FAST.job_lease + FAST.lost_after_lease - 0.1
    link.network.speak_again()
    link.agent.wait_connected()
    assert (link.pipeline.runs, handler.results, handler.losses) == (0, [], 0)


def test_a_cut_list_of_extents_goes_on_where_it_was(tmp_path: Path) -> None:
    wanted = [Extent(offset=number * 131072, length=65536) for number in range(100_000)]
    seen: list[Extent] = []
    half_way, go_on = threading.Event(), threading.Event()

    def read(_spec: JobSpec, context: JobContext) -> JobResult:
        for extent in context.fetch_extents(2000):
            seen.append(extent)
            if len(seen) == 1000:
                half_way.set()
                assert go_on.wait(30)
        return JobResult(outcome=Outcome.DONE)

    with (
        controller_rig(tmp_path / "controller") as controller,
        fault_proxy(controller.bound.session) as network,
        agent_rig(controller, tmp_path / "agent", read, session_port=network.port) as agent,
    ):
        handler = RecordingHandler(disk_extents=wanted)
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert half_way.wait(30)
        network.cut()
        go_on.set()
        assert handler.has_finished.wait(60)
        assert handler.results[0].outcome is Outcome.DONE
        assert seen == wanted

"""With the real timings: a network that falls silent is noticed by both sides within 30 s."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from holdfast_agent.daemon import DaemonTiming
from holdfast_common.job_result import Outcome
from holdfast_controller.service.session_timing import SessionTiming
from support.fault_proxy import fault_proxy
from support.session_rig import (
    GatedPipeline,
    RecordingHandler,
    agent_rig,
    check_spec,
    controller_rig,
    new_attempt,
    patience,
)

NOTICED_SECONDS_MAX = 30.0
LOST_SECONDS_MAX = 75.0  # lease 45 + 15, and the wait before the silence was noticed


@pytest.mark.long
def test_a_silent_network_is_noticed_within_30_s_and_the_job_comes_back_or_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, handler = GatedPipeline(), RecordingHandler()
    with (
        controller_rig(tmp_path / "controller", timing=SessionTiming()) as controller,
        fault_proxy(controller.bound.session) as network,
        agent_rig(
            controller,
            tmp_path / "agent",
            pipeline,
            session_port=network.port,
            timing=DaemonTiming(),
        ) as agent,
    ):
        controller.sessions.start(agent.agent_id, new_attempt(), check_spec(), handler)
        assert pipeline.began.wait(20)
        network.fall_silent()
        began = time.monotonic()
        noticed: dict[str, float] = {}

        def both_noticed() -> bool:
            now = time.monotonic() - began
            if not agent.daemon.session.connected.is_set():
                noticed.setdefault("agent", now)
            if not controller.sessions.connected():
                noticed.setdefault("controller", now)
            return len(noticed) == 2

        patience(both_noticed, seconds=NOTICED_SECONDS_MAX)
        assert handler.was_lost.wait(LOST_SECONDS_MAX)
        lost_after = time.monotonic() - began
        turns = pipeline.turns
        network.speak_again()
        patience(lambda: controller.orphans.results, seconds=60)
        assert controller.orphans.results[0][1].outcome is Outcome.INTERRUPTED
        assert pipeline.turns == turns
        assert 45 <= lost_after <= LOST_SECONDS_MAX
    with capsys.disabled():
        print(
            f"\nsilence noticed: agent {noticed['agent']:.1f} s, controller "
            f"{noticed['controller']:.1f} s; attempt lost after {lost_after:.1f} s"
        )

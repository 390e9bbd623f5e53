"""The agent's process is killed without warning; its successor tells what became of the jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast_common.job_result import Outcome
from support import agent_program
from support.fault_proxy import fault_proxy
from support.session_rig import (
    AgentRig,
    ControllerRig,
    RecordingHandler,
    check_spec,
    controller_rig,
    done_at_once,
    new_attempt,
    patience,
)

ROOT = Path(agent_program.__file__).parents[2]


@pytest.fixture(name="controller")
def listening_controller(tmp_path: Path) -> Iterator[ControllerRig]:
    with controller_rig(tmp_path / "controller") as rig:
        yield rig


@contextmanager
def process(home: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    folders = ("common", "agent", "controller", "tests")
    running = subprocess.Popen(
        [sys.executable, agent_program.__file__, str(home), str(folder)],
        env={**os.environ, "PYTHONPATH": ":".join(str(ROOT / name) for name in folders)},
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait(20)


def is_connected(controller: ControllerRig) -> bool:
    return bool(controller.sessions.connected())


def test_a_result_outlives_the_process_that_could_not_send_it(
    controller: ControllerRig, tmp_path: Path
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    home, work = tmp_path / "agent", tmp_path / "work"
    work.mkdir()
    with fault_proxy(controller.bound.session) as network:
        agent = AgentRig(controller, home, done_at_once, session_port=network.port)
        result_file = agent.places.agent_state / "attempts" / f"{attempt.job_id}-1.result"
        with process(home, work) as first:
            patience(lambda: is_connected(controller))
            controller.sessions.start(agent.agent_id, attempt, check_spec(), handler)
            patience((work / "began").exists)
            network.fall_silent()
            (work / "go").touch()
            patience(result_file.exists)
            first.kill()
            first.wait(20)
        assert not handler.results
        network.speak_again()
        with process(home, work):
            patience(lambda: handler.results or controller.orphans.results)
            patience(lambda: not result_file.exists())
    results = handler.results or [controller.orphans.results[0][1]]
    assert [(result.outcome, result.record) for result in results] == [
        (Outcome.DONE, b"from the first life")
    ]
    assert (work / "began").read_text().count("\n") == 1


def test_a_job_that_was_killed_counts_as_interrupted_at_once(
    controller: ControllerRig, tmp_path: Path
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    home, work = tmp_path / "agent", tmp_path / "work"
    work.mkdir()
    agent = AgentRig(controller, home, done_at_once)
    with process(home, work) as first:
        patience(lambda: is_connected(controller))
        controller.sessions.start(agent.agent_id, attempt, check_spec(), handler)
        patience((work / "began").exists)
        first.kill()
        first.wait(20)
    patience(lambda: not is_connected(controller))
    with process(home, work):
        assert handler.has_finished.wait(20) or handler.was_lost.is_set()
        if handler.was_lost.is_set():  # a busy machine; the attempt's end was told all the same
            patience(lambda: controller.orphans.results)
        again = RecordingHandler()
        (work / "go").touch()
        patience(lambda: is_connected(controller))
        controller.sessions.start(
            agent.agent_id, new_attempt(2, attempt.job_id), check_spec(), again
        )
        assert again.has_finished.wait(20)
    results = handler.results or [controller.orphans.results[0][1]]
    assert [result.outcome for result in results] == [Outcome.INTERRUPTED]
    assert again.results[0].outcome is Outcome.DONE

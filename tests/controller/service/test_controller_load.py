"""`make bench-controller`, with a few agents: it measures what it says, and tells what it could not measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.agent_processes import percentile
from benchmarks.controller_load import Figures

TESTS = Path(__file__).parents[2]
KEYS = ["agents", "memory", "p99", "reconnect", "transitions"]


def test_what_was_not_measured_is_not_met() -> None:
    goals = Figures().goals(1000)
    assert list(goals) == KEYS
    assert not any(goal["met"] for goal in goals.values())
    assert [goals[key]["figure"] for key in KEYS[1:]] == [None] * 4


def test_a_figure_is_met_only_within_its_goal() -> None:
    good = Figures(
        agents=1000, memory_mib=255, p99_ms=249, reconnect_seconds=29, transitions_per_second=100
    )
    assert all(goal["met"] for goal in good.goals(1000).values())
    bad = Figures(
        agents=999, memory_mib=256, p99_ms=250, reconnect_seconds=30, transitions_per_second=99.9
    )
    assert not any(goal["met"] for goal in bad.goals(1000).values())


def test_one_late_answer_of_a_hundred_shows_in_the_99th_percentile() -> None:
    assert percentile([0.001] * 99 + [1.0], 0.99) == 1.0
    assert percentile([0.001] * 199 + [1.0], 0.99) == 0.001


@pytest.mark.long
def test_fifty_enrolled_agents_are_heard_counted_and_back_after_a_crash(tmp_path: Path) -> None:
    agents = 50
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.controller_load", "--folder", str(tmp_path)),
            *("--agents", str(agents), "--seconds", "6", "--heartbeat-seconds", "1"),
        ],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    *told, last = done.stdout.splitlines()
    goals = json.loads(last)
    assert list(goals) == KEYS
    assert goals["agents"] == {"figure": agents, "goal": agents, "met": True}, done.stdout
    assert all(goals[key]["figure"] for key in KEYS), done.stdout
    assert goals["memory"]["met"], done.stdout
    assert any("a run of 1000 jobs: all queued" in line for line in told), done.stdout
    assert list(tmp_path.iterdir()) == []

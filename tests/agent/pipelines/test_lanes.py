"""Disks side by side: one after another in a lane, lanes at the same time, and what fails stops all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.lanes import in_lanes
from holdfast_common.errors import Cancelled, HoldfastError, Interrupted, SourceFailed
from support.agent_configurations import agent_configuration
from support.local_job_context import LocalJobContext, local_repository

SECONDS = 30.0


@pytest.fixture
def context(tmp_path: Path) -> LocalJobContext:
    return LocalJobContext(
        repository=local_repository(tmp_path / "repository"), configuration=agent_configuration()
    )


def test_lanes_run_side_by_side_and_the_results_are_in_the_order_of_the_disks(
    context: LocalJobContext,
) -> None:
    both = threading.Barrier(2, timeout=SECONDS)
    threads: dict[str, int] = {}

    def work(disk: str, _: JobContext) -> str:
        threads[disk] = threading.get_ident()
        if disk in ("a1", "b1"):
            both.wait()  # ends only when both lanes are at it
        return disk.upper()

    disks = [(0, "a1"), (3, "b1"), (0, "a2"), (3, "b2")]
    assert in_lanes(disks, work, context) == ["A1", "B1", "A2", "B2"]
    assert threads["a1"] == threads["a2"] == threading.get_ident()
    assert threads["b1"] == threads["b2"] != threads["a1"]


def test_one_lane_is_worked_on_by_the_jobs_own_thread(context: LocalJobContext) -> None:
    threads = in_lanes([(0, "a"), (0, "b")], lambda _disk, _context: threading.get_ident(), context)
    assert threads == [threading.get_ident()] * 2


@pytest.mark.parametrize("failing", ["a1", "b1"])
def test_what_fails_first_stops_the_other_lane_and_is_what_the_job_ends_with(
    context: LocalJobContext, failing: str
) -> None:
    both = threading.Barrier(2, timeout=SECONDS)
    stopped: list[HoldfastError] = []
    begun: list[str] = []

    def work(disk: str, lane: JobContext) -> str:
        begun.append(disk)
        both.wait()
        if disk == failing:
            raise SourceFailed("the disk cannot be read", disk=disk)
        try:
            while True:
                lane.check()
        except Interrupted as error:
            stopped.append(error)
            raise

    with pytest.raises(SourceFailed):
        in_lanes([(0, "a1"), (1, "b1"), (0, "a2"), (1, "b2")], work, context)
    assert [error.message for error in stopped] == ["another disk of this job failed"]
    assert sorted(begun) == ["a1", "b1"]


def test_every_lane_hears_that_the_job_must_stop(context: LocalJobContext) -> None:
    context.stop_with = Cancelled("stopped")
    context.stop_at_check = 2

    def work(_disk: str, lane: JobContext) -> None:
        while True:
            lane.pace(2000, 1 << 20)

    with pytest.raises(Cancelled):
        in_lanes([(0, "a"), (1, "b")], work, context)
    assert context.checks >= 3

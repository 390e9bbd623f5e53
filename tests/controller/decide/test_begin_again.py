"""When a VM whose backup brought no point is begun again in the same run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from holdfast_controller.decide.begin_again import (
    DOUBLED_MAX,
    ENDS_MAX,
    FIRST_PAUSE,
    EndedBackup,
    wait_before,
)
from holdfast_controller.decide.job_state import JobState

ENDED_AT = datetime(2026, 3, 2, 22, 30, tzinfo=UTC)
NONE = timedelta(0)


def ended(state: str, code: str = "", *, may_pass: bool = False) -> EndedBackup:
    return EndedBackup(state=JobState(state), finished_at=ENDED_AT, code=code, may_pass=may_pass)


FAILED = ended("failed", "vsphere_unavailable", may_pass=True)
STOPPED = ended("interrupted", "interrupted")


def test_what_failed_by_something_that_may_pass_waits_twice_as_long_after_each_failure() -> None:
    for failures in range(1, 10):
        wait = wait_before([FAILED] * failures, ENDED_AT)
        assert wait == FIRST_PAUSE * 2 ** min(failures - 1, DOUBLED_MAX)
    assert wait_before([FAILED], ENDED_AT + timedelta(minutes=10)) == timedelta(minutes=5)
    assert wait_before([FAILED], ENDED_AT + timedelta(hours=1)) == NONE


def test_failures_before_the_last_point_do_not_count() -> None:
    assert wait_before([FAILED, ended("done"), FAILED, FAILED], ENDED_AT) == FIRST_PAUSE


@pytest.mark.parametrize(
    "newest",
    [
        ended("done"),
        ended("partial", may_pass=True),
        ended("failed", "nothing_protected"),
        ended("cancelled", "cancelled"),
        ended("interrupted", "window_closed"),
    ],
    ids=lambda each: f"{each.state} {each.code}",
)
def test_nothing_else_is_begun_again(newest: EndedBackup) -> None:
    assert wait_before([newest, FAILED], ENDED_AT + timedelta(days=1)) is None


def test_what_was_stopped_goes_on_at_once_but_not_for_ever() -> None:
    assert wait_before([STOPPED, FAILED], ENDED_AT) == NONE
    assert wait_before([STOPPED] * ENDS_MAX, ENDED_AT) == NONE
    assert wait_before([STOPPED] * (ENDS_MAX + 2), ENDED_AT) == 2 * FIRST_PAUSE
    paused = ended("interrupted", "paused")
    assert wait_before([paused] * 20, ENDED_AT) == NONE


def test_a_clock_that_went_back_makes_nothing_wait() -> None:
    assert wait_before([FAILED], ENDED_AT - timedelta(days=400)) == NONE

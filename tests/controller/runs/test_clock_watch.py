"""Whether the clock is believed by what deletes: jumps, suspended machines, days in which nobody looked, and who confirms it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from holdfast_controller.runs import clock_watch
from holdfast_controller.runs.clock_watch import ClockWatch, accept_clock, clock_doubt
from holdfast_controller.runs.forget_by_policies import ForgetByPolicies
from holdfast_controller.runs.keeping_state import keeping_warnings
from support.kept_repositories import KeptRepository
from support.one_process import OneProcess
from support.repositories import FixedClock


class Watched:
    """A controller with a clock that a test moves, at first as right as the vCenter's."""

    def __init__(self, holdfast: OneProcess) -> None:
        self.clock = FixedClock()
        self.clock.moment = holdfast.world.clock.now()
        self.world = replace(holdfast.world, clock=self.clock)
        self.watch = ClockWatch(self.world)

    def look(self, *, wall: timedelta, passed: float) -> str:
        self.clock.moment += wall
        self.clock.seconds += passed
        self.watch.look()
        return clock_doubt(self.world)


@pytest.fixture
def watched(holdfast: OneProcess) -> Watched:
    found = Watched(holdfast)
    found.watch.look()
    return found


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No vCenter confirms anything."""
    monkeypatch.setattr(ClockWatch, "_is_confirmed", lambda _: False)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("jump", "said"),
    [
        (timedelta(days=400), "ahead by 400 days"),
        (timedelta(hours=-1), "back by 1:00:00"),
        (timedelta(minutes=6), "ahead by 0:06:00"),
        (timedelta(minutes=4), ""),
        (timedelta(0), ""),
    ],
)
def test_a_jump_is_found_beside_the_clock_that_never_goes_back(
    watched: Watched, jump: timedelta, said: str
) -> None:
    assert watched.look(wall=timedelta(seconds=15), passed=15) == ""
    found = watched.look(wall=timedelta(seconds=15) + jump, passed=15)
    assert said in found if said else found == ""
    assert watched.look(wall=timedelta(seconds=15), passed=15) == found, "it stays found"
    assert bool(found) == any("not believed" in text for text in keeping_warnings(watched.world))
    accept_clock(watched.world)
    assert watched.look(wall=timedelta(seconds=15), passed=15) == ""


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("away", "said"),
    [
        (timedelta(hours=3), ""),
        (timedelta(days=3), "was down for 3 days"),
        (timedelta(hours=-2), "went back by 2:00:00 while the controller was down"),
    ],
)
def test_after_a_restart_the_clock_is_compared_with_the_time_that_was_noted_last(
    watched: Watched, away: timedelta, said: str
) -> None:
    watched.clock.moment += away
    watched.clock.seconds = 5.0  # the machine was started anew
    watched.watch = ClockWatch(watched.world)
    found = watched.look(wall=timedelta(0), passed=0)
    assert said in found if said else found == ""
    again = ClockWatch(watched.world)
    again.look()
    assert clock_doubt(watched.world) == found, "another restart settles nothing"


def test_a_vcenter_whose_clock_says_the_same_settles_it_and_another_one_does_not(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = watched.look(wall=timedelta(days=2), passed=15)
    assert "ahead by" in ahead, "the lab's clock says otherwise"
    now = watched.clock.now() + timedelta(minutes=4)
    monkeypatch.setattr(clock_watch, "server_time", lambda _: now)
    assert watched.look(wall=timedelta(seconds=60), passed=60) == ""


@pytest.mark.usefixtures("alone")
def test_by_a_doubtful_clock_policies_drop_nothing_and_say_why(
    holdfast: OneProcess, watched: Watched
) -> None:
    kept = KeptRepository(holdfast)
    kept.policy("web", keep_last=1)
    old = kept.points(2)
    watched.look(wall=timedelta(days=400, seconds=15), passed=15)

    def dropped(*, accept: bool) -> tuple[set[str], str]:
        rows = holdfast.world.catalogue.points()
        found = ForgetByPolicies.of(holdfast.world, rows=rows, accept_clock=accept)
        plan = holdfast.engine.care.forget([], actor="anna", dry_run=True, choose=found.choose)
        return {item.name.rpartition("/")[2] for item in plan.forgotten}, found.clock_problem

    names, why = dropped(accept=False)
    assert (names, "400 days" in why) == (set(), True)
    assert dropped(accept=True) == ({old[0]}, "")

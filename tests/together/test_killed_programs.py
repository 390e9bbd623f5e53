"""SIGKILL at every step of a backup, a restore to a new VM and a restore in place; then a restart.

Afterwards vSphere is asked what is left of ours, everything else must be as it was, the job has ended as
what it was, every committed point is known, and the next job of the kind succeeds and is right.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from support.killing import KillRig, kill_rig
from support.killing_judge import differences
from support.killing_scenarios import Scenario, all_scenarios
from support.killing_steps import (
    Kill,
    cut_off,
    may_not_come,
    planned_kills,
    shared_trace,
    some_kills,
)
from support.killing_summary import PROPERTY, KillTally
from support.traced_steps import Step

SEED = os.environ.get("HOLDFAST_KILL_SEED", "1")
HELD_LOOKS = 6  # half a second apart: a reconciler that did not wait would be through by then
TRIES = 3  # a step that depends on timing is not reached every time
SCENARIOS = {scenario.name: scenario for scenario in all_scenarios()}
FEW = ("backup, hotadd", "new VM, direct", "in place, direct")  # for the short test
PARTS = {
    "backup, direct": 4,
    "new VM, direct": 4,
    "in place, direct": 6,
    "new VM, hotadd": 2,
    "in place, hotadd": 2,
}


class Rigs:
    """One installation for all tests of this process; a new one after one that cannot be mended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._rig: KillRig | None = None
        self._number = 0
        self.scenarios: dict[str, Scenario] = {}

    def ready(self) -> KillRig:
        if self._rig is None:
            self._number += 1
            self.scenarios = {scenario.name: scenario for scenario in all_scenarios()}
            self._rig = self._stack.enter_context(kill_rig(self._folder / f"rig{self._number}"))
        return self._rig

    def mend(self) -> None:
        try:
            self.ready().make_whole()
        except Exception:  # noqa: BLE001 - whatever it is, a new one is better
            self.close()

    def close(self) -> None:
        self._stack.close()
        self._rig = None


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    found = Rigs(tmp_path_factory.mktemp("killed"))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """A folder that all processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"traces-{testrun_uid}"


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[KillTally]:
    """Told with all others' at the end of the run."""
    found = KillTally()
    yield found
    record_property(PROPERTY, found.facts())


def carried_out(rigs: Rigs, name: str, kill: Kill, tally: KillTally) -> list[str]:
    """One kill; what was wrong afterwards."""
    tally.steps += 1
    try:
        for _ in range(TRIES):
            done = cut_off(rigs.ready(), rigs.scenarios[name], kill)
            tally.foreign_calls += done.foreign_calls
            if done.reached:
                tally.killed += 1
                tally.left += bool(done.left)
                return done.left
        if may_not_come(kill.step):
            tally.steps -= 1
            tally.planned -= 1
            return []
        return ["the step was not reached"]
    except Exception as error:  # noqa: BLE001 - told as what went wrong at this step; the others are tried
        tally.left += 1
        logs = rigs.ready().logs()
        rigs.mend()
        return [f"{type(error).__name__}: {error}{logs}"]


def assert_nothing_is_left(rigs: Rigs, name: str, kills: list[Kill], tally: KillTally) -> None:
    problems = []
    for kill in kills:
        wrong = carried_out(rigs, name, kill, tally)
        problems += [f"{name}: {kill}: {each}" for each in wrong]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", FEW)
def test_a_few_steps_killed_leave_nothing(
    rigs: Rigs, traces: Path, tally: KillTally, name: str
) -> None:
    rig = rigs.ready()
    steps = shared_trace(rig, rigs.scenarios[name], traces)
    tally.traced = len(steps)
    tally.planned = len(planned_kills(steps, known=frozenset()))
    chance = random.Random(f"{SEED} {name}")
    assert_nothing_is_left(rigs, name, some_kills(steps, chance=chance, count=2), tally)


def test_a_call_about_what_is_not_ours_would_be_counted(rigs: Rigs) -> None:
    rig = rigs.ready()
    kept, before = rig.foreign, rig.foreign_calls
    moref = rig.judge.make_snapshot("vault", name="holdfast 01CONTROL", description="nonce=0")
    look, since = rig.look(), rig.lab_events()
    rig.foreign = replace(kept, snapshots=(moref,))
    try:
        rig.judge.remove_snapshot(moref)
        told = rig.left(look, since=since)
    finally:
        rig.foreign, rig.foreign_calls = kept, before
    assert any("RemoveSnapshot_Task" in each for each in told), told


@pytest.mark.long
def test_nothing_is_given_back_while_an_agent_that_was_told_to_stop_still_has_its_disks(
    rigs: Rigs, traces: Path
) -> None:
    rig = rigs.ready()
    scenario = rigs.scenarios["backup, hotadd"]
    shared_trace(rig, scenario, traces)
    scenario.prepare(rig)
    before, since, last = rig.look(), rig.lab_events(), rig.last_run()
    rig.plan.arm(Step("agent", "put packs, before", 1))
    scenario.start(rig)
    assert rig.wait_for_step(last, or_else=lambda: False)
    rig.plan.disarm()
    lent = rig.look()
    assert differences(before, lent)
    rig.kill("controller")
    rig.restart("controller")
    for _ in range(HELD_LOOKS):
        time.sleep(0.5)
        assert not differences(lent, rig.look())
    rig.plan.let_go()
    assert not rig.left(before, since=since)
    assert rig.job(rig.last_run()).state == "interrupted"
    scenario.next_run(rig)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("name", "part"),
    [(name, part) for name in SCENARIOS for part in range(PARTS.get(name, 1))],
)
def test_every_step_killed_leaves_nothing(
    rigs: Rigs, traces: Path, tally: KillTally, name: str, part: int
) -> None:
    rig = rigs.ready()
    scenario = rigs.scenarios[name]
    known: set[str] = set()
    for other in SCENARIOS.values():
        if other.name == name:
            break
        if other.family == scenario.family:
            trace = shared_trace(rig, rigs.scenarios[other.name], traces)
            known |= {step.name for step in trace}
    steps = shared_trace(rig, scenario, traces)
    parts = PARTS.get(name, 1)
    tally.traced = len(steps[part::parts])
    kills = planned_kills(steps, known=frozenset(known))[part::parts]
    tally.planned = len(kills)
    assert_nothing_is_left(rigs, name, kills, tally)

"""Random kills and faults for a while: ``make soak SECONDS=600 SEED=1``.

Each seed is one job that is cut off: which job, at which step, who is killed, whether somebody is killed
again while the first kill is looked after, and what else goes wrong in vSphere meanwhile. A seed that
fails is tried again with ``SEED=<it> SECONDS=1``. The sums of all soaks are kept in pytest's cache.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.killing import KillRig, kill_rig
from support.killing_scenarios import Scenario, all_scenarios
from support.killing_steps import BOTH, OTHER, Kill, cut_off, traced
from support.killing_summary import KillTally
from support.traced_steps import ANY, Step

SECONDS = float(os.environ.get("HOLDFAST_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("HOLDFAST_SOAK_SEED", "1"))
CACHE = "holdfast/soak"
ACCOUNT = "administrator@vsphere.local"
RECOVERY_STEPS_MAX = 60
FAULTS = ("lost_reply", "lost_request", "unavailable", "expire_session")
CALLS = ("*_Task", "RetrievePropertiesEx", "WaitForUpdatesEx", "HttpNfcLease*", "*")


@dataclass(frozen=True)
class Round:
    """What one seed comes to."""

    scenario: Scenario
    kill: Kill
    again: Kill | None
    fault: dict[str, object]

    def __str__(self) -> str:
        told = [self.scenario.name, str(self.kill)]
        told += [f"then {self.again}"] if self.again else []
        told += (
            [f"{self.fault['kind']} {self.fault['match']} {self.fault['nth']}"]
            if self.fault
            else []
        )
        return ", ".join(told)


def drawn(seed: int, traces: dict[str, list[Step]], scenarios: list[Scenario]) -> Round:
    chance = random.Random(seed)
    scenario = chance.choice(scenarios)
    steps = traces[scenario.name]
    step = chance.choice(steps)
    number = sum(1 for each in steps[: steps.index(step) + 1] if each.program == step.program)
    again = None
    if chance.random() < 0.4:
        later = Step(chance.choice(BOTH), ANY, chance.randint(1, RECOVERY_STEPS_MAX))
        again = Kill(later, victims(later, chance))
    fault: dict[str, object] = {}
    if chance.random() < 0.4:
        fault = {
            "kind": chance.choice(FAULTS),
            "match": {"user": ACCOUNT, "method": chance.choice(CALLS)},
            "nth": chance.randint(1, 20),
        }
    # by number, not by name: it is there whatever a fault does to the order of things
    counted = Step(step.program, ANY, number)
    return Round(scenario, Kill(counted, victims(counted, chance)), again, fault)


def victims(step: Step, chance: random.Random) -> tuple[str, ...]:
    return chance.choice([(step.program,), BOTH, (OTHER[step.program],)])


def carried_out(rig: KillRig, seed: int, each: Round, tally: KillTally) -> None:
    if each.fault:
        rig.lab.call("misbehave", **each.fault)

    def peace() -> None:
        rig.lab.call("misbehaviour-disarm")

    try:
        done = cut_off(rig, each.scenario, each.kill, again=each.again, peace=peace)
    except BaseException:
        print(f"soak: seed {seed} FAILED: {each}{rig.logs()}", flush=True)
        raise
    tally.steps += 1
    tally.killed += done.reached
    tally.left += bool(done.left)
    print(f"soak: seed {seed}: {each}: {done.state or 'not begun'}, left {done.left}", flush=True)
    assert not done.left, f"seed {seed}: {each}: {done.left}"


@pytest.mark.timeout(0)
def test_random_kills_and_faults(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cache: pytest.Cache = request.config.cache
    tally = KillTally()
    until = time.monotonic() + SECONDS
    seed = SEED
    try:
        with kill_rig(tmp_path / "rig") as rig:
            scenarios = all_scenarios()
            traces = {each.name: traced(rig, each) for each in scenarios}
            tally.traced = sum(map(len, traces.values()))
            while time.monotonic() < until or seed == SEED:
                carried_out(rig, seed, drawn(seed, traces, scenarios), tally)
                seed += 1
    finally:
        sums = cache.get(CACHE, {"steps": 0, "killed": 0, "left": 0})
        sums = {name: count + getattr(tally, name) for name, count in sums.items()}
        cache.set(CACHE, sums)
        told = " ".join(f"{name} {count}" for name, count in sums.items())
        print(
            f"soak: seeds {SEED} to {seed - 1}: steps {tally.steps} killed {tally.killed}"
            f" left {tally.left}; all soaks so far: {told}; go on with SEED={seed}",
            flush=True,
        )

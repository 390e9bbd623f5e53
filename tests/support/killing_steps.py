"""Which steps are killed, who is killed there, and one kill from its beginning to the next run's end."""

from __future__ import annotations

import fcntl
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from holdfast_common.errors import HoldfastError
from support.killing import JOB_SECONDS, KillRig
from support.killing_scenarios import Scenario
from support.traced_steps import Step

OTHER = {"agent": "controller", "controller": "agent"}
BOTH = ("agent", "controller")
# They change nothing outside, come in dozens, and in an order that differs from run to run.
READS = ("RetrieveProperties", "ContainerView", "DestroyView", "SearchDatastore", "QueryChanged")
RESTLESS = ("Filter", "WaitForUpdates", "PropertyCollector", "CurrentTime", "LeaseProgress")
WRITES = ("disk write",)
TIMED = ("LeaseProgress",)  # made by a timer, if a transfer takes long enough
SECOND_SECONDS_MAX = 20.0
OTHER_ONE_IN = 4  # of the steps with effects, so many are also met by the other program's death


@dataclass(frozen=True)
class Kill:
    """A step, and the programs that are killed when it is reached."""

    step: Step
    victims: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' and '.join(self.victims)} killed at {self.step}"


@dataclass(frozen=True)
class CutOff:
    """What came of one kill. ``reached`` False: the job ended before the step, nobody was killed."""

    reached: bool
    state: str
    left: list[str]
    foreign_calls: int


class Starting:
    """A start that may not come back: the controller can be killed while it plans."""

    def __init__(self, start: Callable[[], str]) -> None:
        self._refused = threading.Event()

        def work() -> None:
            try:
                start()
            except HoldfastError:
                self._refused.set()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def refused(self) -> bool:
        """Whether there will be no run."""
        return self._refused.is_set()

    def wait(self) -> None:
        self._thread.join(JOB_SECONDS)
        assert not self._thread.is_alive(), "the start does not come back"


def traced(rig: KillRig, scenario: Scenario) -> list[Step]:
    """The steps of one whole job, after one that made everything warm."""
    scenario.prepare(rig)
    scenario.next_run(rig)
    scenario.prepare(rig)
    before, since = rig.look(), rig.lab_events()
    rig.plan.arm()
    job = rig.done(scenario.start(rig))
    rig.plan.disarm()
    steps = rig.plan.steps()
    left = rig.left(before, since=since, exchanged=scenario.exchanged, made=scenario.restored)
    assert not left, left
    scenario.after(rig, job)
    return steps


def cut_off(
    rig: KillRig,
    scenario: Scenario,
    kill: Kill,
    *,
    again: Kill | None = None,
    peace: Callable[[], object] = bool,
) -> CutOff:
    """Kill when the step is reached, start again, look at everything, and run the next job.

    ``again``: a second kill, while what the first one left is looked after. ``peace``: called before
    the look, to end whatever else goes wrong.
    """
    scenario.prepare(rig)
    before, since, last = rig.look(), rig.lab_events(), rig.last_run()
    foreign_before = rig.foreign_calls
    rig.plan.arm(kill.step)
    starting = Starting(lambda: scenario.start(rig))
    reached = rig.wait_for_step(last, or_else=starting.refused)
    rig.plan.disarm()
    if reached:
        rig.kill(*kill.victims)
        rig.plan.let_go()
        if again is not None:
            _kill_again(rig, kill, again)
        else:
            rig.restart(*kill.victims)
    starting.wait()
    peace()
    left = rig.left(before, since=since, exchanged=scenario.exchanged, made=scenario.restored)
    run = rig.last_run()
    job = rig.job(run) if run != last else None
    if job is not None:
        scenario.after(rig, job)
    scenario.next_run(rig)
    return CutOff(
        reached=reached,
        state="" if job is None else job.state,
        left=left,
        foreign_calls=rig.foreign_calls - foreign_before,
    )


def _kill_again(rig: KillRig, first: Kill, again: Kill) -> None:
    rig.plan.arm(again.step)
    rig.start(*first.victims)
    reached = rig.wait_for_step_or_peace(SECOND_SECONDS_MAX)
    rig.plan.disarm()
    if reached:
        rig.kill(*again.victims)
        rig.plan.let_go()
        rig.start(*again.victims)
    rig.wait_connected()


def planned_kills(steps: Sequence[Step], *, known: frozenset[str]) -> list[Kill]:
    """Every step once, with its own program killed, at every second effect with the other one as well.

    Left out: kinds of step that ``known`` has. Calls that read are killed at the first, second and last of
    their kind, writes to a disk at the first, second and middle one (how many there are differs between
    points), calls about tasks under way at the first.
    """
    last: dict[tuple[str, str], int] = {}
    for step in steps:
        key = (step.program, step.name)
        last[key] = max(last.get(key, 0), step.occurrence)
    kills = []
    effects = 0
    for step in steps:
        if step.name in known or not _is_chosen(step, last[step.program, step.name]):
            continue
        if _is_any(step, READS) or _is_any(step, RESTLESS):
            kills.append(Kill(step, (step.program,)))
            continue
        effects += 1
        kills.append(Kill(step, BOTH if effects % 2 else (step.program,)))
        if effects % OTHER_ONE_IN == 0:
            kills.append(Kill(step, (OTHER[step.program],)))
    return kills


def may_not_come(step: Step) -> bool:
    """Whether a run without that step is right too: a quick machine makes no such call."""
    return _is_any(step, TIMED)


def effects_of(steps: Sequence[Step]) -> list[Step]:
    """What is worth a choice of a few: no calls that only read."""
    return [step for step in steps if not _is_any(step, (*READS, *RESTLESS))]


def some_kills(steps: Sequence[Step], *, chance: random.Random, count: int) -> list[Kill]:
    """A few, any of them, whoever is killed."""
    chosen = chance.sample(effects_of(steps), count)
    return [
        Kill(step, chance.choice([(step.program,), BOTH, (OTHER[step.program],)]))
        for step in chosen
    ]


def _is_any(step: Step, words: tuple[str, ...]) -> bool:
    return any(word in step.name for word in words)


def _is_chosen(step: Step, last: int) -> bool:
    if _is_any(step, RESTLESS):
        return step.occurrence == 1
    if _is_any(step, WRITES):
        return step.occurrence in (1, 2, last // 2)
    return not _is_any(step, READS) or step.occurrence in (1, 2, last)


def shared_trace(rig: KillRig, scenario: Scenario, folder: Path) -> list[Step]:
    """The same trace for all processes of a test run: the first that needs it makes it."""
    path = folder / f"{scenario.name}.json"
    with _locked(folder / f"{scenario.name}.lock"):
        if not path.exists():
            path.write_text(json.dumps([asdict(step) for step in traced(rig, scenario)]))
        return [Step(**each) for each in json.loads(path.read_text())]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

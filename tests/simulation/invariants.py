"""What must hold of a seed when faults have stopped and everything that was begun has ended (I1 to I11 of the design).

I1 and I2: every point restores to what the guest had written. I4: one commit for each job. I5: nothing of ours is left.
I6: nothing foreign was touched (asked at every call, by `virtual_effects`). I7: everything ends. I9: the catalogue is what the
repository holds. I10: the audit trail is whole. I11: never more streams than allowed, in all and at one proxy.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from holdfast_controller.decide.job_state import ENDED, TRANSITIONS, JobState
from simulation.virtual_repository import Manifest
from simulation.virtual_time import Violation
from simulation.virtual_vms import VirtualVm

if TYPE_CHECKING:
    from simulation.simulation import Simulation

GOOD = (JobState.DONE, JobState.PARTIAL)
_EDGES = frozenset((before, after) for (before, _), after in TRANSITIONS.items())
ATTEMPTS_MAX = 2
TOLD: Final = {
    "keeping kept what is held": "held: a test",
    "a prune waited for writers": "waiting for writers at work",
    "a prune waited for its grace time": "waiting for the grace time",
}


def unsettled(simulation: Simulation) -> str:
    """What has not come to its end yet; empty: nothing."""
    world, link = simulation.controller.world, simulation.controller.link
    if not simulation.controller.is_up or world is None or link is None:
        return "no controller is up"
    if world.stopping.is_set():
        return "the controller is stopping"
    if len(link.connected()) < len(simulation.agents.all):
        return "an agent is not connected"
    ask = simulation.connection.execute
    ended = tuple(str(each) for each in sorted(ENDED))
    marks = ",".join("?" * len(ended))
    jobs = ask(f"SELECT job_id, state FROM jobs WHERE state NOT IN ({marks})", ended).fetchall()
    if jobs:
        return f"jobs go on: {jobs}"
    entries = ask("SELECT kind, state, last_error FROM ledger WHERE state != 'gone'").fetchall()
    if entries:
        return f"the ledger is open: {entries}"
    for agent in simulation.agents.all:
        if agent.works:
            return f"{agent.host_name} is at work"
    missing = _visible(simulation) - _catalogued(simulation)
    if missing:
        return f"points that the catalogue lacks: {sorted(missing)}"
    return ""


def check_at_rest(simulation: Simulation) -> int:
    """Everything, once it has settled; how many restores were compared. Raises: Violation."""
    for vm in simulation.model.vms.values():
        _check_nothing_left(vm)
    _check_stories(simulation)
    lost = _catalogued(simulation) - _visible(simulation)
    if lost:
        raise Violation(f"the catalogue knows points that are not there: {sorted(lost)}")
    world = simulation.controller.world
    assert world is not None
    broken = world.audit.first_broken()
    if broken is not None:
        raise Violation(f"the audit trail is broken at {broken}")
    return sum(_check_point(simulation, each) for each in simulation.agents.repository.visible())


def check_last_backups(simulation: Simulation, started: list[str], wanted: list[str]) -> None:
    """After faults every VM can be backed up. Raises: Violation."""
    if len(started) != len(wanted):
        raise Violation(f"of {wanted} only {len(started)} backups could be asked for")
    for job_id in started:
        row = simulation.connection.execute(
            "SELECT subject, state, error FROM jobs WHERE job_id = ?", (job_id,)
        ).fetchone()
        if row[1] not in GOOD:
            raise Violation(f"the last backup of {row[0]} is {row[1]}: {row[2]}")


def transitions(simulation: Simulation) -> Counter[str]:
    """How often a job went from one state to another."""
    found: Counter[str] = Counter()
    for states in _stories(simulation).values():
        found.update(f"{before} -> {after}" for before, after in pairwise(states))
    return found


def kept_for_reasons(simulation: Simulation) -> Counter[str]:
    """How often keeping told why it did not go on: for a hold, a reader, a writer, the grace time or the clock."""
    texts = [
        str(row[0])
        for row in simulation.connection.execute(
            "SELECT detail FROM job_events WHERE event = 'kept' UNION ALL SELECT plan FROM prunes"
            " UNION ALL SELECT problem FROM prunes UNION ALL SELECT error FROM jobs"
        )
    ]
    return Counter({name: sum(words in text for text in texts) for name, words in TOLD.items()})


def story(simulation: Simulation) -> str:
    """Everything that was written of jobs, as text: two runs of a seed have the same."""
    rows = simulation.connection.execute(
        "SELECT job_id, at, event, detail FROM job_events ORDER BY event_id"
    ).fetchall()
    return json.dumps(rows)


def _visible(simulation: Simulation) -> set[str]:
    return {each.point_id for each in simulation.agents.repository.visible()}


def _catalogued(simulation: Simulation) -> set[str]:
    return {str(row[0]) for row in simulation.connection.execute("SELECT point_id FROM points")}


def _check_nothing_left(vm: VirtualVm) -> None:
    ours = [each.name for each in vm.snapshots if each.ours]
    if ours:
        raise Violation(f"{vm.name} still has our snapshots: {ours}")
    if vm.attached:
        raise Violation(f"{vm.name} still has disks that we attached")
    if vm.consolidation_needed:
        raise Violation(f"the disks of {vm.name} still need consolidation")
    depth = _depth(vm)
    for disk in vm.disks:
        if len(disk.tip.links()) - 1 > depth:
            raise Violation(f"{vm.name} stands on {len(disk.tip.links())} links")


def _depth(vm: VirtualVm) -> int:
    depth, current = 0, vm.current
    while current is not None:
        depth, current = depth + 1, current.parent
    return depth


def _stories(simulation: Simulation) -> dict[str, list[str]]:
    states = {str(each) for each in JobState}
    found: dict[str, list[str]] = {}
    for job_id, event in simulation.connection.execute(
        "SELECT job_id, event FROM job_events ORDER BY event_id"
    ):
        if event in states:
            found.setdefault(str(job_id), []).append(str(event))
    return found


def _check_stories(simulation: Simulation) -> None:
    rows = simulation.connection.execute(
        "SELECT job_id, state, attempt, point_id, kind FROM jobs"
    ).fetchall()
    stories = _stories(simulation)
    for job_id, state, attempt, point_id, kind in rows:
        states = [JobState(each) for each in stories.get(job_id, [])]
        for before, after in pairwise(states):
            if (before, after) not in _EDGES:
                raise Violation(f"job {job_id} went from {before} to {after}: {states}")
        if states and states[-1] != state:
            raise Violation(f"job {job_id} is {state}, and its story ends as {states[-1]}")
        if attempt > ATTEMPTS_MAX:
            raise Violation(f"job {job_id} was tried {attempt} times")
        if kind != "backup":
            continue
        committed = simulation.agents.repository.of_job(job_id)
        if len(committed) > 1:
            raise Violation(f"job {job_id} has {len(committed)} points")
        if state in GOOD and [each.record.point_id for each in committed] != [point_id]:
            raise Violation(f"job {job_id} is {state}, and its point is {point_id!r}")
    if simulation.agents.most_at_once > simulation.agents.limit_at_once:
        raise Violation(f"{simulation.agents.most_at_once} streams at once")
    if simulation.agents.most_of_one > simulation.agents.limit_of_one:
        raise Violation(f"{simulation.agents.most_of_one} streams at once at one proxy")


def _check_point(simulation: Simulation, found: Manifest) -> int:
    """Whether a point is what the guest had written when its snapshot was taken. Raises: Violation."""
    record = found.record
    if not simulation.agents.repository.is_there(found):
        raise Violation(f"point {record.point_id} lacks blocks")
    moments = [
        each
        for each in simulation.model.truths.get(record.job_id, ())
        if _same_moment(each.created_at.isoformat(), record.snapshot_at)
    ]
    if len(moments) != 1:
        raise Violation(f"point {record.point_id} is of no snapshot: {record.snapshot_at}")
    truth = {each.disk.key: each.truth for each in moments[0].disks}
    if set(truth) != set(found.disks):
        raise Violation(f"point {record.point_id} has other disks than the VM had")
    unproven = found.allocated if "C7" in simulation.scenario.lies else frozenset()
    for key, content in found.disks.items():
        if key not in unproven and content != truth[key]:
            wrong = [n for n, value in enumerate(truth[key]) if content[n] != value]
            raise Violation(
                f"point {record.point_id} of {record.vm_name} ({record.level}:"
                f" {record.disk(key).level_reason if record.disk(key) else ''}) differs in {wrong}"  # type: ignore[union-attr]  # it is there
            )
    return len(truth) - len(unproven)


def _same_moment(first: str, second: str) -> bool:
    return first.replace("+00:00", "Z")[:26] == second[:26]

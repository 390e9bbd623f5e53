"""What `holdfast plan` foretells is what the controller's own scheduler and dispatcher then do, decision by decision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_controller.configuration import StreamLimits
from holdfast_controller.decide.plan import Act
from holdfast_controller.decide.policy import LevelRule, Policy
from holdfast_controller.runs.planning import plan_of
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.virtual_nights import virtual_nights

NAMES = tuple(f"vm{number}" for number in range(8))
DAYS = 3
COMPARED = frozenset({Act.DUE, Act.BEGIN, Act.END, Act.STOP, Act.UNBEGUN, Act.LEFT_OUT})


def stores_of(number: int) -> tuple[str, ...]:
    """The last one has disks for two lanes."""
    shared = "nfs1" if number % 2 else "nfs2"
    return (shared, "vmfs1") if number == len(NAMES) - 1 else (shared,)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    machines = [
        MachinePlan(
            name=name,
            datastore="nfs1" if number % 2 else "nfs2",
            disks=tuple(
                DiskPlan(size_bytes=1 << 16, datastore=store) for store in stores_of(number)
            ),
        )
        for number, name in enumerate(NAMES)
    ]
    machines.append(MachinePlan(name="proxy", datastore="vmfs1", disks=()))
    plan = InventoryPlan(machines=tuple(machines))
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab) -> Iterator[OneProcess]:
    limits = StreamLimits(each_datastore=1)
    with one_process(tmp_path / "holdfast", lab, backups_at_once_max=3, limits=limits) as ready:
        yield ready


def seconds_of(**slower: float) -> dict[str, tuple[float, float]]:
    """Of incrementals and fulls; `vm3=2.0` is twice as slow."""
    return {
        name: (
            (1501.0 + 607 * number) * slower.get(name, 1.0),
            (4003.0 + 509 * number) * slower.get(name, 1.0),
        )
        for number, name in enumerate(NAMES)
    }


def policies() -> list[Policy]:
    return [
        Policy(
            name="gold",
            vms=("vm*",),
            exclude=("vm7",),
            start="0 22 * * *",
            window="mon-sun 22:00-00:30",
            level=LevelRule(full_days=2),
        ),
        Policy(
            name="silver",
            vms=("vm6", "vm7"),
            start="30 22 * * *",
            window="mon-sun 22:00-06:00",
            priority=70,
            lanes=2,
        ),
    ]


def foretold(
    holdfast: OneProcess, begin: datetime, seconds: dict[str, tuple[float, float]]
) -> list[str]:
    known = {each.vm.name: each for each in holdfast.world.vcenters.inventory.vms()}
    history = {
        (known[name].vcenter_id, known[name].vm.instance_uuid, level): each[place]
        for name, each in seconds.items()
        for place, level in enumerate(("incremental", "full"))
    }
    world = replace(holdfast.world, runs=_Lengths(history))  # type: ignore[arg-type]  # all that a plan asks of it
    plan = plan_of(world, days=DAYS, now=begin)
    return sorted(each.line() for each in plan.decisions if each.act in COMPARED)


class _Lengths:
    """In place of the runs' table: how long backups took."""

    def __init__(self, history: dict[tuple[str, str, str], float]) -> None:
        self._history = history

    def backup_seconds(self, _: datetime) -> dict[tuple[str, str, str], float]:
        return self._history


def test_three_nights_are_foretold_to_the_second_and_no_longer_once_a_vm_is_twice_as_slow(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for policy in policies():
        holdfast.world.policies.create(policy, actor="anna")
    begin = (datetime.now(UTC) + timedelta(days=1)).replace(
        hour=12, minute=0, second=0, microsecond=0
    )
    planned = foretold(holdfast, begin, seconds_of())
    slower = foretold(holdfast, begin, seconds_of(vm3=2.0))
    acts = {line.split("\t")[1] for line in planned}
    assert acts == {str(act) for act in COMPARED}, "the nights are too quiet to show anything"
    assert any(line.endswith("in 2 lanes") for line in planned)
    with virtual_nights(holdfast, monkeypatch, begin=begin, seconds=seconds_of()) as nights:
        nights.walk(begin + timedelta(days=DAYS))
        assert nights.lines() == planned
    assert nights.lines() != slower

"""A VM that is moved while its backup waits: the limits of where it is now count."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_controller.configuration import StreamLimits
from holdfast_controller.decide.load_limits import LoadKind
from holdfast_controller.runs.loads import places_of
from holdfast_controller.store.inventory import KnownVm
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.waiting import wait_until

SECONDS = 30.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    machines = [
        MachinePlan(name=name, datastore=store, disks=(DiskPlan(size_bytes=1 << 16),))
        for name, store in (("web", "nfs1"), ("db", "nfs2"), ("moves", "nfs1"))
    ]
    machines.append(MachinePlan(name="proxy", datastore="vmfs1", disks=()))
    plan = InventoryPlan(machines=tuple(machines))
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab) -> Iterator[OneProcess]:
    limits = StreamLimits(each_datastore=1, each_host=0, each_cluster=0, each_proxy=0)
    with one_process(tmp_path / "holdfast", lab, limits=limits) as ready:
        yield ready


def known(holdfast: OneProcess, name: str) -> KnownVm:
    (found,) = holdfast.world.vcenters.inventory.select([name])
    return found


def move(holdfast: OneProcess, name: str, *, beside: str) -> None:
    """The inventory was read, and shows its disk where the other one's is."""
    inventory = holdfast.world.vcenters.inventory
    moved, other = known(holdfast, name), known(holdfast, beside)
    disk = replace(moved.vm.disks[0], chain=other.vm.disks[0].chain)
    (row,) = holdfast.world.vcenters.table.all()
    read, _ = holdfast.world.vcenters.refresh(row.vcenter_id)
    vms = tuple(
        replace(vm, disks=(disk,)) if vm.instance_uuid == moved.vm.instance_uuid else vm
        for vm in read.vms
    )
    inventory.replace(row.vcenter_id, replace(read, vms=vms))


def datastores(holdfast: OneProcess, name: str) -> set[str]:
    return {
        load.name for load in places_of(known(holdfast, name)) if load.kind is LoadKind.DATASTORE
    }


def test_a_vm_that_was_moved_while_it_waited_weighs_on_where_it_is_when_it_begins(
    holdfast: OneProcess,
) -> None:
    at_work, held = threading.Semaphore(0), [threading.Event(), threading.Event()]
    go_on = dict(zip(("web", "db"), held, strict=True))
    began = iter(held)

    def before(_: object) -> None:
        mine = next(began, None)
        at_work.release()
        if mine is not None:
            wait_until(mine.is_set, seconds=SECONDS, what="it may go on")

    holdfast.agent.before = before
    dispatcher = holdfast.engine.dispatcher
    jobs = {}
    for name in ("web", "db"):
        (jobs[name],) = holdfast.start(name).job_ids
        assert at_work.acquire(timeout=SECONDS)
    (waits,) = holdfast.start("moves").job_ids
    assert dispatcher.waits(waits)[-1].load.name == "nfs1"
    move(holdfast, "moves", beside="db")
    assert datastores(holdfast, "moves") == {"nfs2"}
    go_on["web"].set()
    wait_until(lambda: holdfast.world.jobs.job(jobs["web"]).ended, seconds=SECONDS, what="web ends")
    wait_until(
        lambda: bool(dispatcher.waits(waits)) and dispatcher.waits(waits)[-1].load.name == "nfs2",
        seconds=SECONDS,
        what="it waits for where it is now",
    )
    assert [each.load.name for each in dispatcher.waits(waits)] == ["nfs1", "nfs2"]
    go_on["db"].set()
    wait_until(lambda: holdfast.world.jobs.job(waits).ended, seconds=SECONDS, what="it ends")
    assert str(holdfast.world.jobs.job(waits).state) == "done"

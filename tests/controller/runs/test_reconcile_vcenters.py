"""A vCenter that hangs delays what is its own, and nothing of any other's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.logs import Secret
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.ledger import EntryKind
from holdfast_controller.runs import vcenters
from holdfast_controller.runs.loads import BACKUPS
from holdfast_controller.runs.planned_job import Planned
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.requests import Started
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.store.vcenters import NewVcenter
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.vms import CRASH, snapshot_names, vm_named
from support.waiting import wait_until

SNAPSHOT_OF_NOBODY = {"vm": "vm-1", "vm_name": "gone", "instance_uuid": "0-0", "nonce": "n"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    web = MachinePlan(name="web", datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 20),))
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    with running_lab(tmp_path / "lab", inventory=InventoryPlan(machines=(web, proxy))) as running:
        yield running


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab, reconciled=False) as ready:
        yield ready


@dataclass
class HangingServer:
    """Takes connections and never answers; ``callers`` are those that came."""

    port: int
    callers: list[socket.socket] = field(default_factory=list)


@contextmanager
def hanging_server() -> Iterator[HangingServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HangingServer(port=listener.getsockname()[1])

        def accept() -> None:
            while True:
                try:
                    server.callers.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for each in server.callers:
                each.close()


def add_vcenter(holdfast: OneProcess, server: HangingServer, name: str) -> str:
    """A vCenter that answered when it was added, and hangs now."""
    new = NewVcenter(
        name=name,
        host="127.0.0.1",
        port=server.port,
        user_name="holdfast",
        password=Secret(b"secret"),
        certificate_sha256="00" * 32,
        instance_uuid=f"instance of {name}",
        product="vCenter",
        version="8.0",
        is_vcenter=True,
    )
    return holdfast.world.vcenters.table.add(new).vcenter_id


def ends_well(done: list[str], job: JobRow) -> JobResult:
    done.append(job.subject)
    return JobResult(outcome=Outcome.CANCELLED)


def asked(holdfast: OneProcess, vcenter_id: str, subject: str, done: list[str]) -> Started:
    """A job that adds its subject to ``done``."""
    new = NewJob(kind="backup", subject=subject, vcenter_id=vcenter_id, lineage_id="l/1")
    planned = Planned(job=new, work=partial(ends_well, done), loads=(BACKUPS,))
    return holdfast.engine._start("backup", {}, [planned], [])


@contextmanager
def reconciling(holdfast: OneProcess) -> Iterator[Reconciler]:
    """As the controller has it: a thread of its own, and an engine that is told."""
    orphans = Orphans()
    orphans.attach(holdfast.world)
    reconciler = Reconciler(holdfast.world, orphans)
    thread = threading.Thread(target=reconciler.run, args=(holdfast.engine.reconciled,))
    thread.start()
    try:
        yield reconciler
    finally:
        holdfast.world.stopping.set()
        thread.join(10)
        assert not thread.is_alive()


def test_a_vcenter_that_hangs_delays_nobody_else(
    lab: RunningLab, holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = holdfast.world
    with hanging_server() as first, hanging_server() as second:
        dead = [add_vcenter(holdfast, each, f"dead {each.port}") for each in (first, second)]
        for vcenter_id in dead:
            ledger = replace(holdfast.forgotten_ledger(), vcenter_id=vcenter_id)
            ledger.intend(EntryKind.SNAPSHOT, SNAPSHOT_OF_NOBODY)
        vm = vm_named(holdfast.session, "web")
        holdfast.crashed_in(
            temporary_snapshot(holdfast.session, holdfast.forgotten_ledger(), vm=vm, wish=CRASH)
        )
        done: list[str] = []
        with reconciling(holdfast) as reconciler:
            wait_until(lambda: bool(first.callers and second.callers), what="both are asked")
            held = asked(holdfast, dead[0], "waits", done)
            wait_until(lambda: snapshot_names(lab, "web") == [], what="ours is given back")
            job = holdfast.back_up("web")
            assert str(job.state) == "done"
            # what the hanging ones have to give back is still ours, and their jobs wait for it
            assert {each.vcenter_id for each in world.ledger.open_entries()} == set(dead)
            assert world.jobs.job(held.job_ids[0]).state is JobState.QUEUED
            names = {thread.name for thread in reconciler.begin_round()}
            assert {f"reconciler {each}" for each in dead} <= names
        # nor is the end of the controller held up
        monkeypatch.setattr(vcenters, "CLOSE_SECONDS", 0.5)
        world.vcenters.close()
    assert not done
    reconciler.join(30)


def test_jobs_that_wait_take_no_thread_from_others(holdfast: OneProcess) -> None:
    done: list[str] = []
    many = holdfast.world.configuration.jobs_at_once_max + 2
    for number in range(many):
        asked(holdfast, "hangs", f"waits {number}", done)
    asked(holdfast, "answers", "before", done)
    assert not done
    holdfast.engine.reconciled({"hangs"})
    asked(holdfast, "answers", "after", done)
    wait_until(lambda: len(done) == 2, what="the others ran")
    assert sorted(done) == ["after", "before"]
    holdfast.engine.reconciled()
    wait_until(lambda: len(done) == many + 2, what="those that waited ran")


def test_jobs_that_wait_end_as_interrupted_when_the_controller_stops(holdfast: OneProcess) -> None:
    done: list[str] = []
    holdfast.engine.reconciled({"hangs"})
    started = asked(holdfast, "hangs", "waits", done)
    holdfast.engine.close()
    assert holdfast.ended(started).state is JobState.INTERRUPTED
    assert not done


def test_nothing_left_means_that_jobs_start_at_once(holdfast: OneProcess) -> None:
    told: list[frozenset[str]] = []
    orphans = Orphans()
    orphans.attach(holdfast.world)
    reconciler = Reconciler(holdfast.world, orphans)
    holdfast.world.stopping.set()
    reconciler.run(told.append)
    assert told == [frozenset()]

"""Limits of streams, as whoever bears them counts: agents at work, and the lab's hosts and datastores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast_common.job_spec import JobSpec, TransportKind
from holdfast_controller.configuration import StreamLimits
from holdfast_controller.runs.requests import BackupRequest
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.waiting import wait_until

VMS = 6
FREE = StreamLimits(each_datastore=0, each_host=0, each_cluster=0, each_proxy=0)
GATHER_SECONDS = 1.0  # whoever is let begin beside the first has begun by then
SECONDS = 60.0


@contextmanager
def many_vms(folder: Path, count: int) -> Iterator[RunningLab]:
    machines = [
        MachinePlan(
            name=f"web{number}",
            datastore="nfs1",
            disks=(DiskPlan(size_bytes=1 << 16, content="random", content_bytes=1 << 15),),
        )
        for number in range(count)
    ]
    machines.append(MachinePlan(name="proxy", datastore="vmfs1", disks=()))
    with running_lab(folder, inventory=InventoryPlan(machines=tuple(machines))) as running:
        yield running


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with many_vms(tmp_path_factory.mktemp("lab"), VMS) as running:
        yield running


class Gathered:
    """Counts the backups at work at once; the first ones wait a moment for others to come."""

    def __init__(self, seconds: float) -> None:
        self.most = 0
        self._seconds = seconds
        self._now = 0
        self._lock = threading.Lock()
        self._until = time.monotonic() + 1e9

    def before(self, _: JobSpec) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self._until = min(self._until, time.monotonic() + self._seconds)
        while self.most < VMS and time.monotonic() < self._until:
            threading.Event().wait(0.01)
        with self._lock:
            self._now -= 1


def backed_up(holdfast: OneProcess, *, gather_seconds: float = GATHER_SECONDS) -> int:
    """Back all up; how many were at work at once at most."""
    gathered = Gathered(gather_seconds)
    holdfast.agent.before = gathered.before
    started = holdfast.engine.start_backup(BackupRequest(selectors=("web*",)), dry_run=False)
    jobs = holdfast.world.jobs
    assert started.run_id is not None
    run_id = started.run_id
    wait_until(
        lambda: all(job.ended for job in jobs.jobs_of_run(run_id)),
        seconds=SECONDS,
        what="all have ended",
    )
    assert {str(job.state) for job in jobs.jobs_of_run(run_id)} == {"done"}
    return gathered.most


def waited_for(holdfast: OneProcess) -> set[str]:
    """What any job waited for."""
    jobs = holdfast.world.jobs
    return {
        event.event.removeprefix("waited for ")
        for job in jobs.latest()
        for event in jobs.events(job.job_id)
        if event.event.startswith("waited for ")
    }


def test_rule_20_the_nfc_streams_of_a_host_are_counted_whoever_opens_them(
    tmp_path: Path, lab: RunningLab
) -> None:
    nfc = (TransportKind.NFC,)
    limits = StreamLimits(
        each_datastore=0, each_host=0, each_cluster=0, each_proxy=0, nfc_each_host=2
    )
    with one_process(
        tmp_path / "two", lab, transports=nfc, backups_at_once_max=VMS, limits=limits
    ) as holdfast:
        assert backed_up(holdfast) == 2
        (host,) = {known.vm.host_name for known in holdfast.world.vcenters.inventory.vms()}
        assert waited_for(holdfast) == {f"NFC connections of host {host}"}
        assert lab.lab.calls.counted()["hosts"][host]["open_at_most"] <= 2
    # no other limit of this test kept them back
    with one_process(
        tmp_path / "free", lab, transports=nfc, backups_at_once_max=VMS, limits=FREE
    ) as holdfast:
        assert backed_up(holdfast, gather_seconds=SECONDS / 2) == VMS


@pytest.mark.parametrize(
    ("limits", "thing"),
    [
        (StreamLimits(each_datastore=3), "datastore nfs1"),
        (StreamLimits(each_datastore=0, each_host=3, each_proxy=0), "host "),
        (StreamLimits(each_host=0, each_proxy=0, datastores={"nfs1": 3}), "datastore nfs1"),
    ],
)
def test_no_more_streams_than_its_limit_are_on_a_datastore_a_host_and_a_proxy(
    tmp_path: Path, lab: RunningLab, limits: StreamLimits, thing: str
) -> None:
    with one_process(
        tmp_path / "holdfast", lab, backups_at_once_max=VMS, limits=limits
    ) as holdfast:
        assert backed_up(holdfast) == 3
        (waited,) = waited_for(holdfast)
        assert waited.startswith(thing)


@pytest.mark.long
def test_a_host_limit_of_two_is_never_passed_with_a_hundred_vms_on_it(tmp_path: Path) -> None:
    limits = StreamLimits(each_datastore=0, each_host=2, each_proxy=0)
    with (
        many_vms(tmp_path / "lab", 100) as lab,
        one_process(
            tmp_path / "holdfast",
            lab,
            transports=(TransportKind.NFC,),
            backups_at_once_max=100,
            limits=limits,
        ) as holdfast,
    ):
        started = holdfast.engine.start_backup(BackupRequest(selectors=("web*",)), dry_run=False)
        jobs = holdfast.world.jobs
        assert started.run_id is not None
        run_id = started.run_id
        wait_until(
            lambda: all(job.ended for job in jobs.jobs_of_run(run_id)),
            seconds=600.0,
            every_seconds=0.5,
            what="all have ended",
        )
        states = [str(job.state) for job in jobs.jobs_of_run(run_id)]
        assert (len(states), set(states)) == (100, {"done"})
        (counted,) = lab.lab.calls.counted()["hosts"].values()
        assert counted["opened"] >= 100
        assert counted["open_at_most"] <= 2

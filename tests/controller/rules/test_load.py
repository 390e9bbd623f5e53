"""Limits of streams, as whoever bears them counts: agents at work, and the lab's hosts and datastores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_common.identity import LineageId
from holdfast_common.job_spec import JobSpec, TransportKind
from holdfast_controller.configuration import StreamLimits
from holdfast_controller.decide.policy import Policy
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.scheduler import Scheduler
from holdfast_controller.runs.why import explain
from holdfast_lab.call_log import DataStream
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import (
    OneProcess,
    disk_content,
    disk_truth,
    guest_writes,
    one_process,
)
from support.vms import snapshot_names
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


class StreamsSideBySide:
    """Holds the lab's NFC streams of disks until so many are open at once, or nobody came for a while."""

    def __init__(self, lab: RunningLab, *, wanted: int, seconds: float) -> None:
        self.most = 0
        self._wanted = wanted
        self._seconds = seconds
        self._now = 0
        self._changed = threading.Condition()
        self._stream = lab.lab.calls.stream

    @contextmanager
    def stream(self, *, transport: str, file: str, **facts: str) -> Iterator[DataStream]:
        with self._stream(transport=transport, file=file, **facts) as stream:
            if transport != "nfc" or not file.endswith(".vmdk"):
                yield stream
                return
            with self._changed:
                self._now += 1
                self.most = max(self.most, self._now)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.most >= self._wanted, self._seconds)
            try:
                yield stream
            finally:
                with self._changed:
                    self._now -= 1


def lane_plan() -> InventoryPlan:
    """``two``: disks on two datastores; ``one``: two disks on one."""
    disk = DiskPlan(size_bytes=2 << 20, content="random", content_bytes=1 << 20, seed=5)
    return InventoryPlan(
        machines=(
            MachinePlan(
                name="two",
                datastore="nfs1",
                change_tracking=True,
                disks=(disk, replace(disk, datastore="nfs2")),
            ),
            MachinePlan(name="one", datastore="nfs1", disks=(disk, disk)),
            MachinePlan(name="proxy", datastore="vmfs1", disks=()),
        )
    )


@pytest.fixture(scope="module")
def lab_of_lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lanes"), inventory=lane_plan()) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "lanes", "nfc_each_host", "expected", "told"),
    [
        ("two", 2, 26, 2, ["in 2 lanes"]),
        ("two", 1, 26, 1, []),
        ("two", 2, 1, 1, ["in 1 of 2 lanes: NFC connections of host {host} has no room for more"]),
        ("one", 2, 26, 1, []),
    ],
)
def test_disks_on_two_datastores_run_in_two_lanes_where_that_is_allowed_and_there_is_room(
    tmp_path: Path,
    lab_of_lanes: RunningLab,
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    lanes: int,
    nfc_each_host: int,
    expected: int,
    told: list[str],
) -> None:
    lab = lab_of_lanes
    seconds = SECONDS if expected == 2 else GATHER_SECONDS / 2
    streams = StreamsSideBySide(lab, wanted=2, seconds=seconds)
    monkeypatch.setattr(lab.lab.calls, "stream", streams.stream)
    before = len(lab.lab.calls.events(event="stream_close"))
    with one_process(
        tmp_path / "holdfast",
        lab,
        transports=(TransportKind.NFC,),
        limits=StreamLimits(nfc_each_host=nfc_each_host),
    ) as holdfast:
        request = BackupRequest(selectors=(name,), lanes=lanes)
        job = holdfast.ended(holdfast.engine.start_backup(request, dry_run=False))
        assert str(job.state) == "done", job.error
        assert streams.most == expected
        record = holdfast.record(job)
        assert [disk.device_key for disk in record.disks] == [2000, 2001]
        for number in range(2):
            assert disk_content(holdfast, job, 2000 + number) == disk_truth(lab, name, number)
        reasons = explain(holdfast.world, holdfast.engine.dispatcher, job.job_id)
        (host,) = {known.vm.host_name for known in holdfast.world.vcenters.inventory.vms()}
        assert [each.answer for each in reasons if each.question == "lanes"] == [
            text.format(host=host) for text in told
        ]
        told_lanes = {each.answer: each.seconds for each in reasons if each.question == "lane"}
        if expected == 1:
            assert told_lanes == {}
            return
        closed = lab.lab.calls.events(event="stream_close")[before:]
        for number, store in enumerate(("nfs1", "nfs2"), start=1):
            (seconds,) = (
                float(str(each["seconds"]))
                for each in closed
                if (each["transport"], each["datastore"]) == ("nfc", store)
            )
            told_seconds = told_lanes[f"{number}: Hard disk {number} on {store}"]
            assert abs(told_seconds - seconds) < 1.0


def test_what_changed_is_saved_in_two_lanes_as_well(
    tmp_path: Path, lab_of_lanes: RunningLab
) -> None:
    with one_process(tmp_path / "holdfast", lab_of_lanes) as holdfast:
        request = BackupRequest(selectors=("two",), lanes=4)
        for _ in range(2):
            job = holdfast.ended(holdfast.engine.start_backup(request, dry_run=False))
            assert str(job.state) == "done", job.error
            for number in range(2):
                assert disk_content(holdfast, job, 2000 + number) == disk_truth(
                    lab_of_lanes, "two", number
                )
                guest_writes(lab_of_lanes, "two", 1 << 20, number=number)
        assert job.level == "incremental"


def test_a_window_that_closes_in_the_middle_of_a_copy_stops_it_cleanly_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # pauses as in life: a host notices a moment later that its reader is gone
    disk = DiskPlan(size_bytes=24 << 20, content="random", content_bytes=24 << 20)
    big = MachinePlan(name="big", datastore="nfs1", disks=(disk,))
    plan = InventoryPlan(machines=(big, MachinePlan(name="proxy", datastore="vmfs1", disks=())))
    with (
        running_lab(tmp_path / "lab", inventory=plan) as lab,
        one_process(tmp_path / "holdfast", lab, transports=(TransportKind.NFC,)) as holdfast,
    ):

        def counted(name: str) -> int:
            return lab.lab.calls.counted()["datastores"]["nfs1"][name]

        agent, world = holdfast.agent, holdfast.world
        agent.before = lambda _: agent.slow_down({2000: 1 << 16})
        evening = (datetime.now(UTC) + timedelta(days=2)).replace(hour=22, minute=0, second=3)
        policy = Policy(name="gold", vms=("big",), start="0 22 * * *", window="mon-sun 22:00-06:00")
        stored = world.policies.create(policy, actor="anna")
        scheduler = Scheduler(world, holdfast.engine)
        scheduler.look(evening)
        (job,) = world.jobs.unfinished()
        wait_until(
            lambda: "nfs1" in lab.lab.calls.counted()["datastores"] and counted("bytes_read") > 0,
            seconds=SECONDS,
            what="it is read",
        )
        scheduler.look(evening + timedelta(hours=8))
        wait_until(lambda: world.jobs.job(job.job_id).ended, seconds=SECONDS, what="it ends")
        job = world.jobs.job(job.job_id)
        assert job.error is not None
        assert (str(job.state), job.error.code) == ("interrupted", "window_closed")
        reasons = explain(world, holdfast.engine.dispatcher, job.job_id)
        (why,) = (each.answer for each in reasons if each.question == "why interrupted")
        assert "the policy's window closed before the backup was done" in why
        # by the lab's own log: nothing is open, less than the disk was read, and the VM stands as before
        wait_until(lambda: counted("open_now") == 0, seconds=SECONDS, what="no stream is open")
        assert 0 < counted("bytes_read") < 16 << 20
        assert snapshot_names(lab, "big") == []
        assert world.ledger.open_entries() == []
        assert world.catalogue.latest(LineageId(job.lineage_id)) is None
        assert world.policy_slots.last(stored.policy_id) is not None

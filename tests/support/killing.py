"""A whole installation of which programs are killed at their steps, again and again.

The lab lives on over all kills; only the killed programs start anew. `killing_scenarios` has the jobs
that are cut off, `killing_steps` the steps and the kills, `killing_judge` the look at what is left.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_common.places import find_places
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.operator_client import operators
from holdfast_lab.control_client import LabClient
from support.installation import FAST, PYTHON, Installation
from support.killing_judge import Look, SoapJudge, differences
from support.traced_program import FOLDER_VARIABLE
from support.traced_steps import TracePlan
from support.waiting import wait_until

TESTS = Path(__file__).parents[1]
ENDED = ("done", "partial", "failed", "cancelled", "interrupted")
JOB_SECONDS = 60.0
JUDGE = "judge@vsphere.local"  # not the product's account: misbehaviour is for that one
LEASE_SECONDS = 6  # a transfer lease whose id nobody knows ends by itself after so long
SETTLE_SECONDS = 60.0
FOREIGN_SNAPSHOT = "holdfast 01FOREIGN000000000000000000"
FOREIGN_NONCE = "nonce=f0f0f0f0f0f0f0f0f0f0f0f0"
# As another Holdfast, which backs up the same VM at this moment, would have made it.
LIVE_SNAPSHOT = "holdfast 01LIVE0000000000000000000"
LIVE_DESCRIPTION = (
    "Made by Holdfast for a backup, removed at its end."
    " run=01LIVE0000000000000000000 job=01LIVEJOB00000000000000000 nonce=a1a1a1a1a1a1a1a1a1a1a1a1"
)
FOREIGN_DISK = "[vmfs1] foreign.vmdk"
SMALL = {"size": "4M", "content": "random", "content_bytes": 1 << 20}
INVENTORY = {
    "hosts": ["esx1.lab"],
    "datastores": [
        {"name": "nfs1", "kind": "NFS", "capacity": "10G"},
        {"name": "vmfs1", "kind": "VMFS", "capacity": "10G"},
    ],
    "machines": [
        {"name": "web", "datastore": "nfs1", "change_tracking": True, "disks": [SMALL]},
        {
            "name": "db",
            "datastore": "nfs1",
            "change_tracking": True,
            "disks": [SMALL, SMALL | {"datastore": "vmfs1", "seed": 3}],
            "user_snapshots": ["before upgrade"],
        },
        {
            "name": "app",
            "datastore": "nfs1",
            "power": "off",
            "change_tracking": True,
            "disks": [SMALL | {"seed": 4}, SMALL | {"seed": 5}],
        },
        {
            "name": "vault",
            "datastore": "vmfs1",
            "power": "off",
            "change_tracking": True,
            "disks": [SMALL | {"seed": 6}],
        },
        {"name": "proxy", "datastore": "vmfs1", "disks": []},
    ],
}


@dataclass(frozen=True)
class Job:
    """A job as the controller's database has it."""

    job_id: str
    kind: str
    state: str
    point_id: str
    error: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Foreign:
    """What is not ours: morefs of snapshots, and the key of a disk on the proxy."""

    snapshots: tuple[str, ...]
    disk_key: int


@dataclass
class KillRig:
    """The installation, the plan of its traced programs, and the test's own eyes."""

    installation: Installation
    plan: TracePlan
    lab: LabClient
    judge: SoapJudge
    foreign: Foreign
    counter: int = 0
    foreign_calls: int = 0  # so far; each is also told among what is left

    # -- jobs ------------------------------------------------------------------------------------

    def start_backup(self, vm: str, *, transport: str, level: str = "incremental") -> str:
        request = operator_pb2.StartBackupRequest(
            vms=[vm], method="image", level=level, consistency="crash", transport=transport
        )
        with operators(self.places) as client:
            return str(client.call(client.stub.StartBackup, request).run_id)

    def start_restore(self, point: str, *, transport: str = "", **vm: object) -> str:
        request = operator_pb2.StartRestoreRequest(
            point_id=point,
            vm=operator_pb2.RestoreVm(**vm),  # type: ignore[arg-type]  # fields of the message
            transport=transport,
        )
        with operators(self.places) as client:
            return str(client.call(client.stub.StartRestore, request).run_id)

    def start_restore_file(self, point: str, key: int, path: Path) -> str:
        disk = operator_pb2.RestoreDisk(device_key=key, path=str(path), format="flat")
        request = operator_pb2.StartRestoreRequest(point_id=point, disk=disk)
        with operators(self.places) as client:
            return str(client.call(client.stub.StartRestore, request).run_id)

    def wait_for_run(self, run_id: str) -> Job:
        """Its one job, ended."""
        wait_until(lambda: self.job(run_id).ended, seconds=JOB_SECONDS, what="the job ends")
        return self.job(run_id)

    def job(self, run_id: str) -> Job:
        (row,) = self._rows(
            "SELECT job_id, kind, state, point_id, error FROM jobs WHERE run_id = ?", run_id
        )
        return Job(*map(str, row))

    def last_run(self) -> str:
        """The newest run's id."""
        rows = self._rows("SELECT run_id FROM runs ORDER BY run_id DESC LIMIT 1")
        return str(rows[0][0]) if rows else ""

    def wait_for_step_or_peace(self, seconds: float) -> bool:
        """Whether a program came to stand at its step, before all was settled or the time over."""
        until = time.monotonic() + seconds
        while not self.plan.reached() and not self.settled() and time.monotonic() < until:
            time.sleep(0.02)
        return self.plan.reached()

    def wait_for_step(self, last: str, *, or_else: Callable[[], bool]) -> bool:
        """Whether a program came to stand at its step.

        False: a run after ``last`` has ended before, or ``or_else`` says that there will be none.
        """

        def happened() -> bool:
            run = self.last_run()
            ended = self.job(run).ended if run != last else or_else()
            return self.plan.reached() or ended

        wait_until(happened, seconds=JOB_SECONDS, what="a step is reached")
        return self.plan.reached()

    def done(self, run_id: str) -> Job:
        job = self.wait_for_run(run_id)
        assert job.state == "done", f"{job}\n{self.logs()}"
        return job

    # -- killing ---------------------------------------------------------------------------------

    def make_whole(self) -> None:
        """After a kill whose test failed: everything runs again, and nothing is under way."""
        self.plan.disarm()
        self.plan.let_go()
        missing = [key for key in ("controller", "agent") if key not in self.installation.processes]
        self.restart(*missing)
        wait_until(self.settled, seconds=SETTLE_SECONDS, what="all is settled")

    def kill(self, *programs: str) -> None:
        """SIGKILL, by pid, and wait until they are gone."""
        for program in programs:
            self.installation.kill(program)

    def restart(self, *programs: str) -> None:
        """Start again, and wait until the controller answers and the agent is connected."""
        self.start(*programs)
        self.wait_connected()

    def start(self, *programs: str) -> None:
        """Start again; a controller answers when this returns."""
        if "controller" in programs:
            self.installation.start_controller()
        if "agent" in programs:
            self.installation.start("agent", "holdfast-agent", "run")

    def wait_connected(self) -> None:
        wait_until(self.installation.agent_is_connected, what="the agent connects")

    # -- looking ---------------------------------------------------------------------------------

    def settled(self) -> bool:
        """Nothing is under way, and nothing is left to be undone."""
        return not self.unsettled()

    def unsettled(self) -> list[str]:
        marks = ",".join("?" * len(ENDED))
        jobs = self._rows(f"SELECT job_id, state FROM jobs WHERE state NOT IN ({marks})", *ENDED)
        entries = self._rows(
            "SELECT kind, state, last_error, facts FROM ledger WHERE state != 'gone'"
        )
        return [f"job {row}" for row in jobs] + [f"ledger {row}" for row in entries]

    def look(self) -> Look:
        return self.judge.look()

    def lab_events(self) -> int:
        """The number of the lab's last event."""
        events = self.lab.call("calls", event="call")
        return int(events[-1]["n"]) if events else 0

    def left(self, before: Look, *, since: int, exchanged: str = "", made: str = "") -> list[str]:
        """Whatever of ours is left, or is not as it was, in words. Waits until all is settled.

        ``exchanged``, ``made``: a VM that may have other disks now, a VM that may be there now.
        """
        until = time.monotonic() + SETTLE_SECONDS
        while self.unsettled() and time.monotonic() < until:
            time.sleep(0.05)
        found = self.unsettled()
        found += differences(before, self.look(), exchanged=exchanged, made=made)
        found += self._leases_left()
        touched = self._foreign_touched(since)
        self.foreign_calls += len(touched)
        found += touched
        found += self._points_not_catalogued()
        return found

    def _leases_left(self) -> list[str]:
        return [
            f"{vm['name']} has a transfer lease"
            for vm in self.lab.call("vm-list")
            if vm["transfer_lease"] or vm["busy"]
        ]

    def _foreign_touched(self, since: int) -> list[str]:
        """No task of anybody may name what is not ours."""
        snapshots = re.compile(rf"\b({'|'.join(map(re.escape, self.foreign.snapshots))})\b")
        key = f"key={self.foreign.disk_key},"
        found = []
        for event in self.lab.call("calls", after=since, event="call"):
            if not str(event["method"]).endswith("_Task"):
                continue
            told = json.dumps(event)
            of_proxy = event.get("vm") == "proxy" and "VirtualDisk" in told
            if snapshots.search(told) or FOREIGN_DISK in told or (of_proxy and key in told):
                found.append(f"a call touched what is not ours: {told}")
        return found

    def _points_not_catalogued(self) -> list[str]:
        known = {str(row[0]) for row in self._rows("SELECT job_id FROM points")}
        there = {path.name for path in (self.installation.repository / "points").glob("*/*")}
        return [f"point not in the catalogue: {name}" for name in sorted(there - known)] + [
            f"point not in the repository: {name}" for name in sorted(known - there)
        ]

    def write_as_guest(self, vm: str, *, count: int = 2) -> str:
        """The guest changes something on every disk; the mark's name."""
        self.counter += 1
        for disk in range(len(self.lab.call("vm-show", vm=vm)["disks"])):
            self.lab.call(
                "guest-write",
                vm=vm,
                disk=disk,
                count=count,
                seed=self.counter * 10 + disk,
                block_bytes=32768,
            )
        mark = f"mark{self.counter}"
        self.lab.call("mark", vm=vm, name=mark)
        return mark

    def is_committed(self, job: Job) -> bool:
        """Whether the repository has the job's point."""
        return any((self.installation.repository / "points").glob(f"*/{job.job_id}"))

    def remove_vm(self, vm: str) -> None:
        """As an administrator would."""
        self.lab.call("vm-remove", vm=vm)

    def is_equal(self, vm: str, *, original: str, at: str) -> bool:
        return bool(self.lab.call("compare", vm=vm, original=original, at=at)["equal"])

    def check_point(self, point: str, *, vm: str, at: str) -> None:
        """Restore every disk of a point to a file, and compare it with the ground truth."""
        for number, disk in enumerate(self.lab.call("vm-show", vm=vm)["disks"]):
            self.counter += 1
            path = self.installation.restores / f"check{self.counter}.vmdk"
            self.done(self.start_restore_file(point, int(disk["key"]), path))
            flat = path.with_name(f"{path.stem}-flat.vmdk")
            answer = self.lab.call("compare", vm=vm, file=str(flat), disk=number, at=at)
            assert answer["equal"], answer
            path.unlink()
            flat.unlink()

    def logs(self) -> str:
        return "".join(
            f"\n--- {key}\n{self.installation.log(key)[-6000:]}" for key in ("controller", "agent")
        )

    @property
    def places(self) -> Any:
        return find_places({"HOLDFAST_HOME": str(self.installation.home)})

    def _rows(self, question: str, *values: object) -> list[tuple[Any, ...]]:
        address = f"file:{self.places.database}?mode=ro"
        connection = sqlite3.connect(address, uri=True, timeout=20)
        try:
            return connection.execute(question, values).fetchall()
        finally:
            connection.close()


@contextmanager
def kill_rig(folder: Path) -> Iterator[KillRig]:
    """Everything up, with traced programs; foreign things lie in the way."""
    folder.mkdir(parents=True, exist_ok=True)
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps(INVENTORY))
    installation = Installation(
        folder,
        lab_arguments=("--inventory", str(inventory)),
        program_prefix={
            name: [*PYTHON, "support.traced_program", name]
            for name in ("holdfast", "holdfast-agent")
        },
        extra_environment={FOLDER_VARIABLE: str(folder / "trace"), "PYTHONPATH": str(TESTS)},
    )
    plan = TracePlan(folder / "trace")
    try:
        facts = installation.start_lab()
        lab = LabClient(installation.lab_state)
        lab.call("settings", lease_timeout_seconds=LEASE_SECONDS)
        lab.call("user-add", name=JUDGE, password=facts["password"])
        judge = SoapJudge({**facts, "user": JUDGE})
        foreign = Foreign(
            snapshots=(
                judge.make_snapshot(
                    "web", name=FOREIGN_SNAPSHOT, description=f"somebody else's {FOREIGN_NONCE}"
                ),
                judge.make_snapshot("web", name=LIVE_SNAPSHOT, description=LIVE_DESCRIPTION),
            ),
            disk_key=judge.attach_new_disk("proxy", file=FOREIGN_DISK, capacity_bytes=1 << 20),
        )
        installation.init()
        installation.configure(**FAST)
        installation.start_controller()
        installation.add_vcenter()
        installation.enrol_agent()
        installation.start_agent()
        yield KillRig(installation, plan, lab, judge, foreign)
    finally:
        installation.stop()

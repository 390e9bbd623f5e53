"""Restores in place under faults: every call to vSphere and every write of the agent can be made to fail once.

A lab, a controller and its agent in one process (`support.one_process`), and a VM with two small disks
that is restored again and again. After each run the lab itself says what is left.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from holdfast_agent import transport_table
from holdfast_common.blocks.sink import BlockSink
from holdfast_common.errors import HoldfastError, TargetFailed, VsphereFailed, VsphereUnavailable
from holdfast_common.identity import PointId
from holdfast_common.job_spec import TransportKind
from holdfast_common.retry import backoff_seconds
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.vsphere import effects, hot_add, session, task_watcher, transfer_leases
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.vsphere_sessions import UNCOUNTED

MIB = 1 << 20
# A call or write never arrives, arrives and is refused, or is made and its reply is lost.
MODES = ("unreached", "refused", "lost")
LEASE_SECONDS = 6.0  # 300 in earnest: so long a lease lives whose reply was lost
DISK_ENDS = (".vmdk", "-flat.vmdk", "-ctk.vmdk")
# They change nothing: whether the request or the reply was lost makes no difference.
READING = frozenset({"RetrievePropertiesEx", "CreateContainerView", "DestroyView"})


def restoring_plan() -> InventoryPlan:
    """``web``: two disks on two datastores, shut down. ``db``: somebody else's, with a snapshot. A proxy."""
    web = MachinePlan(
        name="web",
        datastore="nfs1",
        power="off",
        change_tracking=True,
        disks=(
            DiskPlan(size_bytes=MIB, content="random", content_bytes=MIB // 4, seed=1),
            DiskPlan(
                size_bytes=MIB, datastore="nfs2", content="random", content_bytes=MIB // 4, seed=2
            ),
        ),
    )
    db = MachinePlan(
        name="db",
        datastore="nfs1",
        disks=(DiskPlan(size_bytes=MIB, content="random", content_bytes=MIB // 4, seed=3),),
        user_snapshots=("before upgrade",),
    )
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    return InventoryPlan(machines=(web, db, proxy))


class Chance:
    """Counts occurrences of one sort; the chosen one goes wrong, in one of `MODES`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[int, int] = {}
        self.arm(0, "")

    def arm(self, number: int, mode: str) -> None:
        """From here on counted anew; the ``number``-th goes wrong (0: none)."""
        with self._lock:
            self.number, self.mode = number, mode
            self.seen: list[str] = []
            self.bit = ""

    def before(self, what: str) -> str:
        """Count one; the mode when it is not to be made."""
        with self._lock:
            self.seen.append(what)
            count = len(self.seen)
            self._numbers[threading.get_ident()] = count
            if count != self.number:
                return ""
            self.bit = what
            return self.mode if self.mode != "lost" else ""

    def is_lost(self) -> bool:
        """Whether the one that this thread made just now is to lose its reply."""
        with self._lock:
            count = self._numbers.get(threading.get_ident(), 0)
            return self.mode == "lost" and count == self.number


class FaultyGate:
    """A `CallGate`: calls of the job in ``calls``; those of the loop that watches tasks in ``watching``."""

    def __init__(self) -> None:
        self.calls = Chance()
        self.watching = Chance()

    def before(self, method: str, moref: str) -> None:
        mode = self._chance(method).before(f"{method} {moref}")
        if mode == "unreached":
            raise VsphereUnavailable("this call was made to fail", method=method)
        if mode == "refused":
            raise VsphereFailed("this call was made to be refused", method=method)

    def after(self, method: str, moref: str) -> None:
        del moref
        if self._chance(method).is_lost():
            raise VsphereUnavailable("this reply was made to be lost", method=method)

    def _chance(self, method: str) -> Chance:
        return self.watching if method in UNCOUNTED else self.calls


class FaultySink:
    """A `BlockSink` whose writes can fail before or after they were made."""

    def __init__(self, sink: BlockSink, writes: Chance) -> None:
        self._sink = sink
        self._writes = writes

    @property
    def capacity_bytes(self) -> int:
        return self._sink.capacity_bytes

    def write(self, offset: int, data: memoryview) -> None:
        self._made(f"write {offset}", lambda: self._sink.write(offset, data))

    def finish(self) -> None:
        self._made("finish", self._sink.finish)

    def close(self) -> None:
        self._sink.close()

    def _made(self, what: str, act: Callable[[], None]) -> None:
        if self._writes.before(what):
            raise TargetFailed("this write was made to fail")
        act()
        if self._writes.is_lost():
            raise TargetFailed("this write was made, and told to have failed")


@dataclass
class Tally:
    """How the runs of a test ended."""

    calls: int = 0
    writes: int = 0
    old: int = 0
    restored: int = 0
    broken: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, int]:
        """As numbers, to be added up."""
        return {**dataclasses.asdict(self), "broken": len(self.broken)}


@dataclass(frozen=True)
class Standing:
    """What the lab holds: names of all files, VMs, and what each VM other than `web`'s disks is."""

    files: frozenset[str]
    disk_stems: frozenset[str]
    machines: str

    @property
    def other_files(self) -> frozenset[str]:
        """Files that belong to no disk of `web`."""
        return self.files - {f"{stem}{end}" for stem in self.disk_stems for end in DISK_ENDS}


@dataclass(frozen=True)
class InPlace:
    """`web` with a restore point, restored in place as often as wanted."""

    holdfast: OneProcess
    gate: FaultyGate
    writes: Chance
    point_id: PointId

    @property
    def lab(self) -> RunningLab:
        return self.holdfast.lab

    def run(self, transport: TransportKind) -> str:
        """One restore; the error's code, or nothing when it is done."""
        request = RestoreVmRequest(point_id=self.point_id, in_place=True, transport=transport.value)
        try:
            started = self.holdfast.engine.start_restore_vm(request, dry_run=False)
        except HoldfastError as error:
            return error.code
        job = self.holdfast.ended(started)
        return (
            ""
            if str(job.state) in ("done", "partial")
            else (job.error.code if job.error else str(job.state))
        )

    def reconcile(self) -> None:
        """What the controller does every two minutes: again while there are debts, as a lease may live on."""
        end = time.monotonic() + 3 * LEASE_SECONDS
        while True:
            Reconciler(self.holdfast.world, Orphans()).sweep(self.holdfast.vcenter_id)
            if not self.holdfast.world.ledger.open_entries() or time.monotonic() > end:
                return
            time.sleep(0.5)

    def guest_writes(self, number: int) -> None:
        """The present state becomes one that no other run had; it is marked ``before``-number."""
        for device in self.lab.lab.machine("web").disks():
            device.disk.guest_write(4096, f"state {number} ".encode().ljust(512, b"."))
        self.lab.control.call("mark", vm="web", name=f"before-{number}")

    def holds(self, moment: str) -> bool:
        """Whether all disks of `web` are equal to the ground truth of a moment."""
        found: Any = self.lab.control.call("compare", vm="web", original="web", at=moment)
        return bool(found["equal"])

    def standing(self) -> Standing:
        """What is there now, asked of the lab and of its files."""
        machines: Any = self.lab.control.call("vm-list")
        stores = {store.name: store.root for store in self.lab.lab.datastores()}
        files = frozenset(
            f"{name}/{path.relative_to(root)}"
            for name, root in stores.items()
            for path in root.rglob("*")
        )
        stems = set()
        for machine in machines:
            if machine["name"] == "web":
                for disk in machine["disks"]:
                    store, _, path = disk["file"].removeprefix("[").partition("] ")
                    stems.add(f"{store}/{path.removesuffix('.vmdk')}")
                machine["disks"] = [
                    {key: disk[key] for key in ("key", "slot", "capacity_bytes", "datastore")}
                    for disk in machine["disks"]
                ]
        return Standing(
            files, frozenset(stems), "\n".join(sorted(repr(machine) for machine in machines))
        )

    def judge(self, number: int, before: Standing, ended: str) -> str:
        """What is wrong after a run that ended so; nothing: all is well."""
        problems = []
        is_old, is_restored = self.holds(f"before-{number}"), self.holds("point")
        if is_old == is_restored:
            problems.append("its disks are neither all old nor all restored")
        if not ended and not is_restored:
            problems.append("done, but the disks are the old ones")
        if ended and is_restored:
            problems.append("told as failed, but the disks are the restored ones")
        now = self.standing()
        if now.machines != before.machines:
            problems.append(f"VMs changed: {before.machines}\n -> {now.machines}")
        if now.other_files != before.other_files:
            problems.append(f"files differ: {sorted(now.other_files ^ before.other_files)}")
        if is_old and now.files != before.files:
            problems.append(f"disk files differ: {sorted(now.files ^ before.files)}")
        attached: Any = self.lab.control.call("attached")
        if [each for each in attached if each["vm"] == "proxy"]:
            problems.append(f"attached to the proxy: {attached}")
        other: Any = self.lab.control.call("compare", vm="db")
        if not other["equal"]:
            problems.append("another VM's disk changed")
        open_entries = self.holdfast.world.ledger.open_entries()
        if open_entries:
            problems.append(f"open in the ledger: {[each.kind.value for each in open_entries]}")
        return "; ".join(problems)

    def once(self, number: int, transport: TransportKind, chance: Chance, tally: Tally) -> str:
        """One run that is armed already, judged into a tally; how it ended."""
        self.guest_writes(number)
        before = self.standing()
        chance.arm(chance.number, chance.mode)
        ended = self.run(transport)
        bit = chance.bit
        chance.arm(0, "")
        self.reconcile()
        problem = self.judge(number, before, ended)
        if problem:
            tally.broken.append(f"{chance.mode} {bit or 'nothing'} ({ended or 'done'}): {problem}")
        elif bit and ended:
            tally.old += 1
        elif bit:
            tally.restored += 1
        return bit


@contextmanager
def in_place_rig(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[InPlace]:
    """Everything set up, `web` backed up once."""
    writes = Chance()
    _make_writes_faulty(patch, writes)
    _make_waits_short(patch)
    gate = FaultyGate()
    with (
        running_lab(folder / "lab", inventory=restoring_plan()) as lab,
        one_process(folder / "holdfast", lab, gate=gate) as holdfast,
    ):
        lab.lab.lease_timeout_seconds = LEASE_SECONDS
        lab.control.call("mark", vm="web", name="point")
        job = holdfast.back_up("web")
        holdfast.record(job)
        assert job.point_id
        yield InPlace(holdfast, gate, writes, PointId(job.point_id))


def _make_writes_faulty(patch: pytest.MonkeyPatch, writes: Chance) -> None:
    def faulty(open_sink: Any) -> Any:
        def opened(*arguments: Any, **named: Any) -> FaultySink:
            return FaultySink(open_sink(*arguments, **named), writes)

        return opened

    sinks: Mapping[TransportKind, Any] = transport_table.SINKS
    patch.setattr(
        transport_table, "SINKS", {kind: faulty(opener) for kind, opener in sinks.items()}
    )


def _make_waits_short(patch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs meet one fault each: nobody waits for a vCenter that is being restarted."""

    def short(*, first: float, maximum: float, attempts: int) -> Iterator[float]:
        return backoff_seconds(first=first / 20, maximum=maximum / 20, attempts=attempts)

    for module in (effects, hot_add, session, transfer_leases):
        patch.setattr(module, "backoff_seconds", short)
    patch.setattr(task_watcher, "RETRY_SECONDS", 0.05)

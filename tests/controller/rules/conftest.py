"""A small lab, and a controller with its agent over it, for the rules of what a backup must never get wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import snapshot_removal
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.vsphere_sessions import CountingGate, job_ledger

MIB = 1 << 20


def rules_plan() -> InventoryPlan:
    """``web``: one disk. ``db``: two disks on two datastores and the user's snapshot. ``app``: on VMFS."""
    web = MachinePlan(
        name="web",
        datastore="nfs1",
        change_tracking=True,
        disks=(DiskPlan(size_bytes=4 * MIB, content="random", content_bytes=MIB, seed=1),),
    )
    db = MachinePlan(
        name="db",
        datastore="nfs1",
        change_tracking=True,
        disks=(
            DiskPlan(size_bytes=2 * MIB, content="random", content_bytes=MIB, seed=2),
            DiskPlan(size_bytes=2 * MIB, datastore="nfs2", seed=3),
        ),
        user_snapshots=("before upgrade",),
    )
    app = MachinePlan(
        name="app",
        datastore="vmfs1",
        change_tracking=True,
        disks=(DiskPlan(size_bytes=16 * MIB),),
    )
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    return InventoryPlan(machines=(web, db, app, proxy))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    with running_lab(tmp_path / "lab", inventory=rules_plan()) as running:
        yield running


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that fails is tried again without waiting."""
    monkeypatch.setattr(snapshot_removal, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def gate() -> CountingGate:
    """Counts the controller's calls, in order."""
    return CountingGate()


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab, gate: CountingGate) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab, gate=gate) as ready:
        yield ready


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)

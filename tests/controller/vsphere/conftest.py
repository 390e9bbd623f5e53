"""A small lab for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab

MIB = 1 << 20


def small_plan() -> InventoryPlan:
    web = MachinePlan(
        name="web",
        datastore="nfs1",
        disks=(DiskPlan(size_bytes=4 * MIB, content="random", content_bytes=MIB, seed=1),),
    )
    db = MachinePlan(
        name="db",
        datastore="nfs1",
        change_tracking=True,
        disks=(
            DiskPlan(size_bytes=2 * MIB, content="random", content_bytes=MIB, seed=2),
            DiskPlan(size_bytes=2 * MIB, datastore="vmfs1", seed=3),
        ),
        user_snapshots=("before upgrade",),
    )
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    plan = InventoryPlan.empty()
    return InventoryPlan(
        hosts=plan.hosts,
        datastores=plan.datastores,
        networks=plan.networks,
        machines=(web, db, proxy),
    )


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    with running_lab(tmp_path / "lab", inventory=small_plan()) as running:
        yield running


@pytest.fixture
def host_lab(tmp_path: Path) -> Iterator[RunningLab]:
    """The same VMs on a single host without a vCenter."""
    with running_lab(tmp_path / "lab", mode="host", inventory=small_plan()) as running:
        yield running

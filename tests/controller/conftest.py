"""The smallest lab; test files and folders that need another one have their own of that name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """``web``, with one disk of 1 MiB, and the proxy."""
    web = MachinePlan(
        name="web",
        datastore="nfs1",
        change_tracking=True,
        disks=(DiskPlan(size_bytes=1 << 20, content="random", content_bytes=1 << 19, seed=1),),
    )
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    plan = InventoryPlan(machines=(web, proxy))
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running

"""A lab with the demo's inventory, shared by the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.lab_soap_clients import logged_in

MIB = 1 << 20


def small_plan() -> InventoryPlan:
    """The demo's shape with small random disks: no file system has to be made."""
    return InventoryPlan(
        machines=(
            MachinePlan(
                name="web",
                datastore="nfs1",
                disks=(DiskPlan(size_bytes=4 * MIB, content="random", seed=1),),
            ),
            MachinePlan(
                name="db",
                datastore="nfs1",
                firmware="efi",
                disks=(
                    DiskPlan(size_bytes=4 * MIB, content="random", seed=2),
                    DiskPlan(size_bytes=4 * MIB, datastore="vmfs1", content="random", seed=3),
                ),
                user_snapshots=("before upgrade",),
            ),
            MachinePlan(name="proxy", datastore="vmfs1"),
        )
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A running vCenter; bugs of the lab fail the test file at its end."""
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=small_plan()) as running:
        yield running
        bugs = running.lab.calls.events(event="lab_bug")
        assert not bugs, bugs


@pytest.fixture
def service(lab: RunningLab) -> Iterator[Any]:
    """A logged-in pyVmomi client."""
    with logged_in(lab) as made:
        yield made
        lab.lab.misbehaviour.disarm()

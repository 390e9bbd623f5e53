"""How often a job reads a whole inventory: what is needed again is read of its own VM only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.identity import PointId
from holdfast_common.job_spec import TransportKind
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.lab_vsphere import client_of, wait
from support.one_process import OneProcess, one_process
from support.vsphere_sessions import CountingGate

FULL_READ = "CreateContainerView"
# Where a VM is to be restored is chosen among everything that is there: once for the plan, once for
# the job. In place, the restored disks' datastores are looked up by name once more.
OF_A_RESTORE = 2
OF_A_RESTORE_IN_PLACE = 3


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    disks = (DiskPlan(size_bytes=1 << 20), DiskPlan(size_bytes=1 << 20))
    web = MachinePlan(name="web", datastore="nfs1", change_tracking=True, disks=disks)
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    with running_lab(tmp_path / "lab", inventory=InventoryPlan(machines=(web, proxy))) as running:
        yield running


@pytest.fixture
def gate() -> CountingGate:
    return CountingGate()


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab, gate: CountingGate) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab, gate=gate) as ready:
        ready.refresh()
        yield ready


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_whole_inventories_are_read_only_to_choose_a_place(
    lab: RunningLab, holdfast: OneProcess, gate: CountingGate, transport: str
) -> None:
    transport = TransportKind(transport).value

    def full_reads() -> int:
        found = gate.count(FULL_READ)
        del gate.calls[:]
        return found

    full_reads()
    for _ in ("full", "incremental"):
        job = holdfast.back_up("web", transport=transport)
        assert str(job.state) == "done"
        assert full_reads() == 0
    point = PointId(str(job.point_id))
    restore(holdfast, RestoreVmRequest(point_id=point, name="copy", transport=transport))
    assert full_reads() == OF_A_RESTORE
    with client_of(lab) as client:
        wait(client.vm("web").PowerOffVM_Task())
    restore(holdfast, RestoreVmRequest(point_id=point, in_place=True, transport=transport))
    assert full_reads() == OF_A_RESTORE_IN_PLACE


def restore(holdfast: OneProcess, request: RestoreVmRequest) -> None:
    job = holdfast.ended(holdfast.engine.start_restore_vm(request, dry_run=False))
    assert str(job.state) == "done", job.error

"""In place, nothing is deleted that no restore point holds, unless it is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import PointId
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, digest, disk_truth
from support.other_disks import exchanged_for
from support.restored_disks import disk_start
from support.vms import vm_named

MIB = 1 << 20
PRECIOUS = "[nfs1] web/precious-data.vmdk"
PLAN = InventoryPlan(
    machines=(
        MachinePlan(
            name="web",
            datastore="nfs1",
            power="off",
            change_tracking=True,
            disks=(DiskPlan(size_bytes=MIB, content="random", seed=1),),
        ),
        MachinePlan(name="proxy", datastore="vmfs1", disks=()),
    )
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    with running_lab(tmp_path / "lab", inventory=PLAN) as running:
        yield running


@pytest.fixture
def point(holdfast: OneProcess) -> PointId:
    return PointId(holdfast.record(holdfast.back_up("web")).point_id)


def in_place(holdfast: OneProcess, point: PointId, **wish: object) -> JobRow:
    request = RestoreVmRequest(point_id=point, in_place=True, **wish)  # type: ignore[arg-type]  # a test's own words
    return holdfast.ended(holdfast.engine.start_restore_vm(request, dry_run=False))


def put_precious(holdfast: OneProcess) -> None:
    """A data disk of somebody's is where the point's disk was."""
    vm = vm_named(holdfast.session, "web")
    exchanged_for(holdfast.session, vm, vm.disks[0], PRECIOUS)
    (now,) = vm_named(holdfast.session, "web").disks
    assert (now.device_key, now.label) == (vm.disks[0].device_key, vm.disks[0].label)


def disk_files(lab: RunningLab) -> list[str]:
    root = lab.lab.datastore("nfs1").root
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.vmdk"))


def held(lab: RunningLab) -> str:
    device = lab.lab.machine("web").disks()[0]
    return digest(disk_start(lab, "web", device.key, device.disk.capacity_bytes))


@pytest.mark.parametrize("dry_run", [True, False])
def test_rule_37_a_disk_that_is_in_no_point_is_not_replaced(
    holdfast: OneProcess, lab: RunningLab, point: PointId, dry_run: bool
) -> None:
    put_precious(holdfast)
    before = disk_files(lab)
    with pytest.raises(Refused, match="no restore point of this VM holds it") as refused:
        holdfast.engine.start_restore_vm(
            RestoreVmRequest(point_id=point, in_place=True), dry_run=dry_run
        )
    assert PRECIOUS in str(refused.value)
    assert f"--replace-disk '{PRECIOUS}'" in refused.value.advice
    assert disk_files(lab) == before
    assert not holdfast.world.ledger.open_entries()


def test_a_disk_that_is_in_no_point_is_replaced_when_its_file_is_named(
    holdfast: OneProcess, lab: RunningLab, point: PointId
) -> None:
    truth = disk_truth(lab, "web")
    put_precious(holdfast)
    request = RestoreVmRequest(point_id=point, in_place=True, replaced_files=(PRECIOUS,))
    plan = holdfast.engine.start_restore_vm(request, dry_run=True).plan
    assert any(line.startswith(f"NO restore point holds {PRECIOUS}") for line in plan)
    assert str(in_place(holdfast, point, replaced_files=(PRECIOUS,)).state) == "done"
    assert held(lab) == truth
    assert "web/precious-data.vmdk" not in disk_files(lab)


def test_a_file_that_no_disk_has_is_a_usage_error(holdfast: OneProcess, point: PointId) -> None:
    with pytest.raises(UsageError, match="no disk that would be replaced"):
        in_place(holdfast, point, replaced_files=("[nfs1] web/mistyped.vmdk",))


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_a_disk_that_a_restore_made_is_replaced_without_a_backup_in_between(
    holdfast: OneProcess, lab: RunningLab, point: PointId, transport: str
) -> None:
    truth = disk_truth(lab, "web")
    for _ in range(2):
        job = in_place(holdfast, point, transport=transport)
        assert str(job.state) == "done", job.error
        assert held(lab) == truth


def test_a_disk_that_a_later_point_holds_is_replaced(
    holdfast: OneProcess, lab: RunningLab, point: PointId
) -> None:
    truth = disk_truth(lab, "web")
    put_precious(holdfast)
    holdfast.record(holdfast.back_up("web"))
    assert str(in_place(holdfast, point).state) == "done"
    assert held(lab) == truth

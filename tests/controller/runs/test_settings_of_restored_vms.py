"""A new VM has the settings that the point holds; what it cannot have is told, and costs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_common.identity import PointId
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.vsphere import properties
from holdfast_controller.vsphere.foreign import reference
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess

MIB = 1 << 20
PLAN = InventoryPlan(
    machines=(
        MachinePlan(
            name="web",
            datastore="nfs1",
            power="off",
            firmware="efi",
            change_tracking=True,
            disks=(DiskPlan(size_bytes=MIB, content="random", seed=1),),
        ),
        MachinePlan(name="proxy", datastore="vmfs1", disks=()),
    )
)
SETTINGS = vim.vm.ConfigSpec(
    memoryHotAddEnabled=True,
    cpuHotAddEnabled=True,
    nestedHVEnabled=True,
    swapPlacement="hostLocal",
    flags=vim.vm.FlagInfo(diskUuidEnabled=True, vbsEnabled=True, enableLogging=False),
    cpuAllocation=vim.ResourceAllocationInfo(
        reservation=500, limit=2000, shares=vim.SharesInfo(level="high", shares=2000)
    ),
    memoryAllocation=vim.ResourceAllocationInfo(
        reservation=512, shares=vim.SharesInfo(level="custom", shares=777)
    ),
    latencySensitivity=vim.LatencySensitivity(level="high"),
    bootOptions=vim.vm.BootOptions(
        bootDelay=3000, enterBIOSSetup=True, bootRetryEnabled=True, efiSecureBootEnabled=True
    ),
)
NAMES = [
    "memoryHotAddEnabled", "cpuHotAddEnabled", "cpuHotRemoveEnabled", "nestedHVEnabled", "swapPlacement",
    "flags", "cpuAllocation", "memoryAllocation", "latencySensitivity", "bootOptions",
]  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    with running_lab(tmp_path / "lab", inventory=PLAN) as running:
        yield running


def machine(lab: RunningLab, name: str) -> Any:
    return reference(vim.VirtualMachine, lab.lab.machine(name).moid)


def change(holdfast: OneProcess, lab: RunningLab, spec: Any) -> None:
    session = holdfast.session
    session.wait_for_task(
        session.call(machine(lab, "web"), "ReconfigVM_Task", spec=spec), what="a change"
    )


def shown(holdfast: OneProcess, lab: RunningLab, name: str) -> dict[str, str]:
    paths = [f"config.{each}" for each in NAMES]
    values = properties.read_one(holdfast.session, machine(lab, name), paths)
    return {path: str(value) for path, value in values.items()}


def restored(holdfast: OneProcess, transport: str) -> JobRow:
    point = PointId(holdfast.record(holdfast.back_up("web")).point_id)
    request = RestoreVmRequest(point_id=point, name="copy", transport=transport)
    return holdfast.ended(holdfast.engine.start_restore_vm(request, dry_run=False))


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_all_settings_of_the_point_are_taken_over(
    holdfast: OneProcess, lab: RunningLab, transport: str
) -> None:
    before = shown(holdfast, lab, "web")
    change(holdfast, lab, SETTINGS)
    wanted = shown(holdfast, lab, "web")
    assert all(wanted[path] != before.get(path) for path in wanted if "cpuHotRemove" not in path)
    job = restored(holdfast, transport)
    assert str(job.state) == "done", job.error
    assert shown(holdfast, lab, "copy") == wanted
    assert not [each for each in job.warnings if each.code == "left_out"]


def test_a_vm_without_special_settings_is_not_changed_again(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    job = restored(holdfast, "direct")
    assert str(job.state) == "done", job.error
    assert shown(holdfast, lab, "copy") == shown(holdfast, lab, "web")
    made = lab.lab.machine("copy").moid
    calls = lab.control.call("calls", method="ReconfigVM_Task")
    assert not [call for call in calls if made in str(call)]


def test_what_vsphere_refuses_is_told_and_the_rest_is_set(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    change(holdfast, lab, SETTINGS)
    wanted = shown(holdfast, lab, "web")
    lab.lab.misbehaviour.arm("fail_call", match={"method": "ReconfigVM_Task"}, times=2)
    job = restored(holdfast, "direct")
    assert str(job.state) == "done", job.error
    (note,) = [each.message for each in job.warnings if each.code == "left_out"]
    assert note.startswith("memory hot-add not set: ")
    found = shown(holdfast, lab, "copy")
    assert {name for name in wanted if wanted[name] != found[name]} == {
        "config.memoryHotAddEnabled"
    }


def test_what_belongs_to_the_old_vm_alone_is_told(holdfast: OneProcess, lab: RunningLab) -> None:
    order = [vim.vm.BootOptions.BootableDiskDevice(deviceKey=2000)]
    change(holdfast, lab, vim.vm.ConfigSpec(bootOptions=vim.vm.BootOptions(bootOrder=order)))
    job = restored(holdfast, "direct")
    assert str(job.state) == "done", job.error
    assert [each.message for each in job.warnings if each.code == "left_out"] == [
        "bootOrder is not taken over"
    ]

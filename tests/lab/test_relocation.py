"""Disks move to another datastore, VMs to another host; the data stays what the guest wrote."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import disks_of, find, machine, read, wait


def test_all_of_a_vm_moves_to_another_datastore_with_its_snapshots(
    lab: RunningLab, service: Any
) -> None:
    db = machine(service, "db")
    nfs2 = find(service, vim.Datastore, "nfs2")
    wait(service, db.RelocateVM_Task(vim.vm.RelocateSpec(datastore=nfs2)))
    shown = lab.control.call("vm-show", vm="db")
    assert {each["datastore"] for each in shown["disks"]} == {"nfs2"}
    assert shown["vmx"].startswith("[nfs2] ")
    assert [each["name"] for each in shown["snapshots"]] == ["before upgrade"]
    assert lab.control.call("compare", vm="db")["equal"]
    snapshot = read(service, db, "snapshot")["snapshot"].currentSnapshot
    config = read(service, snapshot, "config")["config"]
    names = [each.backing.fileName for each in disks_of(config)]
    assert all(each.startswith("[nfs2] ") for each in names)


def test_one_disk_moves_alone(lab: RunningLab, service: Any) -> None:
    db = machine(service, "db")
    vmfs1 = find(service, vim.Datastore, "vmfs1")
    locator = vim.vm.RelocateSpec.DiskLocator(diskId=2001, datastore=vmfs1)
    wait(service, db.RelocateVM_Task(vim.vm.RelocateSpec(disk=[locator])))
    shown = lab.control.call("vm-show", vm="db")
    assert [each["datastore"] for each in shown["disks"]] == ["nfs2", "vmfs1"]
    assert lab.control.call("compare", vm="db")["equal"]


def test_a_vm_moves_to_another_host_while_it_runs(lab: RunningLab, service: Any) -> None:
    web, host = machine(service, "web"), find(service, vim.HostSystem, "esx2.lab")
    wait(service, web.MigrateVM_Task(None, host, "defaultPriority"))
    assert read(service, web, "runtime.host")["runtime.host"] == host


def test_a_disk_moves_in_the_middle_of_a_clients_work(lab: RunningLab, service: Any) -> None:
    lab.control.call(
        "misbehave",
        kind="move_disk",
        match={"method": "CurrentTime"},
        nth=2,
        parameters={"vm": "web", "datastore": "nfs2"},
    )
    path = "config.hardware.device[2000].backing.fileName"
    web = machine(service, "web")
    service.CurrentTime()
    assert read(service, web, path)[path].startswith("[nfs1] ")
    service.CurrentTime()
    assert read(service, web, path)[path].startswith("[nfs2] ")
    assert lab.control.call("compare", vm="web")["equal"]

"""Names of VMs and folders: what vSphere escapes when it tells them, and takes when it is given them."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import find, read, wait
from support.waiting import wait_until

# As it is given -> as people know it -> as vSphere tells it from then on.
NAMES = [
    ("a/b", "a/b", "a%2fb"),
    ("c%2Fd", "c/d", "c%2fd"),
    ("e\\f", "e\\f", "e%5cf"),
    ("50%zz", "50%zz", "50%25zz"),
    ("g%252fh", "g%2fh", "g%252fh"),
    ("n" * 80, "n" * 80, "n" * 80),
]
ON_NO_VM = ["n" * 81, "n" * 78 + "/", " ", "a\nb"]


def vm_folder(service: Any) -> Any:
    return read(service, find(service, vim.Datacenter, "dc1"), "vmFolder")["vmFolder"]


def spec(name: str) -> Any:
    return vim.vm.ConfigSpec(name=name, files=vim.vm.FileInfo(vmPathName="[nfs1]"))


def pool(service: Any) -> Any:
    return find(service, vim.ResourcePool, "Resources")


def created(service: Any, name: str) -> Any:
    return wait(service, vm_folder(service).CreateVM_Task(spec(name), pool(service), None))


def imported(service: Any, name: str) -> Any:
    lease = pool(service).ImportVApp(vim.vm.VmImportSpec(configSpec=spec(name)), vm_folder(service))
    wait_until(lambda: str(lease.state) == "ready", seconds=20, what="the lease is ready")
    machine = lease.info.entity
    lease.Complete()
    return machine


def renamed(service: Any, name: str) -> Any:
    machine = created(service, "before")
    wait(service, machine.Rename_Task(name))
    return machine


def reconfigured(service: Any, name: str) -> Any:
    machine = created(service, "before")
    wait(service, machine.ReconfigVM_Task(vim.vm.ConfigSpec(name=name)))
    return machine


@pytest.mark.parametrize(("given", "plain", "told"), NAMES)
@pytest.mark.parametrize("way", [created, imported, renamed, reconfigured])
def test_a_name_is_told_escaped_and_is_the_same_by_every_way(
    service: Any, lab: RunningLab, way: Any, given: str, plain: str, told: str
) -> None:
    machine = way(service, given)
    try:
        shown = read(service, machine, "name", "config.name", "summary.config.name")
        assert set(shown.values()) == {told}
        assert lab.lab.machine(plain).moid == machine._moId
        # what the lab tells can be given back
        wait(service, machine.Rename_Task("between"))
        wait(service, machine.Rename_Task(told))
        assert lab.lab.machine(plain).moid == machine._moId
        with pytest.raises(vim.fault.DuplicateName):
            created(service, given)
    finally:
        wait(service, machine.Destroy_Task())


@pytest.mark.parametrize("name", ON_NO_VM)
def test_a_name_that_no_vm_can_have_is_refused(service: Any, name: str) -> None:
    with pytest.raises(vim.fault.InvalidName):
        created(service, name)


def test_a_vms_own_folder_never_leads_elsewhere(service: Any, lab: RunningLab) -> None:
    for name in ("../x", "..", "a/b", 'say "x"', "ü漢" * 40):
        machine = created(service, name)
        directory = lab.lab.machine(name).directory
        assert directory.parent == lab.lab.datastore("nfs1").root
        wait(service, machine.Destroy_Task())
        assert not directory.exists()

"""Settings of a VM change wholly or not at all; change tracking as LAB rules want it."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim, vmodl

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import disks_of, machine, read, wait


def reconfigure(service: Any, vm: Any, **values: Any) -> None:
    wait(service, vm.ReconfigVM_Task(vim.vm.ConfigSpec(**values)))


def change_id(service: Any, vm: Any) -> Any:
    path = "config.hardware.device[2000].backing.changeId"
    return read(service, vm, path).get(path)


def test_tracking_shows_its_flag_at_once_and_its_id_after_a_stun(
    lab: RunningLab, service: Any
) -> None:
    web = machine(service, "web")
    reconfigure(service, web, changeTrackingEnabled=True)
    assert read(service, web, "config.changeTrackingEnabled")["config.changeTrackingEnabled"]
    assert change_id(service, web) is None
    snapshot = wait(service, web.CreateSnapshot_Task("stun", "", False, False))
    frozen = read(service, snapshot, "config")["config"]
    disk = disks_of(frozen)[0]
    assert disk.backing.changeId
    assert "/" in disk.backing.changeId
    assert change_id(service, web)
    wait(service, snapshot.RemoveSnapshot_Task(False))
    reconfigure(service, web, changeTrackingEnabled=False)
    assert change_id(service, web) is None
    assert not list((lab.state / "datastores/nfs1/web").glob("*-ctk.vmdk"))


def test_old_hardware_cannot_be_tracked(lab: RunningLab, service: Any) -> None:
    lab.control.call("vm-add", machine={"name": "old", "datastore": "nfs2", "power": "off"})
    old = machine(service, "old")
    reconfigure(service, old, version="vmx-04")
    with pytest.raises(vim.fault.InvalidVmConfig):
        reconfigure(service, old, changeTrackingEnabled=True)
    lab.control.call("vm-remove", vm="old")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"memoryMB": 1024}, vim.fault.InvalidPowerState),
        ({"name": ""}, vim.fault.InvalidName),
        ({"name": "db"}, vim.fault.DuplicateName),
        ({"instanceUuid": "nonsense"}, vmodl.fault.InvalidArgument),
        ({"changeVersion": "long ago"}, vim.fault.ConcurrentAccess),
        ({"firmware": "openboot"}, vim.fault.InvalidPowerState),
    ],
)
def test_what_cannot_be_changed_changes_nothing(
    service: Any, values: dict[str, Any], fault: Any
) -> None:
    web = machine(service, "web")
    before = read(service, web, "config.changeVersion")
    with pytest.raises(fault):
        reconfigure(service, web, annotation="never", **values)
    assert read(service, web, "config.changeVersion") == before
    assert read(service, web, "config.annotation")["config.annotation"] != "never"


def test_extra_configuration_is_set_and_removed(service: Any) -> None:
    web = machine(service, "web")

    def extra() -> dict[str, str]:
        found = read(service, web, "config.extraConfig")["config.extraConfig"]
        return {each.key: each.value for each in found}

    option = vim.option.OptionValue(key="holdfast.test", value="1")
    reconfigure(service, web, extraConfig=[option])
    assert extra()["holdfast.test"] == "1"
    assert extra()["nvram"] == "web.nvram"
    option.value = ""
    reconfigure(service, web, extraConfig=[option])
    assert "holdfast.test" not in extra()


def test_a_current_change_version_is_accepted_and_changes(service: Any) -> None:
    web = machine(service, "web")
    version = read(service, web, "config.changeVersion")["config.changeVersion"]
    reconfigure(service, web, changeVersion=version, annotation="mine")
    assert read(service, web, "config.changeVersion")["config.changeVersion"] != version

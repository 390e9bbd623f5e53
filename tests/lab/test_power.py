"""Power: states, Tools, and what a stop does to change tracking."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import machine, read, wait


def state(service: Any, vm: Any) -> str:
    return str(read(service, vm, "runtime.powerState")["runtime.powerState"])


def test_a_vm_goes_through_its_power_states(lab: RunningLab, service: Any) -> None:
    db = machine(service, "db")
    with pytest.raises(vim.fault.InvalidPowerState) as raised:
        wait(service, db.PowerOnVM_Task())
    assert raised.value.existingState == "poweredOn"
    wait(service, db.SuspendVM_Task())
    assert state(service, db) == "suspended"
    wait(service, db.PowerOnVM_Task())
    wait(service, db.ResetVM_Task())
    assert state(service, db) == "poweredOn"
    wait(service, db.PowerOffVM_Task())
    assert state(service, db) == "poweredOff"
    assert read(service, db, "guest.toolsRunningStatus") == {
        "guest.toolsRunningStatus": "guestToolsNotRunning"
    }
    wait(service, db.PowerOnVM_Task())
    assert read(service, db, "guest.toolsRunningStatus") == {
        "guest.toolsRunningStatus": "guestToolsRunning"
    }


def test_a_guest_without_tools_cannot_be_asked_to_shut_down(lab: RunningLab, service: Any) -> None:
    db = machine(service, "db")
    lab.control.call("vm-tools", vm="db", running=False)
    with pytest.raises(vim.fault.ToolsUnavailable):
        db.ShutdownGuest()
    lab.control.call("vm-tools", vm="db", running=True)
    db.ShutdownGuest()
    wait(service, read(service, db, "recentTask")["recentTask"][-1])
    assert state(service, db) == "poweredOff"
    wait(service, db.PowerOnVM_Task())


def test_after_an_unclean_stop_the_change_id_has_another_uuid(
    lab: RunningLab, service: Any
) -> None:
    lab.control.call(
        "vm-add",
        machine={
            "name": "tracked",
            "datastore": "nfs2",
            "change_tracking": True,
            "disks": [{"size": "1M"}],
        },
    )

    def id_uuid() -> str:
        disk = lab.control.call("vm-show", vm="tracked")["disks"][0]
        return str(disk["change_id"]).partition("/")[0]

    first = id_uuid()
    for stop, same in (("off", True), ("crash", False)):
        lab.control.call("vm-power", vm="tracked", to=stop)
        lab.control.call("vm-power", vm="tracked", to="on")
        assert (id_uuid() == first) is same, stop
    lab.control.call("vm-remove", vm="tracked")


def test_power_is_blocked_while_a_transfer_holds_the_vm(lab: RunningLab, service: Any) -> None:
    db = machine(service, "db")
    with lab.lab.lock:
        vm = lab.lab.machine("db")
        vm.transfer_lease = vm.root_snapshots[0]
    try:
        for call in (db.PowerOffVM_Task, db.SuspendVM_Task, db.ResetVM_Task):
            with pytest.raises(vim.fault.InvalidState):
                call()
    finally:
        vm.transfer_lease = None

"""Tasks: one at a time per VM, living on without their client, with faults and results."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from holdfast_lab.faults import SoapFault
from holdfast_lab.server import RunningLab
from support.lab_soap_clients import logged_in, machine, read, wait


def hold_snapshots(lab: RunningLab, when: str = "before") -> None:
    lab.control.call(
        "misbehave",
        kind="hold_task",
        match={"description": "VirtualMachine.createSnapshot"},
        parameters={"when": when},
    )


def test_a_task_tells_its_state_result_and_entity(service: Any) -> None:
    web = machine(service, "web")
    task = web.CreateSnapshot_Task("told", "", False, False)
    snapshot = wait(service, task)
    info = read(service, task, "info")["info"]
    assert info.state == "success"
    assert info.result == snapshot
    assert info.descriptionId == "VirtualMachine.createSnapshot"
    assert (info.entity, info.entityName) == (web, "web")
    assert info.startTime <= info.completeTime
    assert task in read(service, web, "recentTask")["recentTask"]
    wait(service, snapshot.RemoveSnapshot_Task(False))


def test_a_busy_vm_refuses_a_second_task_and_other_vms_do_not(
    lab: RunningLab, service: Any
) -> None:
    hold_snapshots(lab)
    web, db = machine(service, "web"), machine(service, "db")
    held = web.CreateSnapshot_Task("held", "", False, False)
    with pytest.raises(vim.fault.TaskInProgress) as raised:
        web.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="x"))
    assert raised.value.task == held
    wait(service, db.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="x")))
    assert read(service, held, "info.state")["info.state"] in ("queued", "running")
    lab.control.call("misbehaviour-release")
    wait(service, wait(service, held).RemoveSnapshot_Task(False))


def test_a_task_outlives_its_lost_reply_and_its_session(lab: RunningLab, service: Any) -> None:
    hold_snapshots(lab)
    lab.control.call("misbehave", kind="lost_reply", match={"method": "CreateSnapshot_Task"})
    with pytest.raises(Exception):  # noqa: B017,PT011 - what a cut connection raises is the client's
        machine(service, "web").CreateSnapshot_Task("lost", "", False, False)
    lab.control.call("session-expire")
    lab.control.call("misbehaviour-release")
    with logged_in(lab) as later:
        web = machine(later, "web")
        for task in read(later, web, "recentTask")["recentTask"][-1:]:
            wait(later, task)
        tree = read(later, web, "snapshot")["snapshot"].rootSnapshotList
        assert [each.name for each in tree] == ["lost"]
        wait(later, tree[0].snapshot.RemoveSnapshot_Task(False))


def test_a_fault_of_a_task_has_its_type_and_its_message(lab: RunningLab, service: Any) -> None:
    lab.control.call(
        "misbehave",
        kind="fail_task",
        match={"vm": "web"},
        parameters={"fault": "NoDiskSpace", "when": "before"},
    )
    web = machine(service, "web")
    task = web.CreateSnapshot_Task("failing", "", False, False)
    with pytest.raises(vim.fault.NoDiskSpace):
        wait(service, task)
    error = read(service, task, "info.error")["info.error"]
    assert "NoDiskSpace" in error.msg
    assert "snapshot" not in read(service, web, "snapshot")


def test_a_task_that_fails_after_its_effect_leaves_the_effect(
    lab: RunningLab, service: Any
) -> None:
    lab.control.call(
        "misbehave", kind="fail_task", match={"vm": "web"}, parameters={"when": "after"}
    )
    web = machine(service, "web")
    with pytest.raises(vmodl.fault.SystemError):
        wait(service, web.CreateSnapshot_Task("stays", "", False, False))
    tree = read(service, web, "snapshot")["snapshot"].rootSnapshotList
    wait(service, tree[0].snapshot.RemoveSnapshot_Task(False))


def test_a_bug_in_a_task_is_a_system_error_and_is_written_down(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from holdfast_lab.server import running_lab

    with running_lab(tmp_path_factory.mktemp("lab")) as lab:

        def breaks(_task: object) -> object:
            raise KeyError("bug")

        with lab.lab.lock:
            host = lab.lab.hosts()[0]
            task = lab.lab.tasks.start(host, "Lab.breaks", breaks)
        with pytest.raises(SoapFault) as raised:
            lab.lab.tasks.wait(task)
        assert raised.value.name == "SystemError"
        assert "KeyError" in str(lab.lab.calls.events(event="lab_bug")[0]["trace"])


def test_many_threads_may_start_tasks_on_one_vm_and_one_wins(lab: RunningLab, service: Any) -> None:
    hold_snapshots(lab)
    results: list[str] = []

    def tries() -> None:
        with logged_in(lab) as client:
            try:
                machine(client, "web").CreateSnapshot_Task("race", "", False, False)
                results.append("started")
            except vim.fault.TaskInProgress:
                results.append("busy")

    threads = [threading.Thread(target=tries) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert sorted(results) == ["busy", "busy", "busy", "started"]
    lab.control.call("misbehaviour-release")
    web = machine(service, "web")
    snapshot = wait(service, read(service, web, "recentTask")["recentTask"][-1])
    wait(service, snapshot.RemoveSnapshot_Task(False))

from __future__ import annotations

import threading

import pytest
from pyVmomi import vim

from holdfast_common.errors import (
    AuthenticationFailed,
    CapabilityAbsent,
    SourceGone,
    TimedOut,
    VsphereFailed,
    VsphereUnavailable,
)
from holdfast_common.logs import Secret
from holdfast_controller.vsphere import effects, inventory, properties
from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.session import Account, VsphereSession, api_version
from holdfast_lab.server import RunningLab
from support.vms import vm_named
from support.vsphere_sessions import CountingGate, account_of, address_of, session_at


def test_a_wrong_password_is_an_error_of_its_own(lab: RunningLab) -> None:
    account = Account(user_name=lab.user, password=Secret(b"wrong"))
    with pytest.raises(AuthenticationFailed):
        VsphereSession(address_of(lab), account).login()


def test_the_newest_version_that_both_know_is_spoken() -> None:
    about = vim.AboutInfo(apiVersion="8.0.1.0")
    assert api_version(about) == "vim.version.v8_0_1_0"
    assert api_version(vim.AboutInfo(apiVersion="8.0.0.5")) == "vim.version.v8_0_0_2"
    assert api_version(vim.AboutInfo(apiVersion="6.7.3")) == "vim.version.version15"


def test_rule_22_a_session_that_ended_is_logged_in_again_and_goes_on(lab: RunningLab) -> None:
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        before = inventory.read_inventory(session)
        with lab.lab.lock:
            lab.lab.sessions.end_all()
        after = inventory.read_inventory(session)
    assert [vm.moref for vm in after.vms] == [vm.moref for vm in before.vms]
    assert gate.count("Login") == 2


@pytest.mark.parametrize("nth", range(1, 8))
def test_a_session_that_ends_at_any_call_of_a_read_does_no_harm(lab: RunningLab, nth: int) -> None:
    with session_at(lab) as session:
        lab.lab.misbehaviour.arm("expire_session", nth=nth)
        inventory.read_inventory(session)
        assert len(inventory.read_inventory(session).vms) == 3


@pytest.mark.parametrize("kind", ["unavailable", "lost_reply", "lost_request"])
def test_a_vcenter_that_is_being_restarted_is_waited_for(lab: RunningLab, kind: str) -> None:
    with session_at(lab) as session:
        lab.lab.misbehaviour.arm(kind, nth=2, times=2)
        assert len(inventory.read_inventory(session).vms) == 3


def test_patience_ends(lab: RunningLab) -> None:
    with session_at(lab, patience_seconds=0.5) as session:
        lab.lab.misbehaviour.arm("unavailable", times=None)
        with pytest.raises(VsphereUnavailable) as caught:
            inventory.read_inventory(session)
        lab.lab.misbehaviour.disarm()
    assert caught.value.retryable


def test_a_missing_right_is_an_absent_capability_and_no_lost_login(lab: RunningLab) -> None:
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        machine = reference(vim.VirtualMachine, vm_named(session, "web").moref)
        lab.lab.misbehaviour.arm("fail_call", parameters={"fault": "NoPermission"}, nth=1)
        with pytest.raises(CapabilityAbsent) as caught:
            session.call(machine, "ReconfigVM_Task", spec=vim.vm.ConfigSpec())
    assert caught.value.facts["fault"] == "NoPermission"
    assert gate.count("Login") == 1


def test_an_object_that_is_gone_says_so(lab: RunningLab) -> None:
    with session_at(lab) as session:
        with pytest.raises(SourceGone):
            properties.read_one(session, reference(vim.VirtualMachine, "vm-99999"), ["name"])
        with pytest.raises(SourceGone):
            inventory.find_vm(session, instance_uuid="00000000-0000-0000-0000-000000000000")


def test_a_task_survives_the_session_that_started_it(lab: RunningLab) -> None:
    with session_at(lab) as session:
        machine = reference(vim.VirtualMachine, vm_named(session, "web").moref)
        rule = lab.lab.misbehaviour.arm("hold_task", match={"description": "*econfig*"})
        task = session.call(machine, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(annotation="x"))
        results: list[object] = []

        def wait() -> None:
            results.append(session.wait_for_task(task, what="a test", timeout_seconds=20))

        waiting = threading.Thread(target=wait)
        waiting.start()
        with lab.lab.lock:
            lab.lab.sessions.end_all()
        lab.lab.misbehaviour.release(rule.identifier)
        waiting.join(20)
    assert results == [None]


def test_a_task_that_takes_too_long_times_out_and_goes_on(lab: RunningLab) -> None:
    with session_at(lab) as session:
        machine = reference(vim.VirtualMachine, vm_named(session, "web").moref)
        rule = lab.lab.misbehaviour.arm("hold_task", match={"description": "*econfig*"})
        task = session.call(machine, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(annotation="x"))
        with pytest.raises(TimedOut):
            session.wait_for_task(task, what="a test", timeout_seconds=0.2)
        assert effects.running_tasks(session, machine)
        lab.lab.misbehaviour.release(rule.identifier)
        effects.wait_until_idle(session, machine, timeout_seconds=10)
        assert not effects.running_tasks(session, machine)


def test_a_failed_task_brings_its_fault(lab: RunningLab) -> None:
    with session_at(lab) as session:
        machine = reference(vim.VirtualMachine, vm_named(session, "web").moref)
        lab.lab.misbehaviour.arm("fail_task", parameters={"fault": "NoDiskSpace"})
        task = session.call(machine, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(annotation="x"))
        with pytest.raises(VsphereFailed) as caught:
            session.wait_for_task(task, what="a test")
    assert caught.value.facts["fault"] == "NoDiskSpace"
    assert "room" in caught.value.advice


def test_many_tasks_are_served_by_one_loop(lab: RunningLab) -> None:
    with session_at(lab) as session:
        names = ("web", "db", "proxy")
        machines = [reference(vim.VirtualMachine, vm_named(session, name).moref) for name in names]
        ended: list[str] = []

        def change(machine: object) -> None:
            spec = vim.vm.ConfigSpec(annotation="x")
            task = session.call(machine, "ReconfigVM_Task", spec=spec)
            session.wait_for_task(task, what="a test", timeout_seconds=20)
            ended.append("yes")

        threads = [threading.Thread(target=change, args=(each,)) for each in machines]
        for each in threads:
            each.start()
        loops = [each for each in threading.enumerate() if each.name == "vSphere tasks"]
        for each in threads:
            each.join(20)
    assert ended == ["yes"] * 3
    assert len(loops) <= 1


def test_the_login_is_kept_alive(lab: RunningLab) -> None:
    session = VsphereSession(address_of(lab), account_of(lab), keep_alive_seconds=0.05)
    with session:
        with lab.lab.lock:
            lab.lab.sessions.end_all()
        for _ in range(100):
            with lab.lab.lock:
                if lab.lab.sessions.logged_in():
                    break
            session.stop.wait(0.05)
        with lab.lab.lock:
            assert lab.lab.sessions.logged_in()


def test_closing_logs_out(lab: RunningLab) -> None:
    with session_at(lab) as session:
        session.login()
    with lab.lab.lock:
        assert not lab.lab.sessions.logged_in()


def test_a_task_that_another_waiter_saw_end_is_known_at_once(lab: RunningLab) -> None:
    with session_at(lab) as session:
        machine = reference(vim.VirtualMachine, vm_named(session, "web").moref)
        spec = vim.vm.ConfigSpec(annotation="x")
        for _ in range(5):
            task = session.call(machine, "ReconfigVM_Task", spec=spec)
            for _ in range(4):
                session.wait_for_task(task, what="a test", timeout_seconds=10)
        waiters = [
            threading.Thread(
                target=session.wait_for_end, args=(task,), kwargs={"timeout_seconds": 10}
            )
            for _ in range(8)
        ]
        for each in waiters:
            each.start()
        for each in waiters:
            each.join(10)
            assert not each.is_alive()

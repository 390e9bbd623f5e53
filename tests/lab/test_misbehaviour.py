"""What can go wrong does go wrong, exactly where and as often as asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from http.client import HTTPException
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from holdfast_lab.control_client import ControlFailed
from holdfast_lab.server import RunningLab
from support.lab_soap_clients import logged_in, machine, read, wait

CONNECTION_LOST = (HTTPException, OSError, vim.fault.HostConnectFault)


def arm(lab: RunningLab, kind: str, **values: Any) -> Any:
    return lab.control.call("misbehave", kind=kind, **values)


def annotate(service: Any, text: str) -> Any:
    return machine(service, "web").ReconfigVM_Task(vim.vm.ConfigSpec(annotation=text))


def annotation(lab: RunningLab) -> str:
    with lab.lab.lock:
        return lab.lab.machine("web").settings.annotation


@pytest.fixture(autouse=True)
def disarmed(lab: RunningLab) -> Any:
    yield
    lab.control.call("misbehaviour-disarm")


def test_a_lost_request_has_no_effect(lab: RunningLab, service: Any) -> None:
    arm(lab, "lost_request", match={"method": "ReconfigVM_Task"})
    with pytest.raises(CONNECTION_LOST):
        annotate(service, "lost request")
    assert annotation(lab) != "lost request"


def test_a_lost_reply_has_its_effect(lab: RunningLab, service: Any) -> None:
    arm(lab, "lost_reply", match={"method": "ReconfigVM_Task"})
    with pytest.raises(CONNECTION_LOST):
        annotate(service, "lost reply")
    with lab.lab.lock:
        last = lab.lab.tasks.known[-1]
    assert last.finished.wait(10)
    assert annotation(lab) == "lost reply"


def test_only_the_nth_call_is_hit_and_as_often_as_asked(lab: RunningLab, service: Any) -> None:
    rule = arm(
        lab,
        "fail_call",
        match={"method": "CurrentTime"},
        nth=2,
        times=2,
        parameters={"fault": "NotSupported"},
    )
    hit = []
    for _ in range(5):
        try:
            service.CurrentTime()
            hit.append(False)
        except vmodl.fault.NotSupported:
            hit.append(True)
    assert hit == [False, True, True, False, False]
    shown = lab.control.call("misbehaviour-list")
    assert [(each["id"], each["seen"], each["fired"]) for each in shown] == [(rule["id"], 5, 2)]


def test_a_session_expires_at_the_call_asked_for(lab: RunningLab) -> None:
    arm(lab, "expire_session", match={"method": "CurrentTime"}, nth=2)
    with logged_in(lab) as service:
        service.CurrentTime()
        with pytest.raises(vim.fault.NotAuthenticated):
            service.CurrentTime()
        service.content.sessionManager.Login(lab.user, lab.password)


def test_an_unavailable_server_answers_503(lab: RunningLab, service: Any) -> None:
    arm(lab, "unavailable", match={"method": "CurrentTime"})
    with pytest.raises(HTTPException, match="503"):
        service.CurrentTime()
    service.CurrentTime()


def test_a_silent_server_says_nothing_until_it_is_released(lab: RunningLab, service: Any) -> None:
    arm(lab, "silence", match={"method": "CurrentTime"})
    ended = threading.Event()

    def asks() -> None:
        try:
            service.CurrentTime()
        except CONNECTION_LOST:
            ended.set()

    asking = threading.Thread(target=asks)
    asking.start()
    while not lab.control.call("misbehaviour-list")[0]["fired"]:
        asking.join(0.01)
    assert not ended.is_set()
    lab.control.call("misbehaviour-release")
    assert ended.wait(10)


@pytest.mark.parametrize(("when", "effect"), [("before", False), ("after", True)])
def test_a_held_call_waits_before_or_after_its_effect(
    lab: RunningLab, service: Any, when: str, *, effect: bool
) -> None:
    arm(lab, "hold_call", match={"method": "CreateFolder"}, parameters={"when": when})
    content = service.RetrieveContent()
    vm_folder = content.searchIndex.FindByInventoryPath("dc1/vm")
    call = threading.Thread(target=lambda: vm_folder.CreateFolder(f"held {when}"))
    call.start()
    while not lab.control.call("misbehaviour-list")[0]["fired"]:
        call.join(0.01)
    with logged_in(lab) as other:
        found = other.content.searchIndex.FindByInventoryPath(f"dc1/vm/held {when}")
        assert (found is not None) is effect
    lab.control.call("misbehaviour-release")
    call.join(10)
    assert content.searchIndex.FindByInventoryPath(f"dc1/vm/held {when}") is not None


@pytest.mark.parametrize(("when", "effect"), [("before", False), ("after", True)])
def test_a_process_is_killed_before_or_after_a_calls_effect(
    lab: RunningLab, service: Any, when: str, *, effect: bool
) -> None:
    program = (
        "import sys; from support.lab_soap_clients import lax_context\n"
        "from pyVim.connect import SmartConnect\n"
        "port, user, password, name = sys.argv[1:]\n"
        "s = SmartConnect(host='127.0.0.1', port=int(port), user=user, pwd=password,"
        " sslContext=lax_context())\n"
        "input()\n"
        "s.content.searchIndex.FindByInventoryPath('dc1/vm').CreateFolder(name)\n"
    )
    name = f"killed {when}"
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(lab.port), lab.user, lab.password, name],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    arm(
        lab,
        "kill_process",
        match={"method": "CreateFolder"},
        parameters={"pid": child.pid, "when": when},
    )
    child.communicate(b"\n", timeout=30)
    assert child.returncode == -signal.SIGKILL
    found = service.content.searchIndex.FindByInventoryPath(f"dc1/vm/{name}")
    assert (found is not None) is effect


def test_a_slow_task_is_released_early(lab: RunningLab, service: Any) -> None:
    arm(lab, "slow_task", match={"vm": "web"}, parameters={"seconds": 600})
    task = annotate(service, "slow")
    assert read(service, task, "info.state")["info.state"] in ("queued", "running")
    lab.control.call("misbehaviour-release")
    wait(service, task)
    assert annotation(lab) == "slow"


def test_patterns_choose_the_vm(lab: RunningLab, service: Any) -> None:
    arm(lab, "fail_call", match={"method": "*_Task", "vm": "d?"}, times=0)
    wait(service, annotate(service, "other"))
    with pytest.raises(vmodl.fault.SystemError):
        machine(service, "db").PowerOffVM_Task()


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "sing"},
        {"kind": "fail_call", "parameters": {"fault": "Nonsense"}},
        {"kind": "fail_call", "parameters": {"fault": "VirtualDisk"}},
    ],
)
def test_what_cannot_be_armed_is_refused(lab: RunningLab, values: dict[str, Any]) -> None:
    with pytest.raises(ControlFailed):
        lab.control.call("misbehave", **values)
    assert not lab.control.call("misbehaviour-list")


def test_every_bite_is_in_the_log(lab: RunningLab, service: Any) -> None:
    arm(lab, "fail_call", match={"method": "CurrentTime"})
    with pytest.raises(vmodl.fault.SystemError):
        service.CurrentTime()
    bite = lab.control.call("calls", event="misbehaviour")[-1]
    assert (bite["kind"], bite["method"]) == ("fail_call", "CurrentTime")
    call = lab.control.call("calls", event="call", method="CurrentTime")[-1]
    assert (call["fault"], call["user"]) == ("SystemError", lab.user)

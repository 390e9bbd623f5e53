"""Each call of attaching and detaching fails once, and loses its reply once: nothing stays attached."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_controller.vsphere import hot_add
from holdfast_controller.vsphere.hot_add import hot_added
from holdfast_lab.server import RunningLab
from support.vms import vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at

CALLS_MIN = 8
CALLS_MAX = 40


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_add, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize("how", ["fail_at", "lose_at"])
def test_every_call_may_fail_or_lose_its_reply_and_nothing_stays_attached(
    lab: RunningLab, tmp_path: Path, how: str
) -> None:
    with lab.lab.lock:
        lab.lab.machine("web").power_state = "poweredOff"
    gate = CountingGate()
    with session_at(lab, gate=gate, patience_seconds=5) as session:
        proxy, web = vm_named(session, "proxy"), vm_named(session, "web")
        for number in range(1, CALLS_MAX):
            ledger = job_ledger(tmp_path)
            gate.calls.clear()
            setattr(gate, how, number)
            # one lost call never fails the job
            with hot_added(
                session, ledger, proxy_instance_uuid=proxy.instance_uuid, disks=web.disks
            ):
                assert len(lab.lab.host_devices.attached()) == 1
            setattr(gate, how, 0)
            if len(gate.calls) < number:
                break
            call = gate.calls[number - 1]
            assert lab.lab.host_devices.attached() == [], f"{how} {number} {call}"
            assert not ledger.open_entries(), f"{how} {number} {call}"
            repeated = how == "fail_at" and call.startswith("ReconfigVM_Task")
            wanted = 3 if repeated else 2
            assert gate.count("ReconfigVM_Task") == wanted, f"{how} {number} {call}"
    assert number > CALLS_MIN

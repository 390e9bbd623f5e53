"""Rules 11 to 19: snapshots, what is attached meanwhile, and what is left after a crash. See docs/rules.md."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from pyVmomi import vim

from holdfast_common.errors import Refused
from holdfast_common.job_spec import JobSpec
from holdfast_controller.ledger import EntryKind, EntryState, JobLedger
from holdfast_controller.vsphere import hot_add, preflight, undo
from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.hot_add import hot_added
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_lab.machine import POWERED_OFF
from holdfast_lab.server import RunningLab
from holdfast_lab.snapshots import take_snapshot
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes, one_process
from support.vms import CRASH, chain_lengths, snapshot_names, vm_named
from support.vsphere_sessions import CountingGate, session_at

UNIT = 64 * 1024


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_rule_11_a_vm_with_the_users_snapshots_yields_its_current_state_and_keeps_them(
    holdfast: OneProcess, lab: RunningLab, transport: str
) -> None:
    guest_writes(lab, "db", 4 * UNIT)
    guest_writes(lab, "db", 6 * UNIT, number=1)
    machine = lab.lab.machine("db")
    take_snapshot(machine, name="second", memory=False, quiesce=False)
    guest_writes(lab, "db", 8 * UNIT)
    job = holdfast.back_up("db", transport=transport)
    for number, key in enumerate((2000, 2001)):
        assert disk_content(holdfast, job, key) == disk_truth(lab, "db", number)
    assert snapshot_names(lab, "db") == ["before upgrade", "second"]


def test_rule_12_a_vm_that_is_off_is_read_below_a_snapshot_too(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    machine = lab.lab.machine("web")
    with lab.lab.lock:
        machine.power_state = POWERED_OFF
    before = disk_truth(lab, "web")
    seen: list[str] = []

    def start_the_guest(spec: JobSpec) -> None:
        seen.extend(snapshot_names(lab, "web"))
        with lab.lab.lock:
            machine.power_state = "poweredOn"
        guest_writes(lab, "web", 5 * UNIT)

    holdfast.agent.before = start_the_guest
    job = holdfast.back_up("web")
    assert len(seen) == 1
    assert disk_content(holdfast, job) == before != disk_truth(lab, "web")


def test_rule_13_a_snapshot_of_the_users_made_meanwhile_outlives_ours(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    def snapshot_too(spec: JobSpec) -> None:
        take_snapshot(
            lab.lab.machine("web"),
            name=snapshot_names(lab, "web")[0],
            description="run= job= nonce=",
            memory=False,
            quiesce=False,
        )

    holdfast.agent.before = snapshot_too
    holdfast.back_up("web", transport="hotadd")
    assert len(snapshot_names(lab, "web")) == 1
    assert not holdfast.world.ledger.open_entries()


def test_rule_14_a_backup_leaves_no_consolidation_behind(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    lab.lab.misbehaviour.arm("leave_consolidation")
    holdfast.back_up("web")
    assert chain_lengths(lab, "web") == [1]
    assert not lab.lab.machine("web").consolidation_needed
    assert not holdfast.world.ledger.open_entries()


def test_rule_15_a_snapshot_stays_while_its_disk_is_attached(
    lab: RunningLab, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_add, "FIRST_PAUSE_SECONDS", 0.01)
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        vm, proxy = vm_named(session, "web"), vm_named(session, "proxy")
        with (
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
            hot_added(
                session,
                ledger,
                proxy_instance_uuid=proxy.instance_uuid,
                disks=made.protected_disks,
                owner=vm,
            ),
        ):
            lab.lab.misbehaviour.arm(
                "fail_task",
                match={"description": "*econfig*"},
                parameters={"fault": "SystemError"},
                times=None,
            )
        assert gate.count("RemoveSnapshot_Task") == 0
        assert {entry.kind: entry.state for entry in ledger.open_entries()} == {
            EntryKind.SNAPSHOT: EntryState.DEBT,
            EntryKind.HOT_ADD: EntryState.DEBT,
        }
        lab.lab.misbehaviour.disarm()
        assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert snapshot_names(lab, "web") == []
    assert not lab.lab.host_devices.attached()


def test_rule_15_a_vm_whose_disks_are_attached_elsewhere_is_not_destroyed(
    ledger: JobLedger, lab: RunningLab
) -> None:
    facts = {"vm": "vm-1", "folder": "group-v1", "vm_name": "x", "nonce": "n", "own_folders": "[]"}
    ledger.intend(EntryKind.NEW_VM, facts)
    ledger.intend(
        EntryKind.HOT_ADD, {"proxy": "?"}
    )  # cannot be undone: it does not say what it was
    with session_at(lab) as session:
        debts = undo.undo_entries(session, ledger.ledger, ledger.open_entries())
    assert [entry.kind for entry in debts] == [EntryKind.HOT_ADD, EntryKind.NEW_VM]
    assert "locked" in debts[1].last_error


@pytest.mark.parametrize("ending", ["the copy fails", "cancelled", "the agent is lost"])
def test_rule_16_the_snapshot_goes_on_every_way_out(
    holdfast: OneProcess, lab: RunningLab, ending: str
) -> None:
    def end(spec: JobSpec) -> None:
        if ending == "the copy fails":
            raise Refused("the copy failed")
        (job,) = holdfast.world.jobs.unfinished()
        if ending == "cancelled":
            holdfast.engine.cancel(job.job_id)
        else:
            holdfast.agent.lose()

    holdfast.agent.before = end
    job = holdfast.back_up("web", transport="hotadd")
    assert str(job.state) in ("failed", "cancelled")
    assert snapshot_names(lab, "web") == []
    assert not lab.lab.host_devices.attached()
    assert not holdfast.world.ledger.open_entries()


def test_rule_16_what_cannot_be_removed_is_a_debt_that_people_see(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    lab.lab.misbehaviour.arm(
        "fail_task",
        match={"description": "*Snapshot.remove"},
        parameters={"fault": "FileLocked"},
        times=None,
    )
    job = holdfast.back_up("web")
    assert str(job.state) == "partial", "the point is whole, whatever became of the snapshot"
    assert holdfast.record(job).job_id == job.job_id
    (debt,) = holdfast.world.ledger.debts()
    assert "FileLocked" in debt.last_error
    assert any(line.name == "debt" and "snapshot" in line.detail for line in holdfast.doctor())


def test_rule_17_after_a_crash_a_job_waits_until_everything_of_ours_is_gone(
    tmp_path: Path, lab: RunningLab
) -> None:
    gate = CountingGate()
    with one_process(tmp_path / "h", lab, gate=gate, reconciled=False) as holdfast:
        leave_a_crash_behind(holdfast)
        assert len(lab.lab.host_devices.attached()) == 1
        started = holdfast.start("db")
        (job_id,) = started.job_ids
        assert not threading.Event().wait(0.5)
        assert str(holdfast.world.jobs.job(job_id).state) == "queued"
        del gate.calls[:]
        holdfast.reconciler.sweep(holdfast.vcenter_id)
        assert snapshot_names(lab, "web") == []
        assert not lab.lab.host_devices.attached()
        tasks = [call.split()[0] for call in gate.calls if "_Task" in call]
        assert tasks == ["ReconfigVM_Task", "RemoveSnapshot_Task"]
        holdfast.engine.reconciled()
        assert str(holdfast.ended(started).state) == "done"


def test_rule_17_no_new_run_on_a_vm_before_its_leftovers_are_gone(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    leave_a_crash_behind(holdfast)
    refused = holdfast.back_up("web")
    assert refused.error is not None
    assert refused.error.code == "refused"
    assert str(holdfast.back_up("db").state) == "done", "another VM is not concerned"
    holdfast.reconciler.sweep(holdfast.vcenter_id)
    assert str(holdfast.back_up("web").state) == "done"


def leave_a_crash_behind(holdfast: OneProcess) -> None:
    """What a controller that was killed leaves of a job that its database does not even know."""
    world, session = holdfast.world, holdfast.session
    vm, proxy = vm_named(session, "web"), vm_named(session, "proxy")
    book = holdfast.forgotten_ledger()
    made = holdfast.crashed_in(temporary_snapshot(session, book, vm=vm, wish=CRASH))
    holdfast.crashed_in(
        hot_added(
            session,
            book,
            proxy_instance_uuid=proxy.instance_uuid,
            disks=made.protected_disks,
            owner=vm,
        )
    )
    assert len(world.ledger.open_entries()) == 2


def test_rule_19_a_vm_that_a_snapshot_would_endanger_is_refused(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    session = holdfast.session
    vm = vm_named(session, "web")
    assert not preflight.judge(vm, {}).refusals
    pending = preflight.judge(replace(vm, consolidation_needed=True), {})
    with pytest.raises(Refused, match="consolidation"):
        pending.check()
    with pytest.raises(Refused, match="disconnected"):
        preflight.judge(replace(vm, connection_state="disconnected"), {}).check()
    machine = lab.lab.machine("web")
    lab.lab.misbehaviour.arm("leave_consolidation")
    session.wait_for_task(
        session.call(
            reference(vim.vm.Snapshot, take_and_name(lab)),
            "RemoveSnapshot_Task",
            removeChildren=False,
            consolidate=True,
        ),
        what="a test",
    )
    assert machine.consolidation_needed
    job = holdfast.back_up("web")
    assert job.error is not None
    assert "consolidation" in job.error.message
    assert snapshot_names(lab, "web") == []


def take_and_name(lab: RunningLab) -> str:
    take_snapshot(lab.lab.machine("web"), name="x", memory=False, quiesce=False)
    return lab.lab.machine("web").snapshots()[0].moid

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pyVmomi import vim

from holdfast_common.errors import (
    HoldfastError,
    NothingProtected,
    QuiesceFailed,
    Refused,
    SourceFailed,
    VsphereFailed,
)
from holdfast_controller.configuration import DatastoreFloor
from holdfast_controller.ledger import EntryState, JobLedger
from holdfast_controller.vsphere import (
    change_tracking,
    configuration,
    inventory,
    preflight,
    snapshot_removal,
)
from holdfast_controller.vsphere.snapshot import ConsistencyWish, temporary_snapshot
from holdfast_lab.server import RunningLab
from holdfast_lab.snapshots import take_snapshot
from support.vms import CRASH, chain_lengths, snapshot_names, vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at

CALLS_MAX = 60


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


def test_rule_02_everything_is_read_from_the_snapshot_and_not_from_the_live_vm(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        change_tracking.ensure_enabled(session, vm)
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
            (frozen,) = made.disks
            (live,) = inventory.read_vm(session, vm.moref).disks
            assert frozen.chain == live.chain[:-1]
            assert frozen.change_id
            assert frozen.change_id != live.change_id or live.tip != frozen.tip
            assert made.reached == "crash"
            assert configuration.parse_configuration(made.configuration)["name"] == "web"


def test_rule_11_and_13_the_users_snapshots_stay_and_the_whole_chain_is_named(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "db")
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
            assert [len(disk.chain) for disk in made.disks] == [2, 2]
            assert [node.name for node in made.vm.snapshots] == ["before upgrade"]
            assert made.vm.current_snapshot_moref == vm.current_snapshot_moref
            assert len(snapshot_names(lab, "db")) == 2
    assert snapshot_names(lab, "db") == ["before upgrade"]
    assert chain_lengths(lab, "db") == [2, 2]
    assert not ledger.open_entries()


def test_the_snapshot_is_removed_when_the_copy_fails(lab: RunningLab, ledger: JobLedger) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        with (
            pytest.raises(SourceFailed),
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH),
        ):
            raise SourceFailed("the copy failed")
    assert snapshot_names(lab, "web") == []
    assert chain_lengths(lab, "web") == [1]
    assert not ledger.open_entries()


def one_backup(lab: RunningLab, folder: Path, gate: CountingGate) -> tuple[str, JobLedger, int]:
    """How it ended, its ledger, and how many calls were made before it."""
    ledger = job_ledger(folder)
    with session_at(lab, gate=gate, patience_seconds=5) as session:
        vm = vm_named(session, "db")
        before = len(gate.calls)
        try:
            with temporary_snapshot(session, ledger, vm=vm, wish=CRASH):
                pass
        except HoldfastError as error:
            return error.code, ledger, before
    return "", ledger, before


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["fail_at", "lose_at"])
def test_rule_16_every_call_may_fail_or_lose_its_reply_and_nothing_is_left(
    lab: RunningLab, tmp_path: Path, how: str, stride: int
) -> None:
    counted = CountingGate()
    _, _, before = one_backup(lab, tmp_path, counted)
    assert before < len(counted.calls) < CALLS_MAX
    for number in range(before + 1, len(counted.calls), stride):  # the last one is the logout
        gate = CountingGate(**{how: number})
        ended, ledger, _ = one_backup(lab, tmp_path, gate)
        assert snapshot_names(lab, "db") == ["before upgrade"], f"{how} {number}: {ended}"
        assert chain_lengths(lab, "db") == [2, 2]
        assert not ledger.open_entries(), f"{how} {number}: {ended}"
        creations = [call for call in gate.calls if call.startswith("CreateSnapshot")]
        assert len(creations) == (
            2 if how == "fail_at" and "CreateSnapshot" in gate.calls[number - 1] else 1
        )


def test_rule_14_consolidation_that_is_left_over_is_done_before_it_counts_as_gone(
    lab: RunningLab, ledger: JobLedger
) -> None:
    lab.lab.misbehaviour.arm("leave_consolidation")
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        vm = vm_named(session, "web")
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH):
            pass
        now = vm_named(session, "web")
    assert gate.count("ConsolidateVMDisks_Task") == 1
    assert not now.consolidation_needed
    assert not now.current_snapshot_moref
    assert chain_lengths(lab, "web") == [1]


def test_rule_14_a_disk_that_still_runs_on_our_delta_is_noticed_without_the_flag(
    lab: RunningLab,
) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "db")
        before = snapshot_removal.excess_links(vm)
        take_snapshot(lab.lab.machine("db"), name="x", memory=False, quiesce=False)
        with_snapshot = vm_named(session, "db")
        assert not snapshot_removal.leftover_disks(with_snapshot, before)
        hidden = {key: links - 1 for key, links in before.items()}
        assert snapshot_removal.leftover_disks(with_snapshot, hidden)


def test_rule_16_a_removal_that_keeps_failing_becomes_a_debt(
    lab: RunningLab, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_removal, "FIRST_PAUSE_SECONDS", 0.01)
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        lab.lab.misbehaviour.arm(
            "fail_task",
            match={"description": "*Snapshot.remove"},
            parameters={"fault": "FileLocked"},
            times=None,
        )
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH):
            pass
        (debt,) = ledger.open_entries()
        assert debt.state is EntryState.DEBT
        assert debt.attempts == 1
        assert "FileLocked" in debt.last_error
        assert len(snapshot_names(lab, "web")) == 1
        lab.lab.misbehaviour.disarm()
        snapshot_removal.remove_own_snapshot(session, debt)
    assert snapshot_names(lab, "web") == []


def test_rule_13_only_the_snapshot_with_our_nonce_is_removed(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
            ours = next(n for n in inventory.read_vm(session, vm.moref).snapshots)
            machine = lab.lab.machine("web")
            take_snapshot(machine, name=ours.name, memory=False, quiesce=False)
            assert ours.moref == made.moref
    assert snapshot_names(lab, "web") == [ours.name]
    assert chain_lengths(lab, "web") == [2]


def test_a_task_that_runs_when_we_come_is_waited_for(lab: RunningLab, ledger: JobLedger) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        rule = lab.lab.misbehaviour.arm("hold_task", match={"description": "*econfig*"})
        machine = vim.VirtualMachine(vm.moref, None)
        session.call(machine, "ReconfigVM_Task", spec=vim.vm.ConfigSpec(annotation="x"))
        release = threading.Timer(0.3, lab.lab.misbehaviour.release, [rule.identifier])
        release.start()
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
            assert made.moref
        release.join()
    assert not ledger.open_entries()


def test_rule_23_the_level_reached_comes_from_evidence(lab: RunningLab, ledger: JobLedger) -> None:
    with session_at(lab) as session:
        wish = ConsistencyWish(asked="filesystem", lower_allowed=False)
        with temporary_snapshot(session, ledger, vm=vm_named(session, "web"), wish=wish) as made:
            assert (made.asked, made.reached) == ("filesystem", "filesystem")
            assert "marked as quiesced" in made.evidence
        wish = ConsistencyWish(asked="application", lower_allowed=True)
        with temporary_snapshot(session, ledger, vm=vm_named(session, "web"), wish=wish) as made:
            assert (made.asked, made.reached) == ("application", "filesystem")
            assert "Windows" in made.evidence


def test_rule_24_a_quiesce_without_tools_is_never_called_quiesced(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with lab.lab.lock:
        lab.lab.machine("web").tools.running = False
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        vm = vm_named(session, "web")
        strict = ConsistencyWish(asked="filesystem", lower_allowed=False)
        with (
            pytest.raises(QuiesceFailed),
            temporary_snapshot(session, ledger, vm=vm, wish=strict),
        ):
            raise AssertionError("the block must not run")
        assert gate.count("CreateSnapshot_Task") == gate.count("CreateSnapshotEx_Task") == 0
        lower = ConsistencyWish(asked="filesystem", lower_allowed=True)
        with temporary_snapshot(session, ledger, vm=vm, wish=lower) as made:
            assert made.reached == "crash"
            assert "Tools are not running" in made.evidence


def test_rule_24_tools_that_die_before_the_snapshot_are_noticed(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        with lab.lab.lock:
            lab.lab.machine("web").tools.running = False
        strict = ConsistencyWish(asked="filesystem", lower_allowed=False)
        with (
            pytest.raises(QuiesceFailed),
            temporary_snapshot(session, ledger, vm=vm, wish=strict),
        ):
            raise AssertionError("the block must not run")
    assert snapshot_names(lab, "web") == []


def test_rule_23_a_failed_quiesce_follows_the_policy(lab: RunningLab, ledger: JobLedger) -> None:
    with lab.lab.lock:
        lab.lab.machine("web").tools.quiesce_fault = "filesystem"
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        strict = ConsistencyWish(asked="filesystem", lower_allowed=False)
        with (
            pytest.raises(QuiesceFailed),
            temporary_snapshot(session, ledger, vm=vm, wish=strict),
        ):
            raise AssertionError("the block must not run")
        lower = ConsistencyWish(asked="filesystem", lower_allowed=True)
        with temporary_snapshot(session, ledger, vm=vm, wish=lower) as made:
            assert made.reached == "crash"
            assert "quiesce failed" in made.evidence
    assert not ledger.open_entries()


def test_rule_12_a_vm_that_is_off_is_read_through_a_snapshot_too(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with lab.lab.lock:
        machine = lab.lab.machine("web")
        machine.power_state = "poweredOff"
    with session_at(lab) as session:
        wish = ConsistencyWish(asked="cold", lower_allowed=False)
        with temporary_snapshot(session, ledger, vm=vm_named(session, "web"), wish=wish) as made:
            assert made.reached == "cold"
            assert (
                made.disks[0].tip in inventory.read_vm(session, made.vm.moref).disks[0].chain[:-1]
            )


def test_rule_04_and_05_tracking_is_switched_on_only_without_snapshots_and_read_again(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        web = vm_named(session, "web")
        assert change_tracking.ensure_enabled(session, web)
        web = vm_named(session, "web")
        assert web.change_tracking_enabled
        assert not web.disks[0].change_id, "it counts only after a stun"
        assert not change_tracking.ensure_enabled(session, web)
        with temporary_snapshot(session, ledger, vm=web, wish=CRASH) as made:
            assert made.disks[0].change_id
        with lab.lab.lock:
            lab.lab.machine("db").settings.change_tracking = False
        db = vm_named(session, "db")
        with pytest.raises(Refused, match="snapshots"):
            change_tracking.ensure_enabled(session, db)


def test_rule_19_a_vm_in_danger_is_refused_with_every_reason(lab: RunningLab) -> None:
    with session_at(lab) as session:
        found = preflight.examine(session, vm_named(session, "web").moref)
        found.check()
        strict = preflight.examine(
            session, found.vm.moref, floor=DatastoreFloor(free_share_min=1.1)
        )
        with pytest.raises(Refused, match="room to grow"):
            strict.check()
        machine = lab.lab.machine("web")
        for number in range(preflight.CHAIN_LINKS_MAX):
            take_snapshot(machine, name=f"s{number}", memory=False, quiesce=False)
        with pytest.raises(Refused, match="links"):
            preflight.examine(session, found.vm.moref).check()


def test_rule_25_what_cannot_be_saved_is_named_and_nothing_saved_is_a_failure(
    lab: RunningLab,
) -> None:
    with session_at(lab) as session:
        with lab.lab.lock:
            first = next(iter(lab.lab.machine("db").disks()))
            first.mode = "independent_persistent"
        found = preflight.examine(session, vm_named(session, "db").moref)
        found.check()
        assert any("independent_persistent" in warning for warning in found.warnings)
        assert any("cannot be restored" in warning for warning in found.warnings)
        with lab.lab.lock:
            for device in lab.lab.machine("db").disks():
                device.mode = "independent_persistent"
        with pytest.raises(NothingProtected):
            preflight.examine(session, found.vm.moref).check()
        with pytest.raises(NothingProtected, match="no disk"):
            preflight.examine(session, vm_named(session, "proxy").moref).check()


def test_a_snapshot_that_freezes_nothing_is_no_snapshot(
    lab: RunningLab, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live VM is read from before the snapshot: its tip is then what the snapshot names."""
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        _, around = inventory.read_vm_around(session, vm.moref)
        monkeypatch.setattr(inventory, "read_vm_around", lambda *_: (vm, around))
        with (
            pytest.raises(VsphereFailed, match="does not freeze"),
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH),
        ):
            raise AssertionError("the block must not run")


def test_a_single_host_makes_and_removes_snapshots_as_a_vcenter_does(
    host_lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(host_lab) as session:
        vm = vm_named(session, "db")
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
            assert [len(disk.chain) for disk in made.disks] == [2, 2]
    assert snapshot_names(host_lab, "db") == ["before upgrade"]
    assert not ledger.open_entries()

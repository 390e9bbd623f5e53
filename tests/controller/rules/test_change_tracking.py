"""Rules 1 to 10: change tracking, and what is read because of it. See docs/rules.md."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast_common.errors import Refused, SourceFailed, VsphereFailed
from holdfast_common.job_result import ErrorReport, JobResult, Outcome
from holdfast_common.job_spec import AreaSource, BackUpDisks, JobSpec
from holdfast_controller.decide.level import tracking_warning
from holdfast_controller.vsphere import change_tracking
from holdfast_lab.machine import Machine
from holdfast_lab.server import RunningLab
from holdfast_lab.snapshot_revert import revert
from holdfast_lab.snapshots import take_snapshot
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes
from support.vms import vm_named
from support.vsphere_sessions import CountingGate

UNIT = 64 * 1024


def last_work(holdfast: OneProcess) -> BackUpDisks:
    """What the agent was asked to back up last."""
    return next(
        spec.work for spec in reversed(holdfast.agent.specs) if isinstance(spec.work, BackUpDisks)
    )


def test_rule_01_and_09_an_incremental_of_cut_lists_holds_every_write(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    holdfast.back_up("web")
    for number in range(6):
        guest_writes(lab, "web", number * 5 * UNIT)
    lab.lab.misbehaviour.arm("cut_change_lists", times=None, parameters={"keep": "1"})
    job = holdfast.back_up("web")
    assert job.level == "incremental"
    assert disk_content(holdfast, job) == disk_truth(lab, "web")


def test_rule_02_what_is_written_during_a_copy_is_in_the_next_one(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    def write(spec: JobSpec) -> None:
        guest_writes(lab, "web", 7 * UNIT)

    holdfast.agent.before = write
    first = holdfast.back_up("web")
    holdfast.agent.before = lambda _: None
    assert disk_content(holdfast, first) != disk_truth(lab, "web")
    second = holdfast.back_up("web")
    assert second.level == "incremental"
    assert disk_content(holdfast, second) == disk_truth(lab, "web")


def test_rule_03_a_failed_run_keeps_the_old_change_ids(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    first = holdfast.back_up("web")
    guest_writes(lab, "web", 3 * UNIT)

    def fail(spec: JobSpec) -> None:
        raise SourceFailed("the copy failed")

    holdfast.agent.before = fail
    assert str(holdfast.back_up("web").state) == "failed"
    holdfast.agent.before = lambda _: None
    third = holdfast.back_up("web")
    assert last_work(holdfast).previous_point_id == first.point_id
    assert holdfast.record(third).disks[0].changed_bytes == UNIT
    assert disk_content(holdfast, third) == disk_truth(lab, "web")


def test_rule_03_a_committed_point_counts_with_its_change_ids_whatever_its_agent_said(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    holdfast.back_up("web")
    guest_writes(lab, "web", 3 * UNIT)

    def failed(spec: JobSpec, result: JobResult) -> JobResult:
        error = ErrorReport.of(SourceFailed("the agent ended right after it had published"))
        return replace(result, outcome=Outcome.FAILED, error=error)

    holdfast.agent.after = failed
    second = holdfast.back_up("web")
    assert str(second.state) == "done"
    holdfast.agent.after = lambda _, result: result
    third = holdfast.back_up("web")
    assert last_work(holdfast).previous_point_id == second.point_id
    assert holdfast.record(third).disks[0].changed_bytes == 0
    assert disk_content(holdfast, third) == disk_truth(lab, "web")


def test_rule_07_a_differential_holds_what_changed_since_the_last_full_whatever_lies_between(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    assert holdfast.back_up("web", level="differential").level == "full"
    full = holdfast.back_up("web", level="full")
    guest_writes(lab, "web", 3 * UNIT)
    between = holdfast.back_up("web")
    guest_writes(lab, "web", 9 * UNIT)
    job = holdfast.back_up("web", level="differential")
    assert (between.level, job.level) == ("incremental", "differential")
    assert last_work(holdfast).previous_point_id == full.point_id
    assert holdfast.record(job).disks[0].changed_bytes == 2 * UNIT
    assert disk_content(holdfast, job) == disk_truth(lab, "web")
    guest_writes(lab, "web", 11 * UNIT)
    after = holdfast.back_up("web")
    assert last_work(holdfast).previous_point_id == job.point_id
    assert holdfast.record(after).disks[0].changed_bytes == UNIT
    assert disk_content(holdfast, after) == disk_truth(lab, "web")


def test_rule_04_tracking_found_on_under_snapshots_is_a_warning_and_a_full(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    first = holdfast.back_up("db")
    assert first.level == "full"
    assert [warned.code for warned in first.warnings] == ["change_tracking"]
    assert "before upgrade" in [snapshot.name for snapshot in lab.lab.machine("db").snapshots()]
    assert not tracking_warning(vm_named(holdfast.session, "web"))


def test_rule_04_a_snapshot_that_is_made_meanwhile_keeps_tracking_off(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    with lab.lab.lock:
        lab.lab.machine("app").settings.change_tracking = False
    before = vm_named(holdfast.session, "app")
    assert not before.snapshots
    take_snapshot(lab.lab.machine("app"), name="mine", memory=False, quiesce=False)
    with pytest.raises(VsphereFailed):
        change_tracking.ensure_enabled(holdfast.session, before)
    assert not vm_named(holdfast.session, "app").change_tracking_enabled


def test_rule_05_the_flag_is_read_again_and_counts_only_when_it_stays(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(machine: Machine) -> None:
        machine.settings.change_tracking = False

    monkeypatch.setattr("holdfast_lab.reconfigure.switch_tracking", forget)
    lab.lab.machine("web").settings.change_tracking = False
    job = holdfast.back_up("web")
    (warned,) = job.warnings
    assert "change tracking is off" in warned.message
    assert last_work(holdfast).disks[0].areas is AreaSource.EVERYTHING


def test_rule_05_tracking_needs_hardware_version_7(holdfast: OneProcess) -> None:
    web = vm_named(holdfast.session, "web")
    assert not change_tracking.hindrance(web)
    old = replace(web, hardware_version=4, change_tracking_enabled=False)
    with pytest.raises(Refused, match="hardware version 4"):
        change_tracking.ensure_enabled(holdfast.session, old)


def test_rule_06_a_failed_query_makes_a_full_that_says_why(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    holdfast.back_up("web")
    guest_writes(lab, "web", 2 * UNIT)
    lab.lab.misbehaviour.arm("fail_call", match={"method": "QueryChangedDiskAreas"})
    job = holdfast.back_up("web")
    disk = last_work(holdfast).disks[0]
    assert disk.areas is AreaSource.EVERYTHING
    assert "vSphere cannot say what changed" in disk.areas_reason
    assert disk_content(holdfast, job) == disk_truth(lab, "web")


@pytest.mark.parametrize("reverts", [1, 2, 3])
def test_rule_07_a_vm_that_was_reverted_to_where_it_stands_is_read_whole(
    holdfast: OneProcess, lab: RunningLab, reverts: int
) -> None:
    """The snapshots stand as before, and after every second revert the files have the same names."""
    guest_writes(lab, "db", 5 * UNIT)
    holdfast.back_up("db")
    machine = lab.lab.machine("db")
    for number in range(reverts):
        revert(machine.snapshots()[0])
        guest_writes(lab, "db", (7 + number) * UNIT)
    job = holdfast.back_up("db")
    assert disk_content(holdfast, job) == disk_truth(lab, "db")
    assert job.level == "full"
    assert holdfast.back_up("db").level == "incremental"


def test_rule_04_under_snapshots_a_full_leaves_nothing_out(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    guest_writes(lab, "app", 3 * UNIT)
    take_snapshot(lab.lab.machine("app"), name="mine", memory=False, quiesce=False)
    job = holdfast.back_up("app")
    assert job.level == "full"
    assert last_work(holdfast).disks[0].areas is AreaSource.EVERYTHING
    assert disk_content(holdfast, job) == disk_truth(lab, "app")


def test_rule_09_a_full_of_allocated_blocks_is_the_whole_disk(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    guest_writes(lab, "app", 3 * UNIT)
    guest_writes(lab, "app", 100 * UNIT)
    job = holdfast.back_up("app")
    assert (job.level, job.transport) == ("full", "hotadd")
    disk = last_work(holdfast).disks[0]
    assert disk.areas is AreaSource.ALLOCATED
    assert holdfast.record(job).disks[0].read_bytes < disk.capacity_bytes
    assert disk_content(holdfast, job) == disk_truth(lab, "app")


def test_rule_10_our_old_snapshot_goes_before_a_new_one_is_made_and_asked(
    holdfast: OneProcess, lab: RunningLab, gate: CountingGate
) -> None:
    lab.lab.misbehaviour.arm(
        "fail_task",
        match={"description": "*Snapshot.remove"},
        parameters={"fault": "FileLocked"},
        times=None,
    )
    first = holdfast.back_up("web")
    assert str(first.state) == "partial"
    assert len(lab.lab.machine("web").snapshots()) == 1
    refused = holdfast.back_up("web")
    assert refused.error is not None
    assert refused.error.code == "refused"
    assert len(lab.lab.machine("web").snapshots()) == 1
    lab.lab.misbehaviour.disarm()
    holdfast.reconciler.sweep(holdfast.vcenter_id)
    assert not lab.lab.machine("web").snapshots()
    del gate.calls[:]
    holdfast.agent.before = lambda _: gate.calls.append("the agent reads")
    job = holdfast.back_up("web")
    assert job.level == "incremental"
    order = [call.split()[0] for call in gate.calls]
    steps = ["CreateSnapshot_Task", "QueryChangedDiskAreas", "the", "RemoveSnapshot_Task"]
    assert [name for name in order if name in steps] == steps

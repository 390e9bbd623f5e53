"""What a controller does about the jobs and the leftovers of an earlier life of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.pipeline_table import PIPELINES
from holdfast_common.errors import RepositoryFailed, SourceGone
from holdfast_common.identity import JobId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import JobSpec, ListPoints
from holdfast_controller.decide.job_state import JobEvent, JobState
from holdfast_controller.ledger import EntryKind, EntryState
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.vsphere import snapshot_removal
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support import agent_in_this_process
from support.one_process import OneProcess, one_round
from support.vms import CRASH, snapshot_names, vm_named

TO_COMMITTING = (
    JobEvent.QUEUE,
    JobEvent.START,
    JobEvent.QUIESCE,
    JobEvent.SNAPSHOT,
    JobEvent.TRANSFER,
    JobEvent.COMMIT,
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    web = MachinePlan(name="web", datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 20),))
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    with running_lab(tmp_path / "lab", inventory=InventoryPlan(machines=(web, proxy))) as running:
        yield running


def restarted(holdfast: OneProcess) -> Reconciler:
    """The reconciler as a controller has it that starts now."""
    orphans = Orphans()
    orphans.attach(holdfast.world)
    return Reconciler(holdfast.world, orphans)


def left_at(holdfast: OneProcess, *events: JobEvent) -> JobId:
    """A backup job that a controller left there."""
    world = holdfast.world
    run = world.jobs.create_run(
        kind="backup",
        request={},
        jobs=[
            NewJob(kind="backup", subject="web", vcenter_id=holdfast.vcenter_id, lineage_id="l/1")
        ],
    )
    (row,) = world.jobs.jobs_of_run(run)
    for event in events:
        world.jobs.advance(row.job_id, event)
    return row.job_id


def state_of(holdfast: OneProcess, job_id: JobId) -> JobState:
    return holdfast.world.jobs.job(job_id).state


def committed_but_not_written_down(holdfast: OneProcess, state: JobState) -> JobRow:
    """A job whose point is in the repository, and whose controller was killed right then."""
    job = holdfast.back_up("web")
    with holdfast.world.jobs._database.transaction() as connection:
        connection.execute("DELETE FROM points WHERE job_id = ?", (job.job_id,))
        connection.execute(
            "UPDATE jobs SET state = ?, finished_at = '', point_id = '' WHERE job_id = ?",
            (state, job.job_id),
        )
    return job


def test_a_job_of_an_earlier_life_ends_as_interrupted_wherever_it_was(
    holdfast: OneProcess,
) -> None:
    left = [left_at(holdfast, *TO_COMMITTING[:number]) for number in range(len(TO_COMMITTING) + 1)]
    one_round(restarted(holdfast))
    for job_id in left:
        job = holdfast.world.jobs.job(job_id)
        assert job.state is JobState.INTERRUPTED
        assert job.error is not None
        assert job.error.exit_status == 130


@pytest.mark.parametrize("state", [JobState.CLEANING, JobState.TRANSFERRING])
def test_a_point_that_was_committed_is_found_and_its_job_is_done(
    holdfast: OneProcess, state: JobState
) -> None:
    job = committed_but_not_written_down(holdfast, state)
    one_round(restarted(holdfast))
    found = holdfast.world.jobs.job(job.job_id)
    assert (found.state, found.point_id) == (JobState.DONE, job.point_id)
    assert holdfast.world.catalogue.point(job.point_id).job_id == job.job_id


def test_a_job_whose_repository_cannot_be_asked_is_settled_later(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = committed_but_not_written_down(holdfast, JobState.COMMITTING)
    reconciler = restarted(holdfast)
    with monkeypatch.context() as away:
        away.setattr(holdfast.agent, "agent", replace(holdfast.agent.agent, repositories=()))
        one_round(reconciler)
        assert state_of(holdfast, job.job_id) is JobState.COMMITTING
    one_round(reconciler)
    assert state_of(holdfast, job.job_id) is JobState.DONE


def test_a_listing_that_fails_never_means_that_there_is_no_point(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = committed_but_not_written_down(holdfast, JobState.COMMITTING)

    def failing(spec: JobSpec, context: JobContext) -> JobResult:
        raise RepositoryFailed("the disk is gone")

    reconciler = restarted(holdfast)
    with monkeypatch.context() as broken:
        pipelines = {**PIPELINES, ListPoints: failing}
        broken.setattr(agent_in_this_process, "PIPELINES", pipelines)
        one_round(reconciler)
        assert state_of(holdfast, job.job_id) is JobState.COMMITTING
    one_round(reconciler)
    assert state_of(holdfast, job.job_id) is JobState.DONE


def test_a_job_that_was_cancelled_is_settled_all_the_same(holdfast: OneProcess) -> None:
    job = committed_but_not_written_down(holdfast, JobState.COMMITTING)
    holdfast.world.jobs.ask_cancel(job.job_id)
    one_round(restarted(holdfast))
    assert state_of(holdfast, job.job_id) is JobState.DONE


def test_a_job_of_this_life_is_left_alone(holdfast: OneProcess) -> None:
    reconciler = restarted(holdfast)
    job_id = left_at(holdfast, JobEvent.QUEUE)
    holdfast.world.attended.attend(job_id)
    one_round(reconciler)
    assert state_of(holdfast, job_id) is JobState.QUEUED


def test_rule_17_what_a_crash_left_is_undone_before_the_job_ends(
    lab: RunningLab, holdfast: OneProcess
) -> None:
    job_id = left_at(holdfast, *TO_COMMITTING[:4])
    ledger = holdfast.world.job_ledger(holdfast.world.jobs.job(job_id))
    vm = vm_named(holdfast.session, "web")
    holdfast.crashed_in(temporary_snapshot(holdfast.session, ledger, vm=vm, wish=CRASH))
    assert len(snapshot_names(lab, "web")) == 1
    one_round(restarted(holdfast))
    assert snapshot_names(lab, "web") == []
    assert state_of(holdfast, job_id) is JobState.INTERRUPTED


def test_rule_16_a_snapshot_of_a_vm_that_is_not_seen_for_a_while_is_a_debt_until_it_is(
    lab: RunningLab, holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unregistered, or in a folder that the account sees no more: its files are there, and our snapshot with them."""
    job_id = left_at(holdfast, *TO_COMMITTING[:4])
    ledger = holdfast.world.job_ledger(holdfast.world.jobs.job(job_id))
    vm = vm_named(holdfast.session, "web")
    holdfast.crashed_in(temporary_snapshot(holdfast.session, ledger, vm=vm, wish=CRASH))

    def unseen(*_: object) -> str:
        raise SourceGone("the VM is no longer in the inventory")

    with monkeypatch.context() as away:
        away.setattr(snapshot_removal, "_present_moref", unseen)
        one_round(restarted(holdfast))
    (debt,) = ledger.open_entries()
    assert (debt.state, len(snapshot_names(lab, "web"))) == (EntryState.DEBT, 1)
    assert "its files are there" in debt.last_error
    one_round(restarted(holdfast))
    assert not ledger.open_entries()
    assert snapshot_names(lab, "web") == []


def test_a_snapshot_of_a_vm_that_was_unregistered_is_not_forgotten(
    lab: RunningLab, holdfast: OneProcess
) -> None:
    ledger = holdfast.forgotten_ledger()
    vm = vm_named(holdfast.session, "web")
    holdfast.crashed_in(temporary_snapshot(holdfast.session, ledger, vm=vm, wish=CRASH))
    path = lab.control.call("vm-unregister", vm="web")
    one_round(restarted(holdfast))
    assert [entry.state for entry in ledger.open_entries()] == [EntryState.DEBT]
    lab.control.call("vm-register", path=path)
    one_round(restarted(holdfast))
    (debt,) = ledger.open_entries()  # the lab forgets which files are a snapshot's
    assert "disks still stand on its files" in debt.last_error


def test_a_snapshot_of_a_vm_that_was_destroyed_is_gone_with_it(
    lab: RunningLab, holdfast: OneProcess
) -> None:
    ledger = holdfast.forgotten_ledger()
    vm = vm_named(holdfast.session, "web")
    holdfast.crashed_in(temporary_snapshot(holdfast.session, ledger, vm=vm, wish=CRASH))
    lab.control.call("vm-remove", vm="web")
    one_round(restarted(holdfast))
    assert not ledger.open_entries()


def test_a_bug_in_settling_one_job_stops_neither_the_sweep_nor_the_thread(
    lab: RunningLab, holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_at(holdfast, JobEvent.QUEUE)
    ledger = holdfast.forgotten_ledger()
    vm = vm_named(holdfast.session, "web")
    holdfast.crashed_in(temporary_snapshot(holdfast.session, ledger, vm=vm, wish=CRASH))
    reconciler = restarted(holdfast)

    def broken(_: JobRow) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reconciler, "_settle", broken)
    one_round(reconciler)
    assert snapshot_names(lab, "web") == []
    assert not ledger.open_entries()


def test_what_a_running_job_made_is_never_undone(lab: RunningLab, holdfast: OneProcess) -> None:
    reconciler = restarted(holdfast)
    job_id = left_at(holdfast, *TO_COMMITTING[:4])
    ledger = holdfast.world.job_ledger(holdfast.world.jobs.job(job_id))
    vm = vm_named(holdfast.session, "web")
    with temporary_snapshot(holdfast.session, ledger, vm=vm, wish=CRASH):
        reconciler.sweep(holdfast.vcenter_id)
        assert len(snapshot_names(lab, "web")) == 1
    assert snapshot_names(lab, "web") == []


def test_a_vcenter_that_is_gone_makes_debts_and_stops_nothing(holdfast: OneProcess) -> None:
    ledger = replace(holdfast.forgotten_ledger(), vcenter_id="no such vCenter")
    ledger.intend(EntryKind.SNAPSHOT, {"vm": "vm-1", "nonce": "n"})
    restarted(holdfast).sweep("no such vCenter")
    (debt,) = holdfast.world.ledger.debts()
    assert debt.attempts == 1

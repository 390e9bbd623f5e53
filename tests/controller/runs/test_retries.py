"""A run that did not do all: the rest of it is tried again, asked for as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import NotFound, Refused, UsageError
from holdfast_common.identity import RunId
from holdfast_common.job_spec import BackUpDisks, JobSpec
from holdfast_controller.decide.retries import RetryKind
from holdfast_controller.runs.requests import BackupRequest, CheckRequest, RetryRequest, Started
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import JOB_SECONDS, OneProcess
from support.waiting import wait_until

ALL = frozenset(RetryKind)
USUAL = frozenset({RetryKind.FAILED, RetryKind.NOT_STARTED})


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    disks = (DiskPlan(size_bytes=1 << 16),)
    plan = InventoryPlan(
        machines=(
            MachinePlan(name="web", datastore="nfs1", disks=disks),
            MachinePlan(name="db", datastore="nfs1", disks=disks),
            MachinePlan(name="app", datastore="nfs1", disks=disks),
            MachinePlan(name="proxy", datastore="vmfs1", disks=()),
        )
    )
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


def ended(holdfast: OneProcess, started: Started) -> dict[str, JobRow]:
    jobs = holdfast.world.jobs
    assert started.run_id is not None
    run_id = started.run_id
    wait_until(
        lambda: all(job.ended for job in jobs.jobs_of_run(run_id)),
        seconds=JOB_SECONDS,
        what="all jobs end",
    )
    return {job.subject: job for job in jobs.jobs_of_run(run_id)}


def failed_run(holdfast: OneProcess, lab: RunningLab) -> RunId:
    """Of three VMs one fails, one is busy with another job and never begins, one is done."""
    go_on = threading.Event()

    def wait(_: JobSpec) -> None:
        assert go_on.wait(JOB_SECONDS)

    holdfast.agent.before = wait
    other = holdfast.start("db")
    wait_until(lambda: bool(holdfast.agent.specs), seconds=JOB_SECONDS, what="db is at work")
    holdfast.agent.before = lambda _: None
    lab.lab.misbehaviour.arm("fail_call", match={"method": "CreateSnapshotEx_Task", "vm": "app"})
    lab.lab.misbehaviour.arm("fail_call", match={"method": "CreateSnapshot_Task", "vm": "app"})
    request = BackupRequest(selectors=("web", "db", "app"), level="full", transport="direct")
    started = holdfast.engine.start_backup(request, dry_run=False)
    found = ended(holdfast, started)
    go_on.set()
    holdfast.ended(other)
    lab.lab.misbehaviour.disarm()
    assert {name: str(job.state) for name, job in found.items()} == {
        "web": "done",
        "db": "failed",
        "app": "failed",
    }
    assert started.run_id is not None
    return started.run_id


def test_what_failed_and_what_never_began_is_tried_again_as_it_was_asked(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    run_id = failed_run(holdfast, lab)
    plans = {
        kind: holdfast.engine.retry(
            RetryRequest(run_id=run_id, kinds=frozenset({kind})), dry_run=True
        ).plan
        for kind in (RetryKind.FAILED, RetryKind.NOT_STARTED)
    }
    assert [line.partition(":")[0] for line in plans[RetryKind.FAILED]] == ["app"]
    assert [line.partition(":")[0] for line in plans[RetryKind.NOT_STARTED]] == ["db"]
    again = holdfast.engine.retry(RetryRequest(run_id=run_id, kinds=USUAL), dry_run=False)
    found = ended(holdfast, again)
    assert {name: str(job.state) for name, job in found.items()} == {"db": "done", "app": "done"}
    work = holdfast.agent.specs[-1].work
    assert isinstance(work, BackUpDisks)
    assert (work.level_asked, work.transport) == ("full", "direct")
    assert again.run_id is not None
    with pytest.raises(Refused, match="no job of this run ended so"):
        holdfast.engine.retry(RetryRequest(run_id=again.run_id, kinds=ALL), dry_run=False)


def test_a_vm_that_is_gone_holds_up_no_other_and_is_told(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    run_id = failed_run(holdfast, lab)
    machine = lab.lab.machine("app")
    holdfast.world.vcenters.inventory.forget(holdfast.vcenter_id)
    with pytest.MonkeyPatch.context() as patched:
        vms = holdfast.world.vcenters.inventory.vms
        patched.setattr(
            type(holdfast.world.vcenters.inventory),
            "vms",
            lambda _, vcenter_id="": [
                each for each in vms(vcenter_id) if each.vm.name != machine.name
            ],
        )
        plan = holdfast.engine.retry(RetryRequest(run_id=run_id, kinds=USUAL), dry_run=True).plan
    assert "app: NOT tried again: it is in the inventory no more" in plan
    assert any(line.startswith("db: ") for line in plan)


def test_what_cannot_be_tried_again_is_refused_and_says_why(holdfast: OneProcess) -> None:
    def retry(run_id: RunId) -> None:
        holdfast.engine.retry(RetryRequest(run_id=run_id, kinds=ALL), dry_run=False)

    with pytest.raises(NotFound):
        retry(RunId("nosuch"))
    go_on = threading.Event()

    def wait(_: JobSpec) -> None:
        assert go_on.wait(JOB_SECONDS)

    holdfast.agent.before = wait
    started = holdfast.start("web")
    assert started.run_id is not None
    with pytest.raises(Refused, match="has not ended"):
        retry(started.run_id)
    go_on.set()
    ended(holdfast, started)
    check = holdfast.engine.start_check(CheckRequest(read_data=False))
    assert check.run_id is not None
    with pytest.raises(UsageError, match="only backups"):
        retry(check.run_id)

"""The controller's database fails at any write: every job ends, and everything is given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from holdfast_common.errors import Locked, StoreFailed
from holdfast_controller.decide.job_state import JobState
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.failing_store import Failure, failing_writes
from support.one_process import OneProcess, one_round
from support.vms import snapshot_names
from support.waiting import wait_until

LONGER_THAN_A_JOB = 1000
WRITES_MIN = 15  # a backup writes more often than that


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    web = MachinePlan(name="web", datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 16),))
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    plan = InventoryPlan(machines=(web, proxy))
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running


def all_ended(holdfast: OneProcess) -> bool:
    return not holdfast.world.jobs.unfinished()


def backed_up_although(holdfast: OneProcess, failure: Failure, first: int, count: int = 1) -> int:
    """A backup while writes fail, until its thread is over; how many writes failed."""
    with failing_writes(
        holdfast.world.jobs._database, failure, first=first, count=count
    ) as failing:
        with suppress(Locked, StoreFailed):
            holdfast.start("web")
        wait_until(
            lambda: not holdfast.world.attended._attended, seconds=60, what="the job's thread ends"
        )
    return failing.failed


def check_nothing_is_left(holdfast: OneProcess, lab: RunningLab, what: str) -> None:
    for _ in range(2):  # a write that fails while something is undone leaves it to the next round
        one_round(holdfast.reconciler)
    assert all_ended(holdfast), what
    assert snapshot_names(lab, "web") == [], what
    assert not holdfast.world.ledger.open_entries(), what


@pytest.mark.parametrize("failure", [Failure.FULL, Failure.UNSURE])
def test_wherever_one_write_fails_the_job_ends_and_the_next_backup_runs(
    holdfast: OneProcess, lab: RunningLab, failure: Failure
) -> None:
    holdfast.back_up("web")
    for number in range(200):
        what = f"write {number}: {failure}"
        failed = backed_up_although(holdfast, failure, number)
        check_nothing_is_left(holdfast, lab, what)
        if not failed:
            break
        if number % 5 == 0:
            after = holdfast.back_up("web")
            assert after.state is JobState.DONE, f"{what}: {after.error}"
    assert number > WRITES_MIN
    assert holdfast.back_up("web").state is JobState.DONE


def test_wherever_the_database_goes_away_the_job_ends_when_it_is_back(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    holdfast.world.lifecycle._store_tries = 1
    holdfast.back_up("web")
    for number in range(0, WRITES_MIN, 2):
        what = f"from write {number}"
        backed_up_although(holdfast, Failure.BUSY, number, LONGER_THAN_A_JOB)
        check_nothing_is_left(holdfast, lab, what)
        after = holdfast.back_up("web")
        assert after.state is JobState.DONE, f"{what}: {after.error}"


def test_what_an_attempt_could_not_give_back_is_given_back_before_the_next_one(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    lifecycle = holdfast.world.lifecycle
    lifecycle._attempts_max, lifecycle._retry_seconds = 2, 0.1
    holdfast.world.keeper.keys()  # what its first opening writes is no part of a job
    for number in range(4, WRITES_MIN, 2):
        with failing_writes(
            holdfast.world.jobs._database, Failure.BUSY, first=number, count=4
        ) as failing:
            job = holdfast.back_up("web")
        assert (job.state, failing.failed) == (JobState.DONE, 4), f"write {number}: {job.error}"
        assert snapshot_names(lab, "web") == []
        assert not holdfast.world.ledger.open_entries()

"""Disks that a policy leaves out: not read, not a reason for a warning, told everywhere, and never all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast_common.errors import HoldfastError, UsageError
from holdfast_common.identity import RunId
from holdfast_common.job_spec import BackUpDisks, TransportKind
from holdfast_common.wire import operator_pb2
from holdfast_controller import main
from holdfast_controller.decide.disk_choice import WantedDisks
from holdfast_controller.decide.policy import Policy
from holdfast_controller.runs.point_facts import left_out_of
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.why import explain
from holdfast_controller.service.backup_actions import BackupActions
from holdfast_controller.service.status_actions import StatusActions
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, disk_content, disk_truth, one_process
from support.waiting import wait_until

WITHOUT = WantedDisks(excludes=("disk:Hard disk 2",))
TEXT = "Hard disk 2 (key 2001, 2.0 MiB): excluded by disk:Hard disk 2"


def back_up(holdfast: OneProcess, wanted: WantedDisks) -> JobRow:
    request = BackupRequest(selectors=("db",), disks=wanted)
    return holdfast.ended(holdfast.engine.start_backup(request, dry_run=False))


def asked_of_agent(holdfast: OneProcess) -> list[int]:
    """The disks of the newest backup."""
    work = holdfast.agent.specs[-1].work
    assert isinstance(work, BackUpDisks)
    return [disk.device_key for disk in work.disks]


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_a_disk_that_is_left_out_is_not_read_and_run_and_point_tell_it(
    tmp_path_factory: pytest.TempPathFactory, lab: RunningLab, transport: str
) -> None:
    with one_process(
        tmp_path_factory.mktemp("holdfast"), lab, transports=(TransportKind(transport),)
    ) as holdfast:
        job = back_up(holdfast, WITHOUT)
        assert str(job.state) == "done"
        assert [each for each in job.warnings if each.code != "change_tracking"] == []
        assert asked_of_agent(holdfast) == [2000]
        assert [disk.device_key for disk in holdfast.record(job).disks] == [2000]
        assert left_out_of(holdfast.world.catalogue.point(job.point_id)) == [TEXT]
        reasons = explain(holdfast.world, holdfast.engine.dispatcher, job.job_id)
        assert [each.answer for each in reasons if each.question == "told"] == [
            f"not in the backup: {TEXT}"
        ]
        assert holdfast.world.ledger.open_entries() == []


def test_a_disk_that_is_wanted_again_is_read_whole(holdfast: OneProcess, lab: RunningLab) -> None:
    back_up(holdfast, WITHOUT)
    job = back_up(holdfast, WantedDisks())
    assert str(job.state) == "done"
    assert left_out_of(holdfast.world.catalogue.point(job.point_id)) == []
    for number in range(2):
        assert disk_content(holdfast, job, 2000 + number) == disk_truth(lab, "db", number)


def test_a_choice_that_leaves_no_disk_is_a_failure_that_names_every_one(
    holdfast: OneProcess,
) -> None:
    first = ("disk:Hard disk 1",)
    job = back_up(holdfast, WantedDisks(selectors=first, excludes=first))
    assert str(job.state) == "failed"
    assert job.error is not None
    assert job.error.code == "nothing_protected"
    assert "Hard disk 1: excluded by disk:Hard disk 1; Hard disk 2: not chosen" in job.error.text()
    assert holdfast.agent.specs == []


@pytest.mark.parametrize("field", ["selectors", "excludes"])
def test_a_selector_that_names_no_disk_of_the_vms_is_refused_before_anything_begins(
    holdfast: OneProcess, field: str
) -> None:
    before = holdfast.world.jobs.latest(limit=1)
    with pytest.raises(UsageError, match="names no disk") as refused:
        back_up(holdfast, WantedDisks(**{field: ("disk:Hard disk 9",)}))
    assert refused.value.facts["selector"] == "disk:Hard disk 9"
    assert holdfast.world.jobs.latest(limit=1) == before


def test_a_backup_by_hand_takes_disks_and_lanes_as_a_policy_does(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = BackupActions(holdfast.world, holdfast.engine)
    asked: list[object] = []
    monkeypatch.setattr(
        "holdfast_controller.commands.backup.operators",
        lambda _: nullcontext(SimpleNamespace(call=_called(asked), stub=actions_stub(actions))),
    )
    told = ("--exclude-disks", "disk:Hard disk 2", "--disks", "disk:Hard disk *", "--lanes", "2")
    assert main.run(["backup", "db", *told, "--detach"]) == 0
    (started,) = asked
    assert isinstance(started, operator_pb2.RunStarted)
    (job,) = holdfast.world.jobs.jobs_of_run(RunId(started.run_id))
    wait_until(lambda: holdfast.world.jobs.job(job.job_id).ended, seconds=30, what="it ends")
    assert asked_of_agent(holdfast) == [2000]
    request = BackupRequest.again(holdfast.world.runs.run(job.run_id).request)
    assert (request.lanes, request.disks.excludes) == (2, ("disk:Hard disk 2",))
    for wrong in (("--disks", "Hard disk 1"), ("--lanes", "99")):
        with pytest.raises(HoldfastError):
            actions.start_backup(_wrong(*wrong))


def _called(asked: list[object]) -> Callable[..., object]:
    def call(method: Callable[[Any], object], message: object) -> object:
        asked.append(method(message))
        return asked[-1]

    return call


def actions_stub(actions: BackupActions) -> SimpleNamespace:
    return SimpleNamespace(StartBackup=actions.start_backup)


def _wrong(flag: str, value: str) -> operator_pb2.StartBackupRequest:
    if flag == "--lanes":
        return operator_pb2.StartBackupRequest(vms=["db"], lanes=int(value))
    return operator_pb2.StartBackupRequest(vms=["db"], disks=[value])


def test_a_retry_leaves_out_the_same_disks() -> None:
    request = BackupRequest(selectors=("db",), disks=WITHOUT, lanes=2)
    assert BackupRequest.again(request.saved()).disks == WITHOUT
    assert BackupRequest.again(request.saved()).lanes == 2
    older = {name: value for name, value in request.saved().items() if "disks" not in name}
    assert BackupRequest.again(older).disks == WantedDisks()


def test_status_tells_what_no_policy_of_a_vm_saves(holdfast: OneProcess) -> None:
    def unprotected() -> list[str]:
        found = StatusActions(holdfast.world).status()
        (db,) = (vm for vm in found.vms if vm.name == "db")
        return list(db.unprotected)

    assert unprotected() == []
    without = Policy(
        name="without", vms=("db",), start="0 1 * * *", exclude_disks=("disk:Hard disk 2",)
    )
    holdfast.world.policies.create(without, actor="anna")
    assert unprotected() == ["Hard disk 2: excluded by disk:Hard disk 2"]
    holdfast.world.policies.create(
        Policy(name="weekly", vms=("db",), start="0 1 * * sun"), actor="anna"
    )
    assert unprotected() == []


def test_a_disk_that_cannot_be_saved_makes_no_run_partial_once_it_is_left_out(
    tmp_path: Path,
) -> None:
    small = DiskPlan(size_bytes=1 << 16)
    scratch = DiskPlan(size_bytes=1 << 16, mode="independent_persistent")
    vm = MachinePlan(name="db", datastore="nfs1", disks=(small, scratch))
    plan = InventoryPlan(machines=(vm, MachinePlan(name="proxy", datastore="vmfs1", disks=())))
    with (
        running_lab(tmp_path / "lab", inventory=plan) as lab,
        one_process(tmp_path / "holdfast", lab) as holdfast,
    ):
        assert str(back_up(holdfast, WantedDisks()).state) == "partial"
        job = back_up(holdfast, WITHOUT)
        assert str(job.state) == "done"
        (told,) = left_out_of(holdfast.world.catalogue.point(job.point_id))
        assert told.endswith("excluded by disk:Hard disk 2")

"""Which VMs a backup takes: those that the vCenter holds now, each for itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.errors import NotFound, NothingProtected, Refused
from holdfast_common.identity import LineageId, PointId
from holdfast_common.job_spec import JobSpec
from holdfast_common.wire import operator_pb2
from holdfast_controller.configuration import ControllerConfiguration
from holdfast_controller.runs import inventory_watch
from holdfast_controller.runs.inventory_watch import InventoryWatch
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.service.agent_administration import AgentAdministration
from holdfast_controller.service.follower import run_end
from holdfast_controller.service.operator_actions import OperatorActions
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.machine_build import build_machine
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import JOB_SECONDS, OneProcess
from support.waiting import wait_until


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    disks = (DiskPlan(size_bytes=1 << 16),)
    plan = InventoryPlan(
        machines=(
            MachinePlan(name="web", datastore="nfs1", disks=disks),
            MachinePlan(name="db", datastore="nfs1", disks=disks),
            MachinePlan(name="app", datastore="vmfs1", disks=disks),
            MachinePlan(name="proxy", datastore="vmfs1", disks=()),
        )
    )
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


def run_of(holdfast: OneProcess, *selectors: str, transport: str = "") -> dict[str, JobRow]:
    """The jobs of a backup at their end, by the names of their VMs."""
    request = BackupRequest(selectors=selectors, transport=transport)
    started = holdfast.engine.start_backup(request, dry_run=False)
    jobs = holdfast.world.jobs
    assert started.run_id is not None
    run_id = started.run_id
    wait_until(
        lambda: all(job.ended for job in jobs.jobs_of_run(run_id)),
        seconds=JOB_SECONDS,
        what="all jobs end",
    )
    return {job.subject: job for job in jobs.jobs_of_run(run_id)}


def states(jobs: dict[str, JobRow]) -> dict[str, str]:
    return {name: str(job.state) for name, job in jobs.items()}


def make(lab: RunningLab, name: str) -> None:
    disks = (DiskPlan(size_bytes=1 << 16),)
    build_machine(lab.lab, MachinePlan(name=name, datastore="nfs1", disks=disks))


def test_a_vm_that_is_busy_does_not_hold_up_another(holdfast: OneProcess) -> None:
    go_on = threading.Event()

    def wait(_: JobSpec) -> None:
        assert go_on.wait(JOB_SECONDS)

    holdfast.agent.before = wait
    first = holdfast.start("db")
    wait_until(lambda: bool(holdfast.agent.specs), seconds=JOB_SECONDS, what="db is at work")
    with pytest.raises(Refused, match="another job"):
        holdfast.start("db")
    holdfast.agent.before = lambda _: None
    both = run_of(holdfast, "web", "db")
    go_on.set()
    assert states(both) == {"web": "done", "db": "failed"}
    assert run_end(list(both.values())) == ("partial", 3)
    assert str(holdfast.ended(first).state) == "done"


def test_a_vm_that_cannot_be_reached_does_not_hold_up_the_others(holdfast: OneProcess) -> None:
    jobs = run_of(holdfast, "web", "db", "app", transport="direct")
    assert states(jobs) == {"web": "done", "db": "done", "app": "failed"}
    error = jobs["app"].error
    assert error is not None
    assert (error.code, error.exit_status) == ("no_proxy", 15)
    with pytest.raises(Refused, match="is not mapped"):
        run_of(holdfast, "app", transport="direct")
    request = BackupRequest(selectors=("web", "app"), transport="direct")
    plan = holdfast.engine.start_backup(request, dry_run=True).plan
    assert any(line.startswith("app: NOT backed up: ") for line in plan)


def test_vms_that_are_excluded_are_not_backed_up(holdfast: OneProcess) -> None:
    request = BackupRequest(selectors=("datastore:*",), excludes=("power:off", "proxy", "d*"))
    with pytest.raises(NotFound) as caught:  # none is off: whoever excludes them is mistaken
        holdfast.engine.start_backup(request, dry_run=True)
    assert caught.value.facts["selector"] == "power:off"
    request = replace(request, excludes=("proxy", "datastore:vmfs1"))
    plan = holdfast.engine.start_backup(request, dry_run=True).plan
    assert {line.partition(":")[0] for line in plan} >= {"web", "db"}
    assert not any(line.startswith(("app", "proxy")) for line in plan)
    with pytest.raises(NothingProtected):
        holdfast.engine.start_backup(replace(request, excludes=("*",)), dry_run=True)


def test_a_vm_that_was_made_just_now_is_selected(holdfast: OneProcess, lab: RunningLab) -> None:
    make(lab, "new1")
    assert states(run_of(holdfast, "new*")) == {"new1": "done"}
    make(lab, "new2")
    assert "new2" in run_of(holdfast, "datastore:nfs1")
    make(lab, "new3")
    assert states(run_of(holdfast, "new3")) == {"new3": "done"}


def test_the_inventory_is_read_again_every_few_minutes(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    world = holdfast.world
    before = world.vcenters.inventory.taken_at(holdfast.vcenter_id)
    make(lab, "new1")
    quick = replace(world, configuration=ControllerConfiguration(inventory_seconds=0.1))
    watching = threading.Thread(target=InventoryWatch(quick).run)
    watching.start()
    wait_until(lambda: world.vcenters.inventory.knows_all(["new1"]), seconds=30, what="it is known")
    assert world.vcenters.inventory.taken_at(holdfast.vcenter_id) > before
    world.stopping.set()
    watching.join(30)
    assert not watching.is_alive()


def test_a_vcenter_that_does_not_answer_holds_up_no_selection_and_its_age_is_told(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(inventory_watch, "SELECTION_SECONDS", 0.2)
    monkeypatch.setattr(holdfast.world.vcenters, "refresh", lambda _: hangs.wait(JOB_SECONDS))
    jobs = run_of(holdfast, "web*")
    hangs.set()
    assert states(jobs) == {"web": "done"}
    events = holdfast.world.jobs.events(jobs["web"].job_id)
    (told,) = [event.detail for event in events if event.event == "told"]
    assert "could not be read again: it does not answer" in told


def test_the_status_of_a_vm_is_that_of_its_own_points(holdfast: OneProcess) -> None:
    job = holdfast.back_up("web")
    point = holdfast.world.catalogue.point(job.point_id)
    elsewhere = replace(
        point,
        point_id=PointId("of another vCenter"),
        lineage_id=LineageId(f"another/{point.instance_uuid}"),
        vcenter_id="another",
        created_at="2099-01-01T00:00:00.000000Z",
    )
    holdfast.world.catalogue.add(elsewhere)
    administration: AgentAdministration = None  # type: ignore[assignment]  # a status asks nothing of it
    actions = OperatorActions(holdfast.world, holdfast.engine, administration)
    found = {vm.name: vm for vm in actions.status(operator_pb2.Empty()).vms}
    assert found["web"].last_point_id == point.point_id
    assert found["db"].last_good_at == ""
    with holdfast.world.jobs._database.transaction() as connection:
        connection.execute("DELETE FROM points WHERE point_id = ?", (point.point_id,))
    found = {vm.name: vm for vm in actions.status(operator_pb2.Empty()).vms}
    assert found["web"].last_good_at == ""

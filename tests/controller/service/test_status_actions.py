"""What the status tells of VMs and policies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast_common.clock import utc_text
from holdfast_common.identity import JobId, PointId, RepositoryId, new_ulid
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.policy import Policy
from holdfast_controller.runs.tracking_audits import confidence_of
from holdfast_controller.runs.world import lineage_of
from holdfast_controller.service.operator_actions import OperatorActions
from holdfast_controller.store.catalogue import PointRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import running_lab
from support.many_vms import add_vcenter, add_vms
from support.one_process import OneProcess, one_process
from support.policies import policy


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneProcess]:
    folder: Path = tmp_path_factory.mktemp("status")
    machines = tuple(
        MachinePlan(
            name=name,
            datastore="nfs1",
            disks=(DiskPlan(size_bytes=1 << 16),) if name == "web2" else (),
        )
        for name in ("db1", "proxy", "web1", "web2")
    )
    plan = replace(InventoryPlan.empty(), machines=machines)
    with (
        running_lab(folder / "lab", inventory=plan) as lab,
        one_process(folder / "holdfast", lab) as made,
    ):
        yield made


@pytest.fixture
def holdfast(ready: OneProcess) -> OneProcess:
    """Without policies and points."""
    database = ready.world.policies._database
    for table in ("policies", "points", "suspect_points"):
        database.execute(f"DELETE FROM {table}")
    return ready


def status(holdfast: OneProcess) -> operator_pb2.Status:
    actions = OperatorActions(holdfast.world, holdfast.engine, None)  # type: ignore[arg-type]  # nobody joins here
    return actions.status(operator_pb2.Empty())


def make(holdfast: OneProcess, made: Policy, *, days_ago: float = 0.0) -> None:
    holdfast.world.policies.create(made, actor="a test")
    at = utc_text(holdfast.world.clock.now() - timedelta(days=days_ago))
    holdfast.world.policies._database.execute(
        "UPDATE policies SET created_at = ? WHERE name = ?", (at, made.name)
    )


def point(holdfast: OneProcess, vm: str, *, hours_ago: float) -> str:
    (known,) = holdfast.world.vcenters.inventory.select([vm])
    (vcenter,) = holdfast.world.vcenters.table.all()
    point_id = PointId(new_ulid())
    row = PointRow(
        point_id=point_id,
        repository_id=RepositoryId("r"),
        lineage_id=lineage_of(
            vcenter_instance_uuid=vcenter.instance_uuid, vm_instance_uuid=known.vm.instance_uuid
        ),
        job_id=JobId(new_ulid()),
        vcenter_id=vcenter.instance_uuid,
        instance_uuid=known.vm.instance_uuid,
        vm_name=vm,
        created_at=utc_text(holdfast.world.clock.now() - timedelta(hours=hours_ago)),
        record="{}",
    )
    holdfast.world.catalogue.add(row)
    return point_id


def test_without_policies_every_vm_is_told_to_be_in_none(holdfast: OneProcess) -> None:
    found = status(holdfast)
    assert (found.uncovered, found.late, found.policies) == (4, 0, 0)
    assert all(not vm.policies for vm in found.vms)


def test_vms_whose_promise_is_broken_come_first_the_latest_before_the_others(
    holdfast: OneProcess,
) -> None:
    make(holdfast, policy(vms=("web*", "db1"), promise="26h"), days_ago=100)
    make(holdfast, policy("hourly", vms=("web2",), promise="2h"), days_ago=100)
    point(holdfast, "db1", hours_ago=25)
    point(holdfast, "web1", hours_ago=29)
    point(holdfast, "web2", hours_ago=30)
    found = status(holdfast)
    assert [vm.name for vm in found.vms] == ["web2", "web1", "db1", "proxy"]
    web2, web1, db1, proxy = found.vms
    assert (web2.promised_seconds, web2.broken_by) == (7200, "hourly")
    assert web2.late_seconds == pytest.approx(28 * 3600, abs=60)
    assert list(web2.policies) == ["gold", "hourly"]
    assert web1.broken_by == "gold"
    assert web1.late_seconds == pytest.approx(3 * 3600, abs=60)
    assert (db1.promised_seconds, db1.late_seconds) == (26 * 3600, 0)
    assert (list(proxy.policies), proxy.promised_seconds) == ([], 0)
    assert (found.uncovered, found.late, found.policies) == (1, 2, 2)


def test_a_point_in_doubt_keeps_no_promise(holdfast: OneProcess) -> None:
    make(holdfast, policy(vms=("web1",), promise="26h"), days_ago=100)
    older = point(holdfast, "web1", hours_ago=30)
    newest = point(holdfast, "web1", hours_ago=1)
    before = next(vm for vm in status(holdfast).vms if vm.name == "web1")
    assert (before.last_point_id, before.late_seconds) == (newest, 0)
    holdfast.world.catalogue.doubt_tracking(
        holdfast.world.catalogue.point(older).lineage_id, "caught", suspects=[newest]
    )
    after = status(holdfast).vms[0]
    assert after.late_seconds == pytest.approx(4 * 3600, abs=60)


def test_a_policy_that_is_switched_off_is_counted_nowhere(holdfast: OneProcess) -> None:
    make(holdfast, policy(vms=("*",), promise="1h", enabled=False), days_ago=100)
    found = status(holdfast)
    assert (found.uncovered, found.late, found.policies) == (4, 0, 0)


def questions(holdfast: OneProcess) -> int:
    """How many a status asks the database."""
    asked: list[str] = []
    connection = holdfast.world.policies._database.connection()
    connection.set_trace_callback(asked.append)
    try:
        status(holdfast)
    finally:
        connection.set_trace_callback(None)
    return len(asked)


def test_a_status_asks_as_much_of_many_vms_as_of_few(holdfast: OneProcess) -> None:
    make(holdfast, policy(vms=("*",), promise="26h"))
    database = holdfast.world.policies._database
    try:
        add_vcenter(database)
        add_vms(database, range(1), taken_at=holdfast.world.clock.now())
        of_few = questions(holdfast)
        add_vms(database, range(1, 50), taken_at=holdfast.world.clock.now())
        assert questions(holdfast) == of_few > 0
        assert len(status(holdfast).vms) == 4 + 50
    finally:
        for table in ("inventory_vms", "inventory_surroundings", "vcenters"):
            database.execute(f"DELETE FROM {table} WHERE vcenter_id = 'vc'")


def test_policies_that_protect_nothing_are_told(holdfast: OneProcess) -> None:
    make(holdfast, policy("idle", vms=("mail",)))
    make(holdfast, policy("broken", vms=("web*",)))
    make(holdfast, policy("well", vms=("*",)))
    holdfast.world.policies._database.execute(
        "UPDATE policies SET content = '{}' WHERE name = 'broken'"
    )
    told = [text for text in status(holdfast).warnings if "policy" in text]
    assert told[0].startswith("policy broken protects nothing: ")
    assert told[1].startswith("policy idle selects no VM")
    assert len(told) == 2


def test_a_vm_shows_the_confidence_of_its_last_good_point_and_none_that_is_not_known(
    holdfast: OneProcess,
) -> None:
    def of(name: str) -> operator_pb2.VmStatus:
        return next(vm for vm in status(holdfast).vms if vm.name == name)

    assert not of("web2").HasField("confidence")
    point(holdfast, "db1", hours_ago=1)
    assert of("db1").last_good_at
    assert not of("db1").HasField("confidence"), "its record tells nothing"
    job = holdfast.back_up("web2")
    assert job.point_id, job.error
    expected = confidence_of(holdfast.world, holdfast.world.catalogue.point(job.point_id))
    assert of("web2").confidence == expected == 1.0

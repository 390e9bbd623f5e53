"""What operators ask by a name that is not there is said to be not there: never an empty answer, never a bug."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
from google.protobuf.message import Message

from holdfast_common.errors import HoldfastError, NotFound, UsageError, WrongKey
from holdfast_common.wire import operator_pb2
from holdfast_controller.service.operator_actions import OperatorActions
from holdfast_lab.inventory_plan import InventoryPlan, MachinePlan
from holdfast_lab.server import running_lab
from support.one_process import OneProcess, one_process


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneProcess]:
    folder: Path = tmp_path_factory.mktemp("actions")
    machines = tuple(
        MachinePlan(name=name, datastore="nfs1", disks=()) for name in ("web1", "web2", "proxy")
    )
    with (
        running_lab(
            folder / "lab", inventory=replace(InventoryPlan.empty(), machines=machines)
        ) as lab,
        one_process(folder / "holdfast", lab) as ready,
    ):
        yield ready


@pytest.fixture(scope="module")
def actions(holdfast: OneProcess) -> OperatorActions:
    return OperatorActions(
        holdfast.world,
        holdfast.engine,
        None,  # type: ignore[arg-type]  # nobody joins or is revoked here
    )


@pytest.mark.parametrize(
    ("action", "request_message", "expected"),
    [
        ("show_vm", operator_pb2.VmQuery(vm="web1", vcenter="nosuch"), NotFound),
        ("show_vm", operator_pb2.VmQuery(vm="nosuch"), NotFound),
        ("show_vm", operator_pb2.VmQuery(vm="web*"), UsageError),
        ("list_inventory", operator_pb2.InventoryQuery(vcenter="nosuch"), NotFound),
        ("list_jobs", operator_pb2.JobQuery(run_id="nosuch"), NotFound),
        ("show_job", operator_pb2.JobName(job_id="nosuch"), NotFound),
        ("follower", operator_pb2.RunName(run_id="nosuch"), NotFound),
        ("points.list_points", operator_pb2.PointQuery(vcenter="nosuch"), NotFound),
        ("checks.start_check", operator_pb2.StartCheckRequest(point_ids=["nosuch"]), NotFound),
        ("checks.list_damages", operator_pb2.DamageQuery(job_id="nosuch"), NotFound),
        ("revoke_agent", operator_pb2.AgentRevocation(agent="nosuch"), NotFound),
        ("test_vcenter", operator_pb2.VcenterName(name="nosuch"), NotFound),
        ("confirm_recovery_sheet", operator_pb2.RecoverySheetProof(typed="x"), WrongKey),
        ("confirm_recovery_sheet", operator_pb2.RecoverySheetProof(typed=""), WrongKey),
        ("add_vcenter", operator_pb2.AddVcenterRequest(name="a/b", user="u"), UsageError),
        ("add_vcenter", operator_pb2.AddVcenterRequest(name="a\nb", user="u"), UsageError),
        ("add_vcenter", operator_pb2.AddVcenterRequest(name="a", user="u", url="x:y"), UsageError),
    ],
)
def test_what_does_not_exist_is_told(
    actions: OperatorActions,
    action: str,
    request_message: Message,
    expected: type[HoldfastError],
) -> None:
    method: Callable[[Message], object] = attrgetter(action)(actions)
    with pytest.raises(expected) as caught:
        method(request_message)
    assert type(caught.value) is expected


def test_a_known_vcenter_is_not_renamed_by_adding_it_again(
    holdfast: OneProcess, actions: OperatorActions
) -> None:
    server = holdfast.lab
    request = operator_pb2.AddVcenterRequest(
        name="l2",
        url=server.url,
        user=server.user,
        password=server.password.encode(),
        certificate_sha256=server.certificate.sha256,
    )
    with pytest.raises(HoldfastError, match="another name"):
        actions.add_vcenter(request)
    (row,) = actions.list_vcenters(operator_pb2.Empty()).vcenters
    assert row.name == "lab"
    assert actions.show_vm(operator_pb2.VmQuery(vm="web1", vcenter="lab")).name == "web1"


def test_the_doctor_tells_revoked_agents_from_none(holdfast: OneProcess) -> None:
    agent = holdfast.agent.agent
    holdfast.world.agents.revoke(agent.agent_id)
    (line,) = [line for line in holdfast.doctor() if line.name == "agents"]
    assert line.detail == "all that had joined are revoked"

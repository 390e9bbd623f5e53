"""VMs that are chosen or excluded by tag: as the vCenter says now, and never by tags that nobody read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import CapabilityAbsent, NotFound
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.policy import Policy
from holdfast_controller.runs import inventory_watch
from holdfast_controller.runs.doctor_vcenters import test_vcenter as vcenter_checks
from holdfast_controller.runs.policies import Surroundings, policy_warnings
from holdfast_controller.runs.policy_requests import selected_vms
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.service.agent_administration import AgentAdministration
from holdfast_controller.service.operator_actions import OperatorActions
from holdfast_controller.store.vcenters import VcenterRow
from holdfast_controller.vsphere import tags
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.lab_tags import open_rest_sessions, rest_calls, tag_vm
from support.one_process import JOB_SECONDS, OneProcess, one_process

ON_OBJECTS = "*list-attached-tags-on-objects"


def plan() -> InventoryPlan:
    disks = (DiskPlan(size_bytes=1 << 16),)
    names = ("web", "db", "app")
    machines = tuple(MachinePlan(name=name, datastore="nfs1", disks=disks) for name in names)
    return InventoryPlan(machines=(*machines, MachinePlan(name="proxy", datastore="vmfs1")))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    with running_lab(tmp_path / "lab", inventory=plan()) as running:
        tag_vm(running, "web", "Backup/gold")
        tag_vm(running, "db", "Backup/gold", "Backup/none")
        yield running


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tags, "PATIENCE_SECONDS", 0.2)


def planned(holdfast: OneProcess, *selectors: str, exclude: tuple[str, ...] = ()) -> list[str]:
    """What a backup of these would do."""
    request = BackupRequest(selectors=selectors, excludes=exclude)
    return list(holdfast.engine.start_backup(request, dry_run=True).plan)


def vms(lines: list[str]) -> set[str]:
    """The VMs that a plan takes."""
    return {line.partition(":")[0] for line in lines} & {"web", "db", "app"}


def actions(holdfast: OneProcess) -> OperatorActions:
    administration: AgentAdministration = None  # type: ignore[assignment]  # nothing is asked of it here
    return OperatorActions(holdfast.world, holdfast.engine, administration)


def row_of(holdfast: OneProcess) -> VcenterRow:
    return holdfast.world.vcenters.table.vcenter(holdfast.vcenter_id)


def listed(holdfast: OneProcess, selector: str = "") -> dict[str, operator_pb2.Vm]:
    query = operator_pb2.InventoryQuery(selector=selector)
    return {vm.name: vm for vm in actions(holdfast).list_inventory(query).vms}


def test_tags_are_in_the_inventory_from_the_first(holdfast: OneProcess, lab: RunningLab) -> None:
    found = listed(holdfast)
    assert list(found["db"].tags) == ["Backup/gold", "Backup/none"]
    assert (list(found["app"].tags), found["app"].tags_known) == ([], True)
    assert set(listed(holdfast, "tag:gold")) == {"web", "db"}
    assert set(listed(holdfast, "tag:Backup/none")) == {"db"}
    shown = actions(holdfast).show_vm(operator_pb2.VmQuery(vm="web"))
    assert list(shown.tags) == ["Backup/gold"]
    (vcenter,) = actions(holdfast).list_vcenters(operator_pb2.Empty()).vcenters
    assert vcenter.tags_read_at and not vcenter.tags_problem
    assert open_rest_sessions(lab) == 0


def test_a_backup_takes_what_carries_the_tag_now(holdfast: OneProcess, lab: RunningLab) -> None:
    assert vms(planned(holdfast, "tag:gold")) == {"web", "db"}
    assert vms(planned(holdfast, "datastore:nfs1", exclude=("tag:Backup/none",))) == {"web", "app"}
    tag_vm(lab, "app", "Backup/gold")
    lab.control.call("tag-detach", tag="Backup/gold", name="web")
    lines = planned(holdfast, "tag:gold")
    assert vms(lines) == {"db", "app"}
    assert not any("tags" in line for line in lines)
    lab.control.call("tag-rename", tag="Backup/gold", to="silver")
    with pytest.raises(NotFound) as caught:
        planned(holdfast, "tag:gold")
    assert "without a word" in caught.value.advice


def test_a_selection_that_names_no_tag_does_not_wait_for_tags(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(holdfast.world.vcenters, "refresh_tags", lambda _: go_on.wait(JOB_SECONDS))
    assert vms(planned(holdfast, "web*")) == {"web"}
    monkeypatch.setattr(inventory_watch, "SELECTION_SECONDS", 0.2)
    lines = planned(holdfast, "tag:gold")
    go_on.set()
    assert vms(lines) == {"web", "db"}
    assert any("could not be read again: it does not answer" in line for line in lines)


def test_old_tags_are_used_and_told_with_their_age(holdfast: OneProcess, lab: RunningLab) -> None:
    lab.lab.misbehaviour.arm("unavailable", match={"method": ON_OBJECTS}, times=None)
    tag_vm(lab, "app", "Backup/gold")
    lines = planned(holdfast, "tag:gold")
    assert vms(lines) == {"web", "db"}
    (told,) = [line for line in lines if "tags" in line]
    assert "0 minutes old: they could not be read again" in told
    (vcenter,) = actions(holdfast).list_vcenters(operator_pb2.Empty()).vcenters
    assert vcenter.tags_read_at and "does not answer" in vcenter.tags_problem
    states = {line.name: line.state for line in vcenter_checks(holdfast.world, row_of(holdfast))}
    assert states[f"vCenter {vcenter.name}: tags"] == "warning"
    lab.lab.misbehaviour.disarm()
    lines = planned(holdfast, "tag:gold")
    assert vms(lines) == {"web", "db", "app"}
    assert not any("tags" in line for line in lines)


@pytest.mark.parametrize("fault", ["NoPermission", "InvalidLogin"])
def test_without_the_right_nothing_is_chosen_or_excluded_by_tag(
    holdfast: OneProcess, lab: RunningLab, fault: str
) -> None:
    method = ON_OBJECTS if fault == "NoPermission" else "POST /api/session"
    lab.lab.misbehaviour.arm(
        "fail_call",
        match={"method": method},
        parameters={"fault": "NoPermission" if fault == "NoPermission" else "NotAuthenticated"},
        times=None,
    )
    for selectors, exclude in ((("tag:gold",), ()), (("datastore:nfs1",), ("tag:none",))):
        with pytest.raises(CapabilityAbsent, match="tags"):
            planned(holdfast, *selectors, exclude=exclude)
    assert vms(planned(holdfast, "datastore:nfs1")) == {"web", "db", "app"}
    assert listed(holdfast)["web"].tags_known is False
    summary = actions(holdfast).refresh_vcenter(operator_pb2.VcenterName(name="lab"))
    assert summary.tags_problem and summary.vms == 4


def test_a_vm_that_is_newer_than_its_vcenters_tags_is_told_and_never_excluded_by_them(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    lab.lab.misbehaviour.arm("unavailable", match={"method": ON_OBJECTS}, times=None)
    lab.control.call("vm-add", machine={"name": "app2", "datastore": "nfs1", "disks": []})
    lines = planned(holdfast, "tag:gold")
    assert any("the tags of 1 VMs" in line and "app2" in line for line in lines)
    with pytest.raises(CapabilityAbsent) as caught:
        planned(holdfast, "datastore:nfs1", exclude=("tag:none",))
    assert caught.value.facts["vms"] == "app2"


def test_a_single_host_is_asked_for_no_tags_and_selected_by_none(tmp_path: Path) -> None:
    with (
        running_lab(tmp_path / "lab", mode="host", inventory=plan()) as host,
        one_process(tmp_path / "holdfast", host) as holdfast,
    ):
        with pytest.raises(CapabilityAbsent, match="a single host has no tags"):
            planned(holdfast, "tag:gold")
        with pytest.raises(CapabilityAbsent, match="a single host has no tags"):
            planned(holdfast, "*", exclude=("tag:none",))
        assert vms(planned(holdfast, "*")) == {"web", "db", "app"}
        assert rest_calls(host) == []
        names = [line.name for line in vcenter_checks(holdfast.world, row_of(holdfast))]
        assert not any("tags" in name for name in names)


def policy_plan(
    holdfast: OneProcess, *, vms: tuple[str, ...], exclude: tuple[str, ...]
) -> set[str]:
    """What a policy's run would take."""
    policy = Policy(name="gold", vms=vms, exclude=exclude, start="0 22 * * *")
    return {known.vm.name for known in selected_vms(holdfast.world, holdfast.engine, policy)[0]}


def test_a_policy_chooses_and_excludes_by_tag_and_never_by_tags_that_nobody_read(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    assert policy_plan(holdfast, vms=("tag:gold",), exclude=("tag:none",)) == {"web"}
    lab.lab.misbehaviour.arm("unavailable", match={"method": ON_OBJECTS}, times=None)
    lab.control.call("vm-add", machine={"name": "app2", "datastore": "nfs1", "disks": []})
    assert policy_plan(holdfast, vms=("tag:gold",), exclude=("tag:none",)) == {"web"}
    policy = Policy(name="gold", vms=("datastore:nfs1",), exclude=("tag:none",), start="0 22 * * *")
    around = Surroundings.of(holdfast.world, [policy])
    (warning,) = policy_warnings(policy, around, holdfast.world)
    assert warning.startswith("exclude: VMs cannot be excluded by tag")
    assert "no run of it begins" in warning and "app2" in warning
    with pytest.raises(CapabilityAbsent) as caught:
        policy_plan(holdfast, vms=policy.vms, exclude=policy.exclude)
    assert caught.value.facts["vms"] == "app2"
    assert policy_plan(holdfast, vms=("datastore:nfs1",), exclude=("tag:none", "app*")) == {"web"}

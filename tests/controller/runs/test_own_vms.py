"""VMs that the backup itself stands on, and a disk that moves while it is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.job_spec import JobSpec
from holdfast_controller.configuration import ControllerConfiguration
from holdfast_controller.decide.policy import WhenNotReached
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.results import LOWER_CONSISTENCY
from holdfast_controller.runs.why import explain
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.vsphere_sessions import CountingGate

MIB = 1 << 20
QUIESCED = "CreateSnapshotEx_Task"


def machine(name: str, datastore: str = "nfs1") -> MachinePlan:
    disk = DiskPlan(size_bytes=4 * MIB, content="random", content_bytes=MIB, seed=1)
    return MachinePlan(name=name, datastore=datastore, change_tracking=True, disks=(disk,))


@contextmanager
def controller_in(
    folder: Path, lab: RunningLab, own: str, gate: CountingGate
) -> Iterator[OneProcess]:
    """A controller that runs in the VM of this name."""
    configuration = ControllerConfiguration(
        attempts_max=1, own_vm_uuid=lab.lab.machine(own).bios_uuid
    )
    with one_process(folder, lab, gate=gate, configuration=configuration) as ready:
        yield ready


@pytest.fixture
def gate() -> CountingGate:
    return CountingGate()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    plan = InventoryPlan(machines=(machine("web"), machine("vcsa"), machine("proxy")))
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        with running.lab.lock:
            running.lab.machine("vcsa").guest_address = "127.0.0.1"
        yield running


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab, gate: CountingGate) -> Iterator[OneProcess]:
    with controller_in(tmp_path / "holdfast", lab, "web", gate) as ready:
        yield ready


def methods(gate: CountingGate) -> list[str]:
    """What vSphere was asked, in order."""
    return [call.partition(" ")[0] for call in gate.calls]


def told(holdfast: OneProcess, vm: str) -> tuple[list[str], list[str], list[str]]:
    """What a plan, `doctor` and `why` say of it."""
    request = BackupRequest(selectors=(vm,), consistency="filesystem")
    plan = holdfast.engine.start_backup(request, dry_run=True).plan
    doctor = [each.detail for each in holdfast.doctor() if each.name == f"VM {vm}"]
    why = [each.answer for each in explain(holdfast.world, holdfast.engine.dispatcher, vm)]
    return list(plan), doctor, why


@pytest.mark.parametrize(
    ("vm", "who"),
    [("web", "the VM that this controller runs in"), ("vcsa", "the VM of vcenter lab")],
)
def test_who_is_to_thaw_is_never_frozen_and_everybody_says_so(
    holdfast: OneProcess, gate: CountingGate, vm: str, who: str
) -> None:
    job = holdfast.back_up(vm, consistency="filesystem")
    record = holdfast.record(job)
    assert QUIESCED not in methods(gate)
    assert (record.consistency_asked, record.consistency_reached) == ("filesystem", "crash")
    assert any(each.code == LOWER_CONSISTENCY and who in each.message for each in job.warnings)
    for said in told(holdfast, vm):
        assert any(who in each and "without quiescing" in each for each in said), said


def test_what_may_not_be_lower_fails_with_the_reason_and_without_a_snapshot(
    holdfast: OneProcess, gate: CountingGate
) -> None:
    job = holdfast.back_up("web", consistency="filesystem", when_not_reached=WhenNotReached.FAIL)
    assert str(job.state) == "failed"
    assert job.error is not None
    assert "the VM that this controller runs in" in job.error.text()
    assert "CreateSnapshot_Task" not in methods(gate) and QUIESCED not in methods(gate)


def test_other_vms_are_quiesced(tmp_path: Path, lab: RunningLab, gate: CountingGate) -> None:
    with controller_in(tmp_path / "other", lab, "vcsa", gate) as holdfast:
        record = holdfast.record(holdfast.back_up("web", consistency="filesystem"))
        assert record.consistency_reached == "filesystem"
        assert methods(gate).count(QUIESCED) == 1
        _, doctor, why = told(holdfast, "web")
        assert not any("it is the VM" in each for each in (*doctor, *why))


def test_a_proxys_own_vm_goes_over_the_network_and_no_disk_is_attached(
    holdfast: OneProcess, gate: CountingGate
) -> None:
    job = holdfast.back_up("proxy")
    record = holdfast.record(job)
    assert str(record.transport) == "nfc"
    assert "ReconfigVM_Task" not in methods(gate)
    for said in told(holdfast, "proxy"):
        assert any("the VM of proxy proxy" in each for each in said), said
    for transport in ("hotadd", "direct"):
        asked = BackupRequest(selectors=("proxy",), transport=transport)
        with pytest.raises(Exception, match="itself"):
            holdfast.engine.start_backup(asked, dry_run=True)


def test_a_proxy_without_a_configured_uuid_is_known_by_its_card(holdfast: OneProcess) -> None:
    with holdfast.lab.lab.lock:
        (card, *_) = holdfast.lab.lab.machine("proxy").devices.network_cards()
    agent = holdfast.agent
    agent.agent = replace(agent.agent, vm_bios_uuid="", mac_addresses=(str(card.macAddress),))
    (proxy,) = holdfast.world.proxies(holdfast.vcenter_id)
    assert proxy.vm is not None
    assert any("the VM of proxy proxy" in each for each in told(holdfast, "proxy")[0])


def test_a_disk_that_moves_while_it_is_read_fails_the_attempt(holdfast: OneProcess) -> None:
    def move_with_the_next_call(_: JobSpec) -> None:
        holdfast.lab.lab.misbehaviour.arm(
            "move_disk",
            match={"method": "RetrievePropertiesEx"},
            parameters={"vm": "web", "datastore": "nfs2"},
        )

    holdfast.agent.before = move_with_the_next_call
    job = holdfast.back_up("web", transport="direct")
    assert str(job.state) == "failed"
    assert job.error is not None and job.error.code == "disk_moved", job.error
    assert not holdfast.world.catalogue.points()
    assert not holdfast.lab.lab.machine("web").snapshots()

"""A lab is qualified: as it should be, and with each of its misbehaviours."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast_common.errors import Refused
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import JobSpec
from holdfast_controller.decide.behaviours import Behaviour, Finding, Verdict
from holdfast_controller.runs import qualify_probes
from holdfast_controller.runs.qualify import Qualification, QualifyRequest
from holdfast_controller.vsphere import session, task_watcher
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.misbehaviour import KINDS
from holdfast_lab.server import RunningLab, running_lab
from support import figures_summary
from support.one_process import OneProcess, guest_writes, one_process

MIB = 1 << 20
LATE_SECONDS = (
    8.0  # what a snapshot may take here, on a machine that may be busy; misbehaviour takes longer
)
HELD_SECONDS = 10.0
WRITES = "the guest writes after each backup"
TRACKING_OFF = "change tracking is off before"
# No behaviour of a vSphere towards a VM: one kills programs of ours, the other hides tags as a missing right does.
NOT_OF_A_VM = {"kill_process", "hide_tags"}


@dataclass(frozen=True)
class Misbehaving:
    """A kind of the lab's, and the one behaviour that must be named for it."""

    kind: str
    named: Behaviour
    verdict: Verdict = Verdict.BROKEN
    match: dict[str, str] = field(default_factory=dict)
    times: int = 1
    nth: int = 1
    parameters: dict[str, str] = field(default_factory=dict)
    also: str = ""
    vm: str = "spare"


SNAPSHOT = "VirtualMachine.createSnapshot"
READS = {"method": "RetrievePropertiesEx"}
ALL = [
    Misbehaving("datastore_full", Behaviour.SNAPSHOT_ALLOWED, match={"datastore": "nfs1"}, times=0),
    Misbehaving(
        "fail_call", Behaviour.TRACKING_ON, match={"method": "ReconfigVM_Task"}, also=TRACKING_OFF
    ),
    Misbehaving("fail_call", Behaviour.ALLOCATED_TOLD, match={"method": "QueryChangedDiskAreas"}),
    Misbehaving(
        "fail_call", Behaviour.CHANGES_TOLD, match={"method": "QueryChangedDiskAreas"}, nth=3
    ),
    Misbehaving("fail_call", Behaviour.READ_NFC, match={"method": "ExportSnapshot"}),
    Misbehaving("fail_task", Behaviour.SNAPSHOT_FREEZES, match={"description": SNAPSHOT}),
    Misbehaving("cut_change_lists", Behaviour.LISTS_WHOLE, Verdict.HANDLED, vm="pieces"),
    Misbehaving(
        "leave_consolidation", Behaviour.SNAPSHOT_GOES, Verdict.HANDLED, match={"vm": "spare"}
    ),
    Misbehaving("flip_byte", Behaviour.RESTORE_HOTADD, match={"vm": "proxy"}),
    # (one that is cut while it is read is opened again by the proxy, which nobody hears of)
    Misbehaving("cut_stream", Behaviour.RESTORE_NFC, match={"direction": "write"}),
    Misbehaving(
        "move_disk",
        Behaviour.DISKS_STAY,
        match={"method": "QueryChangedDiskAreas"},
        nth=2,
        parameters={"vm": "spare", "datastore": "nfs2"},
    ),
    Misbehaving("lost_request", Behaviour.CALLS_ANSWERED, Verdict.HANDLED, match=READS),
    Misbehaving(
        "lost_reply",
        Behaviour.CALLS_ANSWERED,
        Verdict.HANDLED,
        match={"method": "CreateSnapshot_Task"},
    ),
    Misbehaving("unavailable", Behaviour.CALLS_ANSWERED, Verdict.HANDLED, match=READS),
    Misbehaving("silence", Behaviour.CALLS_ANSWERED, Verdict.HANDLED, match=READS),
    Misbehaving("expire_session", Behaviour.LOGIN_LASTS, Verdict.HANDLED, match=READS),
    Misbehaving(
        "slow_task",
        Behaviour.IN_TIME,
        Verdict.HANDLED,
        match={"description": SNAPSHOT},
        parameters={"seconds": str(HELD_SECONDS)},
    ),
    Misbehaving("hold_task", Behaviour.IN_TIME, Verdict.HANDLED, match={"description": SNAPSHOT}),
    Misbehaving(
        "hold_call", Behaviour.IN_TIME, Verdict.HANDLED, match={"method": "CreateSnapshot_Task"}
    ),
    Misbehaving("lying_changed_blocks", Behaviour.CHANGES_TRUE, times=0, also=WRITES, vm="liar"),
]


def machine(name: str) -> MachinePlan:
    disk = DiskPlan(size_bytes=4 * MIB, content="random", content_bytes=MIB, seed=1)
    return MachinePlan(name=name, datastore="nfs1", disks=(disk,))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    plan = InventoryPlan(
        machines=(
            machine("spare"),
            MachinePlan(name="pieces", datastore="vmfs1", disks=(DiskPlan(size_bytes=64 * MIB),)),
            machine("liar"),
            MachinePlan(name="proxy", datastore="vmfs1"),
        )
    )
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


@pytest.fixture
def holdfast(
    tmp_path: Path, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OneProcess]:
    monkeypatch.setattr(qualify_probes, "SNAPSHOT_SECONDS_MAX", LATE_SECONDS)
    monkeypatch.setattr(session, "CONNECTION_TIMEOUT_SECONDS", 15.0)
    monkeypatch.setattr(task_watcher, "WAIT_SECONDS_MAX", 5)  # well below it, as it always is
    with one_process(tmp_path / "holdfast", lab) as ready:
        yield ready


def qualified(holdfast: OneProcess, vm: str = "spare") -> list[Finding]:
    made = Qualification(holdfast.world, holdfast.engine, QualifyRequest(vm=vm))
    for _ in made.steps():
        pass
    return made.findings()


@pytest.mark.long
def test_a_lab_that_behaves_is_found_to_behave_and_nothing_is_left(holdfast: OneProcess) -> None:
    vms = {known.vm.name for known in holdfast.world.vcenters.inventory.vms()}
    found = qualified(holdfast)
    assert {each.verdict for each in found} == {Verdict.HOLDS}, found
    assert not holdfast.world.catalogue.points() and not holdfast.world.ledger.open_entries()
    holdfast.refresh()
    assert {known.vm.name for known in holdfast.world.vcenters.inventory.vms()} == vms
    assert not holdfast.lab.lab.machine("spare").snapshots()


def test_a_vm_that_somebody_may_need_is_refused_with_every_reason(holdfast: OneProcess) -> None:
    holdfast.back_up("spare")
    holdfast.lab.control.call("user-snapshot", vm="proxy", name="mine")
    holdfast.refresh()
    for vm, reason in (("spare", "restore points"), ("proxy", "snapshots"), ("proxy", "the VM of")):
        with pytest.raises(Refused) as refused:
            Qualification(holdfast.world, holdfast.engine, QualifyRequest(vm=vm))
        assert reason in str(refused.value.facts["reasons"])


@pytest.mark.long
@pytest.mark.timeout(900)  # each of them is a whole qualification
def test_each_misbehaviour_is_named_and_only_it(
    holdfast: OneProcess, record_property: figures_summary.RecordProperty
) -> None:
    assert {each.kind for each in ALL} | NOT_OF_A_VM == set(KINDS)
    broken, named = 0, 0
    for each in ALL:
        found = _misbehaving(holdfast, each)
        wrong = {
            (one.behaviour, one.verdict)
            for one in found
            if one.verdict in (Verdict.BROKEN, Verdict.HANDLED)
        }
        broken += bool(wrong)
        assert wrong == {(each.named, each.verdict)}, (each, _not_well(found))
        named += 1
    told = f"qualify: checks {len(ALL)} broken {broken} named {named}"
    figures_summary.tell_line(record_property, told)
    assert len(ALL) == broken == named


def _not_well(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.verdict is not Verdict.HOLDS]


def _misbehaving(holdfast: OneProcess, each: Misbehaving) -> list[Finding]:
    """The findings while the lab misbehaves so."""
    control = holdfast.lab.control
    offsets = iter(range(0, 4 * MIB, 256 << 10))

    def write(_: JobSpec, result: JobResult) -> JobResult:
        for _number in range(2):
            guest_writes(holdfast.lab, each.vm, next(offsets))
        return result

    if each.vm == "pieces":  # what is allocated lies in two places
        for offset in (0, 16 * MIB, 32 * MIB):
            guest_writes(holdfast.lab, each.vm, offset)
    if each.also == WRITES:
        holdfast.agent.after = write
    if each.also == TRACKING_OFF:
        control.call("vm-tracking", vm=each.vm, enabled=False)
        holdfast.refresh()
    control.call(
        "misbehave",
        kind=each.kind,
        match=each.match,
        nth=each.nth,
        times=each.times,
        parameters=each.parameters,
    )
    released = threading.Timer(HELD_SECONDS, lambda: control.call("misbehaviour-release"))
    if each.kind.startswith("hold_"):
        released.start()
    try:
        return qualified(holdfast, each.vm)
    finally:
        released.cancel()
        control.call("misbehaviour-disarm")
        holdfast.agent.after = lambda _, result: result
        if each.kind == "move_disk":
            control.call("storage-move", vm=each.vm, datastore="nfs1")
        holdfast.refresh()

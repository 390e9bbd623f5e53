"""Disks are released before their snapshot goes; nothing of the proxy but our own disks is touched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_common.errors import HoldfastError, VsphereFailed
from holdfast_common.job_spec import HotAddTicket
from holdfast_controller.facts import DiskFacts, SnapshotFacts, VmFacts
from holdfast_controller.ledger import EntryKind, EntryState, JobLedger
from holdfast_controller.vsphere import hot_add, properties, undo
from holdfast_controller.vsphere.hot_add import detach_own_disk, hot_added
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_lab.server import RunningLab
from support.vms import CRASH, chain_lengths, snapshot_names, vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at

Device = vim.vm.device


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


@pytest.fixture
def gate() -> CountingGate:
    return CountingGate()


@pytest.fixture
def session(lab: RunningLab, gate: CountingGate) -> Iterator[VsphereSession]:
    with session_at(lab, gate=gate, patience_seconds=2) as made:
        yield made


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_add, "FIRST_PAUSE_SECONDS", 0.01)


Attach = Callable[..., AbstractContextManager[dict[int, HotAddTicket]]]


@pytest.fixture
def attach(session: VsphereSession, ledger: JobLedger) -> Attach:
    """Attach disks of a VM to the proxy."""
    proxy = vm_named(session, "proxy")

    def attached(disks: tuple[DiskFacts, ...], owner: VmFacts | None = None, **more: Any) -> Any:
        return hot_added(
            session,
            ledger,
            proxy_instance_uuid=proxy.instance_uuid,
            disks=disks,
            owner=owner,
            **more,
        )

    return attached


@pytest.fixture
def frozen(session: VsphereSession, ledger: JobLedger) -> Iterator[SnapshotFacts]:
    vm = vm_named(session, "db")
    with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
        yield made


def shown(lab: RunningLab) -> dict[str, str]:
    """Slot -> file of what the lab itself shows to the proxy."""
    return {
        each.slot: each.device.descriptor.name
        for each in lab.lab.host_devices.attached()
        if each.machine_name == "proxy"
    }


def keep_from_detaching(lab: RunningLab) -> None:
    """From now on every Reconfigure of a running VM fails."""
    lab.lab.misbehaviour.arm(
        "fail_task",
        match={"description": "*econfig*", "vm": "proxy"},
        times=None,
        parameters={"fault": "GenericVmConfigFault"},
    )


def test_a_disk_that_cannot_be_detached_keeps_its_snapshot_and_both_are_debts(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger, attach: Attach
) -> None:
    vm = vm_named(session, "db")
    with (
        temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
        attach(made.protected_disks, made.vm),
    ):
        keep_from_detaching(lab)
    debts = {entry.kind for entry in ledger.open_entries() if entry.state is EntryState.DEBT}
    assert debts == {EntryKind.HOT_ADD, EntryKind.SNAPSHOT}
    assert len(snapshot_names(lab, "db")) == 2, "the snapshot below an attached disk stays"
    assert len(shown(lab)) == 2
    lab.lab.misbehaviour.disarm()
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert shown(lab) == {}
    assert snapshot_names(lab, "db") == ["before upgrade"]
    assert chain_lengths(lab, "db") == [2, 2]


def test_a_debt_names_the_vm_whose_disk_it_is(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger, attach: Attach
) -> None:
    vm = vm_named(session, "db")
    with (
        temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
        attach(made.protected_disks, made.vm),
    ):
        keep_from_detaching(lab)
    for entry in ledger.open_entries():
        assert entry.fact("instance_uuid") == vm.instance_uuid
        assert entry.fact("vm_name") == "db"


def test_a_guest_that_holds_a_disk_for_a_moment_is_asked_again(
    lab: RunningLab, ledger: JobLedger, attach: Attach, frozen: SnapshotFacts
) -> None:
    with attach(frozen.protected_disks[:1], frozen.vm):
        lab.lab.misbehaviour.arm(
            "fail_task",
            match={"description": "*econfig*", "vm": "proxy"},
            times=2,
            parameters={"fault": "GenericVmConfigFault"},
        )
    assert shown(lab) == {}
    assert [entry.kind for entry in ledger.open_entries()] == [EntryKind.SNAPSHOT]


def test_a_failed_attachment_leaves_nothing_and_the_next_disks_are_not_tried(
    lab: RunningLab,
    ledger: JobLedger,
    gate: CountingGate,
    attach: Attach,
    frozen: SnapshotFacts,
) -> None:
    lab.lab.misbehaviour.arm(
        "fail_task",
        match={"description": "*econfig*", "vm": "proxy"},
        nth=2,
        parameters={"fault": "FileLocked"},
    )
    with pytest.raises(VsphereFailed), attach(frozen.protected_disks, frozen.vm):
        raise AssertionError("the block must not run")
    assert shown(lab) == {}
    assert gate.count("ReconfigVM_Task") == 3
    assert [entry.kind for entry in ledger.open_entries()] == [EntryKind.SNAPSHOT]


def reconfigured(session: VsphereSession, moref: str, *changes: Any) -> None:
    task = session.call(
        vim.VirtualMachine(moref, None),
        "ReconfigVM_Task",
        spec=vim.vm.ConfigSpec(deviceChange=list(changes)),
    )
    session.wait_for_task(task, what="somebody changes the proxy")


def added(file: str, unit: int) -> Any:
    disk = Device.VirtualDisk(
        key=-1,
        controllerKey=1000,
        unitNumber=unit,
        backing=Device.VirtualDisk.FlatVer2BackingInfo(
            fileName=file, diskMode="independent_nonpersistent"
        ),
    )
    return Device.VirtualDeviceSpec(operation="add", device=disk)


def removed(key: int) -> Any:
    return Device.VirtualDeviceSpec(operation="remove", device=Device.VirtualDisk(key=key))


def turned_off(lab: RunningLab, name: str) -> None:
    with lab.lab.lock:
        lab.lab.machine(name).power_state = "poweredOff"


def test_disks_of_others_on_the_proxy_are_never_touched(
    lab: RunningLab, session: VsphereSession, attach: Attach, frozen: SnapshotFacts
) -> None:
    turned_off(lab, "web")
    proxy = vm_named(session, "proxy").moref
    reconfigured(session, proxy, added("[nfs1] web/web.vmdk", 0))
    with attach(frozen.protected_disks, frozen.vm) as tickets:
        assert {ticket.unit_number for ticket in tickets.values()} == {1, 2}
    assert shown(lab) == {"scsi0:0": "web.vmdk"}


def test_another_disk_in_our_slot_is_not_ours(
    lab: RunningLab,
    session: VsphereSession,
    ledger: JobLedger,
    attach: Attach,
    frozen: SnapshotFacts,
) -> None:
    turned_off(lab, "web")
    proxy = vm_named(session, "proxy").moref
    with attach(frozen.protected_disks[:1], frozen.vm) as tickets:
        (ticket,) = tickets.values()
        (key,) = [entry.fact("attached_key") for entry in ledger.open_entries()][-1:]
        reconfigured(session, proxy, removed(int(key)))
        reconfigured(session, proxy, added("[nfs1] web/web.vmdk", ticket.unit_number))
    assert shown(lab) == {f"scsi0:{ticket.unit_number}": "web.vmdk"}
    assert [entry.kind for entry in ledger.open_entries()] == [EntryKind.SNAPSHOT]


def test_of_two_clones_with_one_uuid_each_ticket_names_its_own_slot(
    lab: RunningLab, session: VsphereSession, attach: Attach
) -> None:
    turned_off(lab, "web")
    machine = lab.lab.machine("web")
    (device,) = machine.disks()
    device.disk.guest_write(0, b"a" * 4096)
    clone = lab.lab.disks.clone(
        device.disk,
        machine.directory,
        "clone",
        descriptor=None,
        kind=device.disk.datastore_kind,
    )
    clone.guest_write(0, b"b" * 4096)
    (original,) = vm_named(session, "web").disks
    (link,) = original.chain
    copy = replace(original, device_key=9000, chain=(replace(link, path="web/clone.vmdk"),))
    with attach((original, copy)) as tickets:
        assert tickets[original.device_key].disk_uuid == tickets[9000].disk_uuid
        for key, content in ((original.device_key, b"a"), (9000, b"b")):
            slot = f"scsi{tickets[key].bus_number}:{tickets[key].unit_number}"
            (folder,) = [
                each.folder for each in lab.lab.host_devices.attached() if each.slot == slot
            ]
            assert (folder / "disk").read_bytes()[:1] == content
    assert shown(lab) == {}


def test_two_jobs_never_choose_one_unit(
    lab: RunningLab, session: VsphereSession, tmp_path: Path
) -> None:
    turned_off(lab, "web")
    proxy = vm_named(session, "proxy")
    disks = [*vm_named(session, "web").disks, *vm_named(session, "db").disks]
    with lab.lab.lock:
        lab.lab.machine("db").power_state = "poweredOff"
    all_attached = threading.Barrier(len(disks))
    slots: list[int] = []
    problems: list[HoldfastError] = []

    def one_job(disk: DiskFacts, ledger: JobLedger) -> None:
        try:
            with hot_added(
                session, ledger, proxy_instance_uuid=proxy.instance_uuid, disks=[disk]
            ) as tickets:
                slots.extend(ticket.unit_number for ticket in tickets.values())
                all_attached.wait(60)
        except HoldfastError as error:
            problems.append(error)
            all_attached.abort()

    jobs = [threading.Thread(target=one_job, args=(disk, job_ledger(tmp_path))) for disk in disks]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert problems == []
    assert sorted(slots) == [0, 1, 2]
    assert shown(lab) == {}


def test_a_disk_to_be_written_keeps_out_of_the_proxys_snapshots(
    lab: RunningLab, session: VsphereSession, attach: Attach
) -> None:
    turned_off(lab, "web")
    with attach(vm_named(session, "web").disks, writable=True):
        (each,) = lab.lab.host_devices.attached()
        assert (each.device.mode, each.writable) == ("independent_persistent", True)


def test_a_disk_attached_in_another_mode_is_refused_and_detached(
    lab: RunningLab, attach: Attach, frozen: SnapshotFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = hot_add._find

    def otherwise(*arguments: Any) -> Any:
        found = find(*arguments)
        if found is not None:
            found.backing.diskMode = "persistent"
        return found

    monkeypatch.setattr(hot_add, "_find", otherwise)
    with (
        pytest.raises(VsphereFailed, match="another mode"),
        attach(frozen.protected_disks[:1], frozen.vm),
    ):
        raise AssertionError("the block must not run")
    assert shown(lab) == {}


def test_a_proxy_that_shows_no_devices_is_never_taken_for_one_without_disks(
    session: VsphereSession,
    ledger: JobLedger,
    attach: Attach,
    frozen: SnapshotFacts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with attach(frozen.protected_disks[:1], frozen.vm):
        (entry,) = [each for each in ledger.open_entries() if each.kind is EntryKind.HOT_ADD]
        with monkeypatch.context() as patch:
            patch.setattr(properties, "read_one", lambda *_: {})
            with pytest.raises(VsphereFailed, match="shows no devices"):
                detach_own_disk(session, entry)


def test_detaching_twice_is_harmless(
    session: VsphereSession, ledger: JobLedger, attach: Attach, frozen: SnapshotFacts
) -> None:
    with attach(frozen.protected_disks[:1], frozen.vm):
        (entry,) = [each for each in ledger.open_entries() if each.kind is EntryKind.HOT_ADD]
    for _ in range(2):
        detach_own_disk(session, entry)

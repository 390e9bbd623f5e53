"""A VM of ours is found again and undone, whatever somebody did with it; nobody else's is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyVmomi import vim

from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import EntryKind, JobLedger
from holdfast_controller.vsphere import inventory, undo
from holdfast_controller.vsphere.datastore_files import place_of
from holdfast_controller.vsphere.datastore_folders import exists
from holdfast_controller.vsphere.marked_vms import find_made_vm
from holdfast_controller.vsphere.new_vm_spec import NONCE_KEY
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_lab.server import RunningLab
from support.lab_vsphere import client_of, reconfigure, wait
from support.new_vms import copied
from support.vms import vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at


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


def left_behind(session: VsphereSession, ledger: JobLedger, *, noted: bool = True) -> VmFacts:
    """A VM and its folder, and the entries as a controller leaves them that is killed."""
    vm = copied(session, ledger)
    assert not ledger.open_entries()
    for entry in closed_entries(ledger):
        facts = {key: value for key, value in entry.items() if key not in ("outcome", "vm")}
        kind = EntryKind.NEW_VM if "nonce" in facts else EntryKind.FOLDER
        entry_id = ledger.intend(kind, facts)
        if kind is EntryKind.NEW_VM and noted:
            ledger.ledger.made(entry_id, {"vm": vm.moref})
    return vm


def closed_entries(ledger: JobLedger) -> list[dict[str, str]]:
    of_job = getattr(ledger.ledger, "of_job")  # noqa: B009 - of the table, not of the protocol
    return [
        dict(each.facts)
        for each in of_job(ledger.job_id)
        if each.kind in (EntryKind.NEW_VM, EntryKind.FOLDER)
    ]


def undone(session: VsphereSession, ledger: JobLedger) -> list[str]:
    """The problems that are left."""
    return [
        each.last_error for each in undo.undo_entries(session, ledger.ledger, ledger.open_entries())
    ]


def names(session: VsphereSession) -> list[str]:
    return [vm.name for vm in inventory.read_inventory(session).vms]


def has_folder(session: VsphereSession) -> bool:
    around = inventory.read_surroundings(session)
    moref = next(m for m, s in around.names.by_moref.items() if s.name == "nfs1")
    return exists(session, place_of(around, moref), "copy")


def renamed_and_moved(lab: RunningLab) -> None:
    with client_of(lab) as client:
        vm = client.vm("copy")
        folder = vm.parent.CreateFolder("attic")
        wait(folder.MoveIntoFolder_Task([vm]))
        wait(vm.Rename_Task("what is this"))


def marked(lab: RunningLab, name: str, nonce: str) -> None:
    """Give a VM a nonce; an empty one takes it away."""
    with client_of(lab) as client:
        option = vim.option.OptionValue(key=NONCE_KEY, value=nonce)
        reconfigure(client.vm(name), extraConfig=[option])


def nonce_of(ledger: JobLedger) -> str:
    (nonce,) = {each["nonce"] for each in closed_entries(ledger) if "nonce" in each}
    return nonce


def test_the_noted_vm_is_found_without_reading_the_inventory(
    session: VsphereSession, gate: CountingGate, ledger: JobLedger
) -> None:
    vm = left_behind(session, ledger)
    entry = next(each for each in ledger.open_entries() if each.kind is EntryKind.NEW_VM)
    before = len(gate.calls)
    assert find_made_vm(session, entry) == vm.moref
    assert gate.calls[before:] == ["RetrievePropertiesEx propertyCollector"]


@pytest.mark.parametrize("noted", [True, False])
def test_a_vm_that_somebody_renamed_and_moved_is_undone(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger, *, noted: bool
) -> None:
    left_behind(session, ledger, noted=noted)
    renamed_and_moved(lab)
    assert undone(session, ledger) == []
    assert sorted(names(session)) == ["db", "proxy", "web"]


def test_a_vm_that_somebody_registered_anew_is_undone(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger
) -> None:
    vm = left_behind(session, ledger)
    with client_of(lab) as client:
        machine = client.vm("copy")
        path, pool = machine.config.files.vmPathName, machine.resourcePool
        parent = machine.parent
        machine.UnregisterVM()
        wait(parent.RegisterVM_Task(path=path, name="again", asTemplate=False, pool=pool))
    assert vm_named(session, "again").moref != vm.moref
    assert undone(session, ledger) == []
    assert sorted(names(session)) == ["db", "proxy", "web"]


def test_another_vm_that_has_the_noted_id_is_not_touched(
    session: VsphereSession, ledger: JobLedger
) -> None:
    left_behind(session, ledger)
    entry = next(each for each in ledger.open_entries() if each.kind is EntryKind.NEW_VM)
    ledger.ledger.note(entry.entry_id, {"vm": vm_named(session, "web").moref})
    assert undone(session, ledger) == []
    assert sorted(names(session)) == ["db", "proxy", "web"]


@pytest.mark.parametrize("noted", [True, False])
def test_a_vm_without_our_mark_is_not_touched_nor_the_folder_below_it(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger, *, noted: bool
) -> None:
    left_behind(session, ledger, noted=noted)
    nonce = nonce_of(ledger)
    marked(lab, "copy", "")
    problems = undone(session, ledger)
    assert "does not carry our mark" in problems[0]
    assert "copy" in names(session)
    assert has_folder(session)
    marked(lab, "copy", nonce)
    assert undone(session, ledger) == []
    assert "copy" not in names(session)


def test_somebodys_copy_of_our_vm_is_not_touched(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger
) -> None:
    left_behind(session, ledger)
    nonce = nonce_of(ledger)
    marked(lab, "web", nonce)
    assert undone(session, ledger) == []
    assert sorted(names(session)) == ["db", "proxy", "web"]


def test_a_copy_that_outlived_our_vm_is_shown_and_not_touched(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger
) -> None:
    left_behind(session, ledger)
    nonce = nonce_of(ledger)
    marked(lab, "web", nonce)
    lab.control.call("vm-remove", vm="copy")
    (problem, *_) = undone(session, ledger)
    assert "may be somebody's copy" in problem
    assert "web" in names(session)
    marked(lab, "web", "")
    assert undone(session, ledger) == []


def test_a_vm_that_was_never_made_leaves_nothing_to_undo(
    session: VsphereSession, ledger: JobLedger
) -> None:
    folder = vm_named(session, "web").folder_moref
    ledger.intend(EntryKind.NEW_VM, {"vm_name": "never", "nonce": "n1", "folder": folder})
    assert undone(session, ledger) == []

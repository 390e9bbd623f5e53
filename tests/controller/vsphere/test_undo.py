from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import Locked, VsphereFailed
from holdfast_controller.ledger import (
    UNDONE_FIRST,
    EntryId,
    EntryKind,
    EntryState,
    JobLedger,
    LedgerEntry,
    check_undo_order,
)
from holdfast_controller.vsphere import undo
from holdfast_controller.vsphere.datastore_files import DatastorePlace, place_of, upload
from holdfast_controller.vsphere.datastore_folders import exists, make_folder
from holdfast_controller.vsphere.inventory import read_surroundings
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_lab.server import RunningLab
from support.vms import vm_named
from support.vsphere_sessions import job_ledger, session_at


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


@pytest.fixture
def session(lab: RunningLab) -> Iterator[VsphereSession]:
    with session_at(lab, patience_seconds=2) as made:
        yield made


Undone = list[EntryKind]


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> Undone:
    """Every kind's undo is replaced by one that remembers its kind."""
    kinds: Undone = []

    def remember(_: VsphereSession, entry: LedgerEntry) -> None:
        kinds.append(entry.kind)
        if entry.fact("fails"):
            raise VsphereFailed("it was told to fail")

    monkeypatch.setattr(undo, "UNDOES", dict.fromkeys(EntryKind, remember))
    return kinds


def entries(ledger: JobLedger, *kinds: EntryKind, fails: EntryKind | None = None) -> None:
    for kind in kinds:
        ledger.intend(kind, {"fails": "yes"} if kind is fails else {})


def test_every_kind_has_its_undo_and_its_place_in_the_order() -> None:
    assert set(undo.UNDOES) == set(EntryKind) == set(UNDONE_FIRST)
    order = list(UNDONE_FIRST)
    for kind, first in UNDONE_FIRST.items():
        assert all(order.index(each) < order.index(kind) for each in first)


def test_what_holds_disks_is_undone_before_what_they_belong_to(
    session: VsphereSession, ledger: JobLedger, undone: Undone
) -> None:
    entries(ledger, *reversed(EntryKind))
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert undone == [
        EntryKind.HOT_ADD,
        EntryKind.TRANSFER_LEASE,
        EntryKind.SNAPSHOT,
        EntryKind.DISK_SWAP,
        EntryKind.NEW_VM,
        EntryKind.FOLDER,
    ]
    assert not ledger.open_entries()


def test_rule_15_nothing_is_undone_while_a_disk_of_it_is_still_attached(
    session: VsphereSession, ledger: JobLedger, undone: Undone
) -> None:
    entries(ledger, *EntryKind, fails=EntryKind.HOT_ADD)
    debts = undo.undo_entries(session, ledger.ledger, ledger.open_entries())
    assert undone == [EntryKind.HOT_ADD, EntryKind.TRANSFER_LEASE]
    assert {entry.kind for entry in debts} == set(EntryKind) - {EntryKind.TRANSFER_LEASE}
    by_kind = {entry.kind: entry for entry in ledger.open_entries()}
    assert "it was told to fail" in by_kind[EntryKind.HOT_ADD].last_error
    assert "held_by=hot_add" in by_kind[EntryKind.SNAPSHOT].last_error
    # the next sweep finds the disk detachable, and everything goes
    ledger.ledger.note(by_kind[EntryKind.HOT_ADD].entry_id, {"fails": ""})
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert not ledger.open_entries()


def test_one_failure_does_not_stop_what_it_does_not_concern(
    session: VsphereSession, ledger: JobLedger, undone: Undone
) -> None:
    entries(ledger, *EntryKind, fails=EntryKind.SNAPSHOT)
    (debt,) = undo.undo_entries(session, ledger.ledger, ledger.open_entries())
    assert (debt.kind, debt.state, debt.attempts) == (EntryKind.SNAPSHOT, EntryState.DEBT, 1)
    assert undone == list(UNDONE_FIRST)


def test_another_jobs_attached_disks_hinder_nothing(
    session: VsphereSession, ledger: JobLedger, undone: Undone
) -> None:
    other = JobLedger(
        ledger=ledger.ledger,
        run_id=ledger.run_id,
        job_id=type(ledger.job_id)("another job"),
        vcenter_id=ledger.vcenter_id,
    )
    entries(other, EntryKind.HOT_ADD)
    entries(ledger, EntryKind.SNAPSHOT)
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert undone == [EntryKind.SNAPSHOT]


def test_a_kind_that_this_version_does_not_know_is_a_debt_that_says_so(
    session: VsphereSession, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo, "UNDOES", {})
    entries(ledger, EntryKind.HOT_ADD)
    (debt,) = undo.undo_entries(session, ledger.ledger, ledger.open_entries())
    assert "this version cannot undo it" in debt.last_error


def test_what_somebody_else_undid_meanwhile_is_left_alone(
    session: VsphereSession, ledger: JobLedger, undone: Undone
) -> None:
    entries(ledger, EntryKind.SNAPSHOT)
    found = ledger.open_entries()
    ledger.ledger.gone(found[0].entry_id)
    assert undo.undo_entries(session, ledger.ledger, found) == []
    assert undone == []


def test_the_order_is_checked_by_the_job_that_gives_back_too(ledger: JobLedger) -> None:
    snapshot = ledger.intend(EntryKind.SNAPSHOT, {})
    lent = ledger.intend(EntryKind.HOT_ADD, {})
    with pytest.raises(Locked, match="given back"):
        check_undo_order(ledger.ledger, ledger.ledger.entry(snapshot))
    check_undo_order(ledger.ledger, ledger.ledger.entry(lent))
    ledger.ledger.gone(lent)
    check_undo_order(ledger.ledger, ledger.ledger.entry(snapshot))


# -- each kind at the lab -------------------------------------------------------------------

DEAD_VM = {"vm": "vm-99999", "vm_name": "dead", "instance_uuid": "00000000-dead"}
GONE_OBJECTS = {
    EntryKind.SNAPSHOT: {**DEAD_VM, "nonce": "n1", "excess": "{}"},
    EntryKind.HOT_ADD: {
        "proxy": "vm-99999",
        "proxy_instance_uuid": "00000000-dead",
        "controller_key": "1000",
        "bus_number": "0",
        "unit_number": "3",
        "datastore": "datastore-1",
        "datastore_name": "nfs1",
        "path": "web/web.vmdk",
    },
    EntryKind.TRANSFER_LEASE: {**DEAD_VM, "lease": "session[dead]lease-1"},
    EntryKind.DISK_SWAP: {**DEAD_VM, "disks": "[]"},
    EntryKind.NEW_VM: {"vm_name": "dead", "nonce": "n1", "folder": "group-v99999"},
}


@pytest.mark.parametrize("kind", list(GONE_OBJECTS))
def test_what_is_gone_with_its_vm_is_no_debt(
    session: VsphereSession, ledger: JobLedger, kind: EntryKind
) -> None:
    ledger.intend(kind, GONE_OBJECTS[kind])
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert not ledger.open_entries()


def folder_entry(session: VsphereSession, ledger: JobLedger, path: str) -> EntryId:
    moref = vm_named(session, "web").disks[0].chain[0].datastore_moref
    return ledger.intend(EntryKind.FOLDER, {"datastore": moref, "path": path})


@pytest.mark.parametrize("failed_before", [False, True])
def test_a_folder_that_was_only_intended_is_never_deleted_with_somebody_elses_files(
    session: VsphereSession, ledger: JobLedger, *, failed_before: bool
) -> None:
    entry_id = folder_entry(session, ledger, "theirs")
    place = place_of(read_surroundings(session), ledger.ledger.entry(entry_id).fact("datastore"))
    make_folder(session, place, "theirs")
    upload(session, place, "theirs/precious", b"theirs")
    if failed_before:
        ledger.ledger.debt(entry_id, "vSphere did not answer")
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert exists(session, place, "theirs/precious")


def test_a_folder_of_ours_goes_with_what_is_in_it(
    session: VsphereSession, ledger: JobLedger
) -> None:
    entry_id = folder_entry(session, ledger, "ours")
    place = place_of(read_surroundings(session), ledger.ledger.entry(entry_id).fact("datastore"))
    make_folder(session, place, "ours")
    ledger.ledger.made(entry_id, {"made": "yes"})
    upload(session, place, "ours/half a disk", b"ours")
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert not exists(session, place, "ours")
    assert not ledger.open_entries()


DATASTORE_GONE = "datastore-99999"


def made_folder(session: VsphereSession, ledger: JobLedger) -> tuple[EntryId, DatastorePlace]:
    """A folder of ours with a file in it, on nfs1."""
    entry_id = folder_entry(session, ledger, "ours")
    place = place_of(read_surroundings(session), ledger.ledger.entry(entry_id).fact("datastore"))
    make_folder(session, place, "ours")
    upload(session, place, "ours/half a disk", b"ours")
    ledger.ledger.made(entry_id, {"made": "yes"})
    return entry_id, place


def test_a_folder_on_a_datastore_that_the_vcenter_no_longer_has_is_gone(
    session: VsphereSession, ledger: JobLedger, caplog: pytest.LogCaptureFixture
) -> None:
    entry_id = folder_entry(session, ledger, "ours")
    ledger.ledger.made(entry_id, {"made": "yes", "datastore": DATASTORE_GONE})
    with caplog.at_level("INFO"):
        assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert not ledger.open_entries()
    assert "a folder of ours went with its datastore" in caplog.messages


def test_a_folder_on_a_datastore_that_was_mounted_anew_is_deleted(
    session: VsphereSession, ledger: JobLedger
) -> None:
    entry_id, place = made_folder(session, ledger)
    facts = {"datastore": DATASTORE_GONE, "datastore_id": place.datastore_id}
    ledger.ledger.note(entry_id, facts)
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert not exists(session, place, "ours")


def test_a_folder_on_a_datastore_that_cannot_be_reached_stays_a_debt_until_it_can(
    lab: RunningLab, session: VsphereSession, ledger: JobLedger
) -> None:
    _, place = made_folder(session, ledger)
    lab.control.call("datastore-set", name="nfs1", accessible=False)
    (debt,) = undo.undo_entries(session, ledger.ledger, ledger.open_entries())
    assert "cannot be reached" in debt.last_error
    lab.control.call("datastore-set", name="nfs1", accessible=True)
    assert exists(session, place, "ours/half a disk")
    assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
    assert not exists(session, place, "ours")


def test_a_folder_on_a_datastore_that_is_hidden_from_us_stays_a_debt(
    lab: RunningLab,
    session: VsphereSession,
    ledger: JobLedger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, place = made_folder(session, ledger)
    kind = type(lab.lab.datastore("nfs1"))
    with monkeypatch.context() as hidden:
        # an account without rights on an object is shown none of its properties
        hidden.setattr(kind, "readers", {})
        (debt,) = undo.undo_entries(session, ledger.ledger, ledger.open_entries())
    assert "not shown to the account" in debt.last_error
    assert exists(session, place, "ours/half a disk")

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyVmomi import vim

from holdfast_common.errors import HoldfastError, LeaseExpired, VsphereFailed
from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import undo
from holdfast_controller.vsphere.import_leases import ImportedVm, imported_vm
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_lab.server import RunningLab
from holdfast_lab.snapshots import take_snapshot
from holdfast_lab.transfer_lease import TransferLease
from support.restored_disks import disk_start, place_named, planned_copy, upload
from support.vms import vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at

CALLS_MAX = 90


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


@contextlib.contextmanager
def importing(
    session: VsphereSession, ledger: JobLedger, source: VmFacts, snapshot: str
) -> Iterator[ImportedVm]:
    with (
        planned_copy(session, ledger, source, name="copy", snapshot=snapshot) as planned,
        imported_vm(
            session,
            ledger,
            new=planned.new,
            nonce=planned.nonce,
            folder_moref=source.folder_moref,
            pool_moref=source.pool_moref,
            host_moref=source.host_moref,
            own_folders=planned.own_folders,
        ) as imported,
    ):
        yield imported


def snapshot_of_db(lab: RunningLab) -> str:
    """The user's own snapshot: where the configuration of these tests comes from."""
    with lab.lab.lock:
        return lab.lab.machine("db").snapshots()[0].moid


def machine_names(lab: RunningLab) -> list[str]:
    with lab.lab.lock:
        return sorted(machine.name for machine in lab.lab.machines())


def folders_on_nfs2(lab: RunningLab) -> list[str]:
    return sorted(path.name for path in lab.lab.datastore("nfs2").root.iterdir())


def fill(imported: ImportedVm) -> None:
    for key, ticket in imported.tickets.items():
        capacity = next(d.capacity_bytes for d in imported.vm.disks if d.device_key == key)
        upload(ticket, bytes([key % 251]) * capacity)
    imported.complete()


def test_a_vm_is_made_and_filled_through_a_lease(lab: RunningLab, ledger: JobLedger) -> None:
    with session_at(lab) as session:
        source = vm_named(session, "db")
        with importing(session, ledger, source, snapshot_of_db(lab)) as imported:
            assert sorted(imported.tickets) == [2000, 2001]
            fill(imported)
        copy = vm_named(session, "copy")
        assert copy.power_state == "poweredOff"
        assert copy.instance_uuid != source.instance_uuid
    for key in (2000, 2001):
        assert disk_start(lab, "copy", key, 4096) == bytes([key % 251]) * 4096
    assert not ledger.open_entries()


@pytest.mark.parametrize("filled", [True, False])
def test_a_failed_restore_leaves_neither_vm_nor_folder(
    lab: RunningLab, ledger: JobLedger, filled: bool
) -> None:
    class RestoreFailed(Exception):
        pass

    with session_at(lab) as session:
        source = vm_named(session, "db")
        with (
            pytest.raises(RestoreFailed),
            importing(session, ledger, source, snapshot_of_db(lab)) as imported,
        ):
            if filled:
                fill(imported)
            raise RestoreFailed
    assert machine_names(lab) == ["db", "proxy", "web"]
    assert folders_on_nfs2(lab) == []
    assert not ledger.open_entries()


def test_an_import_that_was_never_completed_is_no_success(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        source = vm_named(session, "db")
        with (
            pytest.raises(VsphereFailed, match="never completed"),
            importing(session, ledger, source, snapshot_of_db(lab)),
        ):
            pass
    assert machine_names(lab) == ["db", "proxy", "web"]


def test_a_lease_that_ran_out_is_no_success(lab: RunningLab, ledger: JobLedger) -> None:
    with session_at(lab) as session:
        source = vm_named(session, "db")
        with (
            pytest.raises(LeaseExpired),
            importing(session, ledger, source, snapshot_of_db(lab)) as imported,
        ):
            with lab.lab.lock:
                (lease,) = lab.lab.every(TransferLease)
            lease.fail(vim.fault.Timedout(msg="The lease has timed out."))
            imported.complete()
    assert machine_names(lab) == ["db", "proxy", "web"]
    assert folders_on_nfs2(lab) == []


def one_import(lab: RunningLab, ledger: JobLedger, gate: CountingGate) -> tuple[str, int]:
    """How it ended, and the number of calls before it."""
    with session_at(lab, gate=gate, patience_seconds=5) as session:
        source = vm_named(session, "db")
        before = len(gate.calls)
        try:
            with importing(session, ledger, source, snapshot_of_db(lab)) as imported:
                fill(imported)
        except HoldfastError as error:
            return error.line(), before
        gate.calls.append("done")
    return "", before


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["fail_at", "lose_at"])
def test_whichever_call_fails_or_loses_its_reply_the_vm_is_whole_or_gone(
    lab: RunningLab, tmp_path: Path, how: str, stride: int
) -> None:
    lab.lab.lease_timeout_seconds = 10.0 if stride == 1 else 4.0
    counted = CountingGate()
    ended, before = one_import(lab, job_ledger(tmp_path), counted)
    assert ended == ""
    last = counted.calls.index("done")
    assert last - before < CALLS_MAX
    destroy_copy(lab)
    for number in range(before + 1, last + 1, stride):
        ledger = job_ledger(tmp_path)
        ended, _ = one_import(lab, ledger, CountingGate(**{how: number}))
        if ended:
            settle(lab, ledger)
            assert machine_names(lab) == ["db", "proxy", "web"], f"{how} {number}: {ended}"
            assert folders_on_nfs2(lab) == [], f"{how} {number}: {ended}"
        else:
            assert disk_start(lab, "copy", 2000, 512) == bytes([2000 % 251]) * 512
            destroy_copy(lab)
        assert not ledger.open_entries(), f"{how} {number}: {ended}"


def settle(lab: RunningLab, ledger: JobLedger) -> None:
    """What the reconciler does until nothing is left: a lost lease ends by its own timeout."""
    with session_at(lab) as session:
        for _ in range(60):
            undo.undo_entries(session, ledger.ledger, ledger.open_entries())
            if not ledger.open_entries():
                return
            session.stop.wait(0.3)


def destroy_copy(lab: RunningLab) -> None:
    from holdfast_lab.machine_life import destroy_machine

    destroy_machine(lab.lab.machine("copy"))
    for path in lab.lab.datastore("nfs2").root.iterdir():
        path.rmdir()


def test_an_import_stands_beside_a_vm_with_snapshots(lab: RunningLab, ledger: JobLedger) -> None:
    take_snapshot(lab.lab.machine("web"), name="mine", memory=False, quiesce=False)
    with session_at(lab) as session:
        place = place_named(session, "nfs2")
        assert place.datacenter_path == "dc1"
        source = vm_named(session, "web")
        snapshot = source.current_snapshot_moref
        with importing(session, ledger, source, snapshot) as imported:
            fill(imported)
    assert machine_names(lab) == ["copy", "db", "proxy", "web"]


def test_a_single_host_imports_too(host_lab: RunningLab, ledger: JobLedger) -> None:
    with session_at(host_lab) as session:
        source = vm_named(session, "db")
        with importing(session, ledger, source, snapshot_of_db(host_lab)) as imported:
            fill(imported)
    assert machine_names(host_lab) == ["copy", "db", "proxy", "web"]
    assert not ledger.open_entries()

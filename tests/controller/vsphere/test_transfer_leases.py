from __future__ import annotations

import http.client
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from holdfast_common.job_spec import NfcTicket
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import undo
from holdfast_controller.vsphere.pinning import fingerprint, pinned_connection
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_controller.vsphere.transfer_leases import snapshot_export, vm_export
from holdfast_lab.server import RunningLab
from holdfast_lab.transfer_lease import TransferLease
from support.vms import CRASH, snapshot_names, vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


def first_bytes(ticket: NfcTicket) -> bytes:
    parts = urlsplit(ticket.url)
    connection = pinned_connection(
        parts.hostname or "",
        parts.port or 443,
        certificate_sha256=ticket.certificate_sha256,
        timeout_seconds=10,
    )
    try:
        connection.request("GET", parts.path)
        answer: http.client.HTTPResponse = connection.getresponse()
        assert answer.status == 200
        data = answer.read(4)
        answer.read()
        return data
    finally:
        connection.close()


def lease_states(lab: RunningLab) -> list[str]:
    with lab.lab.lock:
        return [lease.state for lease in lab.lab.every(TransferLease)]


def test_a_frozen_disk_is_lent_and_given_back(lab: RunningLab, ledger: JobLedger) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "db")
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
            with snapshot_export(session, ledger, snapshot=made) as tickets:
                assert sorted(tickets) == [2000, 2001]
                assert first_bytes(tickets[2000]) == b"KDMV"
                assert lease_states(lab) == ["ready"]
            assert lease_states(lab) == ["done"]
    assert not ledger.open_entries()


def test_rule_22_a_ticket_carries_the_pin_of_the_host_that_serves_it(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        with lab.lab.lock:
            lab.lab.machine("web").power_state = "poweredOff"
        vm = vm_named(session, "web")
        with vm_export(session, ledger, vm=vm) as tickets:
            (ticket,) = tickets.values()
            assert "*" not in ticket.url
            assert ticket.certificate_sha256 == fingerprint(lab.certificate.sha256)


def test_a_lease_is_aborted_when_the_copy_fails(lab: RunningLab, ledger: JobLedger) -> None:
    class CopyFailed(Exception):
        pass

    with session_at(lab) as session:
        vm = vm_named(session, "web")
        with (
            pytest.raises(CopyFailed),
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
            snapshot_export(session, ledger, snapshot=made),
        ):
            raise CopyFailed
    assert lease_states(lab) == ["error"]
    assert snapshot_names(lab, "web") == []
    assert not ledger.open_entries()


def test_rule_22_a_lease_lives_as_long_as_it_is_needed(lab: RunningLab, ledger: JobLedger) -> None:
    lab.lab.lease_timeout_seconds = 4.0
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        vm = vm_named(session, "web")
        with (
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
            snapshot_export(session, ledger, snapshot=made) as tickets,
        ):
            session.stop.wait(5.0)
            assert lease_states(lab) == ["ready"]
            assert first_bytes(tickets[2000]) == b"KDMV"


def test_a_lease_that_was_lost_after_the_last_byte_spoils_nothing(
    lab: RunningLab, ledger: JobLedger
) -> None:
    lab.lab.lease_timeout_seconds = 4.0
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        with (
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
            snapshot_export(session, ledger, snapshot=made),
        ):
            with lab.lab.lock:
                (lease,) = lab.lab.every(TransferLease)
            lease.complete()
            session.stop.wait(1.5)
    assert not ledger.open_entries()


def test_a_lost_reply_of_the_export_is_waited_out(lab: RunningLab, ledger: JobLedger) -> None:
    lab.lab.lease_timeout_seconds = 2.0
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        lab.lab.misbehaviour.arm("lost_reply", match={"method": "ExportSnapshot"})
        with (
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
            snapshot_export(session, ledger, snapshot=made) as tickets,
        ):
            assert first_bytes(tickets[2000]) == b"KDMV"
    assert lease_states(lab) == ["error", "done"]
    assert snapshot_names(lab, "web") == []
    assert not ledger.open_entries()


def test_after_a_crash_the_lease_ends_before_the_snapshot_goes(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        vm = vm_named(session, "web")
        snapshot = temporary_snapshot(session, ledger, vm=vm, wish=CRASH)
        export = snapshot_export(session, ledger, snapshot=snapshot.__enter__())
        export.__enter__()
        assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
        assert lease_states(lab) == ["error"]
        assert snapshot_names(lab, "web") == []
        assert not ledger.open_entries()
        for context in (export, snapshot):
            context.__exit__(None, None, None)

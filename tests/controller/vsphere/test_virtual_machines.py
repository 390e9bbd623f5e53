"""New VMs from a point's configuration; they stay only when everything went well."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_common.errors import HoldfastError
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import inventory
from holdfast_controller.vsphere.datastore_files import place_of
from holdfast_controller.vsphere.datastore_folders import exists
from holdfast_controller.vsphere.new_folders import delete_own_folder
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.virtual_machines import destroy_own_vm, power_on
from holdfast_lab.server import RunningLab
from support.new_vms import copied
from support.vms import vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at

CALLS_MAX = 80


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


def test_a_copy_has_a_new_identity_its_networks_unplugged_and_is_powered_off(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        source = vm_named(session, "web")
        vm = copied(session, ledger)
        assert vm.power_state == "poweredOff"
        assert vm.instance_uuid != source.instance_uuid
        assert vm.bios_uuid != source.bios_uuid
        assert [(d.bus_number, d.unit_number, d.capacity_bytes) for d in vm.disks] == [
            (d.bus_number, d.unit_number, d.capacity_bytes) for d in source.disks
        ]
        assert {d.backing_uuid for d in vm.disks}.isdisjoint(d.backing_uuid for d in source.disks)
        cards = {each["name"]: each["network_cards"] for each in lab.control.call("vm-list")}
        assert cards["copy"][0]["mac"] != cards["web"][0]["mac"]
        assert cards["copy"][0]["start_connected"] is False
        assert not ledger.open_entries()
        power_on(session, vm)
        assert inventory.read_vm(session, vm.moref).power_state == "poweredOn"


def test_all_disks_of_a_vm_with_two_come_to_their_places(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        vm = copied(session, ledger, "db")
        assert [disk.unit_number for disk in vm.disks] == [0, 1]


def test_a_new_vm_and_its_folder_are_gone_when_the_restore_fails(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        with pytest.raises(RuntimeError, match="stop"):
            copied(session, ledger, stop=True)
        assert_nothing_left(session, ledger)


@pytest.mark.long
def test_whichever_call_fails_or_loses_its_reply_one_vm_is_there_or_none(
    lab: RunningLab, tmp_path: Path
) -> None:
    for how in ("fail_at", "lose_at"):
        number = 0
        while True:
            number += 1
            assert number < CALLS_MAX
            gate = CountingGate()
            ledger = job_ledger(tmp_path)
            with session_at(lab, gate=gate, patience_seconds=5) as session:
                at = len(gate.calls) + number
                setattr(gate, how, at)
                try:
                    copied(session, ledger)
                    made = True
                except HoldfastError:
                    made = False
                reached = len(gate.calls) >= at
                entries = ledger.open_entries()
                gate.fail_at = gate.lose_at = 0
                for entry in reversed(entries):
                    undo = {"new_vm": destroy_own_vm, "folder": delete_own_folder}
                    if str(entry.kind) in undo:
                        undo[str(entry.kind)](session, entry)
                names = [vm.name for vm in inventory.read_inventory(session).vms]
                assert names.count("copy") == (1 if made else 0), (
                    f"{how} {number} {gate.calls[-5:]}"
                )
                if made:
                    remove_copy(lab, session)
                else:
                    for entry in entries:
                        ledger.ledger.gone(entry.entry_id)
                    assert_nothing_left(session, ledger)
            if not reached:
                break


def remove_copy(lab: RunningLab, session: VsphereSession) -> None:
    lab.control.call("vm-remove", vm="copy")
    around = inventory.read_surroundings(session)
    place = place_of(around, next(m for m, s in around.names.by_moref.items() if s.name == "nfs1"))
    from holdfast_controller.vsphere.datastore_folders import delete_path

    delete_path(session, place, "copy")


def assert_nothing_left(session: VsphereSession, ledger: JobLedger) -> None:
    found = inventory.read_inventory(session)
    assert "copy" not in [vm.name for vm in found.vms]
    around = inventory.read_surroundings(session)
    place = place_of(around, next(m for m, s in around.names.by_moref.items() if s.name == "nfs1"))
    assert not exists(session, place, "copy")
    assert not ledger.open_entries()

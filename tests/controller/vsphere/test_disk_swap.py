from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.errors import HoldfastError, IntegrityError, Refused, SourceGone, VsphereFailed
from holdfast_controller.facts import VmFacts
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import disk_swap, undo
from holdfast_controller.vsphere.disk_swap import RestoredDisk, swapped_disks
from holdfast_controller.vsphere.new_folders import new_folder
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_lab.server import RunningLab
from holdfast_lab.snapshots import discard_snapshots, take_snapshot
from support.other_disks import exchanged_for
from support.restored_disks import disk_start, make_disk, place_named
from support.vms import vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at

CALLS_MAX = 150
RESTORED = b"R" * 512


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


@pytest.fixture
def off(lab: RunningLab) -> RunningLab:
    """The VM with two disks on two datastores, shut down and without snapshots."""
    machine = lab.lab.machine("db")
    discard_snapshots(machine, machine.snapshots())
    with lab.lab.lock:
        machine.power_state = "poweredOff"
    for device in machine.disks():
        device.disk.guest_write(0, b"O" * 512)
    return lab


def disk_files(lab: RunningLab) -> list[str]:
    """Every disk file beside the VM's own, on both of its datastores, without contents."""
    roots = [lab.lab.datastore(name).root for name in ("nfs1", "vmfs1")]
    return sorted(
        path.name
        for root in roots
        for path in (root / "db").glob("*.vmdk")
        if not path.name.endswith(("-flat.vmdk", "-ctk.vmdk"))
    )


def starts(lab: RunningLab) -> list[bytes]:
    return [disk_start(lab, "db", key, 512) for key in (2000, 2001)]


def restored_disks(
    lab: RunningLab, session: VsphereSession, folder: str, vm: VmFacts
) -> list[RestoredDisk]:
    """Disks with known bytes in a folder of ours."""
    place = place_named(session, "nfs2")
    made = []
    for disk in vm.disks:
        link = make_disk(session, place, f"{folder}/{disk.device_key}.vmdk", disk.capacity_bytes)
        flat = lab.lab.datastore("nfs2").root / folder / f"{disk.device_key}-flat.vmdk"
        with flat.open("r+b") as file:
            file.write(RESTORED)
        made.append(
            RestoredDisk(
                device_key=disk.device_key,
                replaced_uuid=disk.backing_uuid,
                link=link,
                capacity_bytes=disk.capacity_bytes,
            )
        )
    return made


def in_place(
    lab: RunningLab, ledger: JobLedger, gate: CountingGate, *, read_back_fails: bool = False
) -> str:
    """One restore in place; how it ended."""
    with session_at(lab, gate=gate, patience_seconds=5) as session:
        vm = vm_named(session, "db")
        try:
            with new_folder(
                session, ledger, place=place_named(session, "nfs2"), wanted="ours"
            ) as folder:
                disks = restored_disks(lab, session, folder, vm)
                gate.calls.append("before")
                with swapped_disks(session, ledger, vm=vm, restored=disks) as now:
                    assert [disk.device_key for disk in now.disks] == [2000, 2001]
                    if read_back_fails:
                        raise IntegrityError("a byte differs")
                gate.calls.append("after")
        except HoldfastError as error:
            return error.code
    return ""


def test_the_restored_disks_take_the_places_of_the_old_ones(
    off: RunningLab, ledger: JobLedger
) -> None:
    with session_at(off) as session:
        before = vm_named(session, "db")
    assert in_place(off, ledger, CountingGate()) == ""
    assert starts(off) == [RESTORED, RESTORED]
    with session_at(off) as session:
        now = vm_named(session, "db")
    assert [(d.device_key, d.controller_key, d.unit_number) for d in now.disks] == [
        (d.device_key, d.controller_key, d.unit_number) for d in before.disks
    ]
    assert (now.instance_uuid, now.bios_uuid) == (before.instance_uuid, before.bios_uuid)
    assert [d.tip.datastore_name for d in now.disks if d.tip] == ["nfs1", "vmfs1"]
    assert all("restored" in name for name in disk_files(off)), "the old disks are gone"
    assert len(disk_files(off)) == 2
    assert not ledger.open_entries()


def test_the_old_disks_are_back_when_the_read_back_differs(
    off: RunningLab, ledger: JobLedger
) -> None:
    before = disk_files(off)
    assert in_place(off, ledger, CountingGate(), read_back_fails=True) == "integrity"
    assert starts(off) == [b"O" * 512] * 2
    assert disk_files(off) == before
    assert not list(off.lab.datastore("nfs2").root.iterdir())
    assert not ledger.open_entries()


def test_an_exchange_of_disks_of_a_vm_that_is_not_seen_for_a_while_is_a_debt_until_it_is(
    off: RunningLab, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unseen(*_: object) -> str:
        raise SourceGone("the VM is no longer in the inventory")

    before = disk_files(off)
    with monkeypatch.context() as away:
        away.setattr(disk_swap, "_present_moref", unseen)
        assert in_place(off, ledger, CountingGate(), read_back_fails=True) == "integrity"
    debts = [entry for entry in ledger.open_entries() if entry.kind == "disk_swap"]
    assert ["its files are there" in entry.last_error for entry in debts] == [True]
    with session_at(off) as session:
        undo.undo_entries(session, ledger.ledger, ledger.open_entries())
    assert disk_files(off) == before
    assert starts(off) == [b"O" * 512] * 2
    assert not ledger.open_entries()


def test_a_second_restore_in_place_works_as_the_first(off: RunningLab, tmp_path: Path) -> None:
    for _ in range(2):
        assert in_place(off, job_ledger(tmp_path), CountingGate()) == ""
    assert len(disk_files(off)) == 2
    assert all(name.count("restored") == 1 for name in disk_files(off))


def test_rule_30_a_vm_that_runs_or_has_snapshots_is_refused(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        with pytest.raises(Refused, match=r"running.*snapshots"):
            disk_swap.refuse_unless_possible(vm_named(session, "db"))
        with lab.lab.lock:
            lab.lab.machine("web").power_state = "poweredOff"
        disk_swap.refuse_unless_possible(vm_named(session, "web"))
        take_snapshot(lab.lab.machine("web"), name="mine", memory=False, quiesce=False)
        with pytest.raises(Refused, match="snapshots"):
            disk_swap.refuse_unless_possible(vm_named(session, "web"))


def test_a_disk_that_the_vm_no_longer_has_is_refused(off: RunningLab, ledger: JobLedger) -> None:
    with session_at(off) as session:
        vm = vm_named(session, "db")
        tip = vm.disks[0].chain[-1]
        disk = RestoredDisk(device_key=2005, replaced_uuid="", link=tip, capacity_bytes=1 << 20)
        with (
            pytest.raises(Refused, match="no longer"),
            swapped_disks(session, ledger, vm=vm, restored=[disk]),
        ):
            raise AssertionError("the block must not run")
    assert not ledger.open_entries()


def test_rule_37_a_disk_that_came_into_the_place_since_the_plan_is_not_replaced(
    off: RunningLab, ledger: JobLedger
) -> None:
    with session_at(off) as session:
        before = vm_named(session, "db")
        old = before.disks[0]
        assert old.tip is not None
        exchanged_for(session, before, old, "[nfs1] db/other.vmdk")
        other = vm_named(session, "db")
        # the same file's name is given again: only the uuid tells
        stale = replace(
            before, disks=(replace(other.disks[0], backing_uuid=old.backing_uuid), *other.disks[1:])
        )
        with new_folder(
            session, ledger, place=place_named(session, "nfs2"), wanted="ours", keep=False
        ) as folder:
            disks = restored_disks(off, session, folder, stale)
            with (
                pytest.raises(VsphereFailed, match="another disk is in the place"),
                swapped_disks(session, ledger, vm=stale, restored=disks),
            ):
                raise AssertionError("the block must not run")
            with (
                pytest.raises(Refused, match="another disk has come into the place"),
                swapped_disks(session, ledger, vm=other, restored=disks),
            ):
                raise AssertionError("the block must not run")
        assert vm_named(session, "db").disks == other.disks
    assert not ledger.open_entries()


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["fail_at", "lose_at"])
def test_whichever_call_fails_or_loses_its_reply_the_vm_has_its_old_disks_or_its_restored_ones(
    off: RunningLab, tmp_path: Path, how: str, stride: int
) -> None:
    counted = CountingGate()
    assert in_place(off, job_ledger(tmp_path), counted) == ""
    first, last = counted.calls.index("before") + 2, counted.calls.index("after") + 1
    assert last - first < CALLS_MAX
    tried = 0
    for number in range(first, last, stride):
        tried += 1
        for device in off.lab.machine("db").disks():
            device.disk.guest_write(0, b"O" * 512)
        ledger = job_ledger(tmp_path)
        ended = in_place(off, ledger, CountingGate(**{how: number - 1}))
        wanted = b"O" * 512 if ended else RESTORED
        if ledger.open_entries():
            with session_at(off) as session:
                undo.undo_entries(session, ledger.ledger, ledger.open_entries())
        assert starts(off) == [wanted] * 2, f"{how} {number}: {ended or 'done'}"
        assert len(disk_files(off)) == 2, f"{how} {number}: {ended}"
        assert not ledger.open_entries(), f"{how} {number}: {ended}"
        for path in off.lab.datastore("nfs2").root.iterdir():
            assert not ended, f"{how} {number}: {path} is left"
            path.rmdir()
    print(f"in place, {how}: {tried} of {last - first} calls")


@pytest.mark.parametrize("committed", [True, False])
def test_after_a_crash_a_swap_is_finished_in_the_direction_that_was_decided(
    off: RunningLab, ledger: JobLedger, committed: bool
) -> None:
    with session_at(off) as session:
        vm = vm_named(session, "db")
        folder = new_folder(session, ledger, place=place_named(session, "nfs2"), wanted="ours")
        disks = restored_disks(off, session, folder.__enter__(), vm)
        swap = swapped_disks(session, ledger, vm=vm, restored=disks)
        swap.__enter__()
        assert starts(off) == [RESTORED] * 2
        if committed:
            (entry,) = [e for e in ledger.open_entries() if e.kind == "disk_swap"]
            ledger.ledger.note(entry.entry_id, {"phase": disk_swap.COMMITTED})
        for _ in range(2):
            assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
        assert starts(off) == [RESTORED if committed else b"O" * 512] * 2
        assert len(disk_files(off)) == 2
        assert not list(off.lab.datastore("nfs2").root.iterdir())
        # the generators of the "killed" controller end here, and find nothing left to do
        for context in (swap, folder):
            context.__exit__(None, None, None)
        assert starts(off) == [RESTORED if committed else b"O" * 512] * 2


def test_a_vm_that_was_started_in_the_middle_keeps_what_it_runs_on(
    off: RunningLab, ledger: JobLedger
) -> None:
    def power(state: str) -> None:
        with off.lab.lock:
            off.lab.machine("db").power_state = state

    with session_at(off) as session:
        vm = vm_named(session, "db")
        folder = new_folder(session, ledger, place=place_named(session, "nfs2"), wanted="ours")
        disks = restored_disks(off, session, folder.__enter__(), vm)
        with (
            pytest.raises(IntegrityError),
            swapped_disks(session, ledger, vm=vm, restored=disks),
        ):
            power("poweredOn")
            raise IntegrityError("a byte differs")
        (debt,) = [entry for entry in ledger.open_entries() if entry.kind == "disk_swap"]
        assert "was started" in debt.last_error
        assert starts(off) == [RESTORED] * 2
        power("poweredOff")
        assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
        folder.__exit__(None, None, None)
    assert starts(off) == [b"O" * 512] * 2
    assert len(disk_files(off)) == 2


def test_an_old_disk_that_a_snapshot_still_names_is_never_deleted(
    off: RunningLab, ledger: JobLedger
) -> None:
    """Somebody makes a snapshot between our look and our exchange."""
    with session_at(off) as session:
        vm = vm_named(session, "db")
        take_snapshot(off.lab.machine("db"), name="mine", memory=False, quiesce=False)
        for disk in vm.disks:
            tip = disk.chain[-1]
            with pytest.raises(VsphereFailed, match="is not deleted"):
                disk_swap._delete_disk(session, vm.moref, tip.datastore_moref, tip.name)
    assert {"db.vmdk", "db_1.vmdk"} <= set(disk_files(off))

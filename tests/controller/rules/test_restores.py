"""Rules 28 to 30: restores. See docs/rules.md."""

from __future__ import annotations

import pytest

from holdfast_common.errors import Refused
from holdfast_common.identity import PointId
from holdfast_controller.ledger import JobLedger
from holdfast_controller.runs import restore_target
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.vsphere import disk_tickets
from holdfast_controller.vsphere.hot_add import hot_added
from holdfast_lab.machine import POWERED_OFF
from holdfast_lab.server import RunningLab
from holdfast_lab.snapshots import take_snapshot
from support.one_process import OneProcess, digest, disk_content, disk_truth, guest_writes
from support.restored_disks import disk_start
from support.vms import snapshot_names, vm_named

UNIT = 64 * 1024
MIB = 1 << 20


def shut_down(lab: RunningLab, vm: str) -> None:
    with lab.lab.lock:
        lab.lab.machine(vm).power_state = POWERED_OFF


def restore(holdfast: OneProcess, job: JobRow, **wish: object) -> JobRow:
    """Restore the VM of a backup's point."""
    request = RestoreVmRequest(point_id=PointId(job.point_id), **wish)  # type: ignore[arg-type]  # a test's own words
    return holdfast.ended(holdfast.engine.start_restore_vm(request, dry_run=False))


def held(lab: RunningLab, vm: str, number: int = 0) -> str:
    """The digest of a VM's disk as the lab's own reader finds it."""
    device = lab.lab.machine(vm).disks()[number]
    return digest(disk_start(lab, vm, device.key, device.disk.capacity_bytes))


def test_rule_28_nothing_is_written_into_a_vm_that_runs_or_below_a_snapshot(
    holdfast: OneProcess, lab: RunningLab, ledger: JobLedger
) -> None:
    job = holdfast.back_up("web")
    before = disk_truth(lab, "web")
    with pytest.raises(Refused, match="running"):
        restore(holdfast, job, in_place=True)
    assert held(lab, "web") == before
    session = holdfast.session
    db, proxy = vm_named(session, "db"), vm_named(session, "proxy")
    with pytest.raises(Refused, match="without snapshots"):
        disk_tickets.direct_target(db.disks[0])
    with (
        pytest.raises(Refused, match="without snapshots"),
        hot_added(
            session,
            ledger,
            proxy_instance_uuid=proxy.instance_uuid,
            disks=db.disks,
            writable=True,
        ),
    ):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_rule_29_every_sector_ends_at_its_newest_value(
    holdfast: OneProcess, lab: RunningLab, transport: str
) -> None:
    disk = lab.lab.machine("web").disks()[0].disk
    points = []
    for number in range(3):
        guest_writes(lab, "web", 3 * UNIT, length=2 * UNIT)
        guest_writes(lab, "web", (20 + number) * UNIT)
        disk.guest_zero((3 + number) * UNIT, UNIT)
        points.append((holdfast.back_up("web", transport=transport), disk_truth(lab, "web")))
    assert [job.level for job, _ in points] == ["full", "incremental", "incremental"]
    for job, truth in points:
        assert disk_content(holdfast, job) == truth


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_rule_29_a_restored_disk_keeps_its_size_and_holds_no_written_zeros(
    holdfast: OneProcess, lab: RunningLab, transport: str
) -> None:
    job = holdfast.back_up("app")
    guest_writes(lab, "app", 7 * UNIT)
    job = holdfast.back_up("app")
    datastore = {"direct": "nfs2"}.get(transport, "vmfs1")
    restored = restore(holdfast, job, name="copy", datastore=datastore, transport=transport)
    assert str(restored.state) == "done", restored.error
    assert held(lab, "copy") == disk_truth(lab, "app")
    device = lab.lab.machine("copy").disks()[0]
    assert device.disk.capacity_bytes == 16 * MIB
    assert [disk.written_bytes for disk in restored.disks] == [UNIT]


def test_rule_29_the_backup_after_a_restore_in_place_is_a_full(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    job = holdfast.back_up("web")
    guest_writes(lab, "web", 7 * UNIT)
    shut_down(lab, "web")
    assert str(restore(holdfast, job, in_place=True).state) == "done"
    after = holdfast.back_up("web")
    assert after.level == "full"
    assert "restored in place" in after.level_reason
    assert disk_content(holdfast, after) == disk_content(holdfast, job)


def test_rule_30_a_copy_beside_its_living_original_shares_nothing_with_it(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    job = holdfast.back_up("db")
    restored = restore(holdfast, job, name="copy")
    assert str(restored.state) == "done", restored.error
    session = holdfast.session
    original, copy = vm_named(session, "db"), vm_named(session, "copy")
    assert copy.power_state == "poweredOff"
    assert copy.instance_uuid != original.instance_uuid
    assert copy.bios_uuid != original.bios_uuid
    disks = [disk.backing_uuid for vm in (original, copy) for disk in vm.disks]
    assert all(disks)
    assert len(set(disks)) == len(disks), "a restored disk is one of its own"
    listed = {each["name"]: each["network_cards"] for each in lab.control.call("vm-list")}
    assert {card["mac"] for card in listed["copy"]}.isdisjoint(card["mac"] for card in listed["db"])
    assert [card["start_connected"] for card in listed["copy"]] == [False]
    for number in (0, 1):
        assert held(lab, "copy", number) == disk_truth(lab, "db", number)
    assert snapshot_names(lab, "db") == ["before upgrade"]


def test_in_place_there_must_be_room_for_the_old_disks_and_the_new(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = holdfast.back_up("web")
    shut_down(lab, "web")
    before = disk_truth(lab, "web")
    monkeypatch.setattr(restore_target, "FREE_BYTES_LEFT_MIN", 1 << 60)
    with pytest.raises(Refused, match="too little room"):
        restore(holdfast, job, in_place=True)
    assert held(lab, "web") == before


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_rule_30_in_place_the_vm_keeps_its_identity_and_its_helper_is_gone(
    holdfast: OneProcess, lab: RunningLab, transport: str
) -> None:
    job, truth = holdfast.back_up("web"), disk_truth(lab, "web")
    guest_writes(lab, "web", 7 * UNIT)
    shut_down(lab, "web")
    before = {each["name"]: each for each in lab.control.call("vm-list")}
    restored = restore(holdfast, job, in_place=True, transport=transport)
    assert str(restored.state) == "done", restored.error
    assert held(lab, "web") == truth
    now = {each["name"]: each for each in lab.control.call("vm-list")}
    assert sorted(now) == sorted(before), "the helper is gone"
    for name in ("instance_uuid", "bios_uuid", "network_cards"):
        assert now["web"][name] == before["web"][name]
    assert not holdfast.world.ledger.open_entries()


def test_rule_30_in_place_is_refused_while_the_users_snapshots_exist(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    job = holdfast.back_up("web")
    shut_down(lab, "web")
    take_snapshot(lab.lab.machine("web"), name="mine", memory=False, quiesce=False)
    with pytest.raises(Refused, match="snapshots"):
        restore(holdfast, job, in_place=True)
    assert snapshot_names(lab, "web") == ["mine"]

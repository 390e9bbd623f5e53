from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast_controller.vsphere
from holdfast_common.errors import Refused, SourceFailed, SourceGone
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import hot_add, hot_add_slots, snapshot_removal, undo
from holdfast_controller.vsphere.foreign import Reference
from holdfast_controller.vsphere.hot_add import hot_added
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_lab.server import RunningLab
from support.vms import CRASH, chain_lengths, snapshot_names, vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


def attached(lab: RunningLab) -> list[tuple[str, str, str]]:
    """Slot, file and mode of what the lab itself shows to the proxy."""
    return sorted(
        (each.slot, each.device.descriptor.name, each.device.mode)
        for each in lab.lab.host_devices.attached()
        if each.machine_name == "proxy"
    )


def test_frozen_disks_hang_on_the_proxy_while_they_are_read(
    lab: RunningLab, ledger: JobLedger
) -> None:
    with session_at(lab) as session:
        vm, proxy = vm_named(session, "db"), vm_named(session, "proxy")
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
            with hot_added(
                session,
                ledger,
                proxy_instance_uuid=proxy.instance_uuid,
                disks=made.protected_disks,
            ) as tickets:
                shown = attached(lab)
                assert [mode for _, _, mode in shown] == ["independent_nonpersistent"] * 2
                slots = {f"scsi{t.bus_number}:{t.unit_number}" for t in tickets.values()}
                assert slots == {slot for slot, _, _ in shown}
                names = {disk.tip.path.rpartition("/")[2] for disk in made.disks if disk.tip}
                assert names == {name for _, name, _ in shown}
                for disk in made.disks:
                    assert tickets[disk.device_key].disk_uuid == disk.backing_uuid
            assert attached(lab) == []
    assert not ledger.open_entries()


def test_rule_15_disks_are_detached_before_the_snapshot_goes(
    lab: RunningLab, ledger: JobLedger
) -> None:
    gate = CountingGate()
    with pytest.raises(SourceFailed):
        for _ in back_up_failing(lab, ledger, gate):
            pass
    order = [call.split()[0] for call in gate.calls if "_Task" in call]
    assert order == [
        "CreateSnapshot_Task",
        "ReconfigVM_Task",
        "ReconfigVM_Task",
        "ReconfigVM_Task",
        "ReconfigVM_Task",
        "RemoveSnapshot_Task",
    ]
    assert attached(lab) == []
    assert snapshot_names(lab, "db") == ["before upgrade"]


def back_up_failing(lab: RunningLab, ledger: JobLedger, gate: CountingGate) -> Iterator[str]:
    with session_at(lab, gate=gate) as session:
        vm, proxy = vm_named(session, "db"), vm_named(session, "proxy")
        with (
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
            hot_added(
                session,
                ledger,
                proxy_instance_uuid=proxy.instance_uuid,
                disks=made.protected_disks,
            ),
        ):
            yield "attached"
            raise SourceFailed("the copy failed")


def test_after_a_crash_our_disks_are_detached_and_nobody_elses(
    lab: RunningLab, ledger: JobLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_removal, "FIRST_PAUSE_SECONDS", 0.05)
    with session_at(lab) as session:
        vm, proxy = vm_named(session, "db"), vm_named(session, "proxy")
        other = job_ledger(tmp_path)
        # entered and never left: what a killed controller leaves behind
        crashed = temporary_snapshot(session, ledger, vm=vm, wish=CRASH)
        made = crashed.__enter__()
        first, second = made.protected_disks
        left = [
            hot_added(session, book, proxy_instance_uuid=proxy.instance_uuid, disks=[disk])
            for book, disk in ((ledger, first), (other, second))
        ]
        for each in left:
            each.__enter__()
        assert len(attached(lab)) == 2
        debts = undo.undo_entries(session, ledger.ledger, ledger.open_entries())
        assert [name for _, name, _ in attached(lab)] == [
            second.tip.path.rpartition("/")[2] if second.tip else ""
        ]
        # the other job still reads below our snapshot: its removal waits as a debt or consolidation
        assert not any(entry.kind == "hot_add" for entry in debts)
        undo.undo_entries(session, other.ledger, other.open_entries())
        undo.undo_entries(session, ledger.ledger, ledger.open_entries())
        assert attached(lab) == []
        assert snapshot_names(lab, "db") == ["before upgrade"]
        assert chain_lengths(lab, "db") == [2, 2]
        assert not ledger.open_entries()
        for each in left:
            each.__exit__(None, None, None)
        crashed.__exit__(None, None, None)


def test_a_disk_at_a_proxy_that_is_not_seen_for_a_while_is_a_debt_until_it_is(
    lab: RunningLab, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unregistered, or unreadable for a moment: its files are there, and it comes back with the disk."""

    def unseen(*_: object) -> Reference:
        raise SourceGone("the VM is no longer in the inventory")

    with session_at(lab) as session:
        vm, proxy = vm_named(session, "db"), vm_named(session, "proxy")
        with (
            monkeypatch.context() as away,
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
        ):
            disk = made.protected_disks[0]
            identity = proxy.instance_uuid
            with hot_added(session, ledger, proxy_instance_uuid=identity, disks=[disk]):
                away.setattr(hot_add, "_present_proxy", unseen)
        debts = {str(entry.kind): entry.last_error for entry in ledger.open_entries()}
        assert "its files are there" in debts["hot_add"]
        assert "snapshot" in debts, "it would go below an attached disk"
        assert len(attached(lab)) == 1
        assert undo.undo_entries(session, ledger.ledger, ledger.open_entries()) == []
        assert attached(lab) == []
        assert snapshot_names(lab, "db") == ["before upgrade"]
        assert not ledger.open_entries()


def test_a_proxy_without_a_free_place_is_refused(
    lab: RunningLab, ledger: JobLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_add_slots, "UNITS", 1)
    with session_at(lab) as session:
        vm, proxy = vm_named(session, "db"), vm_named(session, "proxy")
        with (
            temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made,
            pytest.raises(Refused),
            hot_added(
                session,
                ledger,
                proxy_instance_uuid=proxy.instance_uuid,
                disks=made.protected_disks,
            ),
        ):
            raise AssertionError("the block must not run")
    assert attached(lab) == []
    assert not ledger.open_entries()


def test_no_device_spec_ever_destroys_a_file() -> None:
    """A device's fileOperation is only ever "create": "destroy" would delete somebody's disk."""
    folder = Path(next(iter(holdfast_controller.vsphere.__path__)))
    used = []
    for module in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "fileOperation":
                assert isinstance(node.value, ast.Constant), f"{module.name}: not a constant"
                used.append(node.value.value)
            if isinstance(node, ast.Attribute) and node.attr == "fileOperation":
                raise AssertionError(f"{module.name}:{node.lineno} sets fileOperation elsewhere")
    assert set(used) <= {"create"}

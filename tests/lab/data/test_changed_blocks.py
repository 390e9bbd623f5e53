"""QueryChangedDiskAreas through stock pyVmomi: paging, the snapshot's ids, refusals and lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from holdfast_lab.inventory_plan import DiskPlan
from support.lab_vsphere import MIB, Client, disks_of, lab_with, one_machine, reconfigure, wait

GRANULE = 65536
KEY = 2000


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A running VM with tracking on and effective."""
    with lab_with(tmp_path, one_machine(disks=(DiskPlan(size_bytes=320 * MIB),))) as found:
        vm = found.vm()
        reconfigure(vm, changeTrackingEnabled=True)
        wait(found.snapshot(vm, "stun").RemoveSnapshot_Task(removeChildren=False))
        yield found


def change_id(config: Any) -> str | None:
    value = disks_of(config)[0].backing.changeId
    return None if value is None else str(value)


def all_areas(
    vm: Any, snapshot: Any, base: str, capacity: int
) -> tuple[list[tuple[int, int]], int]:
    """Every area after ``base``, asked for in a loop, and how many calls that took."""
    found: list[tuple[int, int]] = []
    start = calls = 0
    while start < capacity:
        answer = vm.QueryChangedDiskAreas(snapshot, KEY, start, base)
        assert answer.startOffset == start
        assert answer.length > 0
        found += [(each.start, each.length) for each in answer.changedArea or []]
        start += answer.length
        calls += 1
    return found, calls


def test_the_flag_is_seen_at_once_and_the_id_after_the_next_stun(tmp_path: Path) -> None:
    with lab_with(tmp_path, one_machine()) as client:
        vm = client.vm()
        reconfigure(vm, changeTrackingEnabled=True)
        assert vm.config.changeTrackingEnabled
        assert change_id(vm.config) is None
        snapshot = client.snapshot(vm)
        assert change_id(snapshot.config)


def test_the_answer_covers_what_was_written_between_two_snapshots(client: Client) -> None:
    vm = client.vm()
    first = client.snapshot(vm, "first")
    base = change_id(first.config)
    assert base
    wait(first.RemoveSnapshot_Task(removeChildren=False))
    client.disk().guest_write(10 * MIB + 512, os.urandom(1024))
    second = client.snapshot(vm, "second")
    client.disk().guest_write(200 * MIB, os.urandom(512))
    areas, calls = all_areas(vm, second, base, 320 * MIB)
    assert areas == [(10 * MIB, GRANULE)]
    assert calls == 1
    assert change_id(second.config) != base


def test_nothing_changed_is_an_answer_without_areas(client: Client) -> None:
    vm = client.vm()
    first = client.snapshot(vm, "first")
    base = change_id(first.config)
    assert base
    second = client.snapshot(vm, "second")
    answer = vm.QueryChangedDiskAreas(second, KEY, 0, base)
    assert not answer.changedArea
    assert answer.length == 320 * MIB


def test_more_than_2000_areas_come_in_pages(client: Client) -> None:
    vm = client.vm()
    first = client.snapshot(vm, "first")
    base = change_id(first.config)
    assert base
    expected = [(2 * number * GRANULE, GRANULE) for number in range(2500)]
    disk = client.disk()
    for offset, _length in expected:
        disk.guest_write(offset, b"x" * 512)
    second = client.snapshot(vm, "second")
    page = vm.QueryChangedDiskAreas(second, KEY, 0, base)
    assert len(page.changedArea) == 2000
    assert page.length < 320 * MIB
    areas, calls = all_areas(vm, second, base, 320 * MIB)
    assert areas == expected
    assert calls == 2


def test_allocated_areas_of_a_thin_disk_are_what_the_guest_wrote(client: Client) -> None:
    vm = client.vm()
    client.disk().guest_write(64 * MIB, os.urandom(GRANULE))
    snapshot = client.snapshot(vm)
    areas, _calls = all_areas(vm, snapshot, "*", 320 * MIB)
    assert areas
    assert sum(length for _start, length in areas) < 8 * MIB
    assert any(start <= 64 * MIB < start + length for start, length in areas)


def test_an_unknown_id_is_a_file_fault_and_a_start_past_the_end_an_invalid_argument(
    client: Client,
) -> None:
    vm = client.vm()
    snapshot = client.snapshot(vm)
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(snapshot, KEY, 0, "52 00 00 00 00 00 00 00-00/1")
    base = change_id(snapshot.config)
    for start in (320 * MIB, 400 * MIB):
        with pytest.raises(vmodl.fault.InvalidArgument):
            vm.QueryChangedDiskAreas(snapshot, KEY, start, base)
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(snapshot, 2999, 0, base)


def test_the_snapshot_may_be_left_out_only_while_powered_off(client: Client) -> None:
    vm = client.vm()
    first = client.snapshot(vm)
    base = change_id(first.config)
    client.disk().guest_write(MIB, os.urandom(512))
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(None, KEY, 0, base)
    wait(vm.PowerOffVM_Task())
    answer = vm.QueryChangedDiskAreas(None, KEY, 0, base)
    assert [(each.start, each.length) for each in answer.changedArea] == [(MIB, GRANULE)]


def test_an_unclean_stop_makes_old_ids_unknown(client: Client) -> None:
    from holdfast_lab.power import power_off

    vm = client.vm()
    first = client.snapshot(vm, "first")
    base = change_id(first.config)
    wait(first.RemoveSnapshot_Task(removeChildren=False))
    power_off(client.machine(), cleanly=False)
    wait(vm.PowerOnVM_Task())
    second = client.snapshot(vm, "second")
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(second, KEY, 0, base)


def test_a_cut_answer_is_short_but_true(client: Client) -> None:
    vm = client.vm()
    first = client.snapshot(vm, "first")
    base = change_id(first.config)
    assert base
    for number in range(4):
        client.disk().guest_write(number * MIB, os.urandom(512))
    second = client.snapshot(vm, "second")
    client.running.lab.misbehaviour.arm(
        "cut_change_lists", match={"vm": "web"}, parameters={"keep": "2"}
    )
    areas, calls = all_areas(vm, second, base, 320 * MIB)
    assert areas == [(number * MIB, GRANULE) for number in range(4)]
    assert calls == 2


def test_a_lie_leaves_areas_out_and_says_nothing(client: Client) -> None:
    vm = client.vm()
    first = client.snapshot(vm, "first")
    base = change_id(first.config)
    assert base
    for number in range(4):
        client.disk().guest_write(number * MIB, os.urandom(512))
    second = client.snapshot(vm, "second")
    client.running.lab.misbehaviour.arm("lying_changed_blocks", match={"vm": "web"})
    areas, calls = all_areas(vm, second, base, 320 * MIB)
    assert areas == [(MIB, GRANULE), (3 * MIB, GRANULE)]
    assert calls == 1


def test_after_a_revert_the_old_id_answers_without_a_fault(client: Client) -> None:
    vm = client.vm()
    first = client.snapshot(vm, "first")
    base = change_id(first.config)
    client.disk().guest_write(MIB, os.urandom(512))
    wait(first.RevertToSnapshot_Task())
    second = client.snapshot(vm, "second")
    vm.QueryChangedDiskAreas(second, KEY, 0, base)

"""Snapshots through stock pyVmomi: trees, frozen files, removal, revert, consolidation, faults."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from holdfast_lab.inventory_plan import DiskPlan
from support.lab_vsphere import (
    MIB,
    Client,
    attach,
    disks_of,
    lab_with,
    one_machine,
    reconfigure,
    removal,
    wait,
)

TWO_DISKS = (DiskPlan(size_bytes=8 * MIB), DiskPlan(size_bytes=8 * MIB, datastore="nfs1"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with lab_with(tmp_path, one_machine(disks=TWO_DISKS), one_machine("proxy", disks=())) as found:
        yield found


def write(client: Client, offset: int = 0, *, number: int = 0, length: int = 65536) -> bytes:
    data = os.urandom(length)
    client.disk(number=number).guest_write(offset, data)
    return data


def names(config: Any) -> list[str]:
    return [each.backing.fileName for each in disks_of(config)]


def tree_names(vm: Any) -> list[str]:
    info = vm.snapshot
    found: list[str] = []

    def walk(trees: list[Any], depth: int) -> None:
        for each in trees:
            found.append("-" * depth + each.name)
            walk(each.childSnapshotList, depth + 1)

    walk(info.rootSnapshotList if info else [], 0)
    return found


def tip_is_true(client: Client, number: int = 0) -> bool:
    disk = client.disk(number=number)
    with disk.reader_at() as reader:
        return disk.first_difference(reader) is None


def test_the_snapshot_names_the_frozen_file_and_the_machine_the_tip(client: Client) -> None:
    vm = client.vm()
    write(client)
    snapshot = client.snapshot(vm)
    assert names(snapshot.config) == ["[vmfs1] web/web.vmdk", "[nfs1] web/web_1.vmdk"]
    assert names(vm.config) == ["[vmfs1] web/web-000001.vmdk", "[nfs1] web/web_1-000001.vmdk"]
    tip = disks_of(vm.config)[0].backing
    assert tip.parent.fileName == "[vmfs1] web/web.vmdk"
    assert tip.parent.parent is None
    root = client.running.lab.datastore("vmfs1").root
    assert (root / "web/web-000001-sesparse.vmdk").exists()
    nfs = client.running.lab.datastore("nfs1").root
    assert (nfs / "web/web_1-000001-delta.vmdk").exists()


def test_there_is_no_snapshot_information_without_snapshots(client: Client) -> None:
    vm: Any = client.vm()
    assert vm.snapshot is None
    snapshot = client.snapshot(vm)
    info = vm.snapshot
    assert info is not None
    assert info.currentSnapshot == snapshot
    wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert vm.snapshot is None
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        snapshot.RemoveSnapshot_Task(removeChildren=False)


def test_removal_keeps_the_users_snapshots_and_the_current_content(client: Client) -> None:
    vm = client.vm()
    write(client)
    client.snapshot(vm, "user 1")
    write(client, MIB)
    client.snapshot(vm, "user 2")
    write(client, 2 * MIB)
    ours = client.snapshot(vm, "ours")
    write(client, 3 * MIB)
    wait(ours.RemoveSnapshot_Task(removeChildren=False))
    assert tree_names(vm) == ["user 1", "-user 2"]
    assert not vm.runtime.consolidationNeeded
    assert names(vm.config)[0] == "[vmfs1] web/web-000002.vmdk"
    assert tip_is_true(client)


def test_removing_a_snapshot_in_the_middle_gives_its_children_to_its_parent(client: Client) -> None:
    vm = client.vm()
    write(client)
    client.snapshot(vm, "a")
    write(client, MIB)
    middle = client.snapshot(vm, "b")
    write(client, 2 * MIB)
    last = client.snapshot(vm, "c")
    truth = client.disk().truth_sequence(
        client.machine().snapshots()[2].devices.disks[2000].descriptor
    )
    write(client, 2 * MIB)
    wait(middle.RemoveSnapshot_Task(removeChildren=False))
    assert tree_names(vm) == ["a", "-c"]
    disk = client.disk()
    frozen = client.machine().snapshots()[1].devices.disks[2000].descriptor
    assert names(last.config)[0].endswith(frozen.name)
    with disk.reader_at(frozen) as reader:
        assert disk.first_difference(reader, truth) is None
    assert tip_is_true(client)


def test_removing_with_children_takes_the_branch(client: Client) -> None:
    vm = client.vm()
    client.snapshot(vm, "a")
    branch = client.snapshot(vm, "b")
    client.snapshot(vm, "c")
    write(client)
    wait(branch.RemoveSnapshot_Task(removeChildren=True))
    assert tree_names(vm) == ["a"]
    assert vm.snapshot.currentSnapshot.config.name == "web"
    assert tip_is_true(client)


def test_remove_all_leaves_one_flat_disk(client: Client) -> None:
    vm = client.vm()
    for name in "abc":
        write(client, MIB * ord(name) % (4 * MIB))
        client.snapshot(vm, name)
    wait(vm.RemoveAllSnapshots_Task())
    assert vm.snapshot is None
    assert names(vm.config)[0] == "[vmfs1] web/web.vmdk"
    assert tip_is_true(client)
    assert sorted(path.name for path in client.machine().directory.glob("*.vmdk")) == [
        "web-flat.vmdk",
        "web.vmdk",
    ]


def test_revert_brings_back_content_settings_and_devices(client: Client) -> None:
    vm = client.vm()
    old = write(client)
    snapshot = client.snapshot(vm, "before")
    write(client)
    reconfigure(vm, removal(2001), annotation="changed")
    wait(snapshot.RevertToSnapshot_Task())
    assert vm.runtime.powerState == "poweredOff"
    assert len(disks_of(vm.config)) == 2
    assert not vm.config.annotation
    buffer = bytearray(65536)
    client.disk().read_into(0, memoryview(buffer))
    assert buffer == old
    assert vm.snapshot.currentSnapshot == snapshot


def test_branches_live_side_by_side(client: Client) -> None:
    vm = client.vm()
    write(client)
    first = client.snapshot(vm, "first")
    write(client, MIB)
    client.snapshot(vm, "left")
    wait(first.RevertToSnapshot_Task())
    write(client, 2 * MIB)
    client.snapshot(vm, "right")
    assert tree_names(vm) == ["first", "-left", "-right"]
    wait(first.RemoveSnapshot_Task(removeChildren=False))
    assert tree_names(vm) == ["left", "right"]
    assert tip_is_true(client)


def test_independent_disks_are_listed_but_not_frozen(tmp_path: Path) -> None:
    disks = (
        DiskPlan(size_bytes=4 * MIB),
        DiskPlan(size_bytes=4 * MIB, mode="independent_persistent"),
    )
    with lab_with(tmp_path, one_machine(disks=disks)) as client:
        vm = client.vm()
        snapshot = client.snapshot(vm)
        assert names(vm.config) == ["[vmfs1] web/web-000001.vmdk", "[vmfs1] web/web_1.vmdk"]
        assert names(snapshot.config) == ["[vmfs1] web/web.vmdk", "[vmfs1] web/web_1.vmdk"]
        with pytest.raises(vim.fault.MemorySnapshotOnIndependentDisk):
            client.snapshot(vm, memory=True)


def test_bus_sharing_refuses_snapshots(client: Client) -> None:
    client.machine().devices.plain[1000].sharedBus = "physicalSharing"
    with pytest.raises(vim.fault.SnapshotFault):
        client.snapshot(client.vm())


def test_quiesce_without_tools_is_ignored_silently(client: Client) -> None:
    vm = client.vm()
    machine = client.machine()
    machine.tools.installed = machine.tools.running = False
    client.snapshot(vm, "no tools", quiesce=True)
    machine.tools.installed = machine.tools.running = True
    client.snapshot(vm, "tools", quiesce=True)
    roots = vm.snapshot.rootSnapshotList
    assert not roots[0].quiesced
    assert roots[0].childSnapshotList[0].quiesced
    machine.tools.quiesce_fault = "application"
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        client.snapshot(vm, quiesce=True)
    machine.tools.quiesce_fault = "filesystem"
    with pytest.raises(vim.fault.FilesystemQuiesceFault):
        client.snapshot(vm, quiesce=True)
    client.snapshot(vm, "crash consistent")


def test_the_hierarchy_is_not_deeper_than_32_levels(tmp_path: Path) -> None:
    with lab_with(tmp_path, one_machine(disks=(DiskPlan(size_bytes=MIB),))) as client:
        vm = client.vm()
        for number in range(32):
            client.snapshot(vm, f"s{number}")
        with pytest.raises(vim.fault.TooManySnapshotLevels):
            client.snapshot(vm, "one more")


def test_a_full_datastore_leaves_no_disk_frozen(client: Client) -> None:
    vm = client.vm()
    client.running.lab.misbehaviour.arm("datastore_full", match={"datastore": "nfs1"})
    with pytest.raises(vim.fault.NoDiskSpace):
        client.snapshot(vm)
    assert vm.snapshot is None
    assert names(vm.config) == ["[vmfs1] web/web.vmdk", "[nfs1] web/web_1.vmdk"]
    assert not vm.runtime.consolidationNeeded


def test_a_full_datastore_during_removal_leaves_a_consolidation(client: Client) -> None:
    vm = client.vm()
    snapshot = client.snapshot(vm)
    write(client)
    client.running.lab.misbehaviour.arm("datastore_full", match={"datastore": "vmfs1"})
    with pytest.raises(vim.fault.NoDiskSpace):
        wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert vm.snapshot is None
    assert vm.runtime.consolidationNeeded
    client.running.lab.misbehaviour.disarm()
    wait(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded
    assert tip_is_true(client)


def test_a_consolidation_left_over_is_success_with_the_delta_live(client: Client) -> None:
    vm = client.vm()
    snapshot = client.snapshot(vm)
    write(client)
    client.running.lab.misbehaviour.arm("leave_consolidation", match={"vm": "web"})
    wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert vm.snapshot is None
    assert vm.runtime.consolidationNeeded
    assert names(vm.config)[0] == "[vmfs1] web/web-000001.vmdk"
    wait(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded
    assert names(vm.config)[0] == "[vmfs1] web/web.vmdk"
    assert tip_is_true(client)


def test_a_frozen_disk_on_a_proxy_blocks_consolidation_until_it_is_detached(
    client: Client,
) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    snapshot = client.snapshot(vm)
    write(client)
    frozen = names(snapshot.config)[0]
    reconfigure(proxy, attach(frozen, mode="independent_nonpersistent"))
    wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert vm.snapshot is None
    assert vm.runtime.consolidationNeeded
    with pytest.raises(vim.fault.FileLocked):
        wait(vm.ConsolidateVMDisks_Task())
    reconfigure(proxy, removal(disks_of(proxy.config)[0].key))
    wait(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded
    assert tip_is_true(client)


def test_one_task_at_a_time_and_a_lost_reply_has_its_effect(client: Client) -> None:
    vm = client.vm()
    rule = client.running.lab.misbehaviour.arm(
        "hold_task", match={"description": "VirtualMachine.createSnapshot"}
    )
    task = vm.CreateSnapshot_Task(name="slow", description="", memory=False, quiesce=False)
    with pytest.raises(vim.fault.TaskInProgress):
        client.snapshot(vm, "second")
    client.running.lab.misbehaviour.release(rule.identifier)
    wait(task)
    assert tree_names(vm) == ["slow"]


def test_all_disks_are_frozen_at_one_moment(client: Client) -> None:
    vm = client.vm()
    write(client, number=0)
    write(client, number=1)
    snapshot = client.machine()
    client.snapshot(vm)
    frozen = snapshot.snapshots()[0].devices.disks
    for number, device in enumerate(frozen.values()):
        write(client, number=number)
        with device.disk.reader_at(device.descriptor) as reader:
            moment = device.disk.truth_sequence(device.descriptor)
            assert device.disk.first_difference(reader, moment) is None


def test_with_vss_the_snapshot_changes_until_its_task_ends(client: Client) -> None:
    vm: Any = client.vm()
    machine = client.machine()
    machine.tools.vss = True
    reconfigure(vm, changeTrackingEnabled=True)
    client.snapshot(vm, "before", quiesce=False)
    rule = client.running.lab.misbehaviour.arm("hold_task", parameters={"when": "during"})
    task = vm.CreateSnapshot_Task(name="vss", description="", memory=False, quiesce=True)
    for _ in range(1000):
        if rule.fired:
            break
        threading.Event().wait(0.005)
    early = machine.snapshots()[1]
    moment = early.devices.disks[2000].frozen_at
    early_id = disks_of(vm.snapshot.currentSnapshot.config)[0].backing.changeId
    client.running.lab.misbehaviour.release(rule.identifier)
    snapshot = wait(task)
    assert early.devices.disks[2000].frozen_at != moment
    assert disks_of(snapshot.config)[0].backing.changeId != early_id
    for device in early.devices.disks.values():
        with device.disk.reader_at(device.descriptor) as reader:
            assert device.disk.first_difference(reader, device.frozen_at) is None
    wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert tip_is_true(client)
    assert not vm.runtime.consolidationNeeded

"""Disks added, removed and edited by Reconfigure, and what a proxy VM sees of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_lab.inventory_plan import DiskPlan
from support.lab_vsphere import (
    MIB,
    Client,
    Spec,
    attach,
    disks_of,
    lab_with,
    new_disk,
    one_machine,
    reconfigure,
    removal,
    wait,
)

Device = vim.vm.device


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with lab_with(tmp_path, one_machine(), one_machine("proxy", disks=())) as found:
        yield found


def device_folder(client: Client, slot: str, name: str = "proxy") -> Path:
    return client.running.state / "devices" / name / slot


def only_disk(vm: Any) -> Any:
    (found,) = disks_of(vm.config)
    return found


def test_a_frozen_disk_on_a_proxy_is_read_as_it_was_frozen(client: Client) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    client.disk().guest_write(0, os.urandom(MIB))
    snapshot = client.snapshot(vm)
    moment = client.disk().truth_sequence(
        client.machine().snapshots()[0].devices.disks[2000].descriptor
    )
    client.disk().guest_write(0, os.urandom(MIB))
    frozen = only_disk(snapshot).backing
    reconfigure(proxy, attach(frozen.fileName, mode="independent_nonpersistent", unit=3))
    folder = device_folder(client, "scsi0:3")
    assert client.disk().first_difference(folder / "disk", moment) is None
    assert (folder / "uuid").read_text().strip() == frozen.uuid
    reconfigure(proxy, removal(only_disk(proxy).key))
    assert not folder.exists()
    assert client.disk().tip_descriptor.exists()


def test_of_two_attached_clones_with_one_uuid_each_slot_holds_its_own(client: Client) -> None:
    proxy = client.vm("proxy")
    client.disk().guest_write(0, b"a" * 4096)
    machine = client.machine()
    clone = client.running.lab.disks.clone(
        client.disk(),
        machine.directory,
        "clone",
        descriptor=None,
        kind=client.disk().datastore_kind,
    )
    clone.guest_write(0, b"b" * 4096)
    wait(client.vm().PowerOffVM_Task())
    for unit, name in ((1, "web"), (2, "clone")):
        reconfigure(
            proxy, attach(f"[vmfs1] web/{name}.vmdk", mode="independent_nonpersistent", unit=unit)
        )
    first, second = (device_folder(client, f"scsi0:{unit}") for unit in (1, 2))
    assert (first / "uuid").read_text() == (second / "uuid").read_text()
    assert (first / "disk").read_bytes()[:1] == b"a"
    assert (second / "disk").read_bytes()[:1] == b"b"


def test_what_a_proxy_writes_to_a_persistent_flat_disk_is_on_the_datastore(client: Client) -> None:
    proxy = client.vm("proxy")
    root = client.running.lab.datastore("nfs1").root
    manager = client.content.virtualDiskManager
    (root / "restored").mkdir()
    spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
        diskType="thin", adapterType="lsiLogic", capacityKb=4096
    )
    wait(manager.CreateVirtualDisk_Task("[nfs1] restored/r.vmdk", None, spec))
    reconfigure(proxy, attach("[nfs1] restored/r.vmdk", unit=0))
    data = os.urandom(65536)
    with (device_folder(client, "scsi0:0") / "disk").open("r+b") as device:
        device.seek(MIB)
        device.write(data)
    assert (root / "restored/r-flat.vmdk").read_bytes()[MIB : MIB + len(data)] == data
    reconfigure(proxy, removal(only_disk(proxy).key))
    disk = client.running.lab.disks.find(root / "restored/r.vmdk")
    assert disk is not None
    with disk.reader_at() as reader:
        assert disk.first_difference(reader) is None


def test_a_flipped_byte_strikes_when_a_written_disk_is_detached(client: Client) -> None:
    proxy = client.vm("proxy")
    client.running.lab.misbehaviour.arm("flip_byte", match={"direction": "detach"})
    reconfigure(proxy, new_disk(4 * MIB))
    folder = device_folder(client, "scsi0:0")
    with (folder / "disk").open("r+b") as device:
        device.write(b"\1" * MIB)
    flat = client.machine("proxy").directory / "proxy-flat.vmdk"
    reconfigure(proxy, removal(only_disk(proxy).key))
    assert sum(byte != 1 for byte in flat.read_bytes()[:MIB]) == 1
    (event,) = client.running.lab.calls.events(event="flipped")
    assert event["offset"] == MIB // 2


def test_writes_to_a_nonpersistent_disk_are_lost(client: Client) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    client.disk().guest_write(0, b"a" * 512)
    snapshot = client.snapshot(vm)
    reconfigure(
        proxy, attach(only_disk(snapshot).backing.fileName, mode="independent_nonpersistent")
    )
    with (device_folder(client, "scsi0:0") / "disk").open("r+b") as device:
        device.write(b"z" * 512)
    reconfigure(proxy, removal(only_disk(proxy).key))
    with client.disk().reader_at() as reader:
        assert client.disk().first_difference(reader) is None


def test_a_running_machines_tip_is_locked(client: Client) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    for mode in ("persistent", "independent_nonpersistent"):
        with pytest.raises(vim.fault.FileLocked):
            reconfigure(proxy, attach("[vmfs1] web/web.vmdk", mode=mode))
    client.snapshot(vm)
    with pytest.raises((vim.fault.FileLocked, vim.fault.InvalidDeviceBacking)):
        reconfigure(proxy, attach("[vmfs1] web/web.vmdk", mode="persistent"))
    assert not disks_of(proxy.config)
    assert not list((client.running.state / "devices").glob("proxy/scsi*"))


def test_a_disk_that_a_running_proxy_has_keeps_its_owner_from_starting(client: Client) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    wait(vm.PowerOffVM_Task())
    reconfigure(proxy, attach("[vmfs1] web/web.vmdk", mode="independent_nonpersistent"))
    with pytest.raises(vim.fault.FileLocked):
        wait(vm.PowerOnVM_Task())
    reconfigure(proxy, removal(only_disk(proxy).key))
    wait(vm.PowerOnVM_Task())


def test_power_off_takes_the_devices_of_a_proxy_away(client: Client) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    snapshot = client.snapshot(vm)
    reconfigure(
        proxy, attach(only_disk(snapshot).backing.fileName, mode="independent_nonpersistent")
    )
    wait(proxy.PowerOffVM_Task())
    assert not device_folder(client, "scsi0:0").exists()
    assert len(disks_of(proxy.config)) == 1
    wait(proxy.PowerOnVM_Task())
    assert device_folder(client, "scsi0:0").exists()


def test_attaches_and_detaches_are_logged(client: Client) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    snapshot = client.snapshot(vm)
    reconfigure(
        proxy, attach(only_disk(snapshot).backing.fileName, mode="independent_nonpersistent")
    )
    reconfigure(proxy, removal(only_disk(proxy).key))
    events = [
        (each["event"], each["vm"], each["slot"], each["disk"])
        for each in client.running.lab.calls.events()
        if each["event"] in ("attach", "detach")
    ]
    assert events == [
        ("attach", "proxy", "scsi0:0", "web.vmdk"),
        ("detach", "proxy", "scsi0:0", "web.vmdk"),
    ]


def test_units_and_controllers_have_limits(client: Client) -> None:
    proxy = client.vm("proxy")
    wait(proxy.PowerOffVM_Task())
    for unit in (7, 16):
        with pytest.raises(vim.fault.InvalidDeviceSpec):
            reconfigure(proxy, new_disk(MIB, unit=unit))
    reconfigure(proxy, *[new_disk(MIB, key=-number - 1) for number in range(15)])
    units = sorted(each.unitNumber for each in disks_of(proxy.config))
    assert units == [*range(7), *range(8, 16)]
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        reconfigure(proxy, new_disk(MIB))
    with pytest.raises(vim.fault.InvalidController):
        reconfigure(proxy, new_disk(MIB, controller=1003))
    for number in (1, 2, 3):
        controller = Spec(
            operation="add",
            device=Device.ParaVirtualSCSIController(
                key=-9, busNumber=number, sharedBus="noSharing"
            ),
        )
        reconfigure(proxy, controller, new_disk(MIB, controller=-9, unit=0))
    fifth = Spec(
        operation="add",
        device=Device.ParaVirtualSCSIController(key=-9, busNumber=4, sharedBus="noSharing"),
    )
    with pytest.raises(vim.fault.TooManyDevices):
        reconfigure(proxy, fifth)


def test_one_bad_change_undoes_the_whole_call(client: Client) -> None:
    proxy = client.vm("proxy")
    with pytest.raises(vim.fault.FileNotFound):
        reconfigure(
            proxy,
            new_disk(MIB, key=-1),
            attach("[vmfs1] web/nothing.vmdk", mode="independent_nonpersistent"),
            annotation="changed",
        )
    assert not disks_of(proxy.config)
    assert not proxy.config.annotation
    assert not list(client.machine("proxy").directory.glob("*.vmdk"))


def test_a_disk_is_removed_with_or_without_its_files(client: Client) -> None:
    proxy = client.vm("proxy")
    directory = client.machine("proxy").directory
    reconfigure(proxy, new_disk(MIB))
    reconfigure(proxy, removal(only_disk(proxy).key))
    assert (directory / "proxy-flat.vmdk").exists()
    reconfigure(proxy, attach("[vmfs1] proxy/proxy.vmdk"))
    reconfigure(proxy, removal(only_disk(proxy).key, destroy=True))
    assert not list(directory.glob("*.vmdk"))


def test_destroying_a_machine_destroys_every_disk_it_has_attached(client: Client) -> None:
    proxy = client.vm("proxy")
    wait(client.vm().PowerOffVM_Task())
    wait(proxy.PowerOffVM_Task())
    reconfigure(proxy, attach("[vmfs1] web/web.vmdk"))
    wait(proxy.Destroy_Task())
    assert not list(client.machine().directory.glob("*.vmdk"))


def test_a_disk_grows_but_not_under_a_snapshot_and_never_shrinks(client: Client) -> None:
    vm = client.vm()

    def sized(capacity: int) -> Any:
        disk = only_disk(vm)
        disk.capacityInBytes, disk.capacityInKB = capacity, capacity // 1024
        return Spec(operation="edit", device=disk)

    reconfigure(vm, sized(16 * MIB))
    assert only_disk(vm).capacityInBytes == 16 * MIB
    with pytest.raises(vim.fault.InvalidDeviceOperation):
        reconfigure(vm, sized(8 * MIB))
    client.snapshot(vm)
    with pytest.raises(vim.fault.InvalidDeviceOperation):
        reconfigure(vm, sized(32 * MIB))


def test_create_machine_makes_its_disks_where_they_are_asked_for(client: Client) -> None:
    folder = client.entity(vim.Datacenter, "dc1").vmFolder
    pool = client.entity(vim.ResourcePool, "Resources")
    spec = vim.vm.ConfigSpec(
        name="new",
        guestId="otherLinux64Guest",
        memoryMB=64,
        numCPUs=1,
        files=vim.vm.FileInfo(vmPathName="[nfs1]"),
        deviceChange=[
            Spec(
                operation="add",
                device=Device.VirtualLsiLogicController(
                    key=-100, busNumber=0, sharedBus="noSharing"
                ),
            ),
            new_disk(2 * MIB, key=-1, controller=-100),
            new_disk(2 * MIB, key=-2, controller=-100, thin=False),
            new_disk(2 * MIB, key=-3, controller=-100, file_name="[vmfs1]"),
            Spec(
                operation="add",
                device=Device.VirtualVmxnet3(
                    key=-5,
                    backing=Device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
                ),
            ),
        ],
    )
    vm = wait(folder.CreateVM_Task(spec, pool))
    assert [each.backing.fileName for each in disks_of(vm.config)] == [
        "[nfs1] new/new.vmdk",
        "[nfs1] new/new_1.vmdk",
        "[vmfs1] new/new.vmdk",
    ]
    card: Any = next(
        each for each in vm.config.hardware.device if isinstance(each, Device.VirtualEthernetCard)
    )
    assert card.macAddress.startswith("00:50:56:")
    wait(vm.PowerOnVM_Task())


def test_a_moved_disk_can_be_exchanged_while_the_machine_is_off(client: Client) -> None:
    vm = client.vm()
    wait(vm.PowerOffVM_Task())
    manager = client.content.virtualDiskManager
    client.disk().guest_write(0, b"old" + bytes(509))
    wait(manager.CopyVirtualDisk_Task("[vmfs1] web/web.vmdk", None, "[vmfs1] web/back.vmdk", None))
    copy = client.running.lab.disks.find(client.machine().directory / "back.vmdk")
    assert copy is not None
    copy.guest_write(0, b"new" + bytes(509))
    disk = only_disk(vm)
    reconfigure(vm, removal(disk.key), attach("[vmfs1] web/back.vmdk", unit=0))
    assert only_disk(vm).backing.fileName == "[vmfs1] web/back.vmdk"
    buffer = bytearray(512)
    client.disk().read_into(0, memoryview(buffer))
    assert buffer.startswith(b"new")
    assert (client.machine().directory / "web-flat.vmdk").exists()


def test_ide_disks_are_not_hot_added(client: Client) -> None:
    vm = client.vm()
    with pytest.raises(vim.fault.DeviceHotPlugNotSupported):
        reconfigure(vm, new_disk(MIB, controller=200))
    wait(vm.PowerOffVM_Task())
    reconfigure(vm, new_disk(MIB, controller=200))
    assert {each.controllerKey for each in disks_of(vm.config)} == {200, 1000}


def test_the_disk_of_a_tracked_machine_is_tracked(tmp_path: Path) -> None:
    with lab_with(tmp_path, one_machine(disks=(DiskPlan(size_bytes=MIB),))) as client:
        vm = client.vm()
        reconfigure(vm, changeTrackingEnabled=True)
        reconfigure(vm, new_disk(MIB))
        snapshot = client.snapshot(vm)
        assert all(each.backing.changeId for each in disks_of(snapshot.config))


def test_a_moved_disk_leaves_its_former_machine_with_a_name_that_leads_nowhere(
    client: Client,
) -> None:
    vm, helper = client.vm(), client.vm("proxy")
    wait(vm.PowerOffVM_Task())
    wait(helper.PowerOffVM_Task())
    reconfigure(helper, new_disk(MIB))
    manager = client.content.virtualDiskManager
    wait(
        manager.MoveVirtualDisk_Task(
            "[vmfs1] proxy/proxy.vmdk", None, "[vmfs1] web/restored.vmdk", None
        )
    )
    assert only_disk(helper).backing.fileName == "[vmfs1] proxy/proxy.vmdk"
    with pytest.raises(vim.fault.FileNotFound):
        wait(helper.PowerOnVM_Task())
    reconfigure(vm, removal(2000), attach("[vmfs1] web/restored.vmdk", unit=0))
    wait(helper.Destroy_Task())
    assert (client.machine().directory / "restored-flat.vmdk").exists()
    client.snapshot(vm)
    wait(vm.PowerOnVM_Task())


def test_a_powered_off_proxy_keeps_the_name_of_a_link_that_was_merged_away(client: Client) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    client.snapshot(vm, "a")
    middle = client.snapshot(vm, "b")
    frozen = only_disk(middle).backing.fileName
    reconfigure(proxy, attach(frozen, mode="independent_nonpersistent"))
    wait(proxy.PowerOffVM_Task())
    wait(vm.RemoveAllSnapshots_Task())
    assert not vm.runtime.consolidationNeeded
    assert only_disk(proxy).backing.fileName == frozen
    with pytest.raises(vim.fault.FileNotFound):
        wait(proxy.PowerOnVM_Task())
    reconfigure(proxy, removal(only_disk(proxy).key))


def test_a_disk_taken_away_comes_back_when_another_change_of_the_call_fails(
    client: Client,
) -> None:
    vm, proxy = client.vm(), client.vm("proxy")
    frozen = only_disk(client.snapshot(vm)).backing.fileName
    reconfigure(proxy, attach(frozen, mode="independent_nonpersistent"))
    with pytest.raises(vim.fault.FileLocked):
        reconfigure(
            proxy,
            removal(only_disk(proxy).key),
            attach(only_disk(vm).backing.fileName, mode="independent_nonpersistent", unit=5),
        )
    assert only_disk(proxy).backing.fileName == frozen
    assert device_folder(client, "scsi0:0").exists()
    assert not device_folder(client, "scsi0:5").exists()
    reconfigure(proxy, removal(only_disk(proxy).key))
    assert not list((client.running.state / "devices/proxy").iterdir())


def test_a_flipped_byte_strikes_when_a_disk_written_as_files_is_attached(client: Client) -> None:
    vm = client.vm()
    wait(vm.PowerOffVM_Task())
    manager = client.content.virtualDiskManager
    client.disk().guest_write(0, b"\1" * MIB)
    wait(manager.CopyVirtualDisk_Task("[vmfs1] web/web.vmdk", None, "[vmfs1] web/back.vmdk", None))
    client.running.lab.misbehaviour.arm("flip_byte", match={"vm": "web", "direction": "attach"})
    reconfigure(vm, attach("[vmfs1] web/back.vmdk"))
    with client.disk(number=1).reader_at() as reader:
        assert client.disk().first_difference(reader) == MIB // 2


def test_a_licence_that_allows_no_changes_is_a_restricted_version(client: Client) -> None:
    client.running.lab.misbehaviour.arm(
        "fail_call",
        match={"method": "CreateSnapshot_Task"},
        parameters={"fault": "RestrictedVersion"},
    )
    with pytest.raises(vim.fault.RestrictedVersion):
        client.snapshot(client.vm())

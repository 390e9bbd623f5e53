"""VMs are made, registered from their files, taken off the inventory and destroyed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import disks_of, find, machine, read, wait

Device = vim.vm.device


def vm_folder(service: Any) -> Any:
    return read(service, find(service, vim.Datacenter, "dc1"), "vmFolder")["vmFolder"]


def pool(service: Any) -> Any:
    return find(service, vim.ResourcePool, "Resources")


def new_vm_spec(name: str, path: str, *, disk_bytes: int = 1 << 20) -> Any:
    scsi = Device.VirtualDeviceSpec(
        operation="add",
        device=Device.ParaVirtualSCSIController(key=-101, busNumber=0, sharedBus="noSharing"),
    )
    disk = Device.VirtualDeviceSpec(
        operation="add",
        fileOperation="create",
        device=Device.VirtualDisk(
            key=-102,
            controllerKey=-101,
            unitNumber=0,
            capacityInKB=disk_bytes // 1024,
            backing=Device.VirtualDisk.FlatVer2BackingInfo(
                fileName="", diskMode="persistent", thinProvisioned=True
            ),
        ),
    )
    return vim.vm.ConfigSpec(
        name=name,
        guestId="debian12_64Guest",
        numCPUs=2,
        memoryMB=256,
        firmware="efi",
        version="vmx-19",
        files=vim.vm.FileInfo(vmPathName=path),
        deviceChange=[scsi, disk],
        extraConfig=[vim.option.OptionValue(key="lab.note", value='say "hi" | bye')],
    )


def create(service: Any, spec: Any) -> Any:
    return wait(service, vm_folder(service).CreateVM_Task(spec, pool(service), None))


def test_a_new_vm_has_what_its_specification_says_and_its_files(
    lab: RunningLab, service: Any
) -> None:
    made = create(service, new_vm_spec("made", "[nfs2]"))
    config = read(service, made, "config")["config"]
    assert (config.name, config.firmware, config.version) == ("made", "efi", "vmx-19")
    assert (config.hardware.numCPU, config.hardware.memoryMB) == (2, 256)
    assert config.files.vmPathName == "[nfs2] made/made.vmx"
    disk = disks_of(config)[0]
    assert (disk.key, disk.backing.fileName) == (2000, "[nfs2] made/made.vmdk")
    folder = lab.state / "datastores" / "nfs2" / "made"
    assert {"made.vmx", "made.nvram", "made.vmdk", "made-flat.vmdk"} <= {
        each.name for each in folder.iterdir()
    }
    assert read(service, made, "runtime.powerState")["runtime.powerState"] == "poweredOff"
    wait(service, made.Destroy_Task())
    assert not folder.exists()


def test_a_second_vm_of_the_same_name_is_refused_and_leaves_nothing(
    lab: RunningLab, service: Any
) -> None:
    with pytest.raises(vim.fault.DuplicateName):
        create(service, new_vm_spec("web", "[nfs2]"))
    assert not (lab.state / "datastores" / "nfs2" / "web").exists()


def test_a_vm_whose_device_cannot_be_made_leaves_nothing(lab: RunningLab, service: Any) -> None:
    spec = new_vm_spec("broken", "[nfs2]")
    spec.deviceChange[1].device.controllerKey = 4711
    with pytest.raises(vim.fault.InvalidController):
        create(service, spec)
    assert not (lab.state / "datastores" / "nfs2" / "broken").exists()
    with pytest.raises(LookupError):
        machine(service, "broken")


def test_a_full_datastore_takes_no_new_vm(lab: RunningLab, service: Any) -> None:
    lab.control.call("misbehave", kind="datastore_full", match={"datastore": "nfs2"}, times=0)
    with pytest.raises(vim.fault.NoDiskSpace):
        create(service, new_vm_spec("fat", "[nfs2]"))
    nfs2 = find(service, vim.Datastore, "nfs2")
    assert read(service, nfs2, "summary.freeSpace")["summary.freeSpace"] == 0


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("nonsense", vim.fault.InvalidDatastorePath),
        ("[nowhere]", vim.fault.InvalidDatastorePath),
        ("[nfs2] ../x/y.vmx", vim.fault.InvalidDatastorePath),
        ("[nfs1] web/web.vmx", vim.fault.FileAlreadyExists),
    ],
)
def test_a_bad_place_for_a_vm_is_refused(service: Any, path: str, fault: Any) -> None:
    with pytest.raises(fault):
        create(service, new_vm_spec("nowhere", path))


def normal(config: Any) -> dict[str, Any]:
    devices = {
        each.key: (
            type(each).__name__,
            getattr(each.backing, "fileName", None) or getattr(each.backing, "deviceName", None),
            getattr(each, "macAddress", None),
            getattr(each, "unitNumber", None),
        )
        for each in config.hardware.device
        if isinstance(
            each,
            Device.VirtualDisk | Device.VirtualSCSIController | Device.VirtualEthernetCard,
        )
    }
    return {
        "uuids": (config.uuid, config.instanceUuid),
        "hardware": (config.hardware.numCPU, config.hardware.memoryMB, config.version),
        "firmware": config.firmware,
        "guest": config.guestId,
        "tracking": config.changeTrackingEnabled,
        "extra": {each.key: each.value for each in config.extraConfig},
        "devices": devices,
    }


def test_an_unregistered_vm_is_the_same_when_it_is_registered_again(
    lab: RunningLab, service: Any
) -> None:
    spec = new_vm_spec("wanderer", "[nfs2]")
    spec.changeTrackingEnabled = True
    spec.deviceChange.append(
        Device.VirtualDeviceSpec(
            operation="add",
            device=Device.VirtualVmxnet3(
                key=-3,
                addressType="manual",
                macAddress="00:50:56:aa:bb:cc",
                backing=Device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
            ),
        )
    )
    first = create(service, spec)
    before = normal(read(service, first, "config")["config"])
    first.UnregisterVM()
    with pytest.raises(LookupError):
        machine(service, "wanderer")
    again = wait(
        service,
        vm_folder(service).RegisterVM_Task(
            "[nfs2] wanderer/wanderer.vmx", None, False, pool(service), None
        ),
    )
    assert again != first
    assert read(service, again, "name")["name"] == "wanderer"
    assert normal(read(service, again, "config")["config"]) == before
    with pytest.raises(vim.fault.AlreadyExists):
        wait(
            service,
            vm_folder(service).RegisterVM_Task(
                "[nfs2] wanderer/wanderer.vmx", "other", False, pool(service), None
            ),
        )
    wait(service, again.Destroy_Task())


def test_a_byte_written_as_a_file_can_flip_when_its_vm_is_registered(
    lab: RunningLab, service: Any
) -> None:
    create(service, new_vm_spec("flipped", "[nfs2]"))
    lab.control.call("guest-write", vm="flipped", offset=0, data="AAAA" * 128 * 4)
    lab.control.call("mark", vm="flipped", name="written")
    path = lab.control.call("vm-unregister", vm="flipped")
    lab.control.call("misbehave", kind="flip_byte", match={"vm": "flipped", "direction": "attach"})
    lab.control.call("vm-register", path=path)
    verdict = lab.control.call("compare", vm="flipped", at="written")
    assert not verdict["equal"]
    assert lab.control.call("calls", event="flipped")[-1]["offset"] == verdict["disks"][0]["offset"]
    lab.control.call("vm-remove", vm="flipped")


def test_a_missing_vmx_is_not_found(service: Any) -> None:
    with pytest.raises(vim.fault.FileNotFound):
        wait(
            service,
            vm_folder(service).RegisterVM_Task("[nfs2] x/x.vmx", "x", False, pool(service), None),
        )


def test_an_instance_uuid_is_never_used_twice(service: Any) -> None:
    taken = read(service, machine(service, "web"), "config.instanceUuid")["config.instanceUuid"]
    spec = new_vm_spec("copy", "[nfs2]")
    spec.instanceUuid = taken
    made = create(service, spec)
    assert read(service, made, "config.instanceUuid")["config.instanceUuid"] != taken
    wait(service, made.Destroy_Task())


def test_a_running_vm_is_not_destroyed(lab: RunningLab, service: Any) -> None:
    web = machine(service, "web")
    with pytest.raises(vim.fault.InvalidPowerState):
        wait(service, web.Destroy_Task())
    with pytest.raises(vim.fault.InvalidPowerState):
        web.UnregisterVM()
    assert lab.control.call("compare", vm="web")["equal"]


def test_destroying_a_vm_deletes_the_disks_attached_to_it_even_if_they_are_anothers(
    lab: RunningLab, service: Any
) -> None:
    owner = create(service, new_vm_spec("owner", "[nfs2]"))
    helper = create(service, new_vm_spec("helper", "[nfs2]"))
    attach = Device.VirtualDeviceSpec(
        operation="add",
        device=Device.VirtualDisk(
            key=-1,
            controllerKey=1000,
            unitNumber=5,
            capacityInKB=0,
            backing=Device.VirtualDisk.FlatVer2BackingInfo(
                fileName="[nfs2] owner/owner.vmdk", diskMode="persistent"
            ),
        ),
    )
    wait(service, helper.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[attach])))
    wait(service, helper.Destroy_Task())
    assert not (lab.state / "datastores" / "nfs2" / "owner" / "owner.vmdk").exists()
    with pytest.raises(vim.fault.FileNotFound):
        wait(service, owner.PowerOnVM_Task())


def test_folders_are_made_filled_renamed_and_destroyed_with_what_is_in_them(
    lab: RunningLab, service: Any
) -> None:
    folder = vm_folder(service).CreateFolder("a/b")
    assert read(service, folder, "name")["name"] == "a%2fb"
    made = create(service, new_vm_spec("moved", "[nfs2]"))
    wait(service, folder.MoveIntoFolder_Task([made]))
    assert read(service, made, "parent")["parent"] == folder
    index = service.content.searchIndex
    assert index.FindByInventoryPath("dc1/vm/a%2fb/moved") == made
    wait(service, made.Rename_Task("renamed"))
    assert index.FindByInventoryPath("/dc1/vm/a%2fb/renamed") == made
    wait(service, folder.Destroy_Task())
    assert index.FindByInventoryPath("dc1/vm/a%2fb") is None


def test_a_vm_is_found_by_uuid_path_address_and_name(lab: RunningLab, service: Any) -> None:
    index = service.content.searchIndex
    web = machine(service, "web")
    config = read(service, web, "config.uuid", "config.instanceUuid")
    assert index.FindByUuid(None, config["config.instanceUuid"], True, True) == web
    assert index.FindByUuid(None, config["config.uuid"].upper(), True, False) == web
    assert index.FindByUuid(None, config["config.uuid"], True, True) is None
    assert (
        index.FindByDatastorePath(find(service, vim.Datacenter, "dc1"), "[nfs1] web/web.vmx") == web
    )
    assert index.FindByDnsName(None, "web.lab", True) == web
    assert index.FindByDnsName(None, "esx2.lab", False) == find(service, vim.HostSystem, "esx2.lab")
    assert index.FindChild(vm_folder(service), "db") == machine(service, "db")
    assert index.FindByInventoryPath("dc1/vm/nobody") is None


def test_the_vmx_is_rewritten_whole_when_settings_change(lab: RunningLab, service: Any) -> None:
    web = machine(service, "web")
    wait(service, web.ReconfigVM_Task(vim.vm.ConfigSpec(annotation='line 1\nline "2" | x')))
    text = Path(lab.state / "datastores/nfs1/web/web.vmx").read_text(encoding="utf-8")
    assert 'annotation = "line 1|0Aline |222|22 |7C x"' in text
    assert 'scsi0:0.fileName = "web.vmdk"' in text

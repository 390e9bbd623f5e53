"""A point's configuration as a new VM: what nobody knows any more is left out and named."""

from __future__ import annotations

import pytest

from holdfast_common.errors import FormatError
from holdfast_controller.vsphere.configuration import Json
from holdfast_controller.vsphere.new_vm_spec import NewDisk, NewVmSpec, new_vm_spec

MIB = 1 << 20
SCSI: Json = {"_type": "ParaVirtualSCSIController", "key": 1000, "busNumber": 0}
DISK: Json = {"_type": "VirtualDisk", "key": 2000, "controllerKey": 1000, "unitNumber": 3}
CARD: Json = {
    "_type": "VirtualVmxnet3",
    "key": 4000,
    "macAddress": "00:50:56:00:00:01",
    "backing": {"_type": "VirtualEthernetCardNetworkBackingInfo", "deviceName": "old network"},
}


def spec_of(*devices: Json, keys: tuple[int, ...] = (2000,), **more: Json) -> NewVmSpec:
    return new_vm_spec(
        {"hardware": {"numCPU": 2, "memoryMB": 512}, "devices": list(devices), **more},
        name="new",
        vmx_file="[nfs1] new/new.vmx",
        nonce="nonce",
        disks=[
            NewDisk(device_key=key, file="[nfs1] new/new.vmdk", capacity_bytes=MIB, create=True)
            for key in keys
        ],
        networks={"VM Network": "network-1"},
    )


@pytest.mark.parametrize(
    "device",
    [
        {"_type": "VirtualHologram", "key": 99, "deviceInfo": {"label": "Hologram 1"}},
        {"_type": "VirtualSoundCard", "deviceInfo": {"label": "Hologram 1"}, "perfume": 3},
        {"_type": "VirtualSoundCard", "key": 99, "deviceInfo": {"label": "Hologram 1"}},
        {"_type": "ManagedEntity", "key": 99, "deviceInfo": {"label": "Hologram 1"}},
        {"_type": "VirtualUSB", "key": "many", "deviceInfo": {"label": "Hologram 1"}},
        {"_type": "VirtualUSB", "backing": [[[]]], "deviceInfo": {"label": "Hologram 1"}},
    ],
)
def test_an_unknown_device_is_left_out_and_named(device: Json) -> None:
    made = spec_of(SCSI, device, DISK)
    kinds = [type(change.device).__name__.rpartition(".")[2] for change in made.spec.deviceChange]
    assert kinds == ["ParaVirtualSCSIController", "VirtualDisk"]
    (note,) = made.notes
    assert note.startswith("Hologram 1")
    assert "left out" in note


def test_a_card_on_a_network_that_is_not_there_is_put_on_another_unplugged() -> None:
    made = spec_of(SCSI, DISK, CARD)
    card = made.spec.deviceChange[-1].device
    assert card.backing.deviceName == "VM Network"
    assert card.macAddress is None
    assert not card.connectable.startConnected
    assert "old network" in made.notes[0]


def test_identity_and_place_of_the_old_vm_are_not_taken_over() -> None:
    settings: Json = {
        "uuid.bios": "old", "vc.uuid": "old", "nvram": "old.nvram", "holdfast.nonce": "old",
        "disk.EnableUUID": "TRUE",
    }  # fmt: skip
    made = spec_of(SCSI, DISK, extraConfig=settings, uuid="old", instanceUuid="old")
    kept = {each.key: each.value for each in made.spec.extraConfig}
    assert kept == {"disk.EnableUUID": "TRUE", "holdfast.nonce": "nonce"}
    assert made.spec.uuid is None
    assert made.spec.instanceUuid is None


def test_a_disk_whose_place_is_not_known_is_an_error() -> None:
    with pytest.raises(FormatError, match="where its disks belong"):
        spec_of(SCSI, DISK, keys=(2000, 2001))


def disk(key: int, controller: int, unit: int, **more: Json) -> Json:
    return {
        "_type": "VirtualDisk",
        "key": key,
        "controllerKey": controller,
        "unitNumber": unit,
        "deviceInfo": {"_type": "Description", "label": f"Hard disk {key}"},
        **more,
    }


def places(made: NewVmSpec) -> dict[int, tuple[str, int, int]]:
    """Disks by their old keys: kind of controller, bus, unit."""
    controllers: dict[int, tuple[str, int]] = {}
    found: dict[int, tuple[str, int, int]] = {}
    for change in made.spec.deviceChange:
        device = change.device
        kind = type(device).__name__.rpartition(".")[2]
        if kind == "VirtualDisk":
            name, bus = controllers[device.controllerKey]
            found[-device.key] = (name, bus, device.unitNumber)
        else:
            controllers[device.key] = (kind, device.busNumber)
    return found


def test_properties_that_nobody_knows_cost_no_disk_no_controller_and_no_card() -> None:
    scsi = {**as_dict(SCSI), "perfume": 3, "hotAddRemove": "sometimes"}
    unknown: dict[str, Json] = {
        "backing": {"_type": "VirtualDiskCloudBackingInfo", "fileName": "[x] y", "cloud": []},
        "capacityInBytes": "a lot",
        "iofilter": {"_type": "NobodyKnows"},
    }
    card = {**as_dict(CARD), "perfume": 3}
    made = spec_of(scsi, disk(2000, 1000, 3, **unknown), card)
    kinds = [type(change.device).__name__.rpartition(".")[2] for change in made.spec.deviceChange]
    assert kinds == ["ParaVirtualSCSIController", "VirtualDisk", "VirtualVmxnet3"]
    assert made.spec.deviceChange[1].device.unitNumber == 3
    told = " ".join(made.notes)
    assert "ParaVirtualSCSIController.perfume" in told
    assert "VirtualVmxnet3.perfume" in told


def test_a_disk_of_a_kind_that_nobody_knows_is_restored_by_its_key() -> None:
    made = spec_of(SCSI, disk(2000, 1000, 3, _type="VirtualHolographicDisk"))
    assert places(made) == {2000: ("ParaVirtualSCSIController", 0, 3)}
    assert not made.notes


def test_disks_of_a_controller_that_nobody_knows_hang_on_one_that_is_known() -> None:
    future: Json = {"_type": "VirtualHolographicController", "key": 7000, "busNumber": 0}
    made = spec_of(
        SCSI,
        DISK,
        future,
        disk(2001, 7000, 3),
        disk(2002, 7000, 7),
        disk(2003, 7000, 60),
        keys=(2000, 2001, 2002, 2003),
    )
    assert places(made) == {
        2000: ("ParaVirtualSCSIController", 0, 3),
        2001: ("VirtualLsiLogicSASController", 1, 3),
        2002: ("VirtualLsiLogicSASController", 1, 0),
        2003: ("VirtualLsiLogicSASController", 1, 1),
    }
    assert made.slots == {2001: "lsisas 1:3", 2002: "lsisas 1:0", 2003: "lsisas 1:1"}
    assert len([note for note in made.notes if "hangs on an LSI Logic SAS" in note]) == 3
    assert any("VirtualHolographicController" in note for note in made.notes)


def test_more_disks_than_there_is_room_for_is_an_error() -> None:
    keys = tuple(range(2000, 2017))
    with pytest.raises(FormatError, match="more disks than"):
        spec_of(*(disk(key, 7000, 0) for key in keys), keys=keys)
    five: list[Json] = [{"_type": "VirtualHologram", "key": 7000 + n} for n in range(5)]
    with pytest.raises(FormatError, match="no room"):
        spec_of(
            *five, *(disk(2000 + n, 7000 + n, 0) for n in range(5)), keys=tuple(range(2000, 2005))
        )


def test_unknown_properties_of_the_vm_itself_are_ignored() -> None:
    made = spec_of(SCSI, DISK, perfume={"_type": "NobodyKnows"}, bootOptions=[3], keyId=None)
    assert made.spec.name == "new"
    assert not made.notes


def as_dict(value: Json) -> dict[str, Json]:
    assert isinstance(value, dict)
    return value

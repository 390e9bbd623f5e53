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

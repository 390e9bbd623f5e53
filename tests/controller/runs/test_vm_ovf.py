"""The OVF descriptor in a point: judged by our reader, and by stock govc where it was built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.errors import FormatError
from holdfast_common.formats.ovf import ControllerKind, OvfVm, parse_ovf
from holdfast_common.formats.ovf_text import ovf_text
from holdfast_controller.facts import DiskFacts, SnapshotFacts
from holdfast_controller.runs import vm_blobs
from holdfast_controller.runs.vm_blobs import VmBlobs, with_ovf
from holdfast_controller.runs.vm_ovf import described, ovf_blob
from holdfast_controller.vsphere.configuration import Json
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import ConsistencyWish, temporary_snapshot
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.stock_govc import run_govc, stock_govc
from support.vms import vm_named
from support.vsphere_sessions import job_ledger, session_at

MIB = 1 << 20
NOTHING = VmBlobs(blobs=(), warnings=())


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    disks = (DiskPlan(size_bytes=4 * MIB), DiskPlan(size_bytes=2 * MIB, datastore="nfs2"))
    plan = InventoryPlan(machines=(MachinePlan(name="web", datastore="nfs1", disks=disks),))
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


@pytest.fixture
def session(lab: RunningLab) -> Iterator[VsphereSession]:
    with session_at(lab, patience_seconds=1) as made:
        yield made


@pytest.fixture
def snapshot(session: VsphereSession, tmp_path: Path) -> Iterator[SnapshotFacts]:
    vm = vm_named(session, "web")
    wish = ConsistencyWish(asked="crash", lower_allowed=True)
    with temporary_snapshot(session, job_ledger(tmp_path), vm=vm, wish=wish) as made:
        yield made


def test_a_vm_is_described_with_its_disks_in_their_slots(snapshot: SnapshotFacts) -> None:
    (blob,) = with_ovf(NOTHING, snapshot).blobs
    assert blob.kind == "ovf"
    vm = parse_ovf(blob.data)
    assert vm.name == "web"
    assert vm.memory_bytes == snapshot.vm.memory_mb * MIB
    assert vm.cpus == snapshot.vm.cpu_count
    assert vm.guest_os == snapshot.vm.guest_id
    assert vm.hardware == f"vmx-{snapshot.vm.hardware_version:02}"
    assert [(disk.capacity_bytes, disk.controller_key, disk.unit) for disk in vm.disks] == [
        (disk.capacity_bytes, disk.controller_key, disk.unit_number)
        for disk in snapshot.protected_disks
    ]
    assert [file.name for file in vm.files] == ["disk-2000.vmdk", "disk-2001.vmdk"]
    assert vm.notes == ()
    assert {disk.controller_key for disk in vm.disks} == {each.key for each in vm.controllers}


def test_a_vm_that_cannot_be_described_is_a_warning_and_the_rest_is_kept(
    snapshot: SnapshotFacts,
) -> None:
    configuration = json.loads(snapshot.configuration)
    configuration["name"] = "web\x01"
    with pytest.raises(FormatError):
        ovf_blob(replace(snapshot, configuration=json.dumps(configuration)))
    kept = with_ovf(NOTHING, snapshot)
    found = with_ovf(kept, replace(snapshot, configuration=json.dumps(configuration)))
    assert found.blobs == kept.blobs
    (warning,) = found.warnings
    assert warning.code == "vm_file"
    assert "the VM's ovf is not in the backup" in warning.message


def test_a_configuration_that_makes_no_sense_is_a_warning(snapshot: SnapshotFacts) -> None:
    for text in ("", "[]", '{"format": 1}', '{"format": 1, "hardware": 3, "devices": {}}'):
        (warning,) = with_ovf(NOTHING, replace(snapshot, configuration=text)).warnings
        assert warning.code == "vm_file"


def test_a_descriptor_too_large_for_the_jobs_message_is_left_out_with_a_warning(
    snapshot: SnapshotFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_blobs, "BLOBS_BYTES_MAX", 1000)
    (warning,) = with_ovf(NOTHING, snapshot).warnings
    assert "too large" in warning.message


DEVICES: list[Json] = [
    {"_type": "VirtualIDEController", "key": 200, "busNumber": 0},
    {"_type": "VirtualIDEController", "key": 201, "busNumber": 1},
    {"_type": "VirtualKeyboard", "key": 600},
    {"_type": "ParaVirtualSCSIController", "key": 1000, "busNumber": 0},
    {"_type": "VirtualAHCIController", "key": 15000, "busNumber": 0},
    {"_type": "VirtualNVMEController", "key": 31000, "busNumber": 0},
    {"_type": "VirtualCdrom", "key": 3000, "deviceInfo": {"label": "CD/DVD drive 1"}},
    {"_type": "VirtualDisk", "key": 2000, "deviceInfo": {"label": "Hard disk 1"}},
    {"_type": "VirtualDisk", "key": 2001, "deviceInfo": {"label": "Hard disk 2"}},
    {"_type": "VirtualDisk", "key": 32000, "deviceInfo": {"label": "Hard disk 3"}},
    {
        "_type": "VirtualVmxnet3", "key": 4000, "macAddress": "00:50:56:00:00:01",
        "backing": {"deviceName": "Büro & Lager"}, "connectable": {"startConnected": False},
    },
    {"_type": "VirtualE1000e", "key": 4001, "backing": {"port": {"portgroupKey": "dvpg-7"}}},
]  # fmt: skip


def many_devices(shape: DiskFacts) -> OvfVm:
    configuration: dict[str, Json] = {
        "name": "büro 1/2", "guestId": "debian12_64Guest", "version": "vmx-19", "firmware": "efi",
        "annotation": "first line\nsecond <line>", "bootOptions": {"efiSecureBootEnabled": True},
        "hardware": {"numCPU": 4, "numCoresPerSocket": 2, "memoryMB": 3072}, "devices": DEVICES,
    }  # fmt: skip
    one = replace(shape, device_key=2000, controller_key=1000, unit_number=0)
    other = replace(shape, device_key=32000, controller_key=31000, unit_number=1)
    return described(configuration, [one, other])


def test_devices_are_described_or_named(snapshot: SnapshotFacts) -> None:
    vm = many_devices(snapshot.disks[0])
    assert vm.notes == ("CD/DVD drive 1", "Hard disk 2")
    read = parse_ovf(ovf_text(vm).encode())
    assert read == replace(vm, notes=())
    assert [each.kind for each in read.controllers] == [ControllerKind.SCSI, ControllerKind.NVME]
    assert [(nic.network_name, nic.mac_address, nic.connected) for nic in read.nics] == [
        ("Büro & Lager", "", False),
        ("dvpg-7", "", True),
    ]
    assert read.configuration == {"bootOptions.efiSecureBootEnabled": "true"}
    assert (read.cpus, read.cores_per_socket, read.firmware) == (4, 2, "efi")


@pytest.mark.long
def test_stock_govc_reads_the_descriptor(
    lab: RunningLab, snapshot: SnapshotFacts, tmp_path: Path
) -> None:
    govc = stock_govc()
    for vm in (parse_ovf(ovf_blob(snapshot).data), many_devices(snapshot.disks[0])):
        file = tmp_path / "vm.ovf"
        file.write_text(ovf_text(vm), encoding="utf-8")
        told = json.loads(run_govc(govc, lab, "import.spec", "-json", str(file)))
        networks = {each["Name"] for each in told.get("NetworkMapping") or []}
        assert networks == {nic.network_name for nic in vm.nics}
        assert told.get("Annotation", "") == vm.annotation

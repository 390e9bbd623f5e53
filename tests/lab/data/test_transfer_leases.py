"""Transfer leases with stock pyVmomi and plain http.client: exports, imports, timeouts, refusals."""

from __future__ import annotations

import hashlib
import http.client
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_lab.inventory_plan import DiskPlan
from holdfast_lab.storage.stream_encoder import stream_optimized
from holdfast_lab.transfer_lease import TransferLease
from support.lab_disks import needs_qemu
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
    same_by_qemu,
    wait,
)
from support.waiting import wait_until

TWO_DISKS = (DiskPlan(size_bytes=8 * MIB), DiskPlan(size_bytes=4 * MIB, datastore="nfs1"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with lab_with(tmp_path, one_machine(disks=TWO_DISKS)) as found:
        yield found


def ready(client: Client, lease: Any) -> Any:
    """Wait until a lease is ready; the lease. Raises its error when it is not."""
    assert client.running.lab.get(lease, TransferLease).prepared.wait(10)
    if lease.state == "error":
        raise lease.error
    return lease


def lease_of(client: Client, name: str = "web") -> TransferLease:
    """The lab's own lease behind the one that covers a VM."""
    found = client.machine(name).transfer_lease
    assert isinstance(found, TransferLease)
    return found


def path_of(url: str) -> str:
    assert url.startswith("https://*/nfc/")
    return url.removeprefix("https://*")


def fill(client: Client) -> None:
    for number in range(2):
        disk = client.disk(number=number)
        disk.guest_write(0, os.urandom(MIB))
        disk.guest_write(3 * MIB + 512, os.urandom(65536))


def stream_of(client: Client, number: int = 0) -> bytes:
    with client.disk(number=number).reader_at() as reader:
        return b"".join(stream_optimized(reader))


def import_spec(name: str = "restored", *, nvram: bool = False) -> Any:
    config = vim.vm.ConfigSpec(
        name=name,
        guestId="otherLinux64Guest",
        memoryMB=64,
        numCPUs=1,
        files=vim.vm.FileInfo(vmPathName="[vmfs1]"),
        deviceChange=[
            Spec(
                operation="add",
                device=vim.vm.device.ParaVirtualSCSIController(
                    key=-100, busNumber=0, sharedBus="noSharing"
                ),
            ),
            new_disk(8 * MIB, key=-1, controller=-100, unit=0),
            new_disk(4 * MIB, key=-2, controller=-100, unit=1, file_name="[nfs1]"),
        ],
    )
    if nvram:
        config.extraConfig = [vim.option.OptionValue(key="nvram", value="ovf:/file/file1")]
    return vim.vm.VmImportSpec(configSpec=config)


def start_import(client: Client, **options: Any) -> Any:
    pool = client.entity(vim.ResourcePool, "Resources")
    folder = client.entity(vim.Datacenter, "dc1").vmFolder
    return ready(client, pool.ImportVApp(import_spec(**options), folder))


def upload(client: Client, url: str, data: bytes, *, chunked: bool = False) -> int:
    body = iter([data[at : at + 50_000] for at in range(0, len(data), 50_000)])
    status, _, _ = client.request(
        "POST",
        path_of(url),
        body=body if chunked else data,
        headers={"Content-Type": "application/x-vnd.vmware-streamVmdk"},
    )
    return status


def machine_names(client: Client) -> list[str]:
    return [each.name for each in client.running.lab.machines()]


@needs_qemu
def test_the_snapshot_of_a_running_machine_is_exported_as_it_was(
    client: Client, tmp_path: Path
) -> None:
    vm = client.vm()
    fill(client)
    snapshot = client.snapshot(vm)
    moments = [client.disk(number=number).sequence for number in range(2)]
    fill(client)
    lease = ready(client, snapshot.ExportSnapshot())
    info = lease.info
    assert info.entity == vm
    assert info.leaseTimeout == 300
    assert info.totalDiskCapacityInKB == 12 * 1024
    assert [each.key.rsplit("/", 1)[1] for each in info.deviceUrl] == [
        "ParaVirtualSCSIController0:0",
        "ParaVirtualSCSIController0:1",
    ]
    for number, url in enumerate(info.deviceUrl):
        assert url.disk
        status, data, headers = client.request("GET", path_of(url.url))
        assert status == 200
        assert headers["Content-Type"] == "application/x-vnd.vmware-streamVmdk"
        assert struct.unpack("<4sI", data[:8]) == (b"KDMV", 3)
        stream, truth = tmp_path / f"{number}.vmdk", tmp_path / f"{number}.raw"
        stream.write_bytes(data)
        client.disk(number=number).truth(truth, moments[number])
        assert same_by_qemu(stream, "vmdk", truth)
        manifest = lease.HttpNfcLeaseGetManifest()
        assert manifest[number].sha1 == hashlib.sha1(data, usedforsecurity=False).hexdigest()
        assert manifest[number].size == len(data)
    lease.HttpNfcLeaseComplete()
    assert lease.state == "done"
    counters = client.running.lab.calls.counted()
    assert counters["datastores"]["vmfs1"]["opened"] == 1
    assert counters["datastores"]["nfs1"]["opened"] == 1
    assert counters["hosts"][client.machine().host.name]["opened"] == 2
    assert counters["hosts"][client.machine().host.name]["open_at_most"] == 1
    assert counters["datastores"]["vmfs1"]["bytes_read"] > MIB


def test_exporting_a_machine_needs_power_off_and_brings_its_nvram(client: Client) -> None:
    vm = client.vm()
    with pytest.raises(vim.fault.InvalidPowerState):
        vm.ExportVm()
    wait(vm.PowerOffVM_Task())
    lease = ready(client, vm.ExportVm())
    nvram = next(each for each in lease.info.deviceUrl if not each.disk)
    status, data, _ = client.request("GET", path_of(nvram.url))
    assert status == 200
    assert data == client.machine().nvram.read_bytes()
    assert nvram.fileSize == len(data)
    lease.HttpNfcLeaseComplete()


def test_power_snapshots_and_moves_are_blocked_while_a_lease_lives(client: Client) -> None:
    vm = client.vm()
    snapshot = client.snapshot(vm)
    lease = ready(client, snapshot.ExportSnapshot())
    with pytest.raises(vim.fault.VimFault):
        wait(vm.PowerOffVM_Task())
    with pytest.raises(vim.fault.VimFault):
        wait(vm.Destroy_Task())
    with pytest.raises(vim.fault.VimFault):
        snapshot.ExportSnapshot()
    lease.HttpNfcLeaseAbort()
    assert lease.state == "error"
    wait(vm.PowerOffVM_Task())


def test_a_lease_that_is_not_renewed_times_out_and_cuts_its_stream(client: Client) -> None:
    vm = client.vm()
    client.disk().guest_write(0, os.urandom(8 * MIB))
    snapshot = client.snapshot(vm)
    lease = ready(client, snapshot.ExportSnapshot())
    url = path_of(lease.info.deviceUrl[0].url)
    connection = http.client.HTTPSConnection(
        client.running.address, context=client.context, timeout=10
    )
    connection.request("GET", url)
    answer = connection.getresponse()
    assert answer.read(1024)
    lab_lease = lease_of(client)
    lab_lease.deadline = 0.0
    assert lab_lease.ended.wait(10)
    with pytest.raises((http.client.IncompleteRead, OSError)):
        while answer.read(MIB):
            pass
    connection.close()
    assert lease.state == "error"
    assert isinstance(lease.error, vim.fault.Timedout)
    with pytest.raises(vim.fault.Timedout):
        lease.HttpNfcLeaseProgress(50)
    wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert not vm.runtime.consolidationNeeded


def test_progress_renews_a_lease_even_when_the_percentage_stays(client: Client) -> None:
    snapshot = client.snapshot(client.vm())
    lease = ready(client, snapshot.ExportSnapshot())
    for _ in range(2):
        before = lease_of(client).deadline
        lease.HttpNfcLeaseProgress(7)
        assert lease_of(client).deadline > before
    assert lease.transferProgress == 7
    lease.HttpNfcLeaseComplete()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_import_makes_a_machine_whose_disks_equal_the_source(
    client: Client, chunked: bool
) -> None:
    fill(client)
    lease = start_import(client, nvram=True)
    info = lease.info
    assert [each.importKey for each in info.deviceUrl] == [
        "/restored/ParaVirtualSCSIController0:0",
        "/restored/ParaVirtualSCSIController0:1",
        "/restored/nvram",
    ]
    for number in range(2):
        url = info.deviceUrl[number].url
        assert upload(client, url, stream_of(client, number), chunked=chunked) == 201
        lease.HttpNfcLeaseProgress(50 * number)
    status, _, _ = client.request("PUT", path_of(info.deviceUrl[2].url), body=b"nvram")
    assert status == 201
    lease.HttpNfcLeaseComplete()
    vm = client.vm("restored")
    assert [each.backing.fileName for each in disks_of(vm.config)] == [
        "[vmfs1] restored/restored.vmdk",
        "[nfs1] restored/restored.vmdk",
    ]
    for number in range(2):
        with client.disk("restored", number).reader_at() as reader:
            assert client.disk(number=number).first_difference(reader) is None
    assert client.machine("restored").nvram.read_bytes() == b"nvram"
    wait(vm.PowerOnVM_Task())
    uploads = client.running.lab.calls.events(event="upload")
    assert len(uploads) == 2


def test_a_stream_of_version_1_is_refused(client: Client) -> None:
    lease = start_import(client)
    stream = bytearray(stream_of(client))
    struct.pack_into("<I", stream, 4, 1)
    assert upload(client, lease.info.deviceUrl[0].url, bytes(stream)) == 500
    (event,) = client.running.lab.calls.events(event="upload_refused")
    assert "version 1" in str(event["reason"])
    with pytest.raises(vim.fault.InvalidState):
        lease.HttpNfcLeaseComplete()
    lease.HttpNfcLeaseAbort()
    assert machine_names(client) == ["web"]


def test_an_interrupted_upload_keeps_the_lease_from_completing_until_it_is_repeated(
    client: Client,
) -> None:
    fill(client)
    lease = start_import(client)
    url = lease.info.deviceUrl[0].url
    stream = stream_of(client)
    connection = http.client.HTTPSConnection(
        client.running.address, context=client.context, timeout=10
    )
    connection.putrequest("POST", path_of(url))
    connection.putheader("Content-Length", str(len(stream)))
    connection.endheaders(stream[: len(stream) // 2])
    connection.close()
    files = lease_of(client, "restored").files
    wait_until(lambda: any(file.started for file in files), what="the lab sees the upload")
    with pytest.raises(vim.fault.InvalidState):
        lease.HttpNfcLeaseComplete()
    assert upload(client, url, stream[: len(stream) // 2]) == 500
    assert upload(client, url, stream) == 201
    lease.HttpNfcLeaseComplete()
    with client.disk("restored").reader_at() as reader:
        assert client.disk().first_difference(reader) is None


def test_an_aborted_import_leaves_nothing(client: Client) -> None:
    lease = start_import(client)
    assert machine_names(client) == ["web", "restored"]
    lease.HttpNfcLeaseAbort()
    assert lease.state == "error"
    assert machine_names(client) == ["web"]
    assert not (client.running.lab.datastore("vmfs1").root / "restored").exists()
    assert not list((client.running.lab.datastore("nfs1").root).glob("restored/*.vmdk"))
    with pytest.raises(vim.fault.InvalidState):
        lease.HttpNfcLeaseAbort()


def test_a_timed_out_import_leaves_nothing(client: Client) -> None:
    start_import(client)
    lab_lease = lease_of(client, "restored")
    lab_lease.deadline = 0.0
    assert lab_lease.finished.wait(10)
    assert machine_names(client) == ["web"]


def test_a_byte_flipped_after_the_upload_was_acknowledged(client: Client) -> None:
    client.running.lab.misbehaviour.arm(
        "flip_byte", match={"vm": "restored", "direction": "upload"}
    )
    fill(client)
    lease = start_import(client)
    for number in range(2):
        assert upload(client, lease.info.deviceUrl[number].url, stream_of(client, number)) == 201
    lease.HttpNfcLeaseComplete()
    (event,) = client.running.lab.calls.events(event="flipped")
    with client.disk("restored").reader_at() as reader:
        assert client.disk().first_difference(reader) == event["offset"]


def test_a_datastore_that_fills_up_ends_the_upload(client: Client) -> None:
    fill(client)
    lease = start_import(client)
    client.running.lab.misbehaviour.arm("datastore_full", match={"datastore": "vmfs1"}, times=None)
    assert upload(client, lease.info.deviceUrl[0].url, stream_of(client)) == 500
    client.running.lab.misbehaviour.disarm()
    lease.HttpNfcLeaseAbort()
    assert machine_names(client) == ["web"]


def test_a_cut_stream_ends_without_its_last_chunk(client: Client) -> None:
    fill(client)
    snapshot = client.snapshot(client.vm())
    lease = ready(client, snapshot.ExportSnapshot())
    client.running.lab.misbehaviour.arm(
        "cut_stream", match={"vm": "web", "direction": "read"}, parameters={"bytes": "100000"}
    )
    with pytest.raises((http.client.IncompleteRead, OSError)):
        client.request("GET", path_of(lease.info.deviceUrl[0].url))
    status, _, _ = client.request("GET", path_of(lease.info.deviceUrl[0].url))
    assert status == 200


def test_an_import_cannot_take_disks_that_are_there_already(client: Client) -> None:
    spec = import_spec()
    spec.configSpec.deviceChange[1] = attach("[vmfs1] web/web.vmdk", controller=-100)
    pool = client.entity(vim.ResourcePool, "Resources")
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        pool.ImportVApp(spec)


def test_a_wrong_token_or_direction_finds_nothing(client: Client) -> None:
    lease = start_import(client)
    url = path_of(lease.info.deviceUrl[0].url)
    assert client.request("GET", url)[0] == 405
    assert client.request("GET", "/nfc/0123/disk-0.vmdk")[0] == 404
    lease.HttpNfcLeaseAbort()
    assert client.request("POST", url, body=b"x")[0] == 500


def test_an_export_and_a_folder_download_exclude_each_other(client: Client) -> None:
    vm = client.vm()
    snapshot = client.snapshot(vm)
    assert client.folder("GET", "web/web-flat.vmdk", "vmfs1")[0] == 200
    lease = ready(client, snapshot.ExportSnapshot())
    assert client.folder("GET", "web/web-flat.vmdk", "vmfs1")[0] == 500
    lease.HttpNfcLeaseComplete()
    assert client.folder("GET", "web/web-flat.vmdk", "vmfs1")[0] == 200


def test_a_leased_snapshot_removed_leaves_a_consolidation(client: Client) -> None:
    vm = client.vm()
    snapshot = client.snapshot(vm)
    lease = ready(client, snapshot.ExportSnapshot())
    wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
    assert vm.runtime.consolidationNeeded
    lease.HttpNfcLeaseComplete()
    reconfigure(vm, annotation="still there")
    wait(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded

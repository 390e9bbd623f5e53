"""Files of datastores: search, FileManager, VirtualDiskManager, and ``/folder`` over HTTPS."""

from __future__ import annotations

import base64
import http.client
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_lab.inventory_plan import DiskPlan
from support.lab_vsphere import MIB, Client, lab_with, one_machine, wait

Browser = vim.host.DatastoreBrowser


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with lab_with(tmp_path, one_machine()) as found:
        yield found


def search(client: Client, path: str, *, below: bool = False, **spec: Any) -> Any:
    browser = client.entity(vim.Datastore, path[1:].split("]", maxsplit=1)[0]).browser
    details = Browser.FileInfo.Details(
        fileType=True, fileSize=True, modification=True, fileOwner=False
    )
    asked = Browser.SearchSpec(details=details, **spec)
    if below:
        return wait(browser.SearchDatastoreSubFolders_Task(path, asked))
    return wait(browser.SearchDatastore_Task(path, asked))


def names(result: Any) -> list[str]:
    return [each.path for each in result.file]


def test_a_folder_is_listed_with_sizes(client: Client) -> None:
    result = search(client, "[vmfs1] web")
    assert result.folderPath == "[vmfs1] web/"
    assert {"web.vmdk", "web-flat.vmdk", "web.vmx", "web.nvram"} <= set(names(result))
    flat = next(each for each in result.file if each.path == "web-flat.vmdk")
    assert flat.fileSize == 8 * MIB
    assert flat.modification is not None


def test_disks_are_found_by_a_query_below_a_folder(client: Client) -> None:
    details = Browser.VmDiskQuery.Details(
        diskType=True, capacityKb=True, hardwareVersion=True, diskExtents=True, thin=True
    )
    results = search(client, "[vmfs1]", below=True, query=[Browser.VmDiskQuery(details=details)])
    found = [(each.folderPath, file) for each in results for file in each.file]
    ((folder, disk),) = found
    assert folder == "[vmfs1] web/"
    assert (disk.path, disk.capacityKb, disk.diskExtents) == ("web.vmdk", 8192, ["web-flat.vmdk"])


def test_a_pattern_and_a_missing_folder(client: Client) -> None:
    assert names(search(client, "[vmfs1] web", matchPattern=["*.vmx"])) == ["web.vmx"]
    with pytest.raises(vim.fault.FileNotFound):
        search(client, "[vmfs1] nothing")
    with pytest.raises(vim.fault.InvalidDatastorePath):
        search(client, "[vmfs1] ../other")


def test_folders_are_made_moved_and_deleted(client: Client) -> None:
    files = client.content.fileManager
    with pytest.raises(vim.fault.FileNotFound):
        files.MakeDirectory("[nfs1] a/b", None, False)
    files.MakeDirectory("[nfs1] a/b", None, True)
    with pytest.raises(vim.fault.FileAlreadyExists):
        files.MakeDirectory("[nfs1] a/b", None, True)
    root = client.running.lab.datastore("nfs1").root
    (root / "a/b/note").write_text("n")
    wait(files.CopyDatastoreFile_Task("[nfs1] a/b/note", None, "[nfs2] note", None, False))
    assert (client.running.lab.datastore("nfs2").root / "note").read_text() == "n"
    with pytest.raises(vim.fault.FileAlreadyExists):
        wait(files.MoveDatastoreFile_Task("[nfs1] a/b/note", None, "[nfs2] note", None, False))
    wait(files.MoveDatastoreFile_Task("[nfs1] a/b/note", None, "[nfs2] note", None, True))
    assert not (root / "a/b/note").exists()
    wait(files.DeleteDatastoreFile_Task("[nfs1] a", None))
    assert not (root / "a").exists()
    with pytest.raises(vim.fault.FileNotFound):
        wait(files.DeleteDatastoreFile_Task("[nfs1] a", None))


def test_files_of_a_running_machine_cannot_be_deleted_or_moved(client: Client) -> None:
    files = client.content.fileManager
    for name in ("web/web-flat.vmdk", "web/web.vmx", "web"):
        with pytest.raises(vim.fault.FileLocked):
            wait(files.DeleteDatastoreFile_Task(f"[vmfs1] {name}", None))
    with pytest.raises(vim.fault.FileLocked):
        wait(files.MoveDatastoreFile_Task("[vmfs1] web", None, "[vmfs1] bew", None, False))
    with pytest.raises(vim.fault.FileLocked):
        wait(client.content.virtualDiskManager.DeleteVirtualDisk_Task("[vmfs1] web/web.vmdk", None))


def test_whole_disks_are_made_copied_moved_grown_and_deleted(client: Client) -> None:
    manager = client.content.virtualDiskManager
    spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
        diskType="thin", adapterType="lsiLogic", capacityKb=2048
    )
    wait(manager.CreateVirtualDisk_Task("[nfs1] d.vmdk", None, spec))
    with pytest.raises(vim.fault.FileAlreadyExists):
        wait(manager.CreateVirtualDisk_Task("[nfs1] d.vmdk", None, spec))
    root = client.running.lab.datastore("nfs1").root
    disk = client.running.lab.disks.find(root / "d.vmdk")
    assert disk is not None
    data = os.urandom(65536)
    disk.guest_write(MIB, data)
    wait(manager.CopyVirtualDisk_Task("[nfs1] d.vmdk", None, "[vmfs1] web/c.vmdk", None))
    first = manager.QueryVirtualDiskUuid("[nfs1] d.vmdk", None)
    assert first.startswith("60 00 c2 9")
    assert first != manager.QueryVirtualDiskUuid("[vmfs1] web/c.vmdk", None)
    wait(manager.ExtendVirtualDisk_Task("[nfs1] d.vmdk", None, 4096, False))
    assert disk.capacity_bytes == 4 * MIB
    wait(manager.MoveVirtualDisk_Task("[nfs1] d.vmdk", None, "[nfs2] e.vmdk", None))
    assert not list(root.glob("d*"))
    moved = client.running.lab.disks.find(client.running.lab.datastore("nfs2").root / "e.vmdk")
    assert moved is disk
    with disk.reader_at() as reader:
        assert disk.first_difference(reader) is None
    wait(manager.DeleteVirtualDisk_Task("[nfs2] e.vmdk", None))
    with pytest.raises(vim.fault.FileNotFound):
        wait(manager.DeleteVirtualDisk_Task("[nfs2] e.vmdk", None))


# /folder ------------------------------------------------------------------------------------


def test_ranges_are_honoured_without_being_announced(client: Client) -> None:
    vm = client.vm()
    data = os.urandom(MIB)
    client.disk().guest_write(0, data)
    client.snapshot(vm)
    path = "web/web-flat.vmdk"
    status, whole, headers = client.folder("GET", path, "vmfs1")
    assert (status, len(whole)) == (200, 8 * MIB)
    assert headers["Accept-Ranges"] is None
    for asked, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=8388000-", 8388000, 8 * MIB),
        ("bytes=8388000-99999999", 8388000, 8 * MIB),
        ("bytes=-512", 8 * MIB - 512, 8 * MIB),
    ):
        status, part, headers = client.folder("GET", path, "vmfs1", headers={"Range": asked})
        assert status == 206
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{8 * MIB}"
        assert part == whole[start:end]
    status, _, headers = client.folder("GET", path, "vmfs1", headers={"Range": "bytes=8388608-"})
    assert status == 416
    status, part, headers = client.folder("HEAD", path, "vmfs1")
    assert (status, part, headers["Content-Length"]) == (200, b"", str(8 * MIB))


def test_the_running_tip_does_not_open_and_the_link_under_a_snapshot_does(client: Client) -> None:
    vm = client.vm()
    assert client.folder("GET", "web/web-flat.vmdk", "vmfs1")[0] == 500
    client.snapshot(vm)
    assert client.folder("GET", "web/web-flat.vmdk", "vmfs1")[0] == 200
    assert client.folder("GET", "web/web-000001-sesparse.vmdk", "vmfs1")[0] == 500
    wait(vm.PowerOffVM_Task())
    assert client.folder("GET", "web/web-000001-sesparse.vmdk", "vmfs1")[0] == 200


def test_small_files_of_a_running_machine_are_read(client: Client) -> None:
    status, data, _ = client.folder("GET", "web/web.vmx", "vmfs1")
    assert status == 200
    assert b'displayName = "web"' in data
    assert client.folder("GET", "web/web.nvram", "vmfs1")[1][:4] == b"MRVN"


def test_files_are_written_whole_or_not_at_all(client: Client) -> None:
    assert client.folder("PUT", "web/new.nvram", "vmfs1", body=b"one")[0] == 201
    assert client.folder("PUT", "web/new.nvram", "vmfs1", body=b"two")[0] == 200
    root = client.running.lab.datastore("vmfs1").root
    assert (root / "web/new.nvram").read_bytes() == b"two"
    assert client.folder("PUT", "no/folder", "vmfs1", body=b"x")[0] == 404
    assert client.folder("PUT", "web/web.vmx", "vmfs1", body=b"x")[0] == 500
    client.running.lab.misbehaviour.arm("cut_stream", parameters={"bytes": "10"})
    with pytest.raises((http.client.HTTPException, OSError)):
        client.folder("PUT", "web/half", "vmfs1", body=bytes(100))
    assert not list((root / "web").glob("*half*"))
    assert client.folder("DELETE", "web/new.nvram", "vmfs1")[0] == 204
    assert client.folder("GET", "web/new.nvram", "vmfs1")[0] == 404


def test_wrong_places_are_not_found(client: Client) -> None:
    assert client.folder("GET", "web/nothing", "vmfs1")[0] == 404
    assert client.folder("GET", "web/web.vmx", "nfs9")[0] == 404
    assert client.request("GET", "/folder/web/web.vmx?dcPath=dc9&dsName=vmfs1")[0] == 404
    assert client.request("GET", "/folder/web/web.vmx?dsName=vmfs1")[0] == 200
    assert client.request("GET", "/folder/..%2f..%2flab.json?dsName=vmfs1")[0] in (404, 500)


def test_a_ticket_is_good_for_one_request_and_basic_authentication_works(client: Client) -> None:
    path = "/folder/web/web.vmx?dcPath=dc1&dsName=vmfs1"
    assert client.request("GET", path, headers={"Cookie": ""})[0] == 401
    spec = vim.SessionManager.HttpServiceRequestSpec(
        method="httpGet", url=f"https://{client.running.address}{path}"
    )
    ticket = client.content.sessionManager.AcquireGenericServiceTicket(spec)
    cookie = {"Cookie": f"vmware_cgi_ticket={ticket.id}"}
    assert client.request("GET", path, headers=cookie)[0] == 200
    assert client.request("GET", path, headers=cookie)[0] == 401
    given = base64.b64encode(f"{client.running.user}:{client.running.password}".encode()).decode()
    basic = {"Cookie": "", "Authorization": f"Basic {given}"}
    assert client.request("GET", path, headers=basic)[0] == 200
    wrong = {"Cookie": "", "Authorization": "Basic " + base64.b64encode(b"root:x").decode()}
    assert client.request("GET", path, headers=wrong)[0] == 401


def test_an_ended_session_reads_nothing(client: Client) -> None:
    with client.running.lab.lock:
        client.running.lab.sessions.end_all()
    assert client.folder("GET", "web/web.vmx", "vmfs1")[0] == 401


def test_downloads_are_counted_by_host_and_datastore(client: Client) -> None:
    client.snapshot(client.vm())
    client.folder("GET", "web/web-flat.vmdk", "vmfs1", headers={"Range": "bytes=0-65535"})
    counters = client.running.lab.calls.counted()["datastores"]["vmfs1"]
    assert (counters["opened"], counters["open_now"], counters["bytes_read"]) == (1, 0, 65536)
    stream = client.running.lab.calls.events(event="stream_close")[-1]
    assert (stream["transport"], stream["vm"], stream["bytes"]) == ("folder", "web", 65536)


def test_a_single_host_serves_its_files_too(tmp_path: Path) -> None:
    with lab_with(tmp_path, one_machine(), mode="host") as client:
        query = "dcPath=ha-datacenter&dsName=vmfs1"
        assert client.request("GET", f"/folder/web/web.vmx?{query}")[0] == 200
        assert names(search(client, "[vmfs1] web", matchPattern=["*.vmx"])) == ["web.vmx"]


def test_a_link_that_is_being_downloaded_is_not_merged(tmp_path: Path) -> None:
    disks = (DiskPlan(size_bytes=64 * MIB),)
    with lab_with(tmp_path, one_machine(disks=disks)) as client:
        vm = client.vm()
        snapshot = client.snapshot(vm)
        connection = http.client.HTTPSConnection(
            client.running.address, context=client.context, timeout=10
        )
        connection.request(
            "GET",
            "/folder/web/web-flat.vmdk?dcPath=dc1&dsName=vmfs1",
            headers={"Cookie": client.instance._stub.cookie},
        )
        answer = connection.getresponse()
        answer.read(4096)
        wait(snapshot.RemoveSnapshot_Task(removeChildren=False))
        assert vm.runtime.consolidationNeeded
        with pytest.raises(vim.fault.FileLocked):
            wait(vm.ConsolidateVMDisks_Task())
        while answer.read(MIB):
            pass
        connection.close()
        assert not client.running.lab.file_locks.held()
        wait(vm.ConsolidateVMDisks_Task())
        assert not vm.runtime.consolidationNeeded

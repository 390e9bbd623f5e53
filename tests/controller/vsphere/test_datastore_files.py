from __future__ import annotations

import pytest

from holdfast_common.errors import NotFound, VsphereFailed
from holdfast_controller.vsphere import datastore_files, datastore_folders, inventory
from holdfast_controller.vsphere.datastore_files import DatastorePlace
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_lab.server import RunningLab
from support.vms import vm_named
from support.vsphere_sessions import session_at


def nfs1(session: VsphereSession) -> DatastorePlace:
    around = inventory.read_surroundings(session)
    (moref,) = [store.moref for store in around.names.by_moref.values() if store.name == "nfs1"]
    return datastore_files.place_of(around, moref)


def test_rule_26_the_vmx_and_the_nvram_are_read_whole(lab: RunningLab) -> None:
    with session_at(lab) as session:
        files = datastore_files.read_vm_files(session, vm_named(session, "web"))
    assert [file.kind for file in files] == ["vmx", "nvram"]
    machine = lab.lab.machine("web")
    assert files[0].data == machine.vmx.read_bytes()
    assert files[1].data == machine.nvram.read_bytes()


def test_a_file_is_read_on_a_single_host_too(host_lab: RunningLab) -> None:
    with session_at(host_lab) as session:
        files = datastore_files.read_vm_files(session, vm_named(session, "web"))
    assert len(files) == 2


def test_a_login_that_ended_is_renewed_for_a_file_too(lab: RunningLab) -> None:
    with session_at(lab) as session:
        place = nfs1(session)
        with lab.lab.lock:
            lab.lab.sessions.end_all()
        assert datastore_files.download(session, place, "web/web.vmx")


def test_a_missing_file_is_not_found_and_an_upload_replaces(lab: RunningLab) -> None:
    with session_at(lab) as session:
        place = nfs1(session)
        with pytest.raises(NotFound):
            datastore_files.download(session, place, "web/other file.txt")
        for text in (b"one", b"two, longer"):
            datastore_files.upload(session, place, "web/other file.txt", text)
            assert datastore_files.download(session, place, "web/other file.txt") == text


def test_a_file_that_is_cut_short_is_read_again(lab: RunningLab) -> None:
    with session_at(lab) as session:
        place = nfs1(session)
        whole = datastore_files.download(session, place, "web/web.vmx")
        lab.lab.misbehaviour.arm("cut_stream", parameters={"bytes": "10"})
        assert datastore_files.download(session, place, "web/web.vmx") == whole


def test_folders_are_made_looked_into_and_deleted(lab: RunningLab) -> None:
    with session_at(lab) as session:
        place = nfs1(session)
        datastore_folders.make_folder(session, place, "ours")
        with pytest.raises(VsphereFailed) as caught:
            datastore_folders.make_folder(session, place, "ours")
        assert datastore_folders.already_exists(caught.value)
        assert datastore_folders.list_folder(session, place, "ours") == []
        datastore_files.upload(session, place, "ours/a.txt", b"abc")
        (found,) = datastore_folders.list_folder(session, place, "ours") or []
        assert (found.name, found.length, found.is_folder) == ("a.txt", 3, False)
        assert datastore_folders.exists(session, place, "ours")
        for _ in range(2):
            datastore_folders.delete_path(session, place, "ours")
            assert not datastore_folders.exists(session, place, "ours")
        assert datastore_folders.list_folder(session, place, "ours") is None


@pytest.mark.parametrize("path", ["", "/", " ", "a/../b"])
def test_a_whole_datastore_is_never_deleted(lab: RunningLab, path: str) -> None:
    with session_at(lab) as session, pytest.raises(VsphereFailed):
        datastore_folders.delete_path(session, nfs1(session), path)


@pytest.mark.parametrize("kind", ["lost_reply", "lost_request", "unavailable"])
def test_deleting_survives_a_lost_call(lab: RunningLab, kind: str) -> None:
    with session_at(lab) as session:
        place = nfs1(session)
        datastore_folders.make_folder(session, place, "ours")
        lab.lab.misbehaviour.arm(kind, match={"method": "DeleteDatastoreFile_Task"})
        datastore_folders.delete_path(session, place, "ours")
        assert not datastore_folders.exists(session, place, "ours")

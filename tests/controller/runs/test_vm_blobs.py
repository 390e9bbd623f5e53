from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import CapabilityAbsent, SourceGone
from holdfast_controller.runs import vm_blobs
from holdfast_controller.runs.vm_blobs import read_blobs
from holdfast_controller.vsphere import datastore_files, inventory
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_lab.inventory_plan import InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.vms import vm_named
from support.vsphere_sessions import session_at


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    plan = InventoryPlan(machines=(MachinePlan(name="web", datastore="nfs1", disks=()),))
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


@pytest.fixture
def session(lab: RunningLab) -> Iterator[VsphereSession]:
    with session_at(lab, patience_seconds=1) as made:
        yield made


def test_rule_26_the_vmx_and_the_nvram_go_with_the_point(
    lab: RunningLab, session: VsphereSession
) -> None:
    found = read_blobs(session, vm_named(session, "web"))
    machine = lab.lab.machine("web")
    assert [(blob.kind, blob.data) for blob in found.blobs] == [
        ("vmx", machine.vmx.read_bytes()),
        ("nvram", machine.nvram.read_bytes()),
    ]
    assert found.warnings == ()
    assert "after the snapshot" in found.blobs[0].note


def test_a_vm_that_never_ran_has_no_nvram_and_that_is_no_warning(
    lab: RunningLab, session: VsphereSession
) -> None:
    lab.lab.machine("web").nvram.unlink()
    found = read_blobs(session, vm_named(session, "web"))
    assert [blob.kind for blob in found.blobs] == ["vmx"]
    assert found.warnings == ()


def test_an_nvram_that_only_the_vmx_names_is_read_too(
    lab: RunningLab, session: VsphereSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastore_files, "_KINDS", {"config": "vmx"})
    found = read_blobs(session, vm_named(session, "web"))
    assert [blob.kind for blob in found.blobs] == ["vmx", "nvram"]
    assert found.blobs[1].data == lab.lab.machine("web").nvram.read_bytes()


@pytest.mark.parametrize("name", ["../db/db.nvram", "/vmfs/volumes/x/y.nvram", ".."])
def test_an_nvram_outside_of_the_vms_folder_is_never_read(
    session: VsphereSession, name: str
) -> None:
    vm = vm_named(session, "web")
    around = inventory.read_surroundings(session)
    vmx = datastore_files.vm_file_names(session, vm, around)[0]
    found = list(vm_blobs._nvram_beside(session, vmx, f'nvram = "{name}"\n'.encode(), around))
    (warning,) = found
    assert "outside of its folder" in str(warning)


def test_what_cannot_be_read_is_a_warning_and_the_rest_is_kept(
    lab: RunningLab, session: VsphereSession
) -> None:
    vm = vm_named(session, "web")
    nvram = lab.lab.machine("web").nvram
    with lab.lab.lock:
        held = lab.lab.file_locks.take([nvram], holder="a test", kind="test", exclusive=True)
    with held:
        found = read_blobs(session, vm)
    assert [blob.kind for blob in found.blobs] == ["vmx"]
    (warning,) = found.warnings
    assert warning.code == "vm_file"
    assert "the VM's nvram is not in the backup" in warning.message
    assert "in use by a test" in warning.message


def test_a_missing_right_is_a_warning_that_says_which(
    session: VsphereSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = vm_named(session, "web")
    monkeypatch.setattr(session, "cookie", lambda: 'vmware_soap_session="of nobody"')
    with pytest.raises(CapabilityAbsent, match="not accepted"):
        datastore_files.read_vm_files(session, vm)
    found = read_blobs(session, vm)
    assert found.blobs == ()
    assert ["not accepted" in warning.message for warning in found.warnings] == [True, True]


def test_files_too_large_for_the_jobs_message_are_left_out_with_a_warning(
    lab: RunningLab, session: VsphereSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vm_blobs, "BLOBS_BYTES_MAX", 5000)
    found = read_blobs(session, vm_named(session, "web"))
    assert [blob.kind for blob in found.blobs] == ["vmx"]
    (warning,) = found.warnings
    assert "too large" in warning.message


def test_a_vm_that_is_gone_is_no_warning_but_an_error(
    lab: RunningLab, session: VsphereSession
) -> None:
    vm = vm_named(session, "web")
    with lab.lab.lock:
        lab.lab.objects.pop(vm.moref)
    with pytest.raises(SourceGone):
        read_blobs(session, vm)

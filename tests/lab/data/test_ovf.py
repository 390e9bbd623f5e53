"""OVF descriptors: written and read back, and used for exports and imports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim

from holdfast_lab.ovf_document import (
    SCSI,
    OvfController,
    OvfDisk,
    OvfError,
    OvfMachine,
    from_text,
    to_text,
)
from holdfast_lab.transfer_lease import TransferLease
from support.lab_vsphere import MIB, Client, lab_with, one_machine, wait

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20
)


@st.composite
def machines(draw: st.DrawFn) -> OvfMachine:
    disks = tuple(
        OvfDisk(
            controller="1000",
            unit=unit,
            capacity_bytes=draw(st.integers(1, 1 << 40)) * 512,
            file_name=draw(st.sampled_from(("", f"disk-{unit}.vmdk"))),
        )
        for unit in range(draw(st.integers(0, 4)))
    )
    return OvfMachine(
        name=draw(NAMES),
        guest_id="debian12_64Guest",
        hardware_version="vmx-19",
        firmware=draw(st.sampled_from(("bios", "efi"))),
        cpu_count=draw(st.integers(1, 64)),
        memory_mib=draw(st.integers(4, 1 << 20)),
        controllers=(
            OvfController(identifier="1000", resource_type=SCSI, subtype="lsilogic", bus=0),
        ),
        disks=disks,
        networks=tuple(draw(st.lists(NAMES, max_size=3))),
        nvram_file=draw(st.sampled_from(("", "x.nvram"))),
    )


@given(machines())
def test_a_descriptor_is_read_as_it_was_written(machine: OvfMachine) -> None:
    assert from_text(to_text(machine)) == machine


@pytest.mark.parametrize("text", ["", "<a/>", "no xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'])
def test_what_is_no_descriptor_is_refused(text: str) -> None:
    with pytest.raises(OvfError):
        from_text(text)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with lab_with(tmp_path, one_machine(power="off", firmware="efi")) as found:
        yield found


def test_a_machine_described_by_the_lab_can_be_imported_again(client: Client) -> None:
    vm = client.vm()
    key = f"/{vm._moId}"
    files = [
        vim.OvfManager.OvfFile(
            deviceId=f"{key}/ParaVirtualSCSIController0:0", path="web-0.vmdk", size=10
        ),
        vim.OvfManager.OvfFile(deviceId=f"{key}/nvram", path="web.nvram", size=10),
    ]
    manager = client.content.ovfManager
    described = manager.CreateDescriptor(vm, vim.OvfManager.CreateDescriptorParams(ovfFiles=files))
    found = from_text(described.ovfDescriptor)
    assert (found.name, found.firmware, found.disks[0].capacity_bytes) == ("web", "efi", 8 * MIB)
    pool = client.entity(vim.ResourcePool, "Resources")
    asked = vim.OvfManager.CreateImportSpecParams(
        entityName="again", locale="", deploymentOption="", diskProvisioning="thin"
    )
    answer = manager.CreateImportSpec(
        described.ovfDescriptor, pool, client.entity(vim.Datastore, "nfs1"), asked
    )
    assert [(each.deviceId, each.path, each.create) for each in answer.fileItem] == [
        ("/again/ParaVirtualSCSIController0:0", "web-0.vmdk", False),
        ("/again/nvram", "web.nvram", True),
    ]
    lease: Any = pool.ImportVApp(answer.importSpec)
    assert client.running.lab.get(lease, TransferLease).prepared.wait(10)
    assert [each.importKey for each in lease.info.deviceUrl] == [
        each.deviceId for each in answer.fileItem
    ]
    lease.HttpNfcLeaseComplete()
    again = client.vm("again")
    assert again.config.firmware == "efi"
    wait(again.PowerOnVM_Task())
    broken = manager.CreateImportSpec("<a/>", pool, client.entity(vim.Datastore, "nfs1"), asked)
    assert isinstance(broken.error[0], vim.fault.OvfInvalidPackage)

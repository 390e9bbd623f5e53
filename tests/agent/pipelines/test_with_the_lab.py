"""Pipelines against a running lab: what its guests wrote is backed up, restored and read back."""

from __future__ import annotations

import hashlib
import random
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_agent.pipelines.verify_disks import verify_disks
from holdfast_common.identity import DatastoreId, PointId
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import (
    ChainFile,
    DirectTicket,
    DiskTicket,
    FileFormat,
    FileTicket,
    HotAddTicket,
    NfcTicket,
)
from holdfast_common.units import MIB
from holdfast_lab.inventory_plan import DiskPlan
from holdfast_lab.transfer_lease import TransferLease
from support.agent_configurations import agent_configuration
from support.backup_jobs import Site, make_site, point_of
from support.lab_vsphere import (
    Client,
    Spec,
    attach,
    disks_of,
    lab_with,
    new_disk,
    one_machine,
    reconfigure,
)
from support.local_job_context import LocalJobContext

CAPACITY = 8 * MIB
KEY = 2000


class LabSite:
    """A lab with a VM and a proxy VM, and a repository beside it."""

    def __init__(self, client: Client, site: Site) -> None:
        self.client = client
        self.site = site
        site.disks[KEY] = CAPACITY

    def guest_writes(self, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(12):
            offset = chance.randrange(CAPACITY // 512 - 256) * 512
            self.client.disk().guest_write(offset, chance.randbytes(chance.randint(1, 256) * 512))
        self.client.disk().guest_zero(2 * MIB, 65536)

    def truth(self, at: int) -> bytes:
        path = self.site.root / f"truth-{at}"
        self.client.disk().truth(path, at)
        return path.read_bytes()

    def context(self) -> LocalJobContext:
        lab = self.client.running.lab
        configuration = agent_configuration(
            datastores={"nfs1": lab.state / "datastores" / "nfs1"},
            restore_folders=(self.site.root / "restores",),
            device_folder=lab.state / "devices" / "proxy",
        )
        return LocalJobContext(repository=self.site.repository, configuration=configuration)

    def back_up(self, ticket: DiskTicket) -> JobResult:
        disk = self.site.disk_to_back_up(KEY, ticket=ticket)
        work = self.site.backup_work([disk])
        return back_up_disks(self.site.spec(work), self.context())

    def restore_and_read_back(self, point: PointId, to: DiskTicket, back: DiskTicket) -> JobResult:
        restore_disks(self.site.spec(self.site.restore_work(point, {KEY: to})), self.context())
        work = self.site.verify_work(point, {KEY: back})
        return verify_disks(self.site.spec(work), self.context())

    def as_file(self, point: PointId) -> bytes:
        ticket = FileTicket(
            path=str(self.site.root / "restores" / f"{point}.vmdk"), format=FileFormat.FLAT
        )
        assert self.restore_and_read_back(point, ticket, ticket).outcome is Outcome.DONE
        return (self.site.root / "restores" / f"{point}-flat.vmdk").read_bytes()

    def nfc(self, url: str) -> NfcTicket:
        running = self.client.running
        pem = (running.state / "certificate.pem").read_text()
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
        return NfcTicket(
            url=url.replace("https://*", f"https://{running.address}"), certificate_sha256=digest
        )

    def ready(self, lease: Any) -> Any:
        assert self.client.running.lab.get(lease, TransferLease).prepared.wait(10)
        return lease


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabSite]:
    machines = (
        one_machine(datastore="nfs1", disks=(DiskPlan(size_bytes=CAPACITY),)),
        one_machine("proxy", disks=()),
    )
    with lab_with(tmp_path / "lab", *machines) as client:
        yield LabSite(client, make_site(tmp_path / "site"))


def chain_of(backing: Any) -> DirectTicket:
    """The files of a disk, base first, as a controller tells them."""
    paths: list[str] = []
    while backing is not None:
        paths.append(backing.fileName.partition("] ")[2])
        backing = backing.parent
    return DirectTicket(
        chain=tuple(
            ChainFile(datastore_id=DatastoreId("nfs1"), path=path) for path in reversed(paths)
        )
    )


def frozen_backing(snapshot: Any) -> Any:
    return disks_of(snapshot.config)[0].backing


def test_a_chain_of_redo_logs_is_read_directly_as_our_snapshot_froze_it(lab: LabSite) -> None:
    vm = lab.client.vm()
    moments = {}
    for number in range(3):  # the user's own snapshots, and ours on top
        lab.guest_writes(number)
        snapshot = lab.client.snapshot(vm, name=f"s{number}")
        moments[lab.client.disk().sequence] = frozen_backing(snapshot)
    lab.guest_writes(99)
    for moment, backing in moments.items():
        result = lab.back_up(chain_of(backing))
        assert lab.as_file(point_of(result)) == lab.truth(moment)


def test_a_transfer_lease_of_the_lab_is_read_and_another_one_written(lab: LabSite) -> None:
    lab.guest_writes(1)
    snapshot = lab.client.snapshot(lab.client.vm())
    moment = lab.client.disk().sequence
    lab.guest_writes(2)
    lease = lab.ready(snapshot.ExportSnapshot())
    result = lab.back_up(lab.nfc(lease.info.deviceUrl[0].url))
    lease.HttpNfcLeaseComplete()
    assert lab.as_file(point_of(result)) == lab.truth(moment)

    pool = lab.client.entity(vim.ResourcePool, "Resources")
    folder = lab.client.entity(vim.Datacenter, "dc1").vmFolder
    lease = lab.ready(pool.ImportVApp(import_spec(), folder))
    work = lab.site.restore_work(point_of(result), {KEY: lab.nfc(lease.info.deviceUrl[0].url)})
    restore_disks(lab.site.spec(work), lab.context())
    lease.HttpNfcLeaseComplete()

    lease = lab.ready(lab.client.vm("restored").ExportVm())
    back = lab.site.verify_work(point_of(result), {KEY: lab.nfc(lease.info.deviceUrl[0].url)})
    assert verify_disks(lab.site.spec(back), lab.context()).outcome is Outcome.DONE
    lease.HttpNfcLeaseComplete()


def import_spec() -> Any:
    config = vim.vm.ConfigSpec(
        name="restored",
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
            new_disk(CAPACITY, key=-1, controller=-100, unit=0),
        ],
    )
    return vim.vm.VmImportSpec(configSpec=config)


def test_a_frozen_disk_attached_to_the_proxy_is_read_and_a_new_one_written(lab: LabSite) -> None:
    lab.guest_writes(1)
    snapshot = lab.client.snapshot(lab.client.vm())
    moment = lab.client.disk().sequence
    lab.guest_writes(2)
    backing = frozen_backing(snapshot)
    proxy = lab.client.vm("proxy")
    reconfigure(
        proxy,
        attach(backing.fileName, mode="independent_nonpersistent", unit=3),
        new_disk(CAPACITY, unit=4),
    )
    source = HotAddTicket(bus_number=0, unit_number=3, disk_uuid=backing.uuid)
    result = lab.back_up(source)
    assert lab.as_file(point_of(result)) == lab.truth(moment)
    made = next(disk for disk in disks_of(proxy.config) if disk.unitNumber == 4)
    target = HotAddTicket(bus_number=0, unit_number=4, disk_uuid=made.backing.uuid)
    back = lab.restore_and_read_back(point_of(result), target, target)
    assert back.outcome is Outcome.DONE

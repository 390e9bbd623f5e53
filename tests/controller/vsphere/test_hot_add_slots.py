from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_common.errors import Refused, VsphereFailed
from holdfast_common.identity import DatastoreId
from holdfast_controller.facts import ChainLink, DiskFacts
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import inventory
from holdfast_controller.vsphere.hot_add import hot_added
from holdfast_controller.vsphere.hot_add_slots import Attachment, Slot, check_allowed, free_slot
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_lab.server import RunningLab
from support.vms import vm_named
from support.vsphere_sessions import CountingGate, job_ledger, session_at

Device = vim.vm.device
Backing = Device.VirtualDisk.FlatVer2BackingInfo
SLOT = Slot(controller_key=1000, bus_number=0, unit_number=3)


def link(path: str = "web/web.vmdk", *, datastore: str = "nfs1") -> ChainLink:
    return ChainLink(
        datastore_id=DatastoreId(f"ds:///{datastore}/"),
        datastore_moref=f"datastore-{datastore}",
        datastore_name=datastore,
        path=path,
    )


def disk(
    file: str = "[nfs1] web/web.vmdk",
    *,
    controller: int = 1000,
    unit: int = 3,
    datastore: str | None = "datastore-nfs1",
) -> Any:
    backing = Backing(fileName=file)
    if datastore is not None:
        backing.datastore = vim.Datastore(datastore, None)
    return Device.VirtualDisk(key=2003, controllerKey=controller, unitNumber=unit, backing=backing)


def controller(bus: int, *, shared: str = "noSharing", kind: Any = None) -> Any:
    made = (kind or Device.ParaVirtualSCSIController)(key=1000 + bus, busNumber=bus)
    made.sharedBus = shared
    made.scsiCtlrUnitNumber = 7
    return made


def full(bus: int) -> list[Any]:
    return [disk(controller=1000 + bus, unit=unit) for unit in range(16) if unit != 7]


def test_a_device_is_ours_only_when_controller_unit_and_file_match() -> None:
    wanted = Attachment.at(SLOT, link())
    assert wanted.is_device(disk())
    assert not wanted.is_device(disk(controller=1001))
    assert not wanted.is_device(disk(unit=4))
    assert not wanted.is_device(disk("[nfs1] web/web_1.vmdk"))
    assert not wanted.is_device(disk(datastore="datastore-other"))
    assert not wanted.is_device(Device.VirtualCdrom(key=1, controllerKey=1000, unitNumber=3))
    raw = Device.VirtualDisk(key=1, controllerKey=1000, unitNumber=3)
    assert not wanted.is_device(raw), "a disk without a file"


def test_a_datastore_that_was_renamed_is_still_the_same() -> None:
    wanted = Attachment.at(SLOT, link())
    assert wanted.is_device(disk("[new name] web/web.vmdk"))
    assert not wanted.is_device(disk("[new name] web/web.vmdk", datastore=None))
    assert wanted.is_device(disk(datastore=None))


def test_an_attachment_survives_the_ledger() -> None:
    wanted = Attachment.at(SLOT, link("a folder/x [1].vmdk"))
    assert Attachment.of(wanted.facts()) == wanted
    for missing in wanted.facts():
        facts = {name: text for name, text in wanted.facts().items() if name != missing}
        with pytest.raises(VsphereFailed, match="does not say which disk"):
            Attachment.of(facts)
    with pytest.raises(VsphereFailed):
        Attachment.of({**wanted.facts(), "unit_number": "three"})


def test_the_controllers_own_unit_is_never_taken() -> None:
    devices = [controller(0), *[disk(unit=unit) for unit in range(7)]]
    assert free_slot(devices, proxy="p").unit_number == 8


def test_the_next_controller_is_used_when_one_is_full_and_shared_ones_never() -> None:
    found = free_slot([controller(2), controller(0), *full(0)], proxy="p")
    assert found == Slot(controller_key=1002, bus_number=2, unit_number=0)
    shared = [controller(0), *full(0), controller(1, shared="physicalSharing")]
    with pytest.raises(Refused, match="no free SCSI unit"):
        free_slot(shared, proxy="p")


def test_what_is_no_disk_takes_its_unit_too() -> None:
    device = Device.VirtualSCSIPassthrough(key=9, controllerKey=1000, unitNumber=0)
    assert free_slot([controller(0), device], proxy="p").unit_number == 1


def test_a_proxy_without_a_scsi_controller_is_refused() -> None:
    ide = Device.VirtualIDEController(key=200, busNumber=0)
    with pytest.raises(Refused, match="no SCSI controller"):
        free_slot([ide], proxy="p")


# -- what is refused before anything is touched ----------------------------------------------


@pytest.fixture
def gate() -> CountingGate:
    return CountingGate()


@pytest.fixture
def session(lab: RunningLab, gate: CountingGate) -> Iterator[VsphereSession]:
    with session_at(lab, gate=gate) as made:
        yield made


def refused(session: VsphereSession, change: dict[str, Any], *, writable: bool = False) -> str:
    around = inventory.read_surroundings(session)
    proxy, db = vm_named(session, "proxy"), vm_named(session, "db")
    changed: list[DiskFacts] = [replace(db.disks[0], **change)]
    with pytest.raises(Refused) as caught:
        check_allowed(proxy, changed, around, owner=db, writable=writable)
    return caught.value.message


def test_rule_21_what_cannot_be_hot_added_is_refused_by_name(session: VsphereSession) -> None:
    assert "IDE disks cannot be hot-added" in refused(session, {"adapter": "ide"})
    assert "no file to attach" in refused(session, {"chain": ()})
    assert "raw device mappings" in refused(session, {"raw_mapping": "virtual"})
    assert "no uuid" in refused(session, {"backing_uuid": ""})
    chained = refused(session, {}, writable=True)
    assert "only a disk without snapshots can be written" in chained


def test_rule_21_a_datastore_that_the_proxys_host_does_not_see_is_named(
    session: VsphereSession,
) -> None:
    elsewhere = link(datastore="far")
    assert "does not see datastore far" in refused(session, {"chain": (elsewhere,)})


def test_rule_21_a_proxy_in_another_datacenter_one_that_is_off_and_the_vm_itself(
    session: VsphereSession,
) -> None:
    around = inventory.read_surroundings(session)
    proxy, db = vm_named(session, "proxy"), vm_named(session, "db")
    for wrong, owner, text in (
        (replace(proxy, datacenter_moref="datacenter-9"), db, "another datacenter"),
        (replace(proxy, power_state="poweredOff"), db, "poweredOff"),
        (replace(proxy, connection_state="disconnected"), db, "disconnected"),
        (proxy, replace(db, instance_uuid=proxy.instance_uuid), "never attached to itself"),
    ):
        with pytest.raises(Refused, match=text):
            check_allowed(wrong, db.disks, around, owner=owner, writable=False)


def test_rule_21_nothing_is_called_when_it_is_refused(
    session: VsphereSession, gate: CountingGate, tmp_path: Path
) -> None:
    ledger: JobLedger = job_ledger(tmp_path)
    proxy, db = vm_named(session, "proxy"), vm_named(session, "db")
    on_ide = [replace(each, adapter="ide") for each in db.disks]
    with (
        pytest.raises(Refused, match="IDE"),
        hot_added(session, ledger, proxy_instance_uuid=proxy.instance_uuid, disks=on_ide, owner=db),
    ):
        raise AssertionError("the block must not run")
    assert gate.count("ReconfigVM_Task") == 0
    assert not ledger.open_entries()

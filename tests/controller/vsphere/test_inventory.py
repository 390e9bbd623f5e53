from __future__ import annotations

import msgspec
import pytest

from holdfast_controller.facts import VmFacts
from holdfast_controller.vsphere import inventory, properties
from holdfast_controller.vsphere.pinning import fingerprint
from holdfast_lab.server import RunningLab
from support.vms import vm_named
from support.vsphere_sessions import CountingGate, session_at


def test_the_whole_inventory_takes_one_read(lab: RunningLab) -> None:
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        found = inventory.read_inventory(session)
        assert gate.count("RetrievePropertiesEx") == 1
    assert [vm.name for vm in found.vms] == ["db", "proxy", "web"]
    assert found.server.is_vcenter
    assert {store.name: store.kind for store in found.datastores} == {
        "nfs1": "NFS",
        "nfs2": "NFS",
        "vmfs1": "VMFS",
    }
    assert {host.certificate_sha256 for host in found.hosts} == {
        fingerprint(lab.certificate.sha256)
    }


def test_pages_are_put_together(lab: RunningLab, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        whole = inventory.read_inventory(session)
        monkeypatch.setattr(properties, "PAGE_OBJECTS", 3)
        paged = inventory.read_inventory(session)
    assert gate.count("ContinueRetrievePropertiesEx") >= 3
    assert paged.vms == whole.vms
    assert paged.places == whole.places


def test_rule_27_disks_are_keyed_by_device_key_and_uuid_and_their_files_by_datastore(
    lab: RunningLab,
) -> None:
    with session_at(lab) as session:
        found = vm_named(session, "db")
    assert [disk.device_key for disk in found.disks] == [2000, 2001]
    assert len({disk.backing_uuid for disk in found.disks}) == 2
    stores = {disk.tip.datastore_name for disk in found.disks if disk.tip}
    assert stores == {"nfs1", "vmfs1"}
    urls = {store.url for store in lab.lab.datastores()}
    for disk in found.disks:
        assert len(disk.chain) == 2
        assert all(link.datastore_id in urls for link in disk.chain)
        assert disk.chain[0].path.startswith("db/")


def test_a_single_host_has_an_inventory_and_an_identity_too(host_lab: RunningLab) -> None:
    with session_at(host_lab) as session:
        found = inventory.read_inventory(session)
        assert inventory.read_server(session) == found.server
    assert not found.server.is_vcenter
    assert found.server.instance_uuid
    assert [vm.name for vm in found.vms] == ["db", "proxy", "web"]
    assert all(vm.datacenter_moref for vm in found.vms)


def test_a_vm_is_found_by_identity(lab: RunningLab) -> None:
    with session_at(lab) as session:
        web = vm_named(session, "web")
        assert inventory.find_vm(session, instance_uuid=web.instance_uuid) == web
        assert inventory.read_vm(session, web.moref) == web


def test_facts_survive_json(lab: RunningLab) -> None:
    with session_at(lab) as session:
        found = vm_named(session, "db")
    assert msgspec.json.decode(msgspec.json.encode(found), type=VmFacts) == found

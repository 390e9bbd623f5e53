from __future__ import annotations

import msgspec
import pytest

from holdfast_common.errors import SourceGone, VsphereFailed
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


@pytest.mark.parametrize("mode", ["lab", "host_lab"])
def test_one_vm_with_its_own_surroundings_is_what_the_whole_inventory_says(
    request: pytest.FixtureRequest, mode: str
) -> None:
    lab: RunningLab = request.getfixturevalue(mode)
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        whole = inventory.read_inventory(session)
        around = inventory.read_surroundings(session)
        del gate.calls[:]
        for vm in whole.vms:
            found, own = inventory.read_vm_around(session, vm.moref)
            assert found == vm == inventory.read_vm(session, vm.moref, around)
            assert set(own.names.by_moref) <= set(around.names.by_moref)
            for moref, store in own.names.by_moref.items():
                assert store == around.names.by_moref[moref]
            assert own.hosts == {vm.host_moref: around.hosts[vm.host_moref]}
        assert gate.count("RetrievePropertiesEx") == 3 * len(whole.vms)
        assert gate.count("CreateContainerView") == 0


def test_a_vm_is_looked_for_where_it_was_last_and_then_everywhere(lab: RunningLab) -> None:
    gate = CountingGate()
    with session_at(lab, gate=gate) as session:
        web, db = vm_named(session, "web"), vm_named(session, "db")
        del gate.calls[:]
        assert inventory.find_moref(session, instance_uuid=web.instance_uuid) == web.moref
        assert gate.count("CreateContainerView") == 0
        # another VM has its id now
        session.seen_vms.add(web.instance_uuid, db.moref)
        assert inventory.find_moref(session, instance_uuid=web.instance_uuid) == web.moref
        assert gate.count("CreateContainerView") == 1
        assert inventory.find_moref(session, instance_uuid=web.instance_uuid) == web.moref
        assert gate.count("CreateContainerView") == 1
        lab.control.call("vm-remove", vm="web")
        with pytest.raises(SourceGone):
            inventory.find_moref(session, instance_uuid=web.instance_uuid)


def test_two_vms_with_one_identity_are_never_taken_for_each_other(lab: RunningLab) -> None:
    with session_at(lab) as session:
        web = vm_named(session, "web")
        with lab.lab.lock:
            lab.lab.machine("db").settings.instance_uuid = web.instance_uuid
        inventory.read_inventory(session)
        with pytest.raises(VsphereFailed, match="two VMs"):
            inventory.find_moref(session, instance_uuid=web.instance_uuid)


def test_facts_survive_json(lab: RunningLab) -> None:
    with session_at(lab) as session:
        found = vm_named(session, "db")
    assert msgspec.json.decode(msgspec.json.encode(found), type=VmFacts) == found

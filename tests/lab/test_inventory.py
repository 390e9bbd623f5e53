"""What a client finds: a vCenter, or a single host; VMs with files that are really there."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from pyVmomi import vim

from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.lab_soap_clients import disks_of, find, logged_in, machine, properties_of, read


def test_a_vcenter_says_who_it_is(service: Any) -> None:
    about = service.content.about
    assert (about.apiType, about.apiVersion) == ("VirtualCenter", "8.0.1.0")
    assert uuid.UUID(about.instanceUuid)


def test_hosts_tell_version_build_uuid_and_thumbprint(lab: RunningLab, service: Any) -> None:
    host = find(service, vim.HostSystem, "esx1.lab")
    found = read(
        service,
        host,
        "summary.hardware.uuid",
        "summary.config.product.version",
        "summary.config.product.build",
        "summary.config.sslThumbprint",
        "summary.runtime.connectionState",
        "config.certificate",
        "datastore",
    )
    assert uuid.UUID(found["summary.hardware.uuid"])
    assert found["summary.config.product.version"] == "8.0.1"
    assert found["summary.config.sslThumbprint"] == lab.certificate.sha1
    assert found["summary.runtime.connectionState"] == "connected"
    pem = bytes(each & 0xFF for each in found["config.certificate"]).decode()
    assert pem == lab.certificate.pem
    assert len(found["datastore"]) == 3
    lab.control.call("host-build", host="esx1.lab", build="1")
    assert read(service, host, "summary.config.product.build") == {
        "summary.config.product.build": "1"
    }


def test_datastores_tell_kind_place_and_mounts(lab: RunningLab, service: Any) -> None:
    nfs1, vmfs1 = (find(service, vim.Datastore, name) for name in ("nfs1", "vmfs1"))
    found = read(service, nfs1, "summary", "info", "host", "vm")
    assert found["summary"].type == "NFS"
    assert found["summary"].url.startswith("ds:///vmfs/volumes/")
    assert 0 < found["summary"].freeSpace < found["summary"].capacity
    assert found["info"].nas.remotePath == str(lab.state / "datastores" / "nfs1")
    assert [each.mountInfo.accessible for each in found["host"]] == [True, True]
    assert len(found["vm"]) == 2
    info = read(service, vmfs1, "info")["info"]
    assert (info.vmfs.type, info.vmfs.majorVersion) == ("VMFS", 6)


def test_a_vm_has_its_files_on_its_datastores(lab: RunningLab, service: Any) -> None:
    found = read(service, machine(service, "db"), "layoutEx", "config.files.vmPathName")
    names = {each.name: each.type for each in found["layoutEx"].file}
    assert names["[nfs1] db/db.vmx"] == "config"
    assert names["[nfs1] db/db.nvram"] == "nvram"
    assert names["[nfs1] db/db-000001.vmdk"] == "diskDescriptor"
    assert names["[nfs1] db/db-000001-delta.vmdk"] == "diskExtent"
    assert names["[vmfs1] db/db_1-000001-sesparse.vmdk"] == "diskExtent"
    for name in names:
        with lab.lab.lock:
            assert lab.lab.resolve(name)[1].is_file(), name
    assert [len(each.chain) for each in found["layoutEx"].disk] == [2, 2]


def test_the_users_snapshot_names_the_frozen_files(service: Any) -> None:
    db = machine(service, "db")
    info = read(service, db, "snapshot")["snapshot"]
    assert info.rootSnapshotList[0].name == "before upgrade"
    config = read(service, info.currentSnapshot, "config")["config"]
    frozen = [each.backing.fileName for each in disks_of(config)]
    assert frozen == ["[nfs1] db/db.vmdk", "[vmfs1] db/db_1.vmdk"]


def test_macs_and_uuids_are_each_vms_own(lab: RunningLab) -> None:
    machines = lab.control.call("vm-list")
    for name in ("instance_uuid", "bios_uuid"):
        assert len({each[name] for each in machines}) == 3
    assert len({each["network_cards"][0]["mac"] for each in machines}) == 3


@pytest.fixture(scope="module")
def single_host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    plan = InventoryPlan(
        machines=(MachinePlan(name="web", datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 20),)),)
    )
    with running_lab(tmp_path_factory.mktemp("host"), mode="host", inventory=plan) as running:
        yield running


def test_a_single_host_has_its_own_type_and_ids(single_host: RunningLab) -> None:
    with logged_in(single_host) as service:
        about = service.content.about
        assert (about.apiType, about.productLineId) == ("HostAgent", "embeddedEsx")
        assert service.content.rootFolder._moId == "ha-folder-root"
        content = service.RetrieveContent()
        view = content.viewManager.CreateContainerView(content.rootFolder, [], True)
        found = properties_of(service, view, vim.ManagedEntity, ["name", "parent"])
        ids = {each["obj"]._moId for each in found}
        assert {"ha-datacenter", "ha-host", "ha-root-pool", "ha-compute-res", "1"} <= ids
        assert not any(isinstance(each["obj"], vim.ClusterComputeResource) for each in found)
        assert single_host.user == "root"


def test_a_cluster_and_its_pool_know_each_other(service: Any) -> None:
    cluster = find(service, vim.ClusterComputeResource, "cluster1")
    found = read(service, cluster, "host", "resourcePool", "summary.numHosts", "datastore")
    assert len(found["host"]) == found["summary.numHosts"] == 2
    pool = read(service, found["resourcePool"], "owner", "vm", "name")
    assert (pool["owner"], pool["name"], len(pool["vm"])) == (cluster, "Resources", 3)


def test_a_list_view_is_what_the_client_made_it(service: Any) -> None:
    web, db = machine(service, "web"), machine(service, "db")
    view = service.content.viewManager.CreateListView([web])
    assert view.view == [web]
    view.ModifyListView([db], [web])
    assert view.view == [db]
    view.ResetListView([])
    assert view.view == []
    view.DestroyView()

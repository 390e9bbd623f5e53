"""From an inventory plan to a lab: datacenter, hosts, datastores, network, then the VMs."""

from __future__ import annotations

import uuid
from pathlib import Path

from pyVmomi import vim

from holdfast_lab.datastores import Datastore
from holdfast_lab.hosts import Cluster, ComputeResource, Host, Network, ResourcePool
from holdfast_lab.inventory import Datacenter, Folder
from holdfast_lab.inventory_plan import InventoryPlan
from holdfast_lab.lab import DEFAULT_HOST_USER, DEFAULT_USER, Lab, Mode
from holdfast_lab.machine_build import build_machine
from holdfast_lab.property_collector import DefaultCollector
from holdfast_lab.service_content import add_service_objects
from holdfast_lab.sessions import LabUser

DEFAULT_PASSWORD = "lab-Passw0rd"  # noqa: S105 - a well-known password of a test server on loopback


def build_lab(state: Path, *, mode: Mode, plan: InventoryPlan) -> Lab:
    """Make a lab with its inventory; its server is started elsewhere."""
    lab = Lab(state, mode=mode, instance_uuid=str(uuid.uuid4()))
    user = DEFAULT_USER if mode == "vcenter" else DEFAULT_HOST_USER
    lab.users[user] = LabUser(name=user, password=DEFAULT_PASSWORD)
    with lab.lock:
        host_mode = mode == "host"
        root = Folder(
            lab,
            "ha-folder-root" if host_mode else "group-d1",
            name="ha-folder-root" if host_mode else "Datacenters",
            parent=None,
            types=[vim.Folder, vim.Datacenter],
        )
        lab.add(root)
        service = add_service_objects(lab, root)
        lab.add(DefaultCollector(lab, service.names.property_collector))
        datacenter = Datacenter(
            lab,
            "ha-datacenter" if host_mode else lab.new_id("datacenter"),
            name="ha-datacenter" if host_mode else plan.datacenter,
            parent=root,
        )
        lab.add(datacenter)
        root.attach_child(datacenter)
        add_hosts(lab, datacenter, plan)
        add_networks(lab, datacenter, plan)
        for each in plan.datastores:
            add_datastore(
                lab,
                datacenter,
                name=each.name,
                kind=each.kind,
                capacity_bytes=each.capacity_bytes,
                vmfs_version=each.vmfs_version,
            )
    for machine in plan.machines:
        build_machine(lab, machine)
    return lab


def add_hosts(lab: Lab, datacenter: Datacenter, plan: InventoryPlan) -> None:
    """A cluster with all hosts; in host mode one host alone. Needs the lock."""
    folder = datacenter.host_folder
    compute: ComputeResource
    if lab.mode == "host":
        compute = ComputeResource(lab, "ha-compute-res", name=plan.hosts[0], parent=folder)
    else:
        compute = Cluster(lab, lab.new_id("domain-c"), name=plan.cluster, parent=folder)
    lab.add(compute)
    folder.attach_child(compute)
    pool_id = "ha-root-pool" if lab.mode == "host" else lab.new_id("resgroup")
    compute.pool = ResourcePool(lab, pool_id, name="Resources", parent=compute)
    lab.add(compute.pool)
    for name in plan.hosts[:1] if lab.mode == "host" else plan.hosts:
        moid = "ha-host" if lab.mode == "host" else lab.new_id("host")
        host = Host(lab, moid, name=name, parent=compute)
        lab.add(host)
        compute.hosts.append(host)


def add_networks(lab: Lab, datacenter: Datacenter, plan: InventoryPlan) -> None:
    """The port groups. Needs the lock."""
    for name in plan.networks:
        moid = f"HaNetwork-{name}" if lab.mode == "host" else lab.new_id("network")
        network = Network(lab, moid, name=name, parent=datacenter.network_folder)
        lab.add(network)
        datacenter.network_folder.attach_child(network)


def add_datastore(
    lab: Lab,
    datacenter: Datacenter,
    *,
    name: str,
    kind: str,
    capacity_bytes: int,
    vmfs_version: int = 6,
) -> Datastore:
    """A datastore, mounted by every host. Needs the lock."""
    if lab.mode == "host":
        tail = uuid.uuid4().hex
        moid = f"{tail[:8]}-{tail[8:16]}-{tail[16:20]}-{tail[20:]}"
    else:
        moid = lab.new_id("datastore")
    datastore = Datastore(
        lab,
        moid,
        name=name,
        parent=datacenter.datastore_folder,
        kind_name="NFS" if kind == "NFS" else "VMFS",
        capacity_bytes=capacity_bytes,
        vmfs_version=vmfs_version,
    )
    datastore.mounts = lab.hosts()
    lab.add(datastore)
    datacenter.datastore_folder.attach_child(datastore)
    return datastore

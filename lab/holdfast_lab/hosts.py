"""ESXi hosts, networks, resource pools and compute resources."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from pyVmomi import vim

from holdfast_lab.lab_object import LabObject, ManagedEntity, wire_property

if TYPE_CHECKING:
    from holdfast_lab.datastores import Datastore
    from holdfast_lab.lab import Lab

HOST_VERSION = "8.0.1"
HOST_BUILD = "21495797"
MEMORY_BYTES = 64 << 30


class HostBrowser(LabObject):
    """The object through which clients search all datastores of one host."""

    kind = vim.host.DatastoreBrowser

    def __init__(self, lab: Lab, moid: str, host: Host) -> None:
        super().__init__(lab, moid)
        self.host = host

    @wire_property("datastore")
    def datastore_references(self) -> object:
        return [each.ref for each in self.host.datastores()]


class Host(ManagedEntity):
    """A host: it runs VMs and mounts datastores."""

    kind = vim.HostSystem

    def __init__(self, lab: Lab, moid: str, *, name: str, parent: ManagedEntity) -> None:
        super().__init__(lab, moid, name=name, parent=parent)
        self.hardware_uuid = str(uuid.uuid4())
        self.product_version = HOST_VERSION
        self.build = HOST_BUILD
        self.connected = True
        self.maintenance = False
        self.browser = HostBrowser(lab, f"hostDatastoreBrowser-{moid}", self)
        lab.add(self.browser)

    def datastores(self) -> list[Datastore]:
        """What the host has mounted."""
        return [each for each in self.lab.datastores() if self in each.mounts]

    def product(self) -> vim.AboutInfo:
        """Which ESXi this is."""
        return vim.AboutInfo(
            name="VMware ESXi",
            fullName=f"VMware ESXi {self.product_version} build-{self.build} (lab)",
            vendor="VMware, Inc.",
            version=self.product_version,
            build=self.build,
            osType="vmnix-x86",
            productLineId="embeddedEsx",
            apiType="HostAgent",
            apiVersion="8.0.1.0",
            licenseProductName="VMware ESX Server",
            licenseProductVersion="8.0",
        )

    @wire_property("runtime")
    def runtime(self) -> vim.host.RuntimeInfo:
        return vim.host.RuntimeInfo(
            connectionState="connected" if self.connected else "disconnected",
            powerState="poweredOn",
            inMaintenanceMode=self.maintenance,
        )

    @wire_property("hardware")
    def hardware(self) -> vim.host.HardwareInfo:
        return vim.host.HardwareInfo(
            systemInfo=vim.host.SystemInfo(vendor="lab", model="lab", uuid=self.hardware_uuid),
            cpuInfo=vim.host.CpuInfo(
                numCpuPackages=1, numCpuCores=8, numCpuThreads=16, hz=2_000_000_000
            ),
            cpuPkg=[
                vim.host.CpuPackage(
                    index=0,
                    vendor="intel",
                    hz=2_000_000_000,
                    busHz=100_000_000,
                    description="lab",
                    threadId=list(range(16)),
                    cpuFeature=[],
                )
            ],
            memorySize=MEMORY_BYTES,
        )

    @wire_property("summary")
    def summary(self) -> vim.host.Summary:
        return vim.host.Summary(
            host=self.ref,
            hardware=vim.host.Summary.HardwareSummary(
                vendor="lab",
                model="lab",
                uuid=self.hardware_uuid,
                memorySize=MEMORY_BYTES,
                cpuModel="lab",
                cpuMhz=2000,
                numCpuPkgs=1,
                numCpuCores=8,
                numCpuThreads=16,
                numNics=1,
                numHBAs=1,
            ),
            runtime=self.runtime(),
            config=vim.host.Summary.ConfigSummary(
                name=self.name,
                port=443,
                sslThumbprint=self.lab.certificate_sha1,
                product=self.product(),
                vmotionEnabled=True,
                faultToleranceEnabled=False,
            ),
            quickStats=vim.host.Summary.QuickStats(
                overallCpuUsage=100, overallMemoryUsage=1024, uptime=3600
            ),
            overallStatus="green",
            rebootRequired=False,
            managementServerIp="127.0.0.1" if self.lab.mode == "vcenter" else None,
        )

    @wire_property("config")
    def configuration(self) -> vim.host.ConfigInfo:
        return vim.host.ConfigInfo(
            host=self.ref,
            product=self.product(),
            network=vim.host.NetworkInfo(
                vnic=[
                    vim.host.VirtualNic(
                        device="vmk0",
                        key="key-vim.host.VirtualNic-vmk0",
                        portgroup="Management Network",
                        spec=vim.host.VirtualNic.Specification(
                            ip=vim.host.IpConfig(
                                dhcp=False, ipAddress="127.0.0.1", subnetMask="255.0.0.0"
                            ),
                            mac="00:50:56:00:00:01",
                        ),
                    )
                ]
            ),
            certificate=[_signed(each) for each in self.lab.certificate_pem.encode()],
        )

    @wire_property("capability")
    def capability(self) -> object:
        return None

    @wire_property("vm")
    def machine_references(self) -> object:
        return [each.ref for each in self.lab.machines() if each.host is self]

    @wire_property("datastore")
    def datastore_references(self) -> object:
        return [each.ref for each in self.datastores()]

    @wire_property("network")
    def network_references(self) -> object:
        return [each.ref for each in self.lab.every(Network)]

    @wire_property("datastoreBrowser")
    def browser_reference(self) -> object:
        return self.browser.ref


def _signed(byte: int) -> int:
    """A byte as xsd:byte shows it."""
    return byte - 256 if byte > 127 else byte


class Network(ManagedEntity):
    """A standard port group that every host has."""

    kind = vim.Network

    @wire_property("summary")
    def summary(self) -> vim.Network.Summary:
        return vim.Network.Summary(network=self.ref, name=self.name, accessible=True, ipPoolName="")

    @wire_property("host")
    def host_references(self) -> object:
        return [each.ref for each in self.lab.hosts()]

    @wire_property("vm")
    def machine_references(self) -> object:
        return [each.ref for each in self.lab.machines() if self in each.networks()]


class ResourcePool(ManagedEntity):
    """A resource pool; a compute resource has one root pool, which may hold more."""

    kind = vim.ResourcePool

    def __init__(self, lab: Lab, moid: str, *, name: str, parent: ManagedEntity) -> None:
        super().__init__(lab, moid, name=name, parent=parent)
        self.pools: list[ResourcePool] = []

    def children(self) -> list[ManagedEntity]:
        """Pools below and the pool's VMs."""
        machines = [each for each in self.lab.machines() if each.resource_pool is self]
        return [*self.pools, *machines]

    def compute_resource(self) -> ComputeResource:
        """The owner of the pool."""
        above = self.parent
        while isinstance(above, ResourcePool):
            above = above.parent
        if not isinstance(above, ComputeResource):
            raise TypeError("a resource pool without an owner")
        return above

    @wire_property("owner")
    def owner_reference(self) -> object:
        return self.compute_resource().ref

    @wire_property("resourcePool")
    def pool_references(self) -> object:
        return [each.ref for each in self.pools]

    @wire_property("vm")
    def machine_references(self) -> object:
        return [each.ref for each in self.lab.machines() if each.resource_pool is self]

    @wire_property("summary")
    def summary(self) -> vim.ResourcePool.Summary:
        return vim.ResourcePool.Summary(
            name=self.name, config=self.configuration(), runtime=self.runtime()
        )

    @wire_property("runtime")
    def runtime(self) -> vim.ResourcePool.RuntimeInfo:
        usage = vim.ResourcePool.ResourceUsage(
            reservationUsed=0,
            reservationUsedForVm=0,
            unreservedForPool=10_000,
            unreservedForVm=10_000,
            overallUsage=0,
            maxUsage=10_000,
        )
        return vim.ResourcePool.RuntimeInfo(memory=usage, cpu=usage, overallStatus="green")

    @wire_property("config")
    def configuration(self) -> vim.ResourceConfigSpec:
        allocation = vim.ResourceAllocationInfo(
            reservation=0,
            expandableReservation=True,
            limit=-1,
            shares=vim.SharesInfo(shares=4000, level="normal"),
        )
        return vim.ResourceConfigSpec(
            entity=self.ref, cpuAllocation=allocation, memoryAllocation=allocation
        )


class ComputeResource(ManagedEntity):
    """One host alone, or the base of a cluster."""

    kind = vim.ComputeResource

    def __init__(self, lab: Lab, moid: str, *, name: str, parent: ManagedEntity) -> None:
        super().__init__(lab, moid, name=name, parent=parent)
        self.hosts: list[Host] = []
        self.pool: ResourcePool | None = None

    def children(self) -> list[ManagedEntity]:
        """The hosts and the root pool."""
        return [*self.hosts, *([self.pool] if self.pool else [])]

    @wire_property("host")
    def host_references(self) -> object:
        return [each.ref for each in self.hosts]

    @wire_property("resourcePool")
    def pool_reference(self) -> object:
        return self.pool.ref if self.pool else None

    @wire_property("datastore")
    def datastore_references(self) -> object:
        return [
            each.ref
            for each in self.lab.datastores()
            if any(host in each.mounts for host in self.hosts)
        ]

    @wire_property("network")
    def network_references(self) -> object:
        return [each.ref for each in self.lab.every(Network)]

    @wire_property("summary")
    def summary(self) -> vim.ComputeResource.Summary:
        return self._summary(vim.ComputeResource.Summary)

    def _summary(self, kind: type[vim.ComputeResource.Summary]) -> vim.ComputeResource.Summary:
        count = len(self.hosts)
        return kind(
            totalCpu=16_000 * count,
            totalMemory=MEMORY_BYTES * count,
            numCpuCores=8 * count,
            numCpuThreads=16 * count,
            effectiveCpu=16_000 * count,
            effectiveMemory=(MEMORY_BYTES >> 20) * count,
            numHosts=count,
            numEffectiveHosts=count,
            overallStatus="green",
        )


class Cluster(ComputeResource):
    """Hosts under one roof."""

    kind = vim.ClusterComputeResource

    @wire_property("summary")
    def cluster_summary(self) -> vim.ClusterComputeResource.Summary:
        made = self._summary(vim.ClusterComputeResource.Summary)
        assert isinstance(made, vim.ClusterComputeResource.Summary)
        made.currentFailoverLevel = 0
        made.numVmotions = 0
        return made

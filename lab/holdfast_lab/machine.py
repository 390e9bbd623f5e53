"""A virtual machine: its settings, devices, snapshots, files, and what clients read of them.

Settings and devices are one value each, so that a snapshot keeps copies and revert puts them back.
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pyVmomi import vim

from holdfast_lab import machine_view, other_settings
from holdfast_lab.device_table import DeviceTable, DiskDevice
from holdfast_lab.lab_clock import utc_now
from holdfast_lab.lab_object import LabObject, ManagedEntity, wire_property
from holdfast_lab.vmx_file import save_vmx
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.datastores import Datastore
    from holdfast_lab.hosts import Host, Network, ResourcePool
    from holdfast_lab.lab import Lab

POWERED_OFF, POWERED_ON, SUSPENDED = "poweredOff", "poweredOn", "suspended"


@dataclass(slots=True, kw_only=True)
class MachineSettings:
    """What a VM's configuration says beside its devices. ``change_tracking`` is the CBT flag."""

    instance_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    bios_uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    guest_id: str = "debian12_64Guest"
    firmware: str = "bios"
    secure_boot: bool = False
    hardware_version: str = "vmx-19"
    cpu_count: int = 1
    cores_per_socket: int = 1
    memory_mib: int = 512
    annotation: str = ""
    template: bool = False
    change_tracking: bool = False
    extra_config: dict[str, str] = field(default_factory=dict)
    modified: datetime = field(default_factory=utc_now)
    others: dict[str, WireObject] = field(default_factory=other_settings.of_a_new_machine)

    def copied(self) -> MachineSettings:
        """An independent copy."""
        return copy.deepcopy(self)


@dataclass(slots=True, kw_only=True)
class Tools:
    """VMware Tools in the guest. ``quiesce_fault``: application or filesystem, when it fails."""

    installed: bool = True
    running: bool = False
    quiesce_fault: str | None = None
    vss: bool = False


class MachineSnapshot(LabObject):
    """A snapshot in a VM's tree. ``devices`` names the frozen link of every frozen disk."""

    kind = vim.vm.Snapshot

    def __init__(
        self,
        lab: Lab,
        moid: str,
        *,
        machine: Machine,
        number: int,
        name: str,
        description: str,
        quiesced: bool,
        with_memory: bool,
        parent: MachineSnapshot | None,
        settings: MachineSettings,
        devices: DeviceTable,
    ) -> None:
        super().__init__(lab, moid)
        self.machine = machine
        self.number = number
        self.name = name
        self.description = description
        self.quiesced = quiesced
        self.with_memory = with_memory
        self.power_state = machine.power_state if with_memory else POWERED_OFF
        self.created = utc_now()
        self.parent = parent
        self.children: list[MachineSnapshot] = []
        self.settings = settings
        self.devices = devices
        lab.moments.note(machine, name=name, snapshot=moid, devices=devices)

    def tree(self) -> vim.vm.SnapshotTree:
        """The snapshot and its children, as ``VirtualMachine.snapshot`` shows them."""
        return vim.vm.SnapshotTree(
            snapshot=self.ref,
            vm=self.machine.ref,
            name=self.name,
            description=self.description,
            id=self.number,
            createTime=self.created,
            state=self.power_state,
            quiesced=self.quiesced,
            backupManifest=None,
            childSnapshotList=[each.tree() for each in self.children],
            replaySupported=False,
        )

    @wire_property("config")
    def configuration(self) -> WireObject:
        return machine_view.config_info(self.machine, self.settings, self.devices)

    @wire_property("childSnapshot")
    def child_references(self) -> object:
        return [each.ref for each in self.children]

    @wire_property("vm")
    def machine_reference(self) -> object:
        return self.machine.ref


class Machine(ManagedEntity):
    """A virtual machine. Needs ``Lab.lock`` for everything."""

    kind = vim.VirtualMachine

    def __init__(
        self,
        lab: Lab,
        moid: str,
        *,
        name: str,
        folder: ManagedEntity,
        home: Datastore,
        vmx: Path,
        host: Host,
        resource_pool: ResourcePool | None,
        settings: MachineSettings | None = None,
    ) -> None:
        super().__init__(lab, moid, name=name, parent=folder)
        self.home = home
        self.vmx = vmx
        self.host = host
        self.resource_pool = resource_pool
        self.settings = settings or MachineSettings()
        self.devices = DeviceTable.of_a_new_machine()
        self.power_state = POWERED_OFF
        self.booted: datetime | None = None
        self.tools = Tools()
        self.guest_host_name = f"{name}.lab"
        self.guest_address = ""
        self.root_snapshots: list[MachineSnapshot] = []
        self.current_snapshot: MachineSnapshot | None = None
        self.snapshot_count = 0
        self.consolidation_told = False  # misbehaviour: a removal left disks behind
        self.transfer_lease: LabObject | None = None  # power and moves are blocked meanwhile
        self.change_version = 0
        self.connected = True

    # what other modules use ---------------------------------------------------

    @property
    def instance_uuid(self) -> str:
        """The VM's identity within its vCenter."""
        return self.settings.instance_uuid

    @property
    def bios_uuid(self) -> str:
        """The uuid that the guest sees."""
        return self.settings.bios_uuid

    @property
    def directory(self) -> Path:
        """The folder with the VM's files."""
        return self.vmx.parent

    @property
    def nvram(self) -> Path:
        """The file with the firmware's settings; the configuration may name another one."""
        name = self.settings.extra_config.get("nvram", "")
        if name and "/" not in name and name not in (".", ".."):
            return self.vmx.with_name(name)
        return self.vmx.with_suffix(".nvram")

    @property
    def vmx_path(self) -> str:
        """The datastore path of the .vmx file."""
        return self.home.path_of(self.vmx)

    @property
    def change_tracking(self) -> bool:
        """Whether changed block tracking is switched on."""
        return self.settings.change_tracking

    @property
    def has_snapshots(self) -> bool:
        """Whether any snapshot exists."""
        return bool(self.root_snapshots)

    @property
    def powered_on(self) -> bool:
        """Whether the guest runs."""
        return self.power_state == POWERED_ON

    def disks(self) -> list[DiskDevice]:
        """The VM's disks by key."""
        return [self.devices.disks[key] for key in sorted(self.devices.disks)]

    def datastores(self) -> list[Datastore]:
        """The datastores that hold files of the VM."""
        roots = [self.vmx, *(each.descriptor for each in self.disks())]
        return [
            each
            for each in self.lab.datastores()
            if any(path.is_relative_to(each.root) for path in roots)
        ]

    def networks(self) -> list[Network]:
        """The networks that the VM's cards name."""
        from holdfast_lab.hosts import Network

        names = [getattr(card.backing, "deviceName", "") for card in self.devices.network_cards()]
        return [each for each in self.lab.every(Network) if each.name in names]

    def snapshots(self) -> list[MachineSnapshot]:
        """Every snapshot of the tree, parents first."""
        found: list[MachineSnapshot] = []
        waiting = list(self.root_snapshots)
        while waiting:
            each = waiting.pop(0)
            found.append(each)
            waiting += each.children
        return found

    @property
    def consolidation_needed(self) -> bool:
        """Whether disks run on links that no snapshot needs."""
        return self.consolidation_told or any(
            each.disk.consolidation_needed for each in self.disks() if each.link is None
        )

    def config_changed(self) -> None:
        """Say that settings or devices changed: the .vmx is written anew, readers are woken."""
        self.change_version += 1
        self.settings.modified = utc_now()
        save_vmx(self)
        self.lab.touch(self)

    def disk_files_changed(self) -> None:
        """Say that links changed (a snapshot was made or removed): names in .vmx follow."""
        self.config_changed()

    def forget(self) -> None:
        """The VM is gone, and its snapshots with it."""
        for each in self.snapshots():
            self.lab.objects.pop(each.moid, None)

    # what clients read ----------------------------------------------------------

    @wire_property("config")
    def configuration(self) -> WireObject:
        return machine_view.config_info(self, self.settings, self.devices)

    @wire_property("runtime")
    def runtime(self) -> WireObject:
        return machine_view.runtime_info(self)

    @wire_property("guest")
    def guest(self) -> WireObject:
        return machine_view.guest_info(self)

    @wire_property("guestHeartbeatStatus")
    def guest_heartbeat(self) -> object:
        return "green" if self.powered_on and self.tools.running else "gray"

    @wire_property("summary")
    def summary(self) -> WireObject:
        return machine_view.summary(self)

    @wire_property("layoutEx")
    def layout(self) -> WireObject:
        return machine_view.layout_ex(self)

    @wire_property("storage")
    def storage(self) -> WireObject:
        return machine_view.storage_info(self)

    @wire_property("snapshot")
    def snapshot_info(self) -> object:
        if not self.root_snapshots:
            return None
        return vim.vm.SnapshotInfo(
            currentSnapshot=self.current_snapshot.ref if self.current_snapshot else None,
            rootSnapshotList=[each.tree() for each in self.root_snapshots],
        )

    @wire_property("rootSnapshot")
    def root_snapshot_references(self) -> object:
        return [each.ref for each in self.root_snapshots]

    @wire_property("datastore")
    def datastore_references(self) -> object:
        return [each.ref for each in self.datastores()]

    @wire_property("network")
    def network_references(self) -> object:
        return [each.ref for each in self.networks()]

    @wire_property("resourcePool")
    def resource_pool_reference(self) -> object:
        if self.resource_pool is None or self.settings.template:
            return None
        return self.resource_pool.ref

    @wire_property("capability")
    def capability(self) -> WireObject:
        return machine_view.capability()

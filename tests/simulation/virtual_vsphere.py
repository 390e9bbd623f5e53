"""A vCenter that is only a model: VMs, snapshots, tasks that outlive their callers, and the truth about every write.

The product's own `vsphere` modules talk to it through `virtual_session`; operators and guests change it directly. It keeps
what must hold of calls: nothing foreign is touched, the ledger knows first, a disk that is lent keeps its snapshot.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final

from pyVmomi import vim

from holdfast_common.clock import utc_text
from holdfast_common.errors import SourceGone, VsphereBusy, VsphereFailed
from holdfast_common.identity import DatastoreId
from holdfast_controller.facts import (
    ChainLink,
    DatastoreFacts,
    DiskFacts,
    HostFacts,
    Inventory,
    ServerFacts,
    SnapshotNode,
    VmFacts,
)
from simulation.virtual_disks import BLOCK_BYTES, VirtualDisk, VirtualFile
from simulation.virtual_time import BEGIN, Kernel

INSTANCE: Final = "vcenter-instance"
HOST: Final = "host-1"
DATASTORE: Final = DatastoreFacts(
    moref="datastore-1",
    datastore_id=DatastoreId("ds:///vmfs/volumes/one/"),
    name="one",
    kind="VMFS",
    capacity_bytes=1 << 40,
    free_bytes=1 << 39,
    accessible=True,
    datacenter_moref="datacenter-1",
)
HOST_FACTS: Final = HostFacts(
    moref=HOST,
    name="esx1",
    connection_state="connected",
    in_maintenance=False,
    version="8.0.2",
    build="23305546",
    compute_moref="cluster-1",
    hardware_uuid="hardware",
    certificate_sha256="",
    datastore_morefs=(DATASTORE.moref,),
)
_PLAIN: Final = VmFacts(
    moref="",
    name="",
    instance_uuid="",
    bios_uuid="",
    place="dc1",
    folder_moref="group-1",
    host_moref=HOST,
    host_name="esx1",
    pool_moref="pool-1",
    datacenter_moref="datacenter-1",
    datastore_names=("one",),
    power_state="poweredOn",
    connection_state="connected",
    template=False,
    hardware_version=20,
    guest_id="debian12_64Guest",
    guest_name="Debian",
    firmware="efi",
    tools_running="guestToolsRunning",
    tools_version_status="guestToolsCurrent",
    change_tracking_supported=True,
    change_tracking_enabled=False,
    consolidation_needed=False,
    encrypted=False,
    has_vtpm=False,
    fault_tolerant=False,
    memory_mb=1024,
    cpu_count=1,
    vmx=None,
    snapshots=(),
    current_snapshot_moref="",
    disks=(),
)


class Violation(AssertionError):
    """What must never be, was."""


@dataclass(eq=False)
class FrozenDisk:
    """A disk as a snapshot holds it. ``truth``: what the guest had written at that moment."""

    disk: VirtualDisk
    file: VirtualFile
    change_id: str
    sequence: int
    count: int
    truth: list[int]


@dataclass(eq=False)
class VirtualSnapshot:
    """A snapshot. ``ours``: made by the controller of this simulation."""

    moref: str
    parent: VirtualSnapshot | None
    name: str
    description: str
    created_at: datetime
    quiesced: bool
    ours: bool
    disks: list[FrozenDisk]


@dataclass(eq=False)
class VirtualTask:
    """A task; it ends whether or not anybody waits for it."""

    moref: str
    target: str
    state: str = "running"
    fault: str = ""


@dataclass(eq=False)
class VirtualVm:
    """One VM; ``devices`` are those of a proxy (pyVmomi's), ``attached`` the keys of what we attached."""

    moref: str
    name: str
    disks: list[VirtualDisk]
    snapshots: list[VirtualSnapshot] = field(default_factory=list)
    current: VirtualSnapshot | None = None
    tracking: bool = False
    consolidation_needed: bool = False
    version: int = 1
    tasks: list[VirtualTask] = field(default_factory=list)
    devices: list[Any] = field(default_factory=list)
    attached: set[int] = field(default_factory=set)

    @property
    def instance_uuid(self) -> str:
        return f"instance-{self.moref}"

    def running(self) -> list[VirtualTask]:
        return [task for task in self.tasks if task.state == "running"]


@dataclass(eq=False)
class Misbehaviour:
    """What goes wrong now; the driver sets it."""

    down_until: float = -1.0
    replies_lost: int = 0
    tasks_failed: dict[str, int] = field(default_factory=dict)  # by method
    leaves_links: int = 0  # removals that succeed and merge nothing
    slow_tasks: float = 1.0
    lies: frozenset[str] = frozenset()


class VirtualVsphere:
    """The model. ``intended``: whether the ledger has an open entry of that kind with that fact."""

    def __init__(
        self, kernel: Kernel, seed: int, intended: Callable[[str, str, str], bool]
    ) -> None:
        self.kernel = kernel
        self.random = random.Random(seed * 15485863 + 3)
        self.vms: dict[str, VirtualVm] = {}
        self.tasks: dict[str, VirtualTask] = {}
        self.files: dict[str, VirtualFile] = {}
        self.truths: dict[str, list[VirtualSnapshot]] = {}  # our snapshots by job
        self.logins: set[int] = set()
        self.wrong = Misbehaviour()
        self.counts: dict[str, int] = {}
        self._intended = intended
        self._number = 100
        self._value = 0

    # -- what the driver makes and changes ---------------------------------------------------------

    def add_vm(self, name: str, sizes: list[int]) -> VirtualVm:
        """A VM with written disks."""
        moref = self._moref("vm")
        disks = []
        for position, count in enumerate(sizes):
            file = VirtualFile(f"{name}/{name}_{position}.vmdk", None)
            self.files[file.path] = file
            disk = VirtualDisk(2000 + position, f"uuid-{moref}-{position}", count, file, "")
            disks.append(disk)
        vm = VirtualVm(moref, name, disks)
        self.vms[moref] = vm
        for disk in disks:
            for number in range(0, disk.count, 2):
                self.write(vm, disk, number)
        return vm

    def add_proxy(self, name: str) -> VirtualVm:
        """A VM that disks are attached to; it holds a disk of its own and a foreign one."""
        vm = self.add_vm(name, [2])
        controller = vim.vm.device.ParaVirtualSCSIController(
            key=1000, busNumber=0, sharedBus="noSharing", scsiCtlrUnitNumber=7
        )
        vm.devices = [controller]
        for unit, path in enumerate((vm.disks[0].tip.path, "someone/else.vmdk")):
            backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=f"[one] {path}", diskMode="persistent"
            )
            vm.devices.append(
                vim.vm.device.VirtualDisk(
                    key=2000 + unit, controllerKey=1000, unitNumber=unit, backing=backing
                )
            )
        return vm

    def write(self, vm: VirtualVm, disk: VirtualDisk, number: int) -> None:
        """The guest writes something that was never written before."""
        self._value += 1
        lies = self.wrong.lies
        under_ours = any(each.ours for each in vm.snapshots)
        lost = (
            ("C1" in lies and disk.lying_since > 0 and number >= disk.lying_since - 1)
            or ("C2" in lies and under_ours)
            or ("C3" in lies and self._value % 3 == 0)
        )
        disk.write(number, self._value, lost=lost)

    def make_snapshot(
        self,
        vm: VirtualVm,
        name: str,
        description: str,
        *,
        ours: bool = False,
        quiesced: bool = False,
    ) -> VirtualSnapshot:
        """A snapshot, whoever asked for it."""
        frozen = []
        for disk in vm.disks:
            if vm.tracking and not disk.tracking and "C8" not in self.wrong.lies:
                disk.tracking = f"52 {self._moref('cbt')}"
                disk.changes = []
            if not vm.tracking:
                disk.tracking = ""
            truth = disk.tip.content(disk.count)
            frozen.append(
                FrozenDisk(disk, disk.tip, disk.change_id, disk.sequence, disk.count, truth)
            )
            disk.freeze()
            self.files[disk.tip.path] = disk.tip
        moment = BEGIN + timedelta(seconds=self.kernel.now, microseconds=self._number)
        found = VirtualSnapshot(
            moref=self._moref("snapshot"),
            parent=vm.current,
            name=name,
            description=description,
            created_at=moment,
            quiesced=quiesced,
            ours=ours,
            disks=frozen,
        )
        vm.snapshots.append(found)
        vm.current = found
        vm.version += 1
        return found

    def drop_snapshot(self, vm: VirtualVm, found: VirtualSnapshot, *, merges: bool = True) -> None:
        """Remove one; what lies above it is merged into it."""
        for child in vm.snapshots:
            if child.parent is found:
                child.parent = found.parent
        if vm.current is found:
            vm.current = found.parent
        vm.snapshots.remove(found)
        vm.version += 1
        if merges:
            self.merge_unexplained(vm)
        else:
            vm.consolidation_needed = True

    def merge_unexplained(self, vm: VirtualVm) -> None:
        """Merge every link that no snapshot explains."""
        held = {id(each.file) for snapshot in vm.snapshots for each in snapshot.disks}
        for disk in vm.disks:
            for link in disk.tip.links()[:-1]:
                # what lies above a link that nobody holds goes into it, until somebody holds the result
                while id(link) not in held and disk.tip is not link:
                    above = disk.merge(link)
                    if above is None:
                        break
                    if id(above) in held:
                        self._hold(vm, above, link)
                        held.add(id(link))
        vm.consolidation_needed = False
        vm.version += 1

    def _hold(self, vm: VirtualVm, above: VirtualFile, link: VirtualFile) -> None:
        """What a snapshot held lies in the lower link now."""
        for snapshot in vm.snapshots:
            for each in snapshot.disks:
                if each.file is above:
                    each.file = link

    def revert(self, vm: VirtualVm, to: VirtualSnapshot) -> None:
        """Back to a snapshot: change tracking does not know of it (C4)."""
        for each in to.disks:
            if each.disk not in vm.disks:
                continue
            each.disk.tip = each.file
            each.disk.freeze()
            self.files[each.disk.tip.path] = each.disk.tip
        vm.current = to
        vm.version += 1

    def extend(self, vm: VirtualVm, disk: VirtualDisk) -> None:
        """Make a disk larger; only without snapshots."""
        disk.lying_since = disk.count
        disk.count += 2
        vm.version += 1

    def facts(self, vm: VirtualVm) -> VmFacts:
        """As the product reads it."""
        moref = "" if vm.current is None else vm.current.moref
        return replace(
            _PLAIN,
            moref=vm.moref,
            name=vm.name,
            instance_uuid=vm.instance_uuid,
            bios_uuid=f"bios-{vm.moref}",
            change_tracking_enabled=vm.tracking,
            consolidation_needed=vm.consolidation_needed,
            snapshots=tuple(self._node(each) for each in vm.snapshots),
            current_snapshot_moref=moref,
            disks=tuple(self._disk(each, each.tip, each.change_id) for each in vm.disks),
            configuration_version=str(vm.version),
        )

    def inventory(self) -> Inventory:
        """Everything."""
        return Inventory(
            server=ServerFacts(
                instance_uuid=INSTANCE,
                product="model",
                version="8.0.2",
                build="1",
                is_vcenter=True,
            ),
            taken_at=utc_text(BEGIN + timedelta(seconds=self.kernel.now)),
            vms=tuple(self.facts(vm) for vm in self.vms.values()),
            hosts=(HOST_FACTS,),
            datastores=(DATASTORE,),
            places=(),
        )

    # -- calls of the product ------------------------------------------------------------------------

    def vm(self, moref: str) -> VirtualVm:
        """Raises: SourceGone."""
        if moref not in self.vms:
            raise SourceGone("the object is no longer there", object=moref)
        return self.vms[moref]

    def read(self, moref: str, paths: tuple[str, ...]) -> Mapping[str, Any]:
        """Properties of one object. Raises: SourceGone."""
        if moref.startswith("task"):
            return {"info.state": self.tasks[moref].state}
        if moref.startswith("snapshot"):
            for vm in self.vms.values():
                for found in vm.snapshots:
                    if found.moref == moref:
                        return {"config": self._config(found)}
            raise SourceGone("the object is no longer there", object=moref)
        vm = self.vm(moref)
        return {path: self._property(vm, path) for path in paths}

    def start_task(self, moref: str, method: str, arguments: Mapping[str, Any]) -> Any:
        """A task of the product's. Raises: SourceGone, VsphereBusy."""
        vm = self._target(moref)
        self.counts[method] = self.counts.get(method, 0) + 1
        effect = self._effect(vm, moref, method, arguments)
        if vm.running():
            raise VsphereBusy("another task holds the object", object=vm.moref)
        task = VirtualTask(self._moref("task"), vm.moref)
        self.tasks[task.moref] = task
        vm.tasks.append(task)
        failing = self.wrong.tasks_failed.get(method, 0)
        if failing:
            self.wrong.tasks_failed[method] = failing - 1

        def end() -> None:
            self._end(vm, task, effect, fails=bool(failing))

        seconds = self.random.uniform(0.1, 2.0) * self.wrong.slow_tasks
        self.kernel.call_at(self.kernel.now + seconds, end)
        return vim.Task(task.moref, None)

    def changed_areas(
        self, moref: str, snapshot_moref: str, device_key: int, *, since: str
    ) -> list[int]:
        """Blocks that are said to have changed. Raises: SourceGone, VsphereFailed."""
        vm = self.vm(moref)
        found = next((each for each in vm.snapshots if each.moref == snapshot_moref), None)
        if found is None:
            raise SourceGone("the object is no longer there", object=snapshot_moref)
        frozen = next(each for each in found.disks if each.disk.key == device_key)
        if "C6" in self.wrong.lies and self.random.random() < 0.5:
            if self.random.random() < 0.5:
                raise VsphereFailed("the answer failed", fault="FileFault")
            return list(range(frozen.count))
        if since == "*":
            written = [n for n, value in enumerate(frozen.file.content(frozen.count)) if value]
            return written[:-1] if "C7" in self.wrong.lies else written
        changed = frozen.disk.changed_since(since, frozen.sequence)
        if changed is None:
            raise VsphereFailed("this change id is not known", fault="FileFault")
        return changed

    # -- inside --------------------------------------------------------------------------------------

    def _moref(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._number}"

    def _target(self, moref: str) -> VirtualVm:
        if not moref.startswith("snapshot"):
            return self.vm(moref)
        for vm in self.vms.values():
            if any(each.moref == moref for each in vm.snapshots):
                return vm
        raise SourceGone("the object is no longer there", object=moref)

    def _effect(
        self, vm: VirtualVm, moref: str, method: str, arguments: Mapping[str, Any]
    ) -> Callable[[], None]:
        """What the task does at its end; what must hold of the call is looked at now."""
        if method in ("CreateSnapshot_Task", "CreateSnapshotEx_Task"):
            return self._create(vm, arguments, quiesced=method == "CreateSnapshotEx_Task")
        if method == "RemoveSnapshot_Task":
            return self._remove(vm, moref, arguments)
        if method == "ConsolidateVMDisks_Task":
            return lambda: self.merge_unexplained(vm)
        assert method == "ReconfigVM_Task", method
        return self._reconfigure(vm, arguments["spec"])

    def _create(
        self, vm: VirtualVm, arguments: Mapping[str, Any], *, quiesced: bool
    ) -> Callable[[], None]:
        description = str(arguments["description"])
        nonce = description.rpartition("nonce=")[2]
        job = description.partition("job=")[2].partition(" ")[0]
        if not self._intended("snapshot", "nonce", nonce):
            raise Violation("a snapshot is made that the ledger does not know")

        def make() -> None:
            found = self.make_snapshot(
                vm, str(arguments["name"]), description, ours=True, quiesced=quiesced
            )
            self.truths.setdefault(job, []).append(found)

        return make

    def _remove(
        self, vm: VirtualVm, moref: str, arguments: Mapping[str, Any]
    ) -> Callable[[], None]:
        found = next(each for each in vm.snapshots if each.moref == moref)
        if not found.ours or arguments.get("removeChildren"):
            raise Violation(f"a foreign snapshot is removed: {found.description}")
        held = {f"[one] {each.file.path}" for each in found.disks}
        for proxy in self.vms.values():
            for device in proxy.devices:
                if getattr(getattr(device, "backing", None), "fileName", "") in held:
                    raise Violation("a snapshot is removed while a disk of it is attached")
        leaves = self.wrong.leaves_links > 0
        if leaves:
            self.wrong.leaves_links -= 1

        def drop() -> None:
            if found in vm.snapshots:
                self.drop_snapshot(vm, found, merges=not leaves)

        return drop

    def _reconfigure(self, vm: VirtualVm, spec: Any) -> Callable[[], None]:
        if spec.changeVersion and spec.changeVersion != str(vm.version):
            raise VsphereBusy("somebody else changed it", fault="ConcurrentAccess")
        if not spec.deviceChange:
            wanted = bool(spec.changeTrackingEnabled)
            if wanted and vm.snapshots:
                raise Violation("change tracking is switched on under a snapshot")

            def switch() -> None:
                vm.tracking = wanted
                vm.version += 1

            return switch
        change = spec.deviceChange[0]
        if change.fileOperation:
            raise Violation("a device is changed with a file operation")
        device = change.device
        if str(change.operation) == "add":
            return self._attach(vm, device)
        if int(device.key) not in vm.attached:
            raise Violation(f"a foreign disk is detached: {device.backing.fileName}")

        def detach() -> None:
            vm.devices = [each for each in vm.devices if each.key != device.key]
            vm.attached.discard(int(device.key))

        return detach

    def _attach(self, vm: VirtualVm, device: Any) -> Callable[[], None]:
        path = str(device.backing.fileName).partition("] ")[2]
        if not self._intended("hot_add", "path", path):
            raise Violation("a disk is attached that the ledger does not know")

        def attach() -> None:
            taken = {each.unitNumber for each in vm.devices if each.key >= 2000}
            if device.unitNumber in taken:
                raise VsphereFailed("the unit is taken", fault="InvalidDeviceSpec")
            self._number += 1
            device.key = 3000 + self._number
            vm.devices = [*vm.devices, device]
            vm.attached.add(int(device.key))

        return attach

    def _end(
        self, vm: VirtualVm, task: VirtualTask, effect: Callable[[], None], *, fails: bool
    ) -> None:
        task.state = "success"
        if fails or vm.moref not in self.vms:
            task.state, task.fault = "error", "GenericVmConfigFault" if fails else "SourceGone"
        else:
            try:
                effect()
            except VsphereFailed as error:
                task.state, task.fault = "error", str(error.facts.get("fault", ""))

    def _property(self, vm: VirtualVm, path: str) -> Any:
        values: dict[str, Callable[[], Any]] = {
            "name": lambda: vm.name,
            "snapshot": lambda: self._tree(vm),
            "config.instanceUuid": lambda: vm.instance_uuid,
            "config.changeVersion": lambda: str(vm.version),
            "config.changeTrackingEnabled": lambda: vm.tracking,
            "config.hardware.device": lambda: list(vm.devices),
            "recentTask": lambda: [vim.Task(each.moref, None) for each in vm.running()],
            "runtime.powerState": lambda: "poweredOn",
            "runtime.connectionState": lambda: "connected",
            "runtime.host": lambda: vim.HostSystem(HOST, None),
        }
        return values[path]()

    def _tree(self, vm: VirtualVm) -> Any:
        if not vm.snapshots:
            return None

        def tree(found: VirtualSnapshot) -> Any:
            return SimpleNamespace(
                snapshot=vim.vm.Snapshot(found.moref, None),
                name=found.name,
                description=found.description,
                createTime=found.created_at,
                quiesced=found.quiesced,
                childSnapshotList=[tree(each) for each in vm.snapshots if each.parent is found],
            )

        return SimpleNamespace(
            rootSnapshotList=[tree(each) for each in vm.snapshots if each.parent is None],
            currentSnapshot=vim.vm.Snapshot(vm.current.moref, None) if vm.current else None,
        )

    def _config(self, found: VirtualSnapshot) -> Any:
        disks = [
            self._disk(each.disk, each.file, each.change_id, count=each.count)
            for each in found.disks
        ]
        return SimpleNamespace(hardware=SimpleNamespace(device=disks))

    def _node(self, found: VirtualSnapshot) -> SnapshotNode:
        return SnapshotNode(
            moref=found.moref,
            parent_moref="" if found.parent is None else found.parent.moref,
            name=found.name,
            description=found.description,
            created_at=utc_text(found.created_at),
            quiesced=found.quiesced,
        )

    def _disk(
        self, disk: VirtualDisk, tip: VirtualFile, change_id: str, *, count: int = 0
    ) -> DiskFacts:
        return DiskFacts(
            device_key=disk.key,
            backing_uuid=disk.uuid,
            label=f"Hard disk {disk.key - 1999}",
            capacity_bytes=(count or disk.count) * BLOCK_BYTES,
            sector_bytes=512,
            chain=tuple(
                ChainLink(
                    datastore_id=DATASTORE.datastore_id,
                    datastore_moref=DATASTORE.moref,
                    datastore_name=DATASTORE.name,
                    path=link.path,
                )
                for link in tip.links()
            ),
            change_id=change_id,
            mode="persistent",
            sharing="sharingNone",
            thin=True,
            raw_mapping="",
            encrypted=False,
            controller_key=1000,
            bus_number=0,
            unit_number=disk.key - 2000,
            adapter="pvscsi",
            bus_sharing="noSharing",
            unprotected_reason="",
        )

"""A vCenter that is only a model: VMs, snapshots, tasks that outlive their callers, and the truth about every write.

The product's own `vsphere` modules talk to it through `virtual_session`; operators and guests change it directly. It keeps
what must hold of calls: nothing foreign is touched, the ledger knows first, a disk that is lent keeps its snapshot.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from pyVmomi import vim

from holdfast_common.errors import SourceGone, VsphereBusy, VsphereFailed
from simulation.virtual_disks import VirtualDisk, VirtualFile
from simulation.virtual_effects import Effects
from simulation.virtual_facts import config_of, property_of
from simulation.virtual_time import BEGIN, Kernel
from simulation.virtual_vms import (
    FrozenDisk,
    Misbehaviour,
    VirtualSnapshot,
    VirtualTask,
    VirtualVm,
)


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
        self._effects = Effects(self, intended)
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
                        return {"config": config_of(found)}
            raise SourceGone("the object is no longer there", object=moref)
        vm = self.vm(moref)
        return {path: property_of(vm, path) for path in paths}

    def start_task(self, moref: str, method: str, arguments: Mapping[str, Any]) -> Any:
        """A task of the product's. Raises: SourceGone, VsphereBusy."""
        vm = self._target(moref)
        self.counts[method] = self.counts.get(method, 0) + 1
        effect = self._effects.of(vm, moref, method, arguments)
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

    def next_number(self) -> int:
        """One that nothing has yet."""
        self._number += 1
        return self._number

    # -- inside --------------------------------------------------------------------------------------

    def _moref(self, kind: str) -> str:
        return f"{kind}-{self.next_number()}"

    def _target(self, moref: str) -> VirtualVm:
        if not moref.startswith("snapshot"):
            return self.vm(moref)
        for vm in self.vms.values():
            if any(each.moref == moref for each in vm.snapshots):
                return vm
        raise SourceGone("the object is no longer there", object=moref)

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

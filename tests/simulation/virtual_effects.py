"""What tasks of the product do to a vCenter that is only a model, and what must hold of the calls that begin them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from holdfast_common.errors import VsphereBusy, VsphereFailed
from simulation.virtual_time import Violation
from simulation.virtual_vms import VirtualVm

if TYPE_CHECKING:
    from simulation.virtual_vsphere import VirtualVsphere


class Effects:
    """``intended``: whether the ledger has an open entry of that kind with that fact."""

    def __init__(self, model: VirtualVsphere, intended: Callable[[str, str, str], bool]) -> None:
        self._model = model
        self._intended = intended

    def of(
        self, vm: VirtualVm, moref: str, method: str, arguments: Mapping[str, Any]
    ) -> Callable[[], None]:
        """What the task does at its end; what must hold of the call is looked at now."""
        if method in ("CreateSnapshot_Task", "CreateSnapshotEx_Task"):
            return self._create(vm, arguments, quiesced=method == "CreateSnapshotEx_Task")
        if method == "RemoveSnapshot_Task":
            return self._remove(vm, moref, arguments)
        if method == "ConsolidateVMDisks_Task":
            return lambda: self._model.merge_unexplained(vm)
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
            found = self._model.make_snapshot(
                vm, str(arguments["name"]), description, ours=True, quiesced=quiesced
            )
            self._model.truths.setdefault(job, []).append(found)

        return make

    def _remove(
        self, vm: VirtualVm, moref: str, arguments: Mapping[str, Any]
    ) -> Callable[[], None]:
        found = next(each for each in vm.snapshots if each.moref == moref)
        if not found.ours or arguments.get("removeChildren"):
            raise Violation(f"a foreign snapshot is removed: {found.description}")
        held = {f"[one] {each.file.path}" for each in found.disks}
        for proxy in self._model.vms.values():
            for device in proxy.devices:
                if getattr(getattr(device, "backing", None), "fileName", "") in held:
                    raise Violation("a snapshot is removed while a disk of it is attached")
        leaves = self._model.wrong.leaves_links > 0
        if leaves:
            self._model.wrong.leaves_links -= 1

        def drop() -> None:
            if found in vm.snapshots:
                self._model.drop_snapshot(vm, found, merges=not leaves)

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
            device.key = 3000 + self._model.next_number()
            vm.devices = [*vm.devices, device]
            vm.attached.add(int(device.key))

        return attach

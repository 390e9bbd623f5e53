"""What happens to VMs: guests write, and people delete, revert and extend them, and make and remove snapshots by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from simulation.virtual_disks import VirtualDisk, VirtualFile, some_numbers
from simulation.virtual_vms import VirtualVm

if TYPE_CHECKING:
    from simulation.deeds import Deeds
    from simulation.simulation import Simulation

SOON_SECONDS: Final = 0.7


def _vm(simulation: Simulation, number: int) -> VirtualVm | None:
    """One that is there, and that no task holds."""
    found = [vm for vm in simulation.vms if vm.moref in simulation.model.vms]
    vm = found[number % len(found)] if found else None
    return None if vm is None or vm.running() else vm


def _write(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None:
        return False
    for disk in vm.disks:
        for block in some_numbers(simulation.model.random, disk.count):
            simulation.model.write(vm, disk, block)
    return True


def _delete_vm(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None or len(simulation.vms) < 2:
        return False
    del simulation.model.vms[vm.moref]
    return True


def _user_snapshot(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None:
        return False
    simulation.model.make_snapshot(vm, f"before update {number}", "made by hand")
    return True


def _foreign_snapshot(simulation: Simulation, number: int) -> bool:
    """Of another Holdfast, or named as if it were ours."""
    vm = _vm(simulation, number)
    if vm is None:
        return False
    nonce = f"nonce={number:024x}" if number % 2 else "nonce="
    simulation.model.make_snapshot(vm, "holdfast 01J", f"Made by Holdfast. run=1 job=1 {nonce}")
    return True


def _users_own(simulation: Simulation, vm: VirtualVm, number: int) -> int | None:
    own = [n for n, each in enumerate(vm.snapshots) if not each.ours]
    del simulation
    return own[number % len(own)] if own else None


def _soon(simulation: Simulation, work: Callable[[], bool]) -> None:
    """When the moment has come, if it comes."""
    kernel = simulation.kernel

    def look() -> None:
        if simulation.faults_go_on and not work():
            kernel.call_at(kernel.now + SOON_SECONDS, look)

    look()


def _remove_user_snapshot(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None:
        return False
    found = simulation.model.make_snapshot(vm, f"a moment {number}", "made by hand")

    def remove() -> bool:
        if vm.running() or found not in vm.snapshots:
            return found not in vm.snapshots
        simulation.model.drop_snapshot(vm, found)
        return True

    kernel = simulation.kernel
    kernel.call_at(kernel.now + 1 + number % 20, lambda: _soon(simulation, remove))
    return True


def _revert(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    found = None if vm is None else _users_own(simulation, vm, number)
    if vm is None or found is None:
        return _user_snapshot(simulation, number)
    simulation.model.revert(vm, vm.snapshots[found])
    return True


def _our_snapshot_by_hand(simulation: Simulation, number: int) -> bool:
    def remove() -> bool:
        vm = _vm(simulation, number)
        own = [] if vm is None else [each for each in vm.snapshots if each.ours]
        if vm is None or not own:
            return False
        simulation.model.drop_snapshot(vm, own[number % len(own)])
        return True

    _soon(simulation, remove)
    return True


def _extend(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None or vm.snapshots:
        return False
    simulation.model.extend(vm, vm.disks[number % len(vm.disks)])
    return True


def _power_lost(simulation: Simulation, number: int) -> bool:
    """Tracking begins anew, as its new id says (C5)."""
    vm = _vm(simulation, number)
    if vm is None:
        return False
    for disk in vm.disks:
        if disk.tracking:
            disk.tracking = f"52 power {number} {simulation.model.kernel.steps}"
            disk.changes = []
    return True


def _replace_disk(simulation: Simulation, number: int) -> bool:
    """Another disk in the same slot, with another uuid (C9)."""
    vm = _vm(simulation, number)
    if vm is None or vm.snapshots:
        return False
    old = vm.disks[-1]
    file = VirtualFile(f"{vm.name}/other_{number}.vmdk", None)
    simulation.model.files[file.path] = file
    disk = VirtualDisk(old.key, f"uuid-{vm.moref}-{number}", old.count, file, "")
    vm.disks[-1] = disk
    vm.version += 1
    for block in range(disk.count):
        simulation.model.write(vm, disk, block)
    return True


def _foreign_disk(simulation: Simulation, number: int) -> bool:
    """Somebody attaches a disk to a proxy."""
    agent = simulation.agents.all[number % len(simulation.agents.all)]
    vm = agent.vm
    taken = {each.unitNumber for each in vm.devices if each.key >= 2000}
    unit = next(n for n in range(16) if n not in taken and n != 7)
    sample = vm.devices[-1]
    backing = type(sample.backing)(fileName=f"[one] other/{number}.vmdk", diskMode="persistent")
    key = 9000 + number % 1000
    if any(each.key == key for each in vm.devices) or vm.running():
        return False
    vm.devices = [
        *vm.devices,
        type(sample)(key=key, controllerKey=1000, unitNumber=unit, backing=backing),
    ]
    return True


GUESTS: Final[Deeds] = {
    "write": _write,
    "a VM is deleted": _delete_vm,
    "a VM is reverted": _revert,
    "a user's snapshot": _user_snapshot,
    "a user removes his snapshot": _remove_user_snapshot,
    "a disk is extended": _extend,
    "our snapshot is removed by hand": _our_snapshot_by_hand,
    "a foreign snapshot": _foreign_snapshot,
    "a foreign disk": _foreign_disk,
    "power is lost": _power_lost,
    "a disk is replaced": _replace_disk,
}

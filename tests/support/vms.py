"""Short ways to a VM of a lab: its facts by name, its truth, its leftovers."""

from __future__ import annotations

from holdfast_controller.facts import VmFacts
from holdfast_controller.vsphere import inventory
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import ConsistencyWish
from holdfast_lab.server import RunningLab

CRASH = ConsistencyWish(asked="crash", lower_allowed=False)


def vm_named(session: VsphereSession, name: str) -> VmFacts:
    found = [vm for vm in inventory.read_inventory(session).vms if vm.name == name]
    assert len(found) == 1, f"{len(found)} VMs are named {name}"
    return found[0]


def snapshot_names(lab: RunningLab, vm_name: str) -> list[str]:
    """The VM's snapshots as the lab itself has them."""
    with lab.lab.lock:
        return [snapshot.name for snapshot in lab.lab.machine(vm_name).snapshots()]


def chain_lengths(lab: RunningLab, vm_name: str) -> list[int]:
    """Links of each disk as the lab itself has them."""
    with lab.lab.lock:
        disks = lab.lab.machine(vm_name).disks()
        return [len(device.disk.chain_of(device.descriptor)) for device in disks]

"""Whether a VM may be snapshotted at all, before anything is done to it; every reason is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import NothingProtected, Refused
from holdfast_common.units import size_text
from holdfast_controller.configuration import DatastoreFloor
from holdfast_controller.facts import DatastoreFacts, VmFacts
from holdfast_controller.vsphere import inventory
from holdfast_controller.vsphere.session import VsphereSession

# vSphere's limit is 32 links; a merge that fails must still leave room to repair.
CHAIN_LINKS_MAX: Final = 28
FLOOR: Final = DatastoreFloor()  # unless the controller's configuration says another


def as_it_is(vm: VmFacts) -> VmFacts:
    """All disks are wanted."""
    return vm


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found. ``refusals`` stop the backup, ``warnings`` go on its point."""

    vm: VmFacts
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    def check(self) -> None:
        """Raises: Refused, NothingProtected with every reason."""
        if not self.vm.protected_disks:
            reasons = "; ".join(f"{disk.label}: {disk.left_out_reason}" for disk in self.vm.disks)
            raise NothingProtected(
                "the VM has no disk that an image backup can save",
                vm=self.vm.name,
                reasons=reasons or "it has no disks",
            )
        if self.refusals:
            raise Refused("; ".join(self.refusals), vm=self.vm.name)


def examine(
    session: VsphereSession,
    vm_moref: str,
    *,
    floor: DatastoreFloor = FLOOR,
    wanted: Callable[[VmFacts], VmFacts] = as_it_is,
) -> Preflight:
    """Read a VM anew and judge it. ``wanted``: the VM with the marks of disks that are not wanted. Raises: SourceGone."""
    vm, around = inventory.read_vm_around(session, vm_moref)
    return judge(wanted(vm), around.names.by_moref, floor=floor)


def judge(
    vm: VmFacts, datastores: Mapping[str, DatastoreFacts], *, floor: DatastoreFloor = FLOOR
) -> Preflight:
    """The verdict on a VM's facts. Pure."""
    refusals: list[str] = []
    if vm.connection_state != "connected":
        refusals.append(f"the VM is {vm.connection_state or 'not reachable'}")
    if vm.consolidation_needed:
        refusals.append("a consolidation of its disks is pending: consolidate it first")
    if vm.template:
        refusals.append("it is a template, which vSphere does not snapshot: clone it to a VM first")
    if vm.fault_tolerant:
        refusals.append("it is protected by Fault Tolerance, which allows no snapshot")
    shared = [disk.label for disk in vm.disks if disk.bus_sharing not in ("", "noSharing")]
    if shared:
        refusals.append(
            f"vSphere makes no snapshot of a VM with a shared bus ({', '.join(shared)})"
        )
    refusals += _deep_chains(vm)
    refusals += _full_datastores(vm, datastores, floor)
    warnings = [
        f"{disk.label} is not in the backup: {disk.unprotected_reason}"
        for disk in vm.unprotected_disks
    ]
    if vm.unprotected_disks and vm.protected_disks:
        warnings.append("a volume that spans saved and unsaved disks cannot be restored")
    return Preflight(vm=vm, refusals=tuple(refusals), warnings=tuple(warnings))


def _deep_chains(vm: VmFacts) -> list[str]:
    return [
        f"the chain of {disk.label} has {len(disk.chain)} links; {CHAIN_LINKS_MAX} is the limit"
        for disk in vm.frozen_disks
        if len(disk.chain) >= CHAIN_LINKS_MAX
    ]


def _full_datastores(
    vm: VmFacts, datastores: Mapping[str, DatastoreFacts], floor: DatastoreFloor
) -> list[str]:
    used = {link.datastore_moref for disk in vm.frozen_disks for link in disk.chain[-1:]}
    if vm.vmx is not None:
        used.add(vm.vmx.datastore_moref)
    problems = []
    for moref in sorted(used):
        store = datastores.get(moref)
        if store is None:
            continue
        if not store.accessible:
            problems.append(f"datastore {store.name} is not accessible")
            continue
        wanted = floor.before_snapshot_bytes(store.capacity_bytes)
        if store.capacity_bytes and store.free_bytes < wanted:
            problems.append(
                f"datastore {store.name} has only {size_text(store.free_bytes)} of"
                f" {size_text(store.capacity_bytes)} free; a snapshot needs room to grow, and"
                f" {size_text(wanted)} is the floor ([datastores] in controller.toml)"
            )
    return problems

"""Removing our snapshot, and proving that nothing of it is left: a task's success is not the end.

Only snapshots with our own nonce are touched, and never "all". Afterwards the VM must need no
consolidation, and no disk may run on more links than its snapshots explain.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import HoldfastError, Interrupted, SourceGone, VsphereFailed
from holdfast_common.retry import backoff_seconds
from holdfast_controller.facts import SnapshotNode, VmFacts
from holdfast_controller.ledger import LedgerEntry
from holdfast_controller.vsphere import inventory, properties
from holdfast_controller.vsphere.effects import run_task, wait_until_idle
from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.lost_vms import check_destroyed
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

# Merging a big delta takes hours; the caller keeps a thread for it.
REMOVE_TIMEOUT_SECONDS: Final = 24 * 3600.0
REMOVALS_MAX: Final = 4
CONSOLIDATIONS_MAX: Final = 3
FIRST_PAUSE_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 60.0


def remove_own_snapshot(session: VsphereSession, entry: LedgerEntry) -> None:
    """Remove the snapshot of a ledger entry and what is left of it. Harmless when it is gone.

    Raises: SourceGone when the VM was destroyed; VsphereFailed and others when something is, or may be, left.
    """
    try:
        _remove_all(session, entry)
    except SourceGone:
        check_destroyed(session, entry, vm_name=entry.fact("vm_name"), left="a snapshot of ours")
        raise


def _remove_all(session: VsphereSession, entry: LedgerEntry) -> None:
    moref = _present_moref(session, entry)
    machine = reference(vim.VirtualMachine, moref)
    # a creation whose reply was lost may still be on its way
    wait_until_idle(session, machine, timeout_seconds=REMOVE_TIMEOUT_SECONDS)
    for node in _own_snapshots(session, moref, entry):
        _remove_bounded(session, moref, node, entry)
    _prove_nothing_left(session, moref, entry)


def excess_links(vm: VmFacts) -> dict[str, int]:
    """Per disk: how many links its chain has beyond those that the VM's snapshots explain."""
    depth = snapshot_depth(vm)
    return {
        _disk_name(disk.device_key, disk.backing_uuid): len(disk.chain) - 1 - depth
        for disk in vm.disks
    }


def snapshot_depth(vm: VmFacts) -> int:
    """How many snapshots the VM's current state stands on."""
    parents = {node.moref: node.parent_moref for node in vm.snapshots}
    depth = 0
    current = vm.current_snapshot_moref
    while current in parents and depth <= len(parents):
        depth += 1
        current = parents[current]
    return depth


def leftover_disks(vm: VmFacts, before: dict[str, int]) -> list[str]:
    """Labels of the disks that stand on more links than before, beyond what snapshots explain."""
    now = excess_links(vm)
    labels = {_disk_name(disk.device_key, disk.backing_uuid): disk.label for disk in vm.disks}
    return [labels[name] for name, links in now.items() if name in before and links > before[name]]


def _disk_name(device_key: int, backing_uuid: str) -> str:
    return f"{device_key} {backing_uuid}"


def _present_moref(session: VsphereSession, entry: LedgerEntry) -> str:
    """The VM's moref today: it may have been registered anew. Raises: SourceGone."""
    moref, identity = entry.fact("vm"), entry.fact("instance_uuid")
    try:
        machine = reference(vim.VirtualMachine, moref)
        values = properties.read_one(session, machine, ["config.instanceUuid"])
        if not identity or values.get("config.instanceUuid") in (identity, None):
            return moref
    except SourceGone:
        if not identity:
            raise
    return inventory.find_moref(session, instance_uuid=identity)


def _own_snapshots(
    session: VsphereSession, vm_moref: str, entry: LedgerEntry
) -> list[SnapshotNode]:
    nonce = entry.fact("nonce")
    if not nonce:
        raise VsphereFailed("a ledger entry of a snapshot has no nonce", entry=entry.entry_id)
    machine = reference(vim.VirtualMachine, vm_moref)
    values = properties.read_one(session, machine, ["snapshot"])
    nodes = inventory.snapshot_nodes(values.get("snapshot"))
    return [node for node in nodes if f"nonce={nonce}" in node.description]


def _remove_bounded(
    session: VsphereSession, vm_moref: str, node: SnapshotNode, entry: LedgerEntry
) -> None:
    def landed() -> bool | None:
        still = {each.moref for each in _own_snapshots(session, vm_moref, entry)}
        return None if node.moref in still else True

    waits = backoff_seconds(
        first=FIRST_PAUSE_SECONDS, maximum=PAUSE_SECONDS_MAX, attempts=REMOVALS_MAX
    )
    while True:
        try:
            run_task(
                session,
                reference(vim.vm.Snapshot, node.moref),
                "RemoveSnapshot_Task",
                what=f"removing the snapshot {node.name}",
                landed=landed,
                busy=reference(vim.VirtualMachine, vm_moref),
                timeout_seconds=REMOVE_TIMEOUT_SECONDS,
                # children are the user's own snapshots made meanwhile: they stay
                removeChildren=False,
                consolidate=True,
            )
            return
        except HoldfastError as error:
            if landed():
                return
            wait = next(waits, None)
            if wait is None:
                raise
            log.info("removing a snapshot failed; trying again", extra={"error": str(error)})
            _pause(session, wait, error)


def _prove_nothing_left(session: VsphereSession, vm_moref: str, entry: LedgerEntry) -> None:
    before: dict[str, int] = json.loads(entry.fact("excess") or "{}")
    waits = backoff_seconds(
        first=FIRST_PAUSE_SECONDS, maximum=PAUSE_SECONDS_MAX, attempts=CONSOLIDATIONS_MAX + 1
    )
    problem: HoldfastError | None = None
    while True:
        vm = inventory.read_vm(session, vm_moref)
        left = leftover_disks(vm, before)
        if not vm.consolidation_needed and not left:
            return
        wait = next(waits, None)
        if wait is None:
            raise VsphereFailed(
                "the snapshot is removed, but disks still stand on its files",
                vm=vm.name,
                disks=", ".join(left) or "unknown",
                cause=str(problem) if problem else None,
                advice="consolidate the VM's disks; Holdfast tries again by itself",
            ) from problem
        try:
            consolidate(session, vm)
        except HoldfastError as error:
            if not isinstance(error, VsphereFailed):
                raise
            problem = error
            _pause(session, wait, error)


def consolidate(session: VsphereSession, vm: VmFacts) -> None:
    """Merge what removed snapshots left behind. Raises: VsphereFailed."""

    def landed() -> bool | None:
        now = inventory.read_vm(session, vm.moref)
        return None if now.consolidation_needed else True

    run_task(
        session,
        reference(vim.VirtualMachine, vm.moref),
        "ConsolidateVMDisks_Task",
        what=f"consolidating the disks of {vm.name}",
        landed=landed,
        timeout_seconds=REMOVE_TIMEOUT_SECONDS,
    )


def _pause(session: VsphereSession, seconds: float, cause: HoldfastError) -> None:
    if session.stop.wait(seconds):
        raise Interrupted("the session at vSphere is being closed") from cause

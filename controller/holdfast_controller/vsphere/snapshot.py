"""A snapshot that is always removed: intent in the ledger, made, used, removed, checked, gone.

Before `changed_areas` and `disk_tickets`. Whatever happens inside the ``with``, the snapshot is
removed afterwards; what cannot be removed becomes a debt in the ledger, never a secret.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from pyVmomi import vim

from holdfast_common.clock import utc_text
from holdfast_common.errors import HoldfastError, QuiesceFailed, SourceGone, VsphereFailed
from holdfast_controller.facts import DiskFacts, SnapshotFacts, SnapshotNode, VmFacts
from holdfast_controller.ledger import (
    LEFT_VERSION,
    EntryId,
    EntryKind,
    JobLedger,
    LedgerEntry,
    check_undo_order,
    new_nonce,
)
from holdfast_controller.vsphere import (
    configuration,
    devices,
    faults,
    inventory,
    properties,
    quiesce,
    snapshot_removal,
)
from holdfast_controller.vsphere.effects import run_task
from holdfast_controller.vsphere.foreign import Foreign, reference
from holdfast_controller.vsphere.lost_vms import lost_vm_facts
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

CREATE_TIMEOUT_SECONDS: Final = 1800.0
NAME_PREFIX: Final = "holdfast"
_QUIESCE_FAULTS: Final = frozenset(
    {
        "ApplicationQuiesceFault",
        "FilesystemQuiesceFault",
        "SnapshotFault",
        "QuiesceDatastoreIOForHAFailed",
        "ToolsUnavailable",
        "GenericVmConfigFault",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyWish:
    """What was asked for (application, filesystem, crash, cold), and whether less will do.

    ``unquiesced``: why the guest must not be frozen; empty: it may be.
    """

    asked: str
    lower_allowed: bool
    unquiesced: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """The snapshot to be made."""

    vm: VmFacts
    nonce: str
    name: str
    description: str
    wish: ConsistencyWish


@contextmanager
def temporary_snapshot(
    session: VsphereSession, ledger: JobLedger, *, vm: VmFacts, wish: ConsistencyWish
) -> Iterator[SnapshotFacts]:
    """Our own snapshot of a VM, for as long as the block runs.

    Close whatever reads its disks before the block ends. Raises: QuiesceFailed, VsphereFailed;
    nothing of the snapshot is left then, or the ledger has it as a debt.
    """
    nonce = new_nonce()
    order = _Order(
        vm=vm,
        nonce=nonce,
        name=f"{NAME_PREFIX} {ledger.run_id}",
        description="Made by Holdfast for a backup, removed at its end."
        f" run={ledger.run_id} job={ledger.job_id} nonce={nonce}",
        wish=wish,
    )
    plan = quiesce.plan_quiesce(vm, wish.asked, unquiesced=wish.unquiesced)
    _refuse_less(plan.level, wish, plan.reason)
    entry_id = ledger.intend(
        EntryKind.SNAPSHOT,
        {
            "vm": vm.moref,
            "vm_name": vm.name,
            "instance_uuid": vm.instance_uuid,
            "nonce": nonce,
            "excess": json.dumps(snapshot_removal.excess_links(vm)),
            **lost_vm_facts(vm),
        },
    )
    try:
        made, plan = _create(session, order, plan)
        ledger.ledger.made(entry_id, {"snapshot": made.moref})
        yield _facts(session, order, made, plan)
    finally:
        _remove(session, ledger, entry_id)


def find_by_nonce(session: VsphereSession, vm_moref: str, nonce: str) -> list[SnapshotNode]:
    """The snapshots of a VM that carry this nonce, whatever else is there. Raises: SourceGone."""
    machine = reference(vim.VirtualMachine, vm_moref)
    values = properties.read_one(session, machine, ["snapshot"])
    nodes = inventory.snapshot_nodes(values.get("snapshot"))
    return [node for node in nodes if f"nonce={nonce}" in node.description]


def _create(
    session: VsphereSession, order: _Order, plan: quiesce.QuiescePlan
) -> tuple[SnapshotNode, quiesce.QuiescePlan]:
    """The snapshot and the plan that succeeded: a failed quiesce is tried lower when allowed."""

    def landed() -> SnapshotNode | None:
        found = find_by_nonce(session, order.vm.moref, order.nonce)
        return found[0] if found else None

    wish = order.wish
    while True:
        try:
            return _issue(session, order, plan, landed), plan
        except HoldfastError as error:
            quiescing = plan.level in (quiesce.FILESYSTEM, quiesce.APPLICATION)
            if not quiescing or faults.fault_name(error) not in _QUIESCE_FAULTS:
                raise
            lower = quiesce.next_lower(plan, f"{plan.level} quiesce failed: {error.message}")
            if not wish.lower_allowed:
                raise QuiesceFailed(
                    "the guest could not be quiesced", asked=wish.asked, cause=error.message
                ) from error
            log.warning(
                "a quiesce failed; trying lower", extra={"vm": order.vm.name, "level": lower.level}
            )
            plan = lower


def _issue(
    session: VsphereSession,
    order: _Order,
    plan: quiesce.QuiescePlan,
    landed: Callable[[], SnapshotNode | None],
) -> SnapshotNode:
    machine = reference(vim.VirtualMachine, order.vm.moref)
    spec = quiesce.quiesce_spec(order.vm, plan.level)
    method = "CreateSnapshot_Task" if spec is None else "CreateSnapshotEx_Task"
    how: dict[str, Foreign] = {"quiesce": False} if spec is None else {"quiesceSpec": spec}
    return run_task(
        session,
        machine,
        method,
        what=f"creating a snapshot of {order.vm.name}",
        landed=landed,
        timeout_seconds=CREATE_TIMEOUT_SECONDS,
        name=order.name,
        description=order.description,
        memory=False,
        **how,
    )


def _facts(
    session: VsphereSession, order: _Order, made: SnapshotNode, plan: quiesce.QuiescePlan
) -> SnapshotFacts:
    """Everything from the snapshot's own config. Raises: QuiesceFailed when less was reached."""
    found = quiesce.reached(plan, quiesced=made.quiesced)
    _refuse_less(found.level, order.wish, found.evidence)
    config = read_config(session, made.moref)
    now, around = inventory.read_vm_around(session, order.vm.moref)
    disks = devices.disk_facts(config.hardware.device, around.names)
    _check_frozen(disks, now)
    return SnapshotFacts(
        moref=made.moref,
        vm=_without_ours(now, made.moref),
        created_at=made.created_at or utc_text(session.clock.now()),
        disks=disks,
        configuration=configuration.configuration_json(config),
        asked=order.wish.asked,
        reached=found.level,
        evidence=found.evidence,
        warnings=tuple(_warnings(disks)),
    )


def _without_ours(vm: VmFacts, moref: str) -> VmFacts:
    """The VM as its users know it: our snapshot is none of theirs."""
    ours = next((node for node in vm.snapshots if node.moref == moref), None)
    current = vm.current_snapshot_moref
    if ours is not None and current == moref:
        current = ours.parent_moref
    return replace(
        vm,
        snapshots=tuple(node for node in vm.snapshots if node.moref != moref),
        current_snapshot_moref=current,
    )


def read_config(session: VsphereSession, snapshot_moref: str) -> Foreign:
    """A snapshot's own ``config``. Raises: SourceGone."""
    found = properties.read_one(session, reference(vim.vm.Snapshot, snapshot_moref), ["config"])
    config = found.get("config")
    if config is None:
        raise VsphereFailed("a snapshot shows no configuration", snapshot=snapshot_moref)
    return config


def _warnings(disks: tuple[DiskFacts, ...]) -> list[str]:
    return [
        f"{disk.label} is not in the backup: {disk.unprotected_reason}"
        for disk in disks
        if disk.unprotected_reason
    ]


def _check_frozen(frozen: tuple[DiskFacts, ...], now: VmFacts) -> None:
    """A frozen link must lie below the live tip: otherwise this is not the snapshot we think."""
    live: Mapping[tuple[int, str], DiskFacts] = {
        (disk.device_key, disk.backing_uuid): disk for disk in now.disks
    }
    problems = []
    for disk in frozen:
        current = live.get((disk.device_key, disk.backing_uuid))
        if disk.unprotected_reason or current is None:
            continue
        if disk.tip not in current.chain[:-1]:
            problems.append(f"{disk.label} is not frozen although its snapshot succeeded")
    if problems:
        raise VsphereFailed(
            "the snapshot does not freeze what it should", disks="; ".join(problems)
        )


def _refuse_less(level: str, wish: ConsistencyWish, reason: str) -> None:
    if quiesce.is_lower(level, wish.asked) and not wish.lower_allowed:
        raise QuiesceFailed(
            "the consistency asked for cannot be reached",
            asked=wish.asked,
            reached=level,
            reason=reason,
        )


def _remove(session: VsphereSession, ledger: JobLedger, entry_id: EntryId) -> None:
    """Remove on the way out; what fails is a debt, and the block's own error goes on."""
    entry = ledger.ledger.entry(entry_id)
    try:
        check_undo_order(ledger.ledger, entry)
        snapshot_removal.remove_own_snapshot(session, entry)
    except SourceGone:
        # the VM itself was destroyed, and its snapshots with it
        ledger.ledger.gone(entry_id)
    except HoldfastError as error:
        log.warning(
            "a snapshot could not be removed; it is a debt now",
            extra={"vm": entry.fact("vm_name"), "error": str(error)},
        )
        ledger.ledger.debt(entry_id, error.line())
    else:
        _note_version(session, ledger, entry)
        ledger.ledger.gone(entry_id)


def _note_version(session: VsphereSession, ledger: JobLedger, entry: LedgerEntry) -> None:
    """How the VM was left; not known is harmless, it makes a full of the next backup at worst."""
    machine = reference(vim.VirtualMachine, entry.fact("vm"))
    try:
        found = properties.read_one(session, machine, [inventory.CONFIGURATION_VERSION])
    except HoldfastError as error:
        log.info("a VM could not be looked at after its backup", extra={"error": str(error)})
        return
    version = str(found.get(inventory.CONFIGURATION_VERSION) or "")
    ledger.ledger.note(entry.entry_id, {LEFT_VERSION: version})

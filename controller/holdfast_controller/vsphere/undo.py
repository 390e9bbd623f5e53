"""From a ledger's entry to nothing left of it: one function for each kind, in an order that is safe.

After a crash `runs.reconcile` hands over what its jobs left behind. Each entry is undone alone; what
cannot be undone is a debt, and blocks only what would be unsafe after it. Disks are detached before
snapshots go, and a VM of ours is destroyed last, when it holds no disk of anybody else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from holdfast_common.errors import CapabilityAbsent, HoldfastError, SourceGone
from holdfast_controller.ledger import (
    UNDONE_FIRST,
    EntryKind,
    EntryState,
    Ledger,
    LedgerEntry,
    check_undo_order,
)
from holdfast_controller.vsphere.disk_swap import settle_swap
from holdfast_controller.vsphere.hot_add import detach_own_disk
from holdfast_controller.vsphere.new_folders import delete_own_folder
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot_removal import remove_own_snapshot
from holdfast_controller.vsphere.transfer_leases import abort_own_lease
from holdfast_controller.vsphere.virtual_machines import destroy_own_vm

log = logging.getLogger(__name__)

Undo = Callable[[VsphereSession, LedgerEntry], None]


def _snapshot(session: VsphereSession, entry: LedgerEntry) -> None:
    try:
        remove_own_snapshot(session, entry)
    except SourceGone:
        log.info("the VM of a snapshot was destroyed", extra={"vm": entry.fact("vm_name")})


def _swap(session: VsphereSession, entry: LedgerEntry) -> None:
    try:
        settle_swap(session, entry)
    except SourceGone:
        log.info(
            "the VM of an exchange of disks was destroyed", extra={"vm": entry.fact("vm_name")}
        )


# Every function is idempotent and touches nothing that its entry does not prove ours.
UNDOES: Final[Mapping[EntryKind, Undo]] = {
    EntryKind.HOT_ADD: detach_own_disk,
    EntryKind.TRANSFER_LEASE: abort_own_lease,
    EntryKind.SNAPSHOT: _snapshot,
    EntryKind.DISK_SWAP: _swap,
    EntryKind.NEW_VM: destroy_own_vm,
    EntryKind.FOLDER: delete_own_folder,
}
_ORDER: Final = tuple(UNDONE_FIRST)


def undo_entries(
    session: VsphereSession, ledger: Ledger, entries: Sequence[LedgerEntry]
) -> list[LedgerEntry]:
    """Undo what these entries left; the ones that are debts now. Never raises for one of them."""
    debts: list[LedgerEntry] = []
    for entry in sorted(entries, key=lambda each: _ORDER.index(each.kind)):
        if ledger.entry(entry.entry_id).state is EntryState.GONE:
            continue  # somebody was faster
        try:
            check_undo_order(ledger, entry)
            _undo_of(entry)(session, entry)
        except HoldfastError as error:
            log.warning(
                "something of ours could not be undone yet",
                extra={"kind": entry.kind, "entry": entry.entry_id, "error": str(error)},
            )
            ledger.debt(entry.entry_id, error.line())
            debts.append(ledger.entry(entry.entry_id))
        else:
            ledger.gone(entry.entry_id)
    return debts


def _undo_of(entry: LedgerEntry) -> Undo:
    undo = UNDOES.get(entry.kind)
    if undo is None:
        raise CapabilityAbsent(
            "this version cannot undo it",
            kind=entry.kind,
            advice="let the version that made it undo it, or remove it by hand",
        )
    return undo

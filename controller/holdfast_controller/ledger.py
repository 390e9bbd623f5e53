"""The ledger: what has a lasting effect outside is written down before it happens, with how to undo it.

`store.ledger` keeps it; `vsphere` writes into it and undoes by it. An entry is *intended* before the
act, *made* after it, *gone* when nothing is left of it (or it was wanted to stay), and a *debt*
when undoing failed: a debt is shown to people and tried again.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType, Protocol

from holdfast_common.errors import Locked
from holdfast_common.identity import JobId, RunId

EntryId = NewType("EntryId", str)
# The fact of a removed snapshot: which version of its VM's configuration the removal left.
LEFT_VERSION: Final = "left_version"
KEPT: Final = "kept"  # the fact ``outcome`` of an entry that was wanted and stays


class EntryKind(StrEnum):
    """What was done."""

    SNAPSHOT = "snapshot"
    HOT_ADD = "hot_add"
    TRANSFER_LEASE = "transfer_lease"
    FOLDER = "folder"
    NEW_VM = "new_vm"
    DISK_SWAP = "disk_swap"


class EntryState(StrEnum):
    """How far it is; see the module."""

    INTENDED = "intended"
    MADE = "made"
    GONE = "gone"
    DEBT = "debt"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One effect. ``facts`` are what its undo needs; times are UTC ISO text."""

    entry_id: EntryId
    run_id: RunId
    job_id: JobId
    kind: EntryKind
    vcenter_id: str
    facts: Mapping[str, str]
    state: EntryState
    created_at: str
    updated_at: str
    attempts: int
    last_error: str

    def fact(self, name: str) -> str:
        """A fact; empty when it was not known when the entry was last written."""
        return self.facts.get(name, "")

    @property
    def is_kept(self) -> bool:
        """Whether it was wanted in the end, and stays."""
        return self.fact("outcome") == KEPT


class Ledger(Protocol):
    """Every method returns when its change is durable. Thread-safe."""

    def intend(
        self,
        kind: EntryKind,
        *,
        run_id: RunId,
        job_id: JobId,
        vcenter_id: str,
        facts: Mapping[str, str],
    ) -> EntryId:
        """Write an entry before the act."""
        ...

    def note(self, entry_id: EntryId, facts: Mapping[str, str]) -> None:
        """Add or replace facts."""
        ...

    def made(self, entry_id: EntryId, facts: Mapping[str, str]) -> None:
        """The act happened; add or replace facts."""
        ...

    def gone(self, entry_id: EntryId) -> None:
        """Nothing is left of it. Saying so twice is harmless."""
        ...

    def kept(self, *entry_ids: EntryId) -> None:
        """They are what was wanted in the end, and stay, all at once: nothing to undo any more."""
        ...

    def debt(self, entry_id: EntryId, error: str) -> None:
        """Undoing it failed; counted."""
        ...

    def entry(self, entry_id: EntryId) -> LedgerEntry:
        """One entry. Raises: NotFound."""
        ...

    def open_entries(self, *, vcenter_id: str = "", job_id: str = "") -> list[LedgerEntry]:
        """What is not gone, oldest first; of one vCenter or job when named."""
        ...


# What must be gone before an effect of this kind may be undone: a disk that is still lent is released
# before its snapshot, its VM or its folder goes, and a VM that still holds disks is never destroyed.
UNDONE_FIRST: Final[Mapping[EntryKind, frozenset[EntryKind]]] = {
    EntryKind.HOT_ADD: frozenset(),
    EntryKind.TRANSFER_LEASE: frozenset(),
    EntryKind.SNAPSHOT: frozenset({EntryKind.HOT_ADD, EntryKind.TRANSFER_LEASE}),
    EntryKind.DISK_SWAP: frozenset({EntryKind.HOT_ADD, EntryKind.TRANSFER_LEASE}),
    EntryKind.NEW_VM: frozenset({EntryKind.HOT_ADD, EntryKind.TRANSFER_LEASE, EntryKind.DISK_SWAP}),
    EntryKind.FOLDER: frozenset(
        {EntryKind.HOT_ADD, EntryKind.TRANSFER_LEASE, EntryKind.DISK_SWAP, EntryKind.NEW_VM}
    ),
}


def check_undo_order(ledger: Ledger, entry: LedgerEntry) -> None:
    """Whether an entry may be undone now, seen from what else its job left. Raises: Locked."""
    first = UNDONE_FIRST[entry.kind]
    held = [each for each in ledger.open_entries(job_id=entry.job_id) if each.kind in first]
    if held:
        raise Locked(
            "it is not undone before what holds its disks is given back",
            held_by=", ".join(sorted({each.kind for each in held})),
            cause=held[0].last_error or None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLedger:
    """The ledger as one job at one vCenter writes it."""

    ledger: Ledger
    run_id: RunId
    job_id: JobId
    vcenter_id: str

    def intend(self, kind: EntryKind, facts: Mapping[str, str]) -> EntryId:
        """Write an entry before the act; durable on return."""
        return self.ledger.intend(
            kind,
            run_id=self.run_id,
            job_id=self.job_id,
            vcenter_id=self.vcenter_id,
            facts=facts,
        )

    def open_entries(self) -> list[LedgerEntry]:
        """What this job left behind, debts included."""
        return self.ledger.open_entries(job_id=self.job_id)


def new_nonce() -> str:
    """What marks a thing as ours: nobody else's name or description contains it by accident."""
    return secrets.token_hex(12)

"""What could not be given back yet, in words: `status` and `doctor` name it alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from holdfast_controller.ledger import EntryKind, LedgerEntry

ERROR_CHARACTERS_MAX: Final = 160  # a line of a terminal; `job show` has all of it


def debt_text(entry: LedgerEntry) -> str:
    """What of ours is still there: ``our snapshot of VM web``."""
    return TEXTS[entry.kind](entry)


def shortened(error: str) -> str:
    """An error as one short line."""
    line = " ".join(error.split())
    if len(line) <= ERROR_CHARACTERS_MAX:
        return line
    return line[: ERROR_CHARACTERS_MAX - 1].rstrip() + "…"


def _vm(entry: LedgerEntry) -> str:
    return f"VM {entry.fact('vm_name') or entry.fact('vm') or 'unknown'}"


def _attached(entry: LedgerEntry) -> str:
    file = f"[{entry.fact('datastore_name')}] {entry.fact('path')}"
    owner = f" of {_vm(entry)}" if entry.fact("vm_name") else ""
    return f"disk {file}{owner}, attached to proxy {entry.fact('proxy_name')}"


def _folder(entry: LedgerEntry) -> str:
    return f"our folder {entry.fact('path')} on datastore {entry.fact('datastore_id')}"


TEXTS: Final[Mapping[EntryKind, Callable[[LedgerEntry], str]]] = {
    EntryKind.SNAPSHOT: lambda entry: f"our snapshot of {_vm(entry)}",
    EntryKind.HOT_ADD: _attached,
    EntryKind.TRANSFER_LEASE: lambda entry: f"our transfer lease of {_vm(entry)}",
    EntryKind.FOLDER: _folder,
    EntryKind.NEW_VM: lambda entry: f"our unfinished {_vm(entry)}",
    EntryKind.DISK_SWAP: lambda entry: f"the exchanged disks of {_vm(entry)}",
}

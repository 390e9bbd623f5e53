"""What `holdfast qualify` finds out about a vSphere: which behaviours that backups stand on hold there. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Behaviour(StrEnum):
    """One thing that vSphere's documents say, or that people who run it tell; the text says it."""

    RIGHTS = "the account holds every right that backups and restores need"
    SNAPSHOT_ALLOWED = "nothing forbids a snapshot of the VM"
    TRACKING_ON = "change tracking is switched on, and shows so"
    SNAPSHOT_FREEZES = "a snapshot freezes every disk that it should"
    CHANGE_IDS = "the snapshot's disks carry change ids"
    ALLOCATED_TOLD = "what is allocated is told, to the end of each disk"
    UNKNOWN_ID_FAILS = "a change id that never was is a fault, not an empty answer"
    CHANGES_TOLD = "what changed since an earlier snapshot is told, to the end of each disk"
    LISTS_WHOLE = "a disk's list comes in one answer"
    QUIESCED = "a quiesced snapshot says that it is one"
    SNAPSHOT_GOES = "a snapshot that is removed leaves nothing that must be consolidated"
    DISKS_STAY = "the disks stay where they are while they are read"
    CHANGES_TRUE = "change tracking tells every change"
    READ_NFC = "disks are read by nfc"
    READ_DIRECT = "disks are read by direct"
    READ_HOTADD = "disks are read by hotadd"
    RESTORE_NFC = "a VM is restored by nfc, and reads back the same"
    RESTORE_DIRECT = "a VM is restored by direct, and reads back the same"
    RESTORE_HOTADD = "a VM is restored by hotadd, and reads back the same"
    CALLS_ANSWERED = "every call is answered"
    LOGIN_LASTS = "the login lasts"
    IN_TIME = "snapshots are made and removed in time"
    CLEAN = "nothing of ours is left"


class Verdict(StrEnum):
    """``HANDLED``: it does not hold, and Holdfast copes with it. ``UNSEEN``: it was not to be seen here."""

    HOLDS = "holds"
    HANDLED = "handled"
    BROKEN = "broken"
    UNSEEN = "not seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One behaviour. ``detail``: what was seen."""

    behaviour: Behaviour
    verdict: Verdict
    detail: str = ""


_WORST = (Verdict.BROKEN, Verdict.HANDLED, Verdict.HOLDS, Verdict.UNSEEN)


def findings(tried: Sequence[Finding]) -> list[Finding]:
    """One for each behaviour, in their order: the worst of what was seen of it."""
    found = []
    for behaviour in Behaviour:
        seen = [each for each in tried if each.behaviour is behaviour]
        if not seen:
            detail = "what comes before it does not hold"
            found.append(Finding(behaviour=behaviour, verdict=Verdict.UNSEEN, detail=detail))
            continue
        found.append(min(seen, key=lambda each: _WORST.index(each.verdict)))
    return found

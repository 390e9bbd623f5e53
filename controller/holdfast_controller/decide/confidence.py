"""How sure it is that a point holds what its disks held, as far as change tracking had a say in it. Pure.

A disk that was read whole is proven. What a backup took over from the point before it, because tracking called it
unchanged (or, in a full, not allocated), is proven by nobody; audits read a share of it again. The number of a point
is how likely those audits would have found a lie by now: one unit of an audit, kept back at any of the backups since
the disk was proven, each as likely as another. It is a floor: lies about more than one unit are found more often, and
the units of a cycle of audits, which never overlap, are taken for independent ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast_common.errors import FormatError
from holdfast_common.point_record import DiskRecord
from holdfast_controller.decide.level import is_by_changes

SHARES_MAX = 10_000  # of one disk: a backup an hour for a year

DiskIdentity = tuple[int, str]  # device key, uuid of the backing


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskEvidence:
    """What speaks for one disk of a point.

    ``shares``: of each backup since the disk was read whole, the oldest first: how much was read again of what was
    taken over from the point before, 0 to 1. Empty: this point read the disk whole. ``is_known`` False: the backups
    did not tell enough, or the point that the first of them stands on is not known.
    """

    shares: tuple[float, ...] = ()
    is_known: bool = True

    @property
    def is_proven(self) -> bool:
        """Whether the disk was read whole for this very point."""
        return self.is_known and not self.shares

    @property
    def confidence(self) -> float | None:
        """0 to 1, see above; None: not known."""
        if not self.is_known:
            return None
        if not self.shares:
            return 1.0
        missed, found = 1.0, 0.0
        for share in reversed(self.shares):
            missed *= 1.0 - share
            found += 1.0 - missed
        return found / len(self.shares)


Evidence = Mapping[DiskIdentity, DiskEvidence]


def point_evidence(disks: Sequence[DiskRecord], previous: Evidence | None) -> Evidence:
    """Of each disk of a point. ``previous``: of the point that it stands on; None: there is none, or it is not known."""
    return {
        (disk.device_key, disk.uuid): _one_disk(
            disk, (previous or {}).get((disk.device_key, disk.uuid))
        )
        for disk in disks
    }


def point_confidence(evidence: Evidence) -> float | None:
    """That of the least proven disk; None: of one it is not known."""
    numbers = [each.confidence for each in evidence.values()]
    known = [number for number in numbers if number is not None]
    return min(known, default=None) if len(known) == len(numbers) else None


def confidence_text(confidence: float | None) -> str:
    """For people; rounded down, so what is not proven never shows as 1."""
    if confidence is None:
        return (
            "not known: the points that it stands on did not tell how much of the disks they read"
        )
    if confidence >= 1.0:
        return "1: all of its disks was read for it"
    return (
        f"{math.floor(confidence * 100) / 100:.2f} at least: so likely is it that what change tracking kept back"
        " would have been found by now"
    )


def confidence_number(confidence: float | None) -> str:
    """The number alone, likewise rounded down; a question mark: not known."""
    if confidence is None:
        return "?"
    return "1" if confidence >= 1.0 else f"{math.floor(confidence * 100) / 100:.2f}"


def evidence_text(evidence: Evidence) -> str:
    """JSON."""
    return json.dumps(
        [[*identity, each.is_known, *each.shares] for identity, each in sorted(evidence.items())]
    )


def evidence_of_text(text: str) -> Evidence:
    """The inverse of `evidence_text`. Raises: FormatError."""
    try:
        return {
            (int(key), str(uuid)): DiskEvidence(shares=tuple(map(float, shares)), is_known=is_known)
            for key, uuid, is_known, *shares in json.loads(text)
        }
    except (ValueError, TypeError) as error:
        raise FormatError("the evidence of a point cannot be read", error=str(error)) from error


def _one_disk(disk: DiskRecord, before: DiskEvidence | None) -> DiskEvidence:
    if disk.seen_bytes is None:
        return DiskEvidence(is_known=False)  # an older agent
    if disk.seen_bytes >= disk.capacity_bytes:
        return DiskEvidence()
    taken_over = disk.capacity_bytes - (disk.seen_bytes - disk.audited_bytes)
    share = disk.audited_bytes / taken_over
    if not is_by_changes(disk.level_reason):  # a full, of what is allocated as tracking says
        return DiskEvidence(shares=(share,))
    if before is None or len(before.shares) >= SHARES_MAX:
        return DiskEvidence(shares=(share,), is_known=False)
    return DiskEvidence(shares=(*before.shares, share), is_known=before.is_known)

"""Which byte ranges of a disk must be read: asked of vSphere until the disk's end, never trusted half.

After `snapshot`, before `disk_tickets`. An answer that fails never means "nothing changed" or
"nothing allocated": the disk is read whole then, and the reason is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import (
    CapabilityAbsent,
    ChangesUnknown,
    SourceGone,
    VsphereFailed,
    VsphereUnavailable,
)
from holdfast_common.extents import Extent, aligned, total_length
from holdfast_common.job_spec import AreaSource
from holdfast_common.units import KIB
from holdfast_controller.facts import DiskDecision, DiskFacts, SnapshotFacts
from holdfast_controller.vsphere import faults
from holdfast_controller.vsphere.foreign import Foreign, reference
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

EVERYTHING_ALLOCATED: Final = "*"
READ_UNIT_BYTES: Final = (
    64 * KIB
)  # what the repository keeps; smaller areas would be widened anyway
ANSWERS_MAX: Final = 1_000_000  # a disk of 64 TiB in answers of 64 MiB each


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskAreas:
    """What to read of one disk: ``extents`` ascending and merged, and why these."""

    device_key: int
    source: AreaSource
    extents: tuple[Extent, ...]
    reason: str

    @property
    def length(self) -> int:
        """Bytes to read."""
        return total_length(self.extents)


def areas_of_disk(
    session: VsphereSession,
    snapshot: SnapshotFacts,
    disk: DiskFacts,
    decision: DiskDecision,
    *,
    full_on_failure: bool = True,
) -> DiskAreas:
    """The areas of one disk by the decision, or the whole disk with the reason why.

    Raises: ChangesUnknown when ``full_on_failure`` is False; SourceGone, VsphereUnavailable.
    """
    if decision.areas is AreaSource.EVERYTHING:
        return whole_disk(disk, decision.reason)
    try:
        extents = query_areas(session, snapshot, disk, since=decision.since)
    except ChangesUnknown as error:
        if not full_on_failure and decision.areas is AreaSource.CHANGED:
            raise
        log.warning("a disk is read whole", extra={"vm": snapshot.vm.name, "error": str(error)})
        failed = f"vSphere cannot say what changed on {disk.label}: {error.message}"
        earlier = decision.reason if decision.areas is AreaSource.ALLOCATED else ""
        return whole_disk(disk, "; ".join(each for each in (earlier, failed) if each))
    areas = DiskAreas(
        device_key=disk.device_key,
        source=decision.areas,
        extents=tuple(extents),
        reason=decision.reason,
    )
    if areas.length >= disk.capacity_bytes and decision.areas is AreaSource.ALLOCATED:
        return replace(areas, source=AreaSource.EVERYTHING)
    return areas


def whole_disk(disk: DiskFacts, reason: str) -> DiskAreas:
    """All of a disk."""
    everything = Extent(offset=0, length=disk.capacity_bytes)
    return DiskAreas(
        device_key=disk.device_key,
        source=AreaSource.EVERYTHING,
        extents=(everything,) if disk.capacity_bytes else (),
        reason=reason,
    )


def query_areas(
    session: VsphereSession, snapshot: SnapshotFacts, disk: DiskFacts, *, since: str
) -> list[Extent]:
    """What changed on a disk between ``since`` and our snapshot, asked until its end.

    Widened to 64 KiB and merged. Raises: ChangesUnknown for every answer that is not complete.
    """
    machine = reference(vim.VirtualMachine, snapshot.vm.moref)
    moment = reference(vim.vm.Snapshot, snapshot.moref)
    found: list[Extent] = []
    offset = 0
    for _ in range(ANSWERS_MAX):
        if offset >= disk.capacity_bytes:
            return aligned(found, unit=READ_UNIT_BYTES, capacity_bytes=disk.capacity_bytes)
        answer = _ask(session, machine, moment, disk, since=since, offset=offset)
        areas, offset = _checked(answer, disk, offset)
        found += areas
    raise ChangesUnknown("the list of changed areas has no end", disk=disk.label)


def _ask(
    session: VsphereSession,
    machine: Foreign,
    moment: Foreign,
    disk: DiskFacts,
    *,
    since: str,
    offset: int,
) -> Foreign:
    try:
        return session.call(
            machine,
            "QueryChangedDiskAreas",
            snapshot=moment,
            deviceKey=disk.device_key,
            startOffset=offset,
            changeId=since,
        )
    except (VsphereUnavailable, SourceGone):
        raise
    except (VsphereFailed, CapabilityAbsent) as error:
        raise ChangesUnknown(
            f"the query of changed areas failed with {faults.fault_name(error)}",
            disk=disk.label,
            offset=offset,
            cause=error.message[:300],
        ) from error


def _checked(answer: Foreign, disk: DiskFacts, offset: int) -> tuple[list[Extent], int]:
    """The areas of one answer and where the next begins. Raises: ChangesUnknown."""
    if answer is None:
        raise ChangesUnknown("the query of changed areas gave no answer", disk=disk.label)
    start, length = int(answer.startOffset), int(answer.length)
    if start != offset or length <= 0:
        raise ChangesUnknown(
            "the list of changed areas makes no progress",
            disk=disk.label,
            wanted=offset,
            start=start,
            length=length,
        )
    areas: list[Extent] = []
    for each in answer.changedArea or []:
        area_start, area_length = int(each.start), int(each.length)
        if area_length <= 0 or area_start < start or area_start + area_length > start + length:
            raise ChangesUnknown(
                "a changed area lies outside of its answer",
                disk=disk.label,
                offset=area_start,
                length=area_length,
            )
        areas.append(Extent(offset=area_start, length=area_length))
    return areas, start + length

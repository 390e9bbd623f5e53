"""Which parts of each disk a backup must read, and why. Pure.

A change id of an earlier point counts only while the disk is provably the same one with the same
history: same backing, size, files and snapshot tree. Anything else means reading the disk whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_common.job_spec import AreaSource
from holdfast_controller.facts import DiskDecision, DiskFacts, HostFacts, SnapshotNode, VmFacts

FULL = "full"
COMPARE = "compare"  # a full one that is compared with the previous point: what tracking kept back is found
INCREMENTAL = "incremental"
DIFFERENTIAL = "differential"
LEVELS: Final = (FULL, COMPARE, DIFFERENTIAL, INCREMENTAL)
READS_WHOLE: Final = (FULL, COMPARE)
# The reasons of a disk that is read by its changes.
_BY_CHANGES: Final[Mapping[str, str]] = {
    INCREMENTAL: "changes since the previous point",
    DIFFERENTIAL: "changes since the last full point",
}
_COMPARED: Final = "all of it is read, and compared with the previous point"

# Host builds whose change tracking is known to lose changes (ESXi 6.0 before build 3247720: I/O
# during consolidation, Broadcom 317933). A range is half open: [first, fixed).
DENIED_BUILDS: Mapping[str, tuple[int, int]] = {"6.0": (2494585, 3247720)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousDisk:
    """A disk as the previous point of its lineage has it. ``chain``: locations, base first."""

    device_key: int
    backing_uuid: str
    capacity_bytes: int
    chain: tuple[str, ...]
    change_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousPoint:
    """The point of a lineage that the next one stands on, as far as it decides what is read.

    ``snapshot_tree``: `snapshot_tree_text` of then. ``host_build``: version and build of the host.
    """

    disks: tuple[PreviousDisk, ...]
    snapshot_tree: str
    host_build: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelDecision:
    """The level of a point: full only when no disk is read by its changes alone."""

    level: str
    reason: str
    disks: tuple[DiskDecision, ...]


def decide_level(
    *,
    disks: Sequence[DiskFacts],
    snapshot_tree: str,
    host: HostFacts | None,
    vmfs_datastores: Collection[str],
    previous: PreviousPoint | None,
    level_asked: str,
    full_needed: str = "",
    is_doubted: bool = False,
) -> LevelDecision:
    """The level and the areas of each protected disk of our snapshot.

    ``previous``: the newest point; of a differential the newest full one.
    ``full_needed``: why the lineage must be read whole next (a restore, a failed audit), or "".
    ``is_doubted``: change tracking was caught, and is not believed what is allocated either.
    ``level_asked`` `COMPARE`: an audit of all that tracking calls unchanged goes with it (`audit_share_of`).
    ``vmfs_datastores``: ids of the datastores where vSphere knows what is allocated.
    """
    general = _general_reason(snapshot_tree, host, previous, level_asked, full_needed)
    by_changes = _COMPARED if level_asked == COMPARE else _BY_CHANGES.get(level_asked, "")
    before = {} if previous is None else {_identity(each): each for each in previous.disks}
    decided = tuple(
        _one_disk(
            disk,
            before.get(_identity(disk)),
            general,
            by_changes=by_changes,
            knows_allocation=disk.tip is not None
            and disk.tip.datastore_id in vmfs_datastores
            and not is_doubted,
        )
        for disk in disks
        if not disk.unprotected_reason
    )
    changed = [each for each in decided if each.areas is AreaSource.CHANGED]
    reasons = [each.reason for each in decided if each.areas is not AreaSource.CHANGED]
    return LevelDecision(
        level=level_asked if changed and level_asked != COMPARE else FULL,
        reason="; ".join(dict.fromkeys(reasons)) or by_changes,
        disks=decided,
    )


def audit_share_of(level_asked: str, configured: float) -> float:
    """How much of what tracking calls unchanged is read again with a backup, 0 to 1."""
    return 1.0 if level_asked == COMPARE else configured


def nothing_below(level: str) -> str:
    """Why a point of that level is a full one when there is none that it could stand on."""
    return "there is no full point" if level == DIFFERENTIAL else "there is no previous point"


def is_by_changes(reason: str) -> bool:
    """Whether a disk with that reason was read by its changes."""
    return reason in _BY_CHANGES.values()


def snapshot_tree_text(nodes: Sequence[SnapshotNode], current_moref: str) -> str:
    """A VM's snapshot tree (without ours) in one comparable line."""
    edges = sorted(f"{node.parent_moref or 'root'}>{node.moref}" for node in nodes)
    return " ".join([*edges, f"at {current_moref or 'root'}"])


def host_build_text(host: HostFacts | None) -> str:
    """Version and build of a host, as a point keeps it."""
    return f"{host.version} build {host.build}" if host else ""


def denied_build(host_build: str) -> bool:
    """Whether change tracking of this host build is known to lose changes."""
    version, _, build = host_build.partition(" build ")
    known = DENIED_BUILDS.get(".".join(version.split(".")[:2]))
    return known is not None and build.isdigit() and known[0] <= int(build) < known[1]


def tracking_warning(vm: VmFacts) -> str:
    """What an operator should know of a first full under snapshots that were there before."""
    if vm.change_tracking_enabled and vm.snapshots:
        return (
            "change tracking is on while the VM has snapshots: if it was switched on under them, "
            "vSphere's answers may be wrong without a fault"
        )
    return ""


def _general_reason(
    snapshot_tree: str,
    host: HostFacts | None,
    previous: PreviousPoint | None,
    level_asked: str,
    full_needed: str,
) -> str:
    """Why no disk may be read by its changes; empty when each decides for itself."""
    if level_asked == FULL:
        return "a full was asked for"
    if previous is None:
        return nothing_below(level_asked)
    if full_needed:
        return full_needed
    build = host_build_text(host)
    if denied_build(build):
        return f"change tracking of the host's build is known to lose changes ({build})"
    if denied_build(previous.host_build):
        return "the previous point is from a host build whose change tracking lost changes"
    if snapshot_tree != previous.snapshot_tree:
        return "the VM's own snapshots changed since the previous point"
    return ""


def _one_disk(
    disk: DiskFacts,
    before: PreviousDisk | None,
    general: str,
    *,
    by_changes: str,
    knows_allocation: bool,
) -> DiskDecision:
    reason = general or _difference(disk, before)
    if not reason and before is not None:
        return DiskDecision(
            device_key=disk.device_key,
            areas=AreaSource.CHANGED,
            since=before.change_id,
            reason=by_changes,
        )
    # Under snapshots that tracking may be younger than, what is "allocated" may be wrong, without a fault.
    alone = len(disk.chain) == 1
    trusted = bool(disk.change_id) and knows_allocation and alone and not disk.raw_mapping
    return DiskDecision(
        device_key=disk.device_key,
        areas=AreaSource.ALLOCATED if trusted else AreaSource.EVERYTHING,
        since="*" if trusted else "",
        reason=reason,
    )


def _difference(disk: DiskFacts, before: PreviousDisk | None) -> str:
    """Why the disk is not provably the one of the previous point; empty when it is."""
    name = disk.label
    if not disk.backing_uuid:  # its key alone is that of any disk that is put into this slot
        return f"{name} has no uuid by which it could be told from another disk"
    if before is None:
        return f"{name} is not in the previous point"
    if not before.change_id:
        return f"{name} had no change id at the previous point"
    if not disk.change_id:
        return f"{name} has no change id: change tracking is off or not active yet"
    if disk.capacity_bytes != before.capacity_bytes:
        return f"the size of {name} changed"
    if tuple(link.location for link in disk.chain) != before.chain:
        return f"the files of {name} changed: it was moved, reverted or re-created"
    if disk.change_id.partition("/")[0] != before.change_id.partition("/")[0]:
        return f"change tracking of {name} was reset"
    return ""


def _identity(disk: DiskFacts | PreviousDisk) -> tuple[int, str]:
    return disk.device_key, disk.backing_uuid

"""Before a point is committed: was everything that was read of it frozen all the time?

A snapshot that somebody else removes in the middle is merged into the very files that are being read,
so the copy is a mixture of two moments, and nothing else notices it.
"""

from __future__ import annotations

from collections.abc import Mapping

from holdfast_common.errors import DiskMoved, SourceFailed, SourceGone
from holdfast_controller.facts import DiskFacts, SnapshotFacts, VmFacts
from holdfast_controller.vsphere.inventory import read_vm
from holdfast_controller.vsphere.session import VsphereSession


def check_still_frozen(session: VsphereSession, snapshot: SnapshotFacts) -> None:
    """After the last byte was read. Raises: DiskMoved, SourceFailed, SourceGone: the attempt is void."""
    judge(snapshot, read_vm(session, snapshot.vm.moref))


def judge(snapshot: SnapshotFacts, now: VmFacts) -> None:
    """Whether the VM as it is now still stands on our snapshot. Pure. Raises: as above."""
    live: Mapping[tuple[int, str], DiskFacts] = {
        (disk.device_key, disk.backing_uuid): disk for disk in now.disks
    }
    for disk in snapshot.protected_disks:
        current = live.get((disk.device_key, disk.backing_uuid))
        if current is None:
            raise SourceGone("a disk was removed while it was read", disk=disk.label)
        if disk.tip is None or disk.tip.location not in _locations(current):
            raise DiskMoved(
                "a disk was moved or reverted while it was read",
                disk=disk.label,
                was=disk.tip.name if disk.tip else "",
                now=current.tip.name if current.tip else "",
            )
    if snapshot.moref not in {node.moref for node in now.snapshots}:
        raise SourceFailed(
            "our snapshot was removed by somebody else while its disks were read",
            vm=now.name,
            advice="find out what removes snapshots during backups",
        )
    for disk in snapshot.protected_disks:
        read = _locations(disk)
        below = _locations(live[disk.device_key, disk.backing_uuid])[:-1]
        # every file that was read lies below the live one, none was merged into another
        if below[: len(read)] != read:
            raise SourceFailed(
                "the files of a disk were merged while they were read", disk=disk.label
            )


def _locations(disk: DiskFacts) -> list[str]:
    """The chain by lasting ids: a datastore may be renamed in the middle."""
    return [link.location for link in disk.chain]

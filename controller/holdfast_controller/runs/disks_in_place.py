"""Which of a VM's present disks a restore in place may delete: those that are the point's, and no others.

A disk is its device key and its backing's uuid. One that somebody put into the same place is in no
restore point: it is replaced only when its file is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import LineageId
from holdfast_common.point_record import DiskRecord
from holdfast_controller.facts import DiskFacts, VmFacts
from holdfast_controller.store.catalogue import Catalogue


def present_disks(vm: VmFacts, disks: Sequence[DiskRecord]) -> dict[int, DiskFacts]:
    """The VM's disks in the places of the point's, by device key. Raises: Refused, when one is missing."""
    by_key = {each.device_key: each for each in vm.disks if each.tip is not None}
    for disk in disks:
        if disk.device_key not in by_key:
            raise Refused(
                "the VM no longer has a disk that the point would replace",
                disk=disk.label,
                device_key=disk.device_key,
                advice="restore a new VM with --name, or this disk with `restore POINT disk`",
            )
    return {disk.device_key: by_key[disk.device_key] for disk in disks}


def foreign_disks(
    catalogue: Catalogue, lineage_id: LineageId, present: Mapping[int, DiskFacts]
) -> list[DiskFacts]:
    """Those that no point of the VM holds and no restore of ours made: deleted, they would be lost."""
    known = {(key, _digits(uuid)) for key, uuid in catalogue.disks_of(lineage_id)}
    return [
        disk
        for key, disk in present.items()
        if not _digits(disk.backing_uuid) or (key, _digits(disk.backing_uuid)) not in known
    ]


def refuse_foreign_disks(
    foreign: Sequence[DiskFacts], present: Mapping[int, DiskFacts], named: Sequence[str]
) -> None:
    """Foreign disks are replaced only when their files are named. Raises: Refused, UsageError."""
    files = {file_of(disk) for disk in present.values()}
    for name in named:
        if name not in files:
            raise UsageError(
                "no disk that would be replaced has this file",
                file=name,
                files=", ".join(sorted(files)),
            )
    unnamed = [disk for disk in foreign if file_of(disk) not in named]
    if unnamed:
        raise Refused(
            "another disk is in the place of the point's, and no restore point of this VM holds it: "
            + ", ".join(f"{disk.label} is {file_of(disk)}" for disk in unnamed),
            advice="restore a new VM with --name; or, to have what is there replaced and deleted, add "
            + " ".join(f"--replace-disk '{file_of(disk)}'" for disk in unnamed),
        )


def file_of(disk: DiskFacts) -> str:
    """``[datastore] path``; empty for a disk without a file."""
    return disk.tip.name if disk.tip else ""


def _digits(uuid: str) -> str:
    """The same uuid is written in several ways."""
    return re.sub("[^0-9a-f]", "", uuid.lower())

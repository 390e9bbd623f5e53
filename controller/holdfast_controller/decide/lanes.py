"""Which disks of a VM may be copied side by side: those on storage of their own. Pure.

A VM's disks usually share one volume, so they go one after another: one VM, one stream. Disks on another datastore, or on
a raw device (in virtual mode), do not slow each other down; they form lanes that may run at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from holdfast_controller.facts import DiskFacts

LANES_MAX: Final = 8  # of one VM; each has a stream's buffers on its proxy
RAW_IN_VIRTUAL_MODE: Final = "virtual"

Lane = tuple[DiskFacts, ...]


def lanes_of(disks: Sequence[DiskFacts], *, lanes_max: int) -> tuple[Lane, ...]:
    """At most so many lanes, each disk in one. Lanes in the order of their first disks, disks in the VM's order.

    Where there are more storages than lanes, the largest are spread first, each to the lane that has least to copy.
    """
    assert lanes_max >= 1
    storages = _by_storage(disks)
    lanes: list[list[DiskFacts]] = [[] for _ in range(min(lanes_max, len(storages)))]
    for storage in sorted(storages, key=_bytes_of, reverse=True):
        min(lanes, key=_bytes_of).extend(storage)
    order = {disk.device_key: position for position, disk in enumerate(disks)}
    ordered = [tuple(sorted(lane, key=lambda disk: order[disk.device_key])) for lane in lanes]
    return tuple(sorted(ordered, key=lambda lane: order[lane[0].device_key]))


def storage_text(lane: Lane) -> str:
    """For people: its disks, and what they are read from."""
    stores = dict.fromkeys(
        "a raw device"
        if disk.raw_mapping == RAW_IN_VIRTUAL_MODE
        else ", ".join(dict.fromkeys(link.datastore_name for link in disk.chain))
        for disk in lane
    )
    return f"{', '.join(disk.label for disk in lane)} on {', '.join(stores)}"


def _by_storage(disks: Sequence[DiskFacts]) -> list[list[DiskFacts]]:
    """Disks that share any datastore belong together; what a raw device holds is on none."""
    found: list[tuple[set[str], list[DiskFacts]]] = []
    for disk in disks:
        if disk.raw_mapping == RAW_IN_VIRTUAL_MODE:
            places = {f"raw device {disk.device_key}"}
        else:
            places = {link.datastore_id or link.datastore_name for link in disk.chain}
        shared = [each for each in found if each[0] & places]
        together = [other for _, others in shared for other in others]
        found = [each for each in found if each not in shared]
        found.append((places.union(*(each[0] for each in shared)), [*together, disk]))
    return [members for _, members in found]


def _bytes_of(disks: Sequence[DiskFacts]) -> int:
    return sum(disk.capacity_bytes for disk in disks)

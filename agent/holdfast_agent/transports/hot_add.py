"""Transport `hotadd`: the controller attached a disk to this proxy's VM; its host resolves the chain.

The ticket holds no path: the disk is looked for in its slot, and its uuid must be the right one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from holdfast_agent.attached_disks import (
    AttachedDisk,
    AttachedDisks,
    DeviceFolder,
    LinuxScsiDevices,
    uuid_digits,
)
from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.raw_disk import RawDiskSink, RawDiskSource
from holdfast_common.blocks.sink import BlockSink, NewDisk
from holdfast_common.blocks.source import BlockSource
from holdfast_common.errors import HoldfastError, SourceFailed, TargetFailed
from holdfast_common.job_spec import DiskTicket, HotAddTicket

_APPEAR_SECONDS_MAX: Final = 60.0  # a guest takes seconds to see a new disk; slow ones a minute
_LOOK_SECONDS: Final = 0.5


def open_source(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    capacity_bytes: int,
    check: Callable[[], None],
) -> BlockSource:
    """The attached disk. Raises: SourceFailed (it does not appear, or is another one)."""
    assert isinstance(ticket, HotAddTicket)
    found = wait_for_disk(ticket, _disks(configuration), failure=SourceFailed, check=check)
    return RawDiskSource(found.path, capacity_bytes=capacity_bytes)


def open_sink(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    disk: NewDisk,
    check: Callable[[], None],
) -> BlockSink:
    """The attached empty disk. Raises: TargetFailed (it does not appear, or is another one)."""
    assert isinstance(ticket, HotAddTicket)
    found = wait_for_disk(ticket, _disks(configuration), failure=TargetFailed, check=check)
    return RawDiskSink(found.path, capacity_bytes=disk.capacity_bytes)


def wait_for_disk(
    ticket: HotAddTicket,
    disks: AttachedDisks,
    *,
    failure: type[HoldfastError],
    check: Callable[[], None],
    seconds_max: float = _APPEAR_SECONDS_MAX,
) -> AttachedDisk:
    """The disk in the ticket's slot, once it is there; its uuid is the ticket's.

    Raises: ``failure``, and what ``check`` raises.
    """
    slot = f"scsi{ticket.bus_number}:{ticket.unit_number}"
    tick = threading.Event()
    for _ in range(max(int(seconds_max / _LOOK_SECONDS), 1)):
        check()
        found = disks.find(bus_number=ticket.bus_number, unit_number=ticket.unit_number)
        if found is not None:
            _prove(found, ticket, slot=slot, failure=failure)
            return found
        tick.wait(_LOOK_SECONDS)
    raise failure(
        "the attached disk did not appear",
        slot=slot,
        disk_uuid=ticket.disk_uuid,
        waited_seconds=seconds_max,
    )


def _prove(
    found: AttachedDisk, ticket: HotAddTicket, *, slot: str, failure: type[HoldfastError]
) -> None:
    if not found.uuid:
        raise failure(
            "the system does not tell the attached disk's uuid",
            slot=slot,
            path=str(found.path),
            advice="set disk.EnableUUID to TRUE in the proxy VM's configuration",
        )
    wanted = uuid_digits(ticket.disk_uuid)
    if found.uuid != wanted:
        raise failure(
            "the slot holds another disk than the ticket names",
            slot=slot,
            found=found.uuid,
            wanted=wanted,
        )


def _disks(configuration: AgentConfiguration) -> AttachedDisks:
    folder = configuration.hot_add.device_folder
    return DeviceFolder(Path(folder)) if folder else LinuxScsiDevices()

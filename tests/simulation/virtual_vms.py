"""VMs, snapshots and tasks of a vCenter that is only a model. Of `virtual_vsphere`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from simulation.virtual_disks import VirtualDisk, VirtualFile


@dataclass(eq=False)
class FrozenDisk:
    """A disk as a snapshot holds it. ``truth``: what the guest had written at that moment."""

    disk: VirtualDisk
    file: VirtualFile
    change_id: str
    sequence: int
    count: int
    truth: list[int]


@dataclass(eq=False)
class VirtualSnapshot:
    """A snapshot. ``ours``: made by the controller of this simulation."""

    moref: str
    parent: VirtualSnapshot | None
    name: str
    description: str
    created_at: datetime
    quiesced: bool
    ours: bool
    disks: list[FrozenDisk]


@dataclass(eq=False)
class VirtualTask:
    """A task; it ends whether or not anybody waits for it."""

    moref: str
    target: str
    state: str = "running"
    fault: str = ""


@dataclass(eq=False)
class VirtualVm:
    """One VM; ``devices`` are those of a proxy (pyVmomi's), ``attached`` the keys of what we attached."""

    moref: str
    name: str
    disks: list[VirtualDisk]
    snapshots: list[VirtualSnapshot] = field(default_factory=list)
    current: VirtualSnapshot | None = None
    tracking: bool = False
    consolidation_needed: bool = False
    version: int = 1
    tasks: list[VirtualTask] = field(default_factory=list)
    devices: list[Any] = field(default_factory=list)
    attached: set[int] = field(default_factory=set)

    @property
    def instance_uuid(self) -> str:
        return f"instance-{self.moref}"

    def running(self) -> list[VirtualTask]:
        return [task for task in self.tasks if task.state == "running"]


@dataclass(eq=False)
class Misbehaviour:
    """What goes wrong now; the driver sets it."""

    down_until: float = -1.0
    replies_lost: int = 0
    tasks_failed: dict[str, int] = field(default_factory=dict)  # by method
    leaves_links: int = 0  # removals that succeed and merge nothing
    slow_tasks: float = 1.0
    lies: frozenset[str] = frozenset()

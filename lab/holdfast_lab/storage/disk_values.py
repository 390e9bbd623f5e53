"""The values and the reader's protocol of ``disk``: kinds, answers, what a freeze made."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from holdfast_lab.storage.runs import Area

AREAS_MAX = 2000  # areas in one answer of QueryChangedDiskAreas
SECTOR_BYTES = 512


class Provisioning(enum.Enum):
    """How a base disk takes its space."""

    THIN = "thin"
    THICK_LAZY = "thick_lazy"
    THICK_EAGER = "thick_eager"


class DatastoreKind(enum.Enum):
    """Decides the redo log's format, and what the change id ``*`` answers."""

    NFS = "NFS"  # -delta (COWD)
    VMFS = "VMFS"  # VMFS 6: -sesparse
    VMFS5 = "VMFS5"  # -delta (COWD)


class StarOnNfs(enum.Enum):
    """What the change id ``*`` gives on a datastore that is not VMFS; both are seen."""

    WHOLE = "whole"  # one area over everything
    FAULT = "fault"  # ChangeIdUnknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What a freeze made.

    ``sequence`` is the guest log's and stays the name of this moment: after merges
    ``LabDisk.frozen_descriptor(sequence)`` tells which file stands for it.
    ``change_id`` is None while tracking is off or not yet effective.
    """

    descriptor: Path
    tip: Path
    sequence: int
    change_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedAreas:
    """One answer: it covers ``[start_offset, start_offset + length)``; the rest must be asked."""

    start_offset: int
    length: int
    areas: tuple[Area, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Hold:
    """Somebody uses a link: neither it nor its parents may be merged, moved or deleted."""

    descriptor: Path
    reason: str


class DiskReader(Protocol):
    """A whole disk as seen from one link, with the chain below it."""

    @property
    def capacity_bytes(self) -> int:
        """The size of the disk."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from ``offset``. Raises: OutOfRange."""
        ...

    def allocated(self) -> Iterator[Area]:
        """Areas that hold data in any link, in order; everything else reads as zeros."""
        ...

    def close(self) -> None:
        """Give the files back; harmless when done twice."""
        ...

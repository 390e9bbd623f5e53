"""Where a disk's bytes go in a restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """What a new disk is to be, whatever carries its bytes. ``disk_uuid`` "": none of its own."""

    capacity_bytes: int
    adapter_type: str = "lsilogic"
    disk_uuid: str = ""


class BlockSink(Protocol):
    """A new disk that is written in ascending order. One thread at a time; the opener closes it.

    What is never written reads as zero: a sink starts from an empty disk.
    """

    @property
    def capacity_bytes(self) -> int:
        """The disk's size; whole sectors."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors at ``offset``, at or after the end of the last write.

        Raises: TargetFailed, LeaseExpired.
        """
        ...

    def finish(self) -> None:
        """Make everything durable and complete (trailer, fsync). Raises: TargetFailed, LeaseExpired."""
        ...

    def close(self) -> None:
        """Give everything back. Without `finish` before, the target counts as incomplete."""
        ...


class UnorderedWrites(Protocol):
    """Writing a disk in any order, by several threads at once; no byte twice."""

    def reserve(self, offset: int, length: int) -> None:
        """Room for what will be written there, if that can be had; until then it reads as zero.

        Raises: TargetFailed, when there is none.
        """
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors. Raises: TargetFailed."""
        ...


@runtime_checkable
class UnorderedSink(BlockSink, Protocol):
    """A `BlockSink` that may be written otherwise than in order."""

    def unordered(self) -> UnorderedWrites | None:
        """From here on this is used for writing, and `write` no more; None: only in order.

        Call `finish` when all writes came back.
        """
        ...

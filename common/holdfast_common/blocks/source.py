"""Where a disk's bytes come from. Every transport, and the repository's reader, is one of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from holdfast_common.extents import Extent


class BlockSource(Protocol):
    """A disk that can be read at any offset (transports `direct`, `hotadd`; a restore point's disk).

    One thread at a time. Whoever opened it closes it; closing twice is harmless.
    """

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        ...

    def allocated(self) -> Sequence[Extent] | None:
        """Merged ascending extents outside of which everything is zero; None: not known, read all."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on; holes read as zeros.

        Raises: ShortRead, SourceFailed, LeaseExpired, FormatError, IntegrityError.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@runtime_checkable
class SideBySideSource(Protocol):
    """A `BlockSource` whose `read_into` may be called by several threads at once, when it says so."""

    @property
    def reads_side_by_side(self) -> bool:
        """Whether they may; it does not change."""
        ...


class SequentialSource(Protocol):
    """A disk that only comes whole and in order (transport `nfc`). What is not yielded is zero."""

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        ...

    def blocks(self) -> Iterator[tuple[int, memoryview]]:
        """Ascending (offset, bytes); a view is valid until the next step.

        Ends only when the stream's own end marker was seen.
        Raises: ShortRead, SourceFailed, LeaseExpired, FormatError.
        """
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

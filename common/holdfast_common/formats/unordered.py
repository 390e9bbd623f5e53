"""Writing the bytes of a flat disk or a device in any order. Between sinks and `direct_writes`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from holdfast_common.direct_writes import ParallelWrites
from holdfast_common.errors import TargetFailed
from holdfast_common.formats.ascending import AscendingWrites


class UnorderedFileWrites:
    """`UnorderedWrites` into an open file or device, which is not closed here."""

    def __init__(self, descriptor: int, order: AscendingWrites) -> None:
        self._order = order
        self._writes = ParallelWrites(descriptor)

    def reserve(self, offset: int, length: int) -> None:
        """Room, if the file system can reserve it. Raises: TargetFailed."""
        with _translated(offset):
            self._writes.reserve(offset, length)

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors. Raises: TargetFailed."""
        self._order.accept_unordered(offset, len(data))
        with _translated(offset):
            self._writes.write(offset, data)

    def finish(self) -> None:
        """All that was accepted is written; not yet durable. Raises: TargetFailed."""
        with _translated(0):
            self._writes.finish()


@contextmanager
def _translated(offset: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetFailed("disk cannot be written", offset=offset, reason=str(error)) from error

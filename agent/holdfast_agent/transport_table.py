"""Every way to reach a disk, by kind. Between the pipelines and the transports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import Final, Protocol

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.transports import direct_datastore, hot_add, nfc_lease, restore_file
from holdfast_common.blocks.sink import BlockSink, NewDisk
from holdfast_common.blocks.source import BlockSource, SequentialSource, SideBySideSource
from holdfast_common.blocks.stream import (
    BlockStream,
    random_parts,
    random_stream,
    sequential_stream,
)
from holdfast_common.errors import HoldfastError
from holdfast_common.extents import Extent
from holdfast_common.job_spec import DiskTicket, FileTicket, TransportKind


class Access(StrEnum):
    """How a transport reads: any part, or only all of it in order."""

    RANDOM = "random"
    SEQUENTIAL = "sequential"


class OpenedDisk(Protocol):
    """A disk that is open for reading."""

    @property
    def access(self) -> Access:
        """Whether parts can be read alone."""
        ...

    def allocated(self) -> Sequence[Extent] | None:
        """Outside of these everything is zero; None: not known without reading all."""
        ...

    def stream(self, wanted: Iterable[Extent], *, check: Callable[[], None]) -> BlockStream:
        """The wanted parts, ascending; one stream at a time, of a sequential disk only one."""
        ...


class RandomDisk:
    """A disk that can be read anywhere."""

    access = Access.RANDOM

    def __init__(self, source: BlockSource) -> None:
        self._source = source
        shared = isinstance(source, SideBySideSource) and source.reads_side_by_side
        self._turns: AbstractContextManager[object] = nullcontext() if shared else Lock()

    def parts(self, wanted: Iterable[Extent]) -> Iterator[tuple[Extent, bool]]:
        """The wanted parts, ascending, widened to 64 KiB; whether they have to be read or are zero."""
        return random_parts(self._source, wanted)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; for several threads. Raises: as `BlockSource.read_into`."""
        with self._turns:
            self._source.read_into(offset, buffer)

    def allocated(self) -> Sequence[Extent] | None:
        """As `OpenedDisk`."""
        return self._source.allocated()

    def stream(self, wanted: Iterable[Extent], *, check: Callable[[], None]) -> BlockStream:
        """As `OpenedDisk`."""
        return random_stream(self._source, wanted, check=check)


class _Sequential:
    """A disk that only comes whole."""

    access = Access.SEQUENTIAL

    def __init__(self, source: SequentialSource) -> None:
        self._source = source

    def allocated(self) -> None:
        return None

    def stream(self, wanted: Iterable[Extent], *, check: Callable[[], None]) -> BlockStream:
        return sequential_stream(self._source, wanted, check=check)


class _OpenSource(Protocol):
    def __call__(
        self,
        ticket: DiskTicket,
        configuration: AgentConfiguration,
        *,
        capacity_bytes: int,
        check: Callable[[], None],
    ) -> BlockSource: ...


class _OpenSequential(Protocol):
    def __call__(
        self,
        ticket: DiskTicket,
        configuration: AgentConfiguration,
        *,
        capacity_bytes: int,
        check: Callable[[], None],
    ) -> SequentialSource: ...


class _OpenSink(Protocol):
    def __call__(
        self,
        ticket: DiskTicket,
        configuration: AgentConfiguration,
        *,
        disk: NewDisk,
        check: Callable[[], None],
    ) -> BlockSink: ...


@dataclass(frozen=True, slots=True)
class RandomOpener:
    """Opens disks of which any part can be read."""

    open: _OpenSource
    access: Access = Access.RANDOM


@dataclass(frozen=True, slots=True)
class SequentialOpener:
    """Opens disks that come whole and in order."""

    open: _OpenSequential
    access: Access = Access.SEQUENTIAL


OPENERS: Final[Mapping[TransportKind, RandomOpener | SequentialOpener]] = {
    TransportKind.DIRECT: RandomOpener(direct_datastore.open_source),
    TransportKind.HOTADD: RandomOpener(hot_add.open_source),
    TransportKind.NFC: SequentialOpener(nfc_lease.open_source),
    TransportKind.FILE: RandomOpener(restore_file.open_source),
}
SINKS: Final[Mapping[TransportKind, _OpenSink]] = {
    TransportKind.DIRECT: direct_datastore.open_sink,
    TransportKind.HOTADD: hot_add.open_sink,
    TransportKind.NFC: nfc_lease.open_sink,
    TransportKind.FILE: restore_file.open_sink,
}


@contextmanager
def opened_disk(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    capacity_bytes: int,
    check: Callable[[], None],
) -> Iterator[OpenedDisk]:
    """The disk behind a ticket, which must have the size that is known; closed in the end.

    Raises: SourceFailed, FormatError, Refused, CertificateMismatch, LeaseExpired.
    """
    opener = OPENERS[ticket.kind]
    if isinstance(opener, RandomOpener):
        with closing(
            opener.open(ticket, configuration, capacity_bytes=capacity_bytes, check=check)
        ) as source:
            yield RandomDisk(source)
    else:
        with closing(
            opener.open(ticket, configuration, capacity_bytes=capacity_bytes, check=check)
        ) as source:
            yield _Sequential(source)


def set_aside(ticket: DiskTicket, configuration: AgentConfiguration) -> str:
    """Where a disk that must not be used lies under a name that says so; "": its owner removes it.

    Raises: Refused, TargetFailed.
    """
    if isinstance(ticket, FileTicket):
        return restore_file.set_aside(ticket, configuration)
    return ""


@contextmanager
def new_disk(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    disk: NewDisk,
    check: Callable[[], None],
) -> Iterator[BlockSink]:
    """The new disk behind a ticket; closed in the end, and incomplete unless it was finished.

    Raises: TargetFailed, Refused, CertificateMismatch, LeaseExpired.
    """
    sink = SINKS[ticket.kind](ticket, configuration, disk=disk, check=check)
    try:
        yield sink
    except BaseException:
        with suppress(HoldfastError):  # what ended the work tells more than what the end met
            sink.close()
        raise
    sink.close()

"""Transport `nfc`: a disk as a stream of one transfer lease, out of a host or into it.

The stream is a stream-optimised VMDK, whole and in order. The controller keeps the lease alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.pinned_https import (
    TRANSFER_ERRORS,
    PinnedConnection,
    checked_status,
    pinned_connection,
)
from holdfast_common.blocks.sink import BlockSink, NewDisk
from holdfast_common.blocks.source import SequentialSource
from holdfast_common.errors import FormatError, SourceFailed, TargetFailed
from holdfast_common.formats.vmdk_stream_optimized import StreamOptimizedReader
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from holdfast_common.job_spec import DiskTicket, NfcTicket

_MEDIA_TYPE: Final = "application/x-vnd.vmware-streamVmdk"
_SEND_BYTES: Final = 256 * 1024  # grains are small; one chunk of the transfer carries several


def open_source(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    capacity_bytes: int,
    check: Callable[[], None],
) -> SequentialSource:
    """The disk's stream, from its first byte on.

    Raises: Refused, CertificateMismatch, LeaseExpired, SourceFailed, FormatError, ShortRead.
    """
    assert isinstance(ticket, NfcTicket)
    check()
    connection, target = pinned_connection(ticket.url, certificate_sha256=ticket.certificate_sha256)
    try:
        return LeaseDownload(connection, target, capacity_bytes=capacity_bytes)
    except BaseException:
        connection.close()
        raise


def open_sink(
    ticket: DiskTicket,
    configuration: AgentConfiguration,
    *,
    disk: NewDisk,
    check: Callable[[], None],
) -> BlockSink:
    """A new disk that a host makes of the stream.

    Raises: Refused, CertificateMismatch, LeaseExpired, TargetFailed.
    """
    assert isinstance(ticket, NfcTicket)
    check()
    connection, target = pinned_connection(ticket.url, certificate_sha256=ticket.certificate_sha256)
    try:
        return LeaseUpload(connection, target, disk=disk, create=ticket.create)
    except BaseException:
        connection.close()
        raise


class LeaseDownload:
    """A `SequentialSource` over one GET."""

    def __init__(self, connection: PinnedConnection, target: str, *, capacity_bytes: int) -> None:
        self._connection = connection
        try:
            connection.request("GET", target, headers={"Accept-Encoding": "identity"})
            self._response = connection.getresponse()
        except TRANSFER_ERRORS as error:
            raise self._failed("the host's transfer cannot be started", error) from error
        checked_status(self._response, failure=SourceFailed, host=connection.host)
        self._reader = StreamOptimizedReader(self, capacity_bytes_max=capacity_bytes)
        if self._reader.capacity_bytes != capacity_bytes:
            raise FormatError(
                "disk has another size than the inventory says",
                found=self._reader.capacity_bytes,
                wanted=capacity_bytes,
            )

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._reader.capacity_bytes

    def blocks(self) -> Iterator[tuple[int, memoryview]]:
        """Ascending grains, once; ends only after the stream's end marker.

        Raises: ShortRead, SourceFailed, FormatError.
        """
        return self._reader.blocks()

    def read(self, size: int, /) -> bytes:
        """1 to ``size`` bytes of the answer's body, none at its end. Raises: SourceFailed."""
        try:
            return self._response.read(size)
        except TRANSFER_ERRORS as error:
            raise self._failed("the host's transfer was cut", error) from error

    def close(self) -> None:
        """End the connection; a second time does nothing."""
        # an answer that ends with its connection holds the socket by itself, whatever becomes of the connection
        self._response.close()
        self._connection.close()

    def _failed(self, message: str, error: Exception) -> SourceFailed:
        return SourceFailed(message, host=self._connection.host, reason=_reason(error))


class LeaseUpload:
    """A `BlockSink` over one PUT (a new file of the lease) or POST, its body in chunks.

    The length of the body is known only at its end. Without `finish` the body never ends, so the
    host cannot take what it has for a disk.
    """

    def __init__(
        self, connection: PinnedConnection, target: str, *, disk: NewDisk, create: bool
    ) -> None:
        self._connection = connection
        self._unsent = bytearray()
        try:
            connection.putrequest("PUT" if create else "POST", target, skip_accept_encoding=True)
            connection.putheader("Content-Type", _MEDIA_TYPE)
            connection.putheader("Transfer-Encoding", "chunked")
            if not create:
                connection.putheader("Overwrite", "t")  # the lease made an empty disk of this name
            connection.endheaders()
        except TRANSFER_ERRORS as error:
            raise self._failed("the host's transfer cannot be started", error) from error
        self._writer = StreamOptimizedWriter(
            _Body(self),
            disk.capacity_bytes,
            adapter_type=disk.adapter_type,
            disk_uuid=disk.disk_uuid,
        )

    @property
    def capacity_bytes(self) -> int:
        """The disk's size."""
        return self._writer.capacity_bytes

    def write(self, offset: int, data: memoryview) -> None:
        """Write whole sectors, ascending. Raises: TargetFailed, LeaseExpired."""
        self._writer.write(offset, data)

    def finish(self) -> None:
        """End the body and wait for the host's answer. Raises: TargetFailed, LeaseExpired."""
        self._writer.finish()
        self._send_chunk()
        self._send(b"0\r\n\r\n")
        self._check_answer()

    def close(self) -> None:
        """End the connection; a second time does nothing."""
        self._connection.close()

    def take(self, data: bytes) -> None:
        """A piece of the stream. Raises: TargetFailed, LeaseExpired."""
        self._unsent += data
        if len(self._unsent) >= _SEND_BYTES:
            self._send_chunk()

    def _send_chunk(self) -> None:
        if self._unsent:
            length = f"{len(self._unsent):x}\r\n".encode()
            self._send(b"".join((length, self._unsent, b"\r\n")))
            self._unsent.clear()

    def _send(self, data: bytes) -> None:
        try:
            self._connection.send(data)
        except TRANSFER_ERRORS as error:
            self._raise_early_answer()
            raise self._failed("the host's transfer was cut", error) from error

    def _raise_early_answer(self) -> None:
        """A host that stops listening may have said why. Raises: TargetFailed, LeaseExpired."""
        try:
            response = self._connection.getresponse()
        except TRANSFER_ERRORS:
            return
        checked_status(response, failure=TargetFailed, host=self._connection.host)

    def _check_answer(self) -> None:
        try:
            response = self._connection.getresponse()
            response.read(_SEND_BYTES)
        except TRANSFER_ERRORS as error:
            raise self._failed("the host did not confirm the transfer", error) from error
        checked_status(response, failure=TargetFailed, host=self._connection.host)

    def _failed(self, message: str, error: Exception) -> TargetFailed:
        return TargetFailed(message, host=self._connection.host, reason=_reason(error))


class _Body:
    """What the writer of the format writes to."""

    def __init__(self, upload: LeaseUpload) -> None:
        self._upload = upload

    def write(self, data: bytes, /) -> int:
        self._upload.take(data)
        return len(data)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__

"""Calls to the controller beside the session, for the jobs' threads: extents, keys, tickets.

They run over whatever channel the session has now, and are tried again over the next one: a
reconnect must not end a job whose lease lives on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import grpc

from holdfast_common.errors import ControllerUnreachable, HoldfastError, TimedOut
from holdfast_common.extents import Extent
from holdfast_common.job_spec import Attempt, DiskTicket
from holdfast_common.retry import retried
from holdfast_common.wire import session_pb2, session_pb2_grpc
from holdfast_common.wire_codec.call_errors import error_of_call
from holdfast_common.wire_codec.tickets import ticket_from_message
from holdfast_common.wire_codec.values import attempt_to_message, extents_from_message

Result = TypeVar("Result")

CALL_SECONDS: Final = 60.0
STREAM_SECONDS: Final = 3600.0  # then the list of extents goes on with a new call
CONNECTED_SECONDS: Final = 45.0  # a lease: after that the attempt has ended anyway
TRIES: Final = 4


class ChannelCalls:
    """`ControllerCalls` over the session's present channel. Thread-safe."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._changed = threading.Condition()
        self._stub: session_pb2_grpc.AgentsStub | None = None

    def connected(self, stub: session_pb2_grpc.AgentsStub | None) -> None:
        """The session has a channel now, or (None) has lost it."""
        with self._changed:
            self._stub = stub
            self._changed.notify_all()

    def fetch_extents(self, attempt: Attempt, device_key: int) -> Iterator[Extent]:
        """See `ControllerCalls`. A cut stream goes on behind the last extent that came."""
        request = session_pb2.JobDisk(attempt=attempt_to_message(attempt), device_key=device_key)
        read_to = failures = 0
        while True:
            try:
                for message in self._present_stub().FetchExtents(request, timeout=STREAM_SECONDS):
                    for extent in extents_from_message(message):
                        if extent.offset >= read_to:
                            read_to, failures = extent.end, 0
                            yield extent
                return
            except grpc.RpcError as error:
                failures += 1
                ours = error_of_call(error)
                if failures >= TRIES or not _may_pass(ours):
                    raise ours from error
                self._stop.wait(failures)

    def open_segment_keys(self, attempt: Attempt, headers: Sequence[bytes]) -> list[bytes]:
        """See `ControllerCalls`."""
        request = session_pb2.OpenSegmentKeysRequest(
            attempt=attempt_to_message(attempt),
            segments=[session_pb2.SegmentKeyRequest(header=header) for header in headers],
        )
        reply = self._call(lambda stub: stub.OpenSegmentKeys(request, timeout=CALL_SECONDS))
        if len(reply.keys) != len(headers):
            raise HoldfastError("the controller answered with another number of keys")
        return list(reply.keys)

    def renew_ticket(self, attempt: Attempt, device_key: int) -> DiskTicket:
        """See `ControllerCalls`."""
        request = session_pb2.JobDisk(attempt=attempt_to_message(attempt), device_key=device_key)
        return ticket_from_message(
            self._call(lambda stub: stub.RenewTicket(request, timeout=CALL_SECONDS))
        )

    def renew_certificate(self, request_pem: bytes) -> bytes:
        """A new certificate for this agent, as PEM. Raises: ControllerUnreachable, TimedOut, Refused."""
        request = session_pb2.RenewCertificateRequest(certificate_request_pem=request_pem)
        reply = self._call(lambda stub: stub.RenewCertificate(request, timeout=CALL_SECONDS))
        return reply.certificate_pem

    def _call(self, work: Callable[[session_pb2_grpc.AgentsStub], Result]) -> Result:
        def once() -> Result:
            try:
                return work(self._present_stub())
            except grpc.RpcError as error:
                ours = error_of_call(error)
                raise ours from error

        return retried(once, stop=self._stop, attempts=TRIES)

    def _present_stub(self) -> session_pb2_grpc.AgentsStub:
        with self._changed:
            self._changed.wait_for(
                lambda: self._stub is not None or self._stop.is_set(), CONNECTED_SECONDS
            )
            if self._stub is None:
                raise ControllerUnreachable("the controller was not reached in time")
            return self._stub


def _may_pass(error: HoldfastError) -> bool:
    return isinstance(error, ControllerUnreachable | TimedOut)

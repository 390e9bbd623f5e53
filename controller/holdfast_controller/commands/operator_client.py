"""The CLI's side of the operators' service: one channel per command, errors as our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from holdfast_common.errors import (
    AuthenticationFailed,
    ControllerUnreachable,
    HoldfastError,
    TimedOut,
)
from holdfast_common.places import Places
from holdfast_common.trust.channels import open_operator_channel
from holdfast_common.wire import job_pb2, operator_pb2_grpc
from holdfast_common.wire_codec.values import ERROR_METADATA_KEY, error_from_message

Request = TypeVar("Request")
Reply = TypeVar("Reply")

CALL_TIMEOUT_SECONDS = 120.0
LOOK_TIMEOUT_SECONDS = (
    900.0  # `vcenter test` and `doctor` read whole inventories, and ask rights of every VM
)


class OperatorClient:
    """Calls with a timeout, errors translated. One thread."""

    def __init__(self, stub: operator_pb2_grpc.OperatorsStub) -> None:
        self.stub = stub

    def call(
        self,
        method: Callable[..., Reply],
        request: object,
        *,
        timeout_seconds: float = CALL_TIMEOUT_SECONDS,
    ) -> Reply:
        """The reply. Raises: whatever the controller raised, ControllerUnreachable, TimedOut."""
        try:
            return method(request, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise translated(error) from error

    def stream(self, method: Callable[..., Iterator[Reply]], request: object) -> Iterator[Reply]:
        """Replies as they come; no time limit, the caller stops it."""
        try:
            yield from method(request)
        except grpc.RpcError as error:
            raise translated(error) from error


@contextmanager
def operators(places: Places) -> Iterator[OperatorClient]:
    """The controller of this machine. Raises: ControllerUnreachable."""
    with open_operator_channel(places) as channel:
        yield OperatorClient(operator_pb2_grpc.OperatorsStub(channel))


def translated(error: grpc.RpcError) -> HoldfastError:
    """An error of ours from a gRPC status: from its metadata where the controller put one."""
    found = error.trailing_metadata() if isinstance(error, grpc.Call) else None
    metadata: list[tuple[str, str | bytes]] = list(found or ())
    for name, value in metadata:
        if name == ERROR_METADATA_KEY and isinstance(value, bytes):
            return error_from_message(job_pb2.Error.FromString(value)).to_error()
    status = error.code() if isinstance(error, grpc.Call) else None
    detail = error.details() if isinstance(error, grpc.Call) else str(error)
    if status is grpc.StatusCode.UNAVAILABLE:
        return ControllerUnreachable("the controller does not answer", detail=detail)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut("the controller did not answer in time")
    if status in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return AuthenticationFailed(f"the controller refused the call: {detail}")
    return HoldfastError(f"the controller failed: {detail}", advice="see the controller's log")

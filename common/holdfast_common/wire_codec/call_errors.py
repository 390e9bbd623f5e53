"""The end of a failed gRPC call -> an error of ours, on a client's side."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError

from holdfast_common.errors import (
    AuthenticationFailed,
    ControllerUnreachable,
    HoldfastError,
    TimedOut,
)
from holdfast_common.wire import job_pb2
from holdfast_common.wire_codec.values import ERROR_METADATA_KEY, error_from_message


def error_of_call(error: grpc.RpcError) -> HoldfastError:
    """The controller's own error where it sent one; else what the status tells."""
    if not isinstance(error, grpc.Call):
        return HoldfastError(f"a call to the controller failed: {error}")
    sent = _sent_error(error)
    if sent is not None:
        return sent
    status, detail = error.code(), (error.details() or "")[:500]
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut("the controller did not answer in time")
    if status in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
        return ControllerUnreachable(
            "the controller cannot be reached", advice=_advice(detail), detail=detail
        )
    if status in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return AuthenticationFailed(f"the controller refused the call: {detail}")
    return HoldfastError(f"the controller failed: {detail}", status=status.name)


def _sent_error(call: grpc.Call) -> HoldfastError | None:
    for name, value in call.trailing_metadata() or ():
        if name == ERROR_METADATA_KEY and isinstance(value, bytes):
            try:
                return error_from_message(job_pb2.Error.FromString(value)).to_error()
            except DecodeError:
                return None
    return None


def _advice(detail: str) -> str:
    if "CERTIFICATE" in detail.upper() or "handshake" in detail.lower():
        return "its certificate or ours is not accepted; see the controller's log"
    return "check that the controller runs, its address, and the network between"

"""Errors of ours as the end of a gRPC call: a status for the stream, the error itself as metadata."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from holdfast_common.errors import AuthenticationFailed, HoldfastError, LeaseExpired, Refused
from holdfast_common.job_result import ErrorReport
from holdfast_common.wire_codec.values import ERROR_METADATA_KEY, error_to_message

Context = grpc.aio.ServicerContext[Any, Any]

_DETAIL_LENGTH_MAX = 1000  # a status travels in headers
_STATUS: dict[type[HoldfastError], grpc.StatusCode] = {
    AuthenticationFailed: grpc.StatusCode.UNAUTHENTICATED,
    Refused: grpc.StatusCode.PERMISSION_DENIED,
    LeaseExpired: grpc.StatusCode.FAILED_PRECONDITION,
}


async def abort_with(
    context: Context, error: HoldfastError, *, status: grpc.StatusCode | None = None
) -> NoReturn:
    """End the call with this error; ``status`` None: the one that fits its class."""
    message = error_to_message(ErrorReport.of(error))
    await context.abort(
        status or _STATUS.get(type(error), grpc.StatusCode.ABORTED),
        error.line()[:_DETAIL_LENGTH_MAX],
        ((ERROR_METADATA_KEY, message.SerializeToString()),),
    )
    raise AssertionError("abort does not return")

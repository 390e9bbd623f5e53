"""Attempts, errors, extents and progress. Dataclass <-> message."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast_common.errors import UsageError
from holdfast_common.extents import Extent
from holdfast_common.identity import (
    JobId,
    checked_ulid,
)
from holdfast_common.job_result import (
    ErrorReport,
    ProgressReport,
)
from holdfast_common.job_spec import (
    Attempt,
)
from holdfast_common.wire import job_pb2, session_pb2

EXTENTS_PER_MESSAGE_MAX = 20_000  # two varints of at most 10 bytes each: well under 1 MiB


def attempt_to_message(attempt: Attempt) -> session_pb2.Attempt:
    """An attempt's message."""
    return session_pb2.Attempt(job_id=attempt.job_id, attempt=attempt.number)


def attempt_from_message(message: session_pb2.Attempt) -> Attempt:
    """Raises: UsageError."""
    return Attempt(job_id=JobId(checked_ulid(message.job_id)), number=message.attempt)


def error_to_message(error: ErrorReport) -> job_pb2.Error:
    """An error's message."""
    return job_pb2.Error(
        code=error.code,
        message=error.message,
        advice=error.advice,
        exit_status=error.exit_status,
        retryable=error.retryable,
        facts=dict(error.facts),
    )


def error_from_message(message: job_pb2.Error) -> ErrorReport:
    """An error of any code, also of one that this version does not know."""
    return ErrorReport(
        code=message.code or "failed",
        message=message.message,
        advice=message.advice,
        exit_status=message.exit_status or 1,
        retryable=message.retryable,
        facts=tuple(sorted(message.facts.items())),
    )


def extent_messages(extents: Iterable[Extent]) -> list[job_pb2.ExtentMessage]:
    """Messages of extents."""
    return [job_pb2.ExtentMessage(offset=extent.offset, length=extent.length) for extent in extents]


def extents_of(messages: Iterable[job_pb2.ExtentMessage]) -> tuple[Extent, ...]:
    """Extents of their messages."""
    return tuple(Extent(offset=message.offset, length=message.length) for message in messages)


def progress_to_message(attempt: Attempt, progress: ProgressReport) -> session_pb2.Progress:
    """A progress message."""
    return session_pb2.Progress(
        attempt=attempt_to_message(attempt),
        sequence=progress.sequence,
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        device_key=progress.device_key,
        phase=progress.phase,
    )


def progress_from_message(message: session_pb2.Progress) -> ProgressReport:
    """The inverse of `progress_to_message`, without the attempt."""
    return ProgressReport(
        sequence=message.sequence,
        done_bytes=message.done_bytes,
        total_bytes=message.total_bytes,
        device_key=message.device_key,
        phase=message.phase,
    )


def extents_to_messages(extents: Iterable[Extent]) -> Iterable[session_pb2.Extents]:
    """A stream of messages, each well under 1 MiB."""
    message = session_pb2.Extents()
    for extent in extents:
        message.offsets.append(extent.offset)
        message.lengths.append(extent.length)
        if len(message.offsets) >= EXTENTS_PER_MESSAGE_MAX:
            yield message
            message = session_pb2.Extents()
    if message.offsets:
        yield message


def extents_from_message(message: session_pb2.Extents) -> list[Extent]:
    """Raises: UsageError when offsets and lengths do not pair, or a length is zero."""
    if len(message.offsets) != len(message.lengths) or not all(message.lengths):
        raise UsageError("a broken list of extents", offsets=len(message.offsets))
    return [
        Extent(offset=offset, length=length)
        for offset, length in zip(message.offsets, message.lengths, strict=True)
    ]


ERROR_METADATA_KEY = "holdfast-error-bin"  # trailing metadata of a failed call: a serialised Error

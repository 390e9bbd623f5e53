"""Which jobs of a run an operator means who wants them tried again. Pure."""

from __future__ import annotations

from enum import StrEnum

from holdfast_controller.decide.job_state import JobState


class RetryKind(StrEnum):
    """How a job ended that may be tried again."""

    FAILED = "failed"  # it began, and failed or was interrupted
    SKIPPED = "skipped"  # it left something out, or behind
    NOT_STARTED = "not-started"  # refused, interrupted or cancelled before it began


def retry_kind(state: JobState, *, began: bool) -> RetryKind | None:
    """None: the job has done what it was for, has not ended, or an operator stopped it at work."""
    if state is JobState.PARTIAL:
        return RetryKind.SKIPPED
    if state in (JobState.FAILED, JobState.INTERRUPTED):
        return RetryKind.FAILED if began else RetryKind.NOT_STARTED
    if state is JobState.CANCELLED and not began:
        return RetryKind.NOT_STARTED
    return None

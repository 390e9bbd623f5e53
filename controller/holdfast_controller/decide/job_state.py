"""The states of a job, as a table. Anything that is not in it is a bug and raises with the job's story.

A backup goes planned -> queued -> preflight -> quiescing -> snapshotting -> transferring ->
committing -> cleaning -> an end. A restore prepares its target instead of a snapshot, is read back
(verifying), and an in-place one exchanges disks (switching). Checks and listings only transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from holdfast_common.errors import InvalidTransition
from holdfast_common.job_result import Outcome


class JobState(StrEnum):
    """Where a job is."""

    PLANNED = "planned"
    QUEUED = "queued"
    PREFLIGHT = "preflight"
    QUIESCING = "quiescing"
    SNAPSHOTTING = "snapshotting"
    PREPARING = "preparing"
    TRANSFERRING = "transferring"
    COMMITTING = "committing"
    VERIFYING = "verifying"
    SWITCHING = "switching"
    CLEANING = "cleaning"
    DONE = "done"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class JobEvent(StrEnum):
    """What moves a job on."""

    QUEUE = "queue"
    START = "start"
    QUIESCE = "quiesce"
    SNAPSHOT = "snapshot"
    PREPARE = "prepare"
    TRANSFER = "transfer"
    COMMIT = "commit"
    VERIFY = "verify"
    SWITCH = "switch"
    CLEAN = "clean"
    TRY_AGAIN = "try again"
    END_DONE = "end done"
    END_PARTIAL = "end partial"
    END_FAILED = "end failed"
    END_CANCELLED = "end cancelled"
    END_INTERRUPTED = "end interrupted"


ENDED: Final = frozenset(
    {
        JobState.DONE,
        JobState.PARTIAL,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.INTERRUPTED,
    }
)

END_EVENTS: Final[Mapping[Outcome, JobEvent]] = {
    Outcome.DONE: JobEvent.END_DONE,
    Outcome.PARTIAL: JobEvent.END_PARTIAL,
    Outcome.FAILED: JobEvent.END_FAILED,
    Outcome.CANCELLED: JobEvent.END_CANCELLED,
    Outcome.INTERRUPTED: JobEvent.END_INTERRUPTED,
}

_WORKING: Final = (
    JobState.PREFLIGHT,
    JobState.QUIESCING,
    JobState.SNAPSHOTTING,
    JobState.PREPARING,
    JobState.TRANSFERRING,
    JobState.COMMITTING,
    JobState.VERIFYING,
    JobState.SWITCHING,
)


def _table() -> dict[tuple[JobState, JobEvent], JobState]:
    table = {
        (JobState.PLANNED, JobEvent.QUEUE): JobState.QUEUED,
        (JobState.QUEUED, JobEvent.START): JobState.PREFLIGHT,
        (JobState.PREFLIGHT, JobEvent.QUIESCE): JobState.QUIESCING,
        (JobState.QUIESCING, JobEvent.SNAPSHOT): JobState.SNAPSHOTTING,
        (JobState.SNAPSHOTTING, JobEvent.TRANSFER): JobState.TRANSFERRING,
        (JobState.PREFLIGHT, JobEvent.PREPARE): JobState.PREPARING,
        (JobState.PREPARING, JobEvent.TRANSFER): JobState.TRANSFERRING,
        (JobState.PREFLIGHT, JobEvent.TRANSFER): JobState.TRANSFERRING,
        (JobState.TRANSFERRING, JobEvent.COMMIT): JobState.COMMITTING,
        # asked again after a reconnect: the answer is the same
        (JobState.COMMITTING, JobEvent.COMMIT): JobState.COMMITTING,
        (JobState.TRANSFERRING, JobEvent.VERIFY): JobState.VERIFYING,
        (JobState.VERIFYING, JobEvent.SWITCH): JobState.SWITCHING,
        # an in-place restore is read back once more through the VM that it belongs to
        (JobState.SWITCHING, JobEvent.VERIFY): JobState.VERIFYING,
        (JobState.CLEANING, JobEvent.TRY_AGAIN): JobState.QUEUED,
        (JobState.CLEANING, JobEvent.END_DONE): JobState.DONE,
        (JobState.CLEANING, JobEvent.END_PARTIAL): JobState.PARTIAL,
        (JobState.CLEANING, JobEvent.END_FAILED): JobState.FAILED,
        (JobState.CLEANING, JobEvent.END_CANCELLED): JobState.CANCELLED,
    }
    for state in _WORKING:
        table[state, JobEvent.CLEAN] = JobState.CLEANING
    # Only a controller that restarts interrupts: whatever it finds unfinished, after looking
    # whether the manifest was committed all the same.
    for state in (JobState.PLANNED, JobState.QUEUED, *_WORKING, JobState.CLEANING):
        table[state, JobEvent.END_INTERRUPTED] = JobState.INTERRUPTED
    for state in (JobState.COMMITTING, JobState.CLEANING):
        table[state, JobEvent.END_DONE] = JobState.DONE
    for state in (JobState.PLANNED, JobState.QUEUED):
        table[state, JobEvent.END_CANCELLED] = JobState.CANCELLED
        table[state, JobEvent.END_FAILED] = JobState.FAILED
    return table


TRANSITIONS: Final[Mapping[tuple[JobState, JobEvent], JobState]] = _table()


def next_state(state: JobState, event: JobEvent, *, story: Sequence[str] = ()) -> JobState:
    """The state after ``event``. Raises: InvalidTransition with the job's story."""
    found = TRANSITIONS.get((state, event))
    if found is None:
        raise InvalidTransition(
            f"a job that is {state} cannot {event}", story=" -> ".join(story) or "(none)"
        )
    return found

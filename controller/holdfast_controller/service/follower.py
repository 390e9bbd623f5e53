"""Follows a run by its rows in the database, so it also works after a restart and for runs of long ago."""

from __future__ import annotations

from holdfast_common.errors import HoldfastError, Refused
from holdfast_common.identity import JobId, RunId
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.runs.world import World
from holdfast_controller.service.operator_messages import (
    event_message,
    job_detail_message,
    job_message,
)
from holdfast_controller.store.jobs import JobRow

_WORST_FIRST = (
    JobState.FAILED,
    JobState.INTERRUPTED,
    JobState.CANCELLED,
    JobState.PARTIAL,
)
_STATUS_OF_STATE = {
    JobState.FAILED: 1,
    JobState.INTERRUPTED: 130,
    JobState.CANCELLED: 130,
    JobState.PARTIAL: 3,
}


class RunFollower:
    """What is new since the last look. One caller."""

    def __init__(self, world: World, run_id: RunId) -> None:
        self._jobs = world.jobs
        self._world = world
        self._run_id = run_id
        self._events_seen: dict[JobId, int] = {}
        self._progress_seen: dict[JobId, int] = {}
        self._finished: set[JobId] = set()
        self.ended = False

    def next_events(self) -> list[operator_pb2.RunEvent]:
        """New events in order; the last one of all is the run's end.

        Raises: Locked, StoreFailed; the same events come again then.
        """
        before = (dict(self._events_seen), dict(self._progress_seen), set(self._finished))
        try:
            return self._next_events()
        except HoldfastError:
            self._events_seen, self._progress_seen, self._finished = before
            raise

    def _next_events(self) -> list[operator_pb2.RunEvent]:
        rows = self._jobs.jobs_of_run(self._run_id)
        found = [event for row in rows for event in self._of_job(row)]
        if all(row.job_id in self._finished for row in rows):
            state, exit_status = run_end(rows)
            found.append(
                operator_pb2.RunEvent(
                    run=operator_pb2.RunFinished(
                        run_id=self._run_id, state=state, exit_status=exit_status
                    )
                )
            )
            self.ended = True
        return found

    def _of_job(self, row: JobRow) -> list[operator_pb2.RunEvent]:
        if row.job_id in self._finished:
            return []
        events = self._jobs.events(row.job_id)
        seen = self._events_seen.get(row.job_id, 0)
        found = [
            operator_pb2.RunEvent(log=_named(event_message(event), row)) for event in events[seen:]
        ]
        self._events_seen[row.job_id] = len(events)
        if (
            not row.ended
            and row.total_bytes
            and self._progress_seen.get(row.job_id) != row.done_bytes
        ):
            self._progress_seen[row.job_id] = row.done_bytes
            found.append(operator_pb2.RunEvent(progress=job_message(row)))
        if row.ended:
            self._finished.add(row.job_id)
            detail = job_detail_message(
                row,
                events,
                prune=self._world.prunes.of_job(row.job_id),
                damages=self._world.damages.totals(row.job_id),
            )
            found.append(operator_pb2.RunEvent(finished=detail))
        return found


def _named(event: operator_pb2.JobEvent, row: JobRow) -> operator_pb2.JobEvent:
    event.detail = f"{row.subject}: {event.detail}" if event.detail else row.subject
    return event


def run_end(rows: list[JobRow]) -> tuple[str, int]:
    """A run's state and exit status: 0 only when all is done; the error's own when all failed by it.

    Jobs that were refused, beside others that are done, are something that was skipped.
    """
    less = [row for row in rows if row.state is not JobState.DONE]
    if not less:
        return JobState.DONE, 0
    failed = [row for row in less if row.state is not JobState.PARTIAL]
    statuses = {
        row.error.exit_status if row.error is not None else _STATUS_OF_STATE[row.state]
        for row in failed
    }
    if len(failed) < len(rows) and statuses <= {Refused.exit_status}:
        return JobState.PARTIAL, _STATUS_OF_STATE[JobState.PARTIAL]
    worst = next(state for state in _WORST_FIRST if any(row.state is state for row in failed))
    same = len(statuses) == 1 and len(failed) == len(rows)
    return worst, statuses.pop() if same else 1

"""How many jobs there are, and which have ended since: for figures and for notices. See `jobs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from holdfast_common.identity import JobId, RunId
from holdfast_common.job_result import DiskResult, ErrorReport
from holdfast_controller.decide.job_state import ENDED, JobState
from holdfast_controller.store.database import Database

_ENDS: Final = tuple(sorted(ENDED))
_MARKS: Final = ",".join("?" * len(_ENDS))
ENDED_AT_ONCE_MAX: Final = 2000  # of one question; the next one goes on where it ended


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedJobs:
    """Jobs of one kind in one state. ``done_bytes``: what they have got through so far."""

    kind: str
    state: JobState
    jobs: int
    done_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedJob:
    """A job that has ended, and the number of the event that says so: later ends have higher ones."""

    event_id: int
    job_id: JobId
    run_id: RunId
    kind: str
    subject: str
    state: JobState
    finished_at: str
    error: ErrorReport | None
    disks: tuple[DiskResult, ...]
    warnings: int


class JobFigures:
    """Thread-safe; each method is one question."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def unfinished(self) -> list[UnfinishedJobs]:
        """What has not ended, counted."""
        rows = self._database.execute(
            "SELECT kind, state, count(*), sum(done_bytes) FROM jobs"  # noqa: S608 - only question marks
            f" WHERE state NOT IN ({_MARKS}) GROUP BY kind, state ORDER BY kind, state",
            _ENDS,
        ).fetchall()
        return [
            UnfinishedJobs(
                kind=str(row[0]), state=JobState(row[1]), jobs=int(row[2]), done_bytes=int(row[3])
            )
            for row in rows
        ]

    def oldest_waiting_at(self) -> str:
        """When the oldest job was planned that has not begun; empty: none waits."""
        row = self._database.execute(
            "SELECT min(created_at) FROM jobs WHERE state IN (?, ?)",
            (JobState.PLANNED, JobState.QUEUED),
        ).fetchone()
        return str(row[0] or "")

    def last_good_check_at(self) -> str:
        """When the last check of the whole repository ended that found nothing; empty: there was none."""
        row = self._database.execute(
            "SELECT max(finished_at) FROM jobs WHERE kind = 'check' AND state = ?"
            " AND subject = 'repository'",
            (JobState.DONE,),
        ).fetchone()
        return str(row[0] or "")

    def newest_event(self) -> int:
        """The number of the newest event of any job; 0: nothing ever happened."""
        row = self._database.execute("SELECT max(event_id) FROM job_events").fetchone()
        return int(row[0] or 0)

    def ended_after(self, event_id: int, *, limit: int = ENDED_AT_ONCE_MAX) -> list[EndedJob]:
        """The jobs that ended after that event, in the order of their ends."""
        rows = self._database.execute(
            "SELECT e.event_id, j.job_id, j.run_id, j.kind, j.subject, j.state, j.finished_at,"  # noqa: S608 - only question marks
            " j.error, j.disks, j.warnings FROM job_events e JOIN jobs j ON j.job_id = e.job_id"
            f" WHERE e.event_id > ? AND e.event IN ({_MARKS}) AND e.event = j.state"
            " ORDER BY e.event_id LIMIT ?",
            (event_id, *_ENDS, limit),
        ).fetchall()
        return [_ended(row) for row in rows]

    def of_run(self, run_id: RunId) -> dict[JobState, int]:
        """How many jobs of a run are in which state."""
        rows = self._database.execute(
            "SELECT state, count(*) FROM jobs WHERE run_id = ? GROUP BY state ORDER BY state",
            (run_id,),
        ).fetchall()
        return {JobState(row[0]): int(row[1]) for row in rows}


def _ended(row: Sequence[object]) -> EndedJob:
    error = str(row[7])
    return EndedJob(
        event_id=int(str(row[0])),
        job_id=JobId(str(row[1])),
        run_id=RunId(str(row[2])),
        kind=str(row[3]),
        subject=str(row[4]),
        state=JobState(str(row[5])),
        finished_at=str(row[6]),
        error=msgspec.json.decode(error, type=ErrorReport) if error else None,
        disks=msgspec.json.decode(str(row[8]), type=tuple[DiskResult, ...]),
        warnings=len(msgspec.json.decode(str(row[9]))),
    )

"""Runs and jobs: what runs, what ran, and each step of it. Every transition is durable before its effect."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import IntegrityError, NotFound, Refused
from holdfast_common.identity import AgentId, JobId, PointId, RunId, new_ulid
from holdfast_common.job_result import DiskResult, ErrorReport, Warned
from holdfast_controller.decide.job_state import ENDED, JobEvent, JobState, next_state
from holdfast_controller.store.database import Database
from holdfast_controller.store.new_jobs import (
    Also,
    NewJob,
    nothing_else,
    refuse_all_refused,
    refused_as_second,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job as it stands. Empty text: not known (yet). Times are UTC ISO text, sizes bytes."""

    job_id: JobId
    run_id: RunId
    kind: str
    subject: str
    vcenter_id: str
    instance_uuid: str
    lineage_id: str
    state: JobState
    attempt: int
    agent_attempts: int
    level_asked: str
    level: str
    level_reason: str
    transport: str
    agent_id: str
    point_id: str
    created_at: str
    finished_at: str
    done_bytes: int
    total_bytes: int
    cancel_asked: bool
    error: ErrorReport | None
    disks: tuple[DiskResult, ...]
    warnings: tuple[Warned, ...]

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEventRow:
    """One thing that happened to a job."""

    at: str
    event: str
    detail: str


class JobTable:
    """Runs, jobs and events. Thread-safe; each method is one transaction."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create_run(
        self,
        *,
        kind: str,
        request: dict[str, object],
        jobs: Sequence[NewJob],
        also: Also = nothing_else,
    ) -> RunId:
        """A run with its jobs, all planned, and what ``also`` writes. A VM's job is refused while it has another one.

        Those that are refused are written down as failed, beside others that are not.
        Raises: Refused when all are; nothing was written then.
        """
        run_id = RunId(new_ulid())
        now = utc_text(self._clock.now())
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO runs (run_id, kind, request, created_at, finished_at) VALUES (?,?,?,?,'')",
                (run_id, kind, json.dumps(request), now),
            )
            judged = [refused_as_second(connection, job) for job in jobs]
            refuse_all_refused(judged)
            for job in judged:
                job_id = new_ulid()
                connection.execute(
                    "INSERT INTO jobs (job_id, run_id, kind, subject, vcenter_id, instance_uuid,"
                    " lineage_id, state, attempt, agent_attempts, level_asked, level, level_reason,"
                    " transport, agent_id, point_id, created_at, finished_at, done_bytes,"
                    " total_bytes, cancel_asked, error, disks, warnings)"
                    " VALUES (?,?,?,?,?,?,?,?,1,0,?,'','',?,'','',?,'',0,0,0,'','[]','[]')",
                    (
                        job_id,
                        run_id,
                        job.kind,
                        job.subject,
                        job.vcenter_id,
                        job.instance_uuid,
                        job.lineage_id,
                        JobState.PLANNED,
                        job.level_asked,
                        job.transport,
                        now,
                    ),
                )
                _add_event(connection, JobId(job_id), now, JobState.PLANNED, "")
                if job.refused is not None:
                    _fail(connection, JobId(job_id), now, job.refused)
            also(run_id)
        return run_id

    def advance(self, job_id: JobId, event: JobEvent, detail: str = "") -> JobState:
        """Move a job on; durable when this returns.

        Raises: InvalidTransition with the job's story, NotFound.
        """
        now = utc_text(self._clock.now())
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT state, run_id FROM jobs WHERE job_id = ?", (job_id,)
            ).fetchone()
            if row is None:
                raise NotFound("there is no such job", job=job_id)
            story = [
                str(found[0])
                for found in connection.execute(
                    "SELECT event FROM job_events WHERE job_id = ? ORDER BY event_id", (job_id,)
                )
            ]
            state = next_state(JobState(row[0]), event, story=story)
            again = 1 if event is JobEvent.TRY_AGAIN else 0
            connection.execute(
                "UPDATE jobs SET state = ?, attempt = attempt + ? WHERE job_id = ?",
                (state, again, job_id),
            )
            _add_event(connection, job_id, now, state, detail)
            if state in ENDED:
                connection.execute(
                    "UPDATE jobs SET finished_at = ? WHERE job_id = ?", (now, job_id)
                )
                _finish_run(connection, RunId(row[1]), now)
        return state

    def note(self, job_id: JobId, event: str, detail: str) -> None:
        """Something worth telling that changes no state."""
        with self._database.transaction() as connection:
            _add_event(connection, job_id, utc_text(self._clock.now()), event, detail)

    def next_agent_attempt(self, job_id: JobId) -> int:
        """A number that no agent was ever given for this job; durable, so also after a restart."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "UPDATE jobs SET agent_attempts = agent_attempts + 1 WHERE job_id = ?"
                " RETURNING agent_attempts",
                (job_id,),
            ).fetchone()
        if row is None:
            raise NotFound("there is no such job", job=job_id)
        return int(row[0])

    def set_plan(
        self,
        job_id: JobId,
        *,
        level: str,
        level_reason: str,
        transport: str,
        agent_id: AgentId,
    ) -> None:
        """What was decided for a job, and why."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE jobs SET level = ?, level_reason = ?, transport = ?, agent_id = ? WHERE job_id = ?",
                (level, level_reason, transport, agent_id, job_id),
            )

    def set_agent(self, job_id: JobId, agent_id: AgentId) -> None:
        """Whom it was dispatched to; an attempt may find that another one must do it."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE jobs SET agent_id = ? WHERE job_id = ?", (agent_id, job_id))

    def set_progress(self, job_id: JobId, *, done_bytes: int, total_bytes: int) -> None:
        """The latest progress."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE jobs SET done_bytes = ?, total_bytes = ? WHERE job_id = ?",
                (done_bytes, total_bytes, job_id),
            )

    def set_result(
        self,
        job_id: JobId,
        *,
        error: ErrorReport | None,
        disks: Sequence[DiskResult] = (),
        warnings: Sequence[Warned] = (),
        point_id: PointId | None = None,
    ) -> None:
        """What an attempt brought; the state moves on separately."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE jobs SET error = ?, disks = ?, warnings = ?, point_id = ? WHERE job_id = ?",
                (
                    "" if error is None else msgspec.json.encode(error).decode(),
                    msgspec.json.encode(tuple(disks)).decode(),
                    msgspec.json.encode(tuple(warnings)).decode(),
                    point_id or "",
                    job_id,
                ),
            )

    def ask_cancel(self, job_id: JobId) -> JobRow:
        """Remember that an operator wants it to stop. Raises: NotFound, Refused when it has ended."""
        job = self.job(job_id)
        if job.ended:
            raise Refused(f"the job has ended: it is {job.state}", job=job_id)
        with self._database.transaction() as connection:
            connection.execute("UPDATE jobs SET cancel_asked = 1 WHERE job_id = ?", (job_id,))
            _add_event(connection, job_id, utc_text(self._clock.now()), "cancel asked", "")
        return self.job(job_id)

    def job(self, job_id: JobId) -> JobRow:
        """Raises: NotFound."""
        found = self._select("WHERE job_id = ?", (job_id,))
        if not found:
            raise NotFound("there is no such job", job=job_id, advice="see `holdfast job list`")
        return found[0]

    def jobs_of_run(self, run_id: RunId) -> list[JobRow]:
        """In the order they were planned; empty when there is no such run."""
        return self._select("WHERE run_id = ? ORDER BY job_id", (run_id,))

    def unfinished(self) -> list[JobRow]:
        """All that have not ended, oldest first."""
        ends = ",".join("?" * len(ENDED))
        return self._select(f"WHERE state NOT IN ({ends}) ORDER BY job_id", tuple(sorted(ENDED)))

    def latest(self, *, subject: str = "", limit: int = 50) -> list[JobRow]:
        """Newest first; of one VM by name when ``subject`` is given."""
        if subject:
            return self._select("WHERE subject = ? ORDER BY job_id DESC LIMIT ?", (subject, limit))
        return self._select("ORDER BY job_id DESC LIMIT ?", (limit,))

    def last_written_at(self) -> str:
        """When anything was written of a job last (UTC text), in the order of writing; empty: nothing ever was.

        Not of the youngest job: ids follow a clock, and one that was wrong once would be the youngest for long.
        """
        row = self._database.execute(
            "SELECT at FROM job_events ORDER BY event_id DESC LIMIT 1"
        ).fetchone()
        return "" if row is None else str(row[0])

    def last_data_checks(self) -> dict[AgentId, JobId]:
        """The newest check of each agent that read data and came to its end, whatever it found."""
        rows = self._database.execute(
            "SELECT agent_id, MAX(job_id) FROM jobs JOIN runs USING (run_id)"
            " WHERE jobs.kind = 'check' AND (state = ? OR"
            " CASE error WHEN '' THEN 0 ELSE json_extract(error, '$.code') = ? END)"
            " AND json_extract(request, '$.read_data') GROUP BY agent_id",
            (JobState.DONE, IntegrityError.code),
        ).fetchall()
        return {AgentId(agent): JobId(job) for agent, job in rows}

    def last_backup(self, *, vcenter_id: str, instance_uuid: str) -> JobRow | None:
        """The newest backup job of a VM that has ended; None: there was none."""
        found = self.newest_backups(vcenter_id=vcenter_id, instance_uuid=instance_uuid, limit=1)
        return found[0] if found else None

    def newest_backups(self, *, vcenter_id: str, instance_uuid: str, limit: int) -> list[JobRow]:
        """Backups of a VM that have ended, newest first."""
        return self._select(
            "WHERE kind = 'backup' AND vcenter_id = ? AND instance_uuid = ? AND finished_at != ''"
            " ORDER BY job_id DESC LIMIT ?",
            (vcenter_id, instance_uuid, limit),
        )

    def without_point(self, run_id: RunId) -> list[JobRow]:
        """Of a run, what failed or was interrupted so far, in the order it was planned."""
        return self._select(
            "WHERE run_id = ? AND state IN (?, ?) ORDER BY job_id",
            (run_id, JobState.FAILED, JobState.INTERRUPTED),
        )

    def ended_checks(self) -> list[JobRow]:
        """Checks and scrubs of the repository that have ended, newest first; the latest hundred. A repair ends with a check."""
        return self._select(
            "WHERE kind IN ('check', 'repair', 'scrub') AND finished_at != '' ORDER BY job_id DESC LIMIT 100",
            (),
        )

    def ended_in_doubt(self, *, settled_by: tuple[str, ...]) -> list[JobRow]:
        """Backups that ended without a point although leave to publish one was given.

        An event of ``settled_by`` after that leave says that the doubt is settled.
        """
        marks = ",".join("?" * len(settled_by))
        newest = "SELECT max(event_id) FROM job_events e WHERE e.job_id = jobs.job_id AND e.event"
        return self._select(
            "WHERE kind = 'backup' AND finished_at != '' AND point_id = '' AND state != ?"
            f" AND ({newest} = ?) > coalesce(({newest} IN ({marks})), 0) ORDER BY job_id",
            (JobState.DONE, JobState.COMMITTING, *settled_by),
        )

    def events(self, job_id: JobId) -> list[JobEventRow]:
        """In order."""
        rows = self._database.execute(
            "SELECT at, event, detail FROM job_events WHERE job_id = ? ORDER BY event_id",
            (job_id,),
        ).fetchall()
        return [JobEventRow(at=row[0], event=row[1], detail=row[2]) for row in rows]

    def _select(self, where: str, values: tuple[object, ...]) -> list[JobRow]:
        columns = ", ".join(JobRow.__slots__)
        rows = self._database.execute(f"SELECT {columns} FROM jobs {where}", values).fetchall()  # noqa: S608 - constant texts
        return [_row(row) for row in rows]


def _row(row: Sequence[object]) -> JobRow:
    fields = dict(zip(JobRow.__slots__, row, strict=True))
    error = str(fields["error"])
    fields["state"] = JobState(str(fields["state"]))
    fields["cancel_asked"] = bool(fields["cancel_asked"])
    fields["error"] = msgspec.json.decode(error, type=ErrorReport) if error else None
    fields["disks"] = msgspec.json.decode(str(fields["disks"]), type=tuple[DiskResult, ...])
    fields["warnings"] = msgspec.json.decode(str(fields["warnings"]), type=tuple[Warned, ...])
    return JobRow(**fields)  # type: ignore[arg-type]  # the columns are the dataclass's fields


def _add_event(
    connection: sqlite3.Connection, job_id: JobId, at: str, event: str, detail: str
) -> None:
    connection.execute(
        "INSERT INTO job_events (job_id, at, event, detail) VALUES (?,?,?,?)",
        (job_id, at, event, detail),
    )


def _fail(connection: sqlite3.Connection, job_id: JobId, now: str, error: ErrorReport) -> None:
    """End a job that was only planned."""
    state = next_state(JobState.PLANNED, JobEvent.END_FAILED)
    connection.execute(
        "UPDATE jobs SET state = ?, error = ?, finished_at = ? WHERE job_id = ?",
        (state, msgspec.json.encode(error).decode(), now, job_id),
    )
    _add_event(connection, job_id, now, state, error.text())


def _finish_run(connection: sqlite3.Connection, run_id: RunId, now: str) -> None:
    ends = ",".join("?" * len(ENDED))
    row = connection.execute(
        f"SELECT count(*) FROM jobs WHERE run_id = ? AND state NOT IN ({ends})",  # noqa: S608 - only question marks
        (run_id, *sorted(ENDED)),
    ).fetchone()
    if row[0] == 0:
        connection.execute("UPDATE runs SET finished_at = ? WHERE run_id = ?", (now, run_id))

"""The shape of the tables of runs, jobs and events; `jobs` reads and writes them."""

from __future__ import annotations

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

MIGRATIONS = Migrations("jobs")


@MIGRATIONS()
def create_jobs(database: SqliteDatabase) -> None:
    """Runs, their jobs, and what happened to each."""
    database.create_table(
        "runs",
        {"run_id": str, "kind": str, "request": str, "created_at": str, "finished_at": str},
        pk="run_id",
        not_null={"kind", "request", "created_at"},
    )
    database.create_table(
        "jobs",
        {
            "job_id": str,
            "run_id": str,
            "kind": str,
            "subject": str,
            "vcenter_id": str,
            "instance_uuid": str,
            "lineage_id": str,
            "state": str,
            "attempt": int,
            "agent_attempts": int,
            "level_asked": str,
            "level": str,
            "level_reason": str,
            "transport": str,
            "agent_id": str,
            "point_id": str,
            "created_at": str,
            "finished_at": str,
            "done_bytes": int,
            "total_bytes": int,
            "cancel_asked": int,
            "error": str,
            "disks": str,
            "warnings": str,
        },
        pk="job_id",
        not_null={"run_id", "kind", "subject", "state", "attempt", "created_at"},
        foreign_keys=[("run_id", "runs", "run_id")],
    )
    database.table("jobs").create_index(["run_id"])
    database.table("jobs").create_index(["state"])
    database.table("jobs").create_index(["instance_uuid"])
    database.create_table(
        "job_events",
        {"event_id": int, "job_id": str, "at": str, "event": str, "detail": str},
        pk="event_id",
        not_null={"job_id", "at", "event", "detail"},
        foreign_keys=[("job_id", "jobs", "job_id")],
    )
    database.table("job_events").create_index(["job_id"])


@MIGRATIONS()
def find_by_kind_and_end(database: SqliteDatabase) -> None:
    """The last good check among the backups of years."""
    database.table("jobs").create_index(["kind", "state", "finished_at"])


@MIGRATIONS()
def find_starts(database: SqliteDatabase) -> None:
    """When the attempts of a job began: how long backups took is asked of all jobs of weeks."""
    database.execute(
        "CREATE INDEX job_events_starts ON job_events (job_id, at) WHERE event = 'preflight'"
    )

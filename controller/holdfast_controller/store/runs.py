"""Runs as they were asked for. Their jobs, and how both come and go, are in `store.jobs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast_common.errors import NotFound
from holdfast_common.identity import RunId, first_ulid_of
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.policy_checks import RunLengths
from holdfast_controller.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """``request``: as it was asked, in plain values; older runs say less. ``finished_at``: empty while it runs."""

    run_id: RunId
    kind: str
    request: Mapping[str, object]
    created_at: str
    finished_at: str


# From when the attempt that brought the point began; takes the first job's id, and two states. That event is
# written out: SQLite then uses the index that has only such events (see `job_tables`). The pluses keep it
# from looking at the backups of years by their kind and state.
LENGTHS: Final = (
    "SELECT j.vcenter_id, j.instance_uuid, j.level, (julianday(j.finished_at) - julianday("  # noqa: S608 - a constant
    f" (SELECT max(e.at) FROM job_events e WHERE e.job_id = j.job_id AND e.event = '{JobState.PREFLIGHT}')"
    " )) * 86400 AS seconds FROM jobs j WHERE j.job_id >= ? AND +j.kind = 'backup'"
    " AND +j.state IN (?,?) AND j.finished_at != ''"
)


class RunTable:
    """Thread-safe; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, run_id: RunId) -> RunRow:
        """Raises: NotFound."""
        row = self._database.execute(
            "SELECT kind, request, created_at, finished_at FROM runs WHERE run_id = ?", (run_id,)
        ).fetchone()
        if row is None:
            raise NotFound("there is no such run", run=run_id, advice="see `holdfast job list`")
        return RunRow(
            run_id=run_id,
            kind=str(row[0]),
            request=json.loads(row[1]),
            created_at=str(row[2]),
            finished_at=str(row[3]),
        )

    def backup_seconds(self, since: datetime) -> dict[tuple[str, str, str], float]:
        """The same, on average, by vCenter's id, VM's instance uuid and level."""
        rows = self._database.execute(
            f"SELECT vcenter_id, instance_uuid, level, avg(seconds) FROM ({LENGTHS})"  # noqa: S608 - a constant
            " WHERE seconds >= 0 GROUP BY vcenter_id, instance_uuid, level",
            (first_ulid_of(since), JobState.DONE, JobState.PARTIAL),
        )
        return {(str(row[0]), str(row[1]), str(row[2])): float(row[3]) for row in rows}

    def stopped_since(self, since: str, *, code: str) -> list[RunRow]:
        """Runs with backups that were interrupted with this error since then (UTC text)."""
        rows = self._database.execute(
            "SELECT DISTINCT run_id FROM jobs WHERE kind = 'backup' AND state = ? AND finished_at >= ?"
            " AND CASE error WHEN '' THEN 0 ELSE json_extract(error, '$.code') = ? END ORDER BY run_id",
            (JobState.INTERRUPTED, since, code),
        )
        return [self.run(RunId(row[0])) for row in rows.fetchall()]

    def backup_lengths(self, since: datetime) -> dict[tuple[str, str], RunLengths]:
        """How long backups planned since then took that brought a point, by vCenter's id and VM's instance uuid.

        From when the attempt that brought it began: not what the job waited before.
        """
        rows = self._database.execute(
            f"SELECT vcenter_id, instance_uuid, min(seconds), max(seconds) FROM ({LENGTHS})"  # noqa: S608 - a constant
            " WHERE seconds >= 0 GROUP BY vcenter_id, instance_uuid",
            (first_ulid_of(since), JobState.DONE, JobState.PARTIAL),
        )
        return {
            (str(row[0]), str(row[1])): RunLengths(
                shortest_seconds=float(row[2]), longest_seconds=float(row[3])
            )
            for row in rows
        }

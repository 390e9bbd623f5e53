"""Rounds of pruning: written down before anything is deleted, and what came of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.identity import JobId
from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("prunes")
NAMES_KEPT_MAX: Final = 1000  # of objects, of one round: the rest is only counted
_COLUMNS: Final = "prune_id, job_id, started_at, ended_at, problem, counts, dry_run, plan, names"


@MIGRATIONS()
def create_prunes(database: SqliteDatabase) -> None:
    """One row a round; a row without an end was cut off, and the next round goes on where it was."""
    database.create_table(
        "prunes",
        {
            "prune_id": int,
            "started_at": str,
            "ended_at": str,
            "problem": str,
            "counts": str,
        },
        pk="prune_id",
        not_null={"started_at", "ended_at", "problem", "counts"},
    )


@MIGRATIONS()
def rounds_are_jobs(database: SqliteDatabase) -> None:
    """Whose round it was, and what was told of it."""
    table = database.table("prunes")
    table.add_column("job_id", str, not_null_default="")
    table.add_column("dry_run", int, not_null_default=0)
    table.add_column("plan", str, not_null_default="[]")
    table.add_column("names", str, not_null_default="[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneEnd:
    """What came of a round. ``plan``: for people. ``names``: of the objects concerned; the first ones are kept."""

    counts: Mapping[str, int]
    plan: Sequence[str] = ()
    names: Sequence[str] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRow:
    """One round. ``ended_at`` is empty while it runs, and for ever when it was cut off."""

    prune_id: int
    job_id: str
    started_at: str
    ended_at: str
    problem: str
    counts: Mapping[str, int]
    dry_run: bool
    plan: tuple[str, ...]
    names: tuple[str, ...]


class PruneTable:
    """Thread-safe; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, *, at: str, job_id: JobId | None = None, dry_run: bool = False) -> int:
        """Write down that a round begins, of a job if there is one; its id."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO prunes (job_id, started_at, ended_at, problem, counts, dry_run)"
                " VALUES (?,?,'','','{}',?)",
                (job_id or "", at, int(dry_run)),
            )
            return int(cursor.lastrowid or 0)

    def end(self, prune_id: int, end: PruneEnd, *, at: str) -> None:
        """Write down how it ended."""
        counts = json.dumps(dict(end.counts), sort_keys=True)
        names = json.dumps(list(end.names[:NAMES_KEPT_MAX]))
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE prunes SET ended_at = ?, problem = ?, counts = ?, plan = ?, names = ?"
                " WHERE prune_id = ?",
                (at, end.problem, counts, json.dumps(list(end.plan)), names, prune_id),
            )

    def latest(self) -> PruneRow | None:
        """The newest round, of a dry run too; None: there was none."""
        return self._one("ORDER BY prune_id DESC LIMIT 1", ())

    def latest_change(self) -> PruneRow | None:
        """The newest round that was no dry run; None: there was none."""
        return self._one("WHERE dry_run = 0 ORDER BY prune_id DESC LIMIT 1", ())

    def last_good_at(self) -> str:
        """When the last round ended that was no dry run and met no problem; empty: there was none."""
        row = self._database.execute(
            "SELECT max(ended_at) FROM prunes WHERE dry_run = 0 AND problem = ''"
        ).fetchone()
        return str(row[0] or "")

    def of_job(self, job_id: JobId) -> PruneRow | None:
        """The newest round of one job; None: it began none."""
        return self._one("WHERE job_id = ? ORDER BY prune_id DESC LIMIT 1", (job_id,))

    def _one(self, where: str, values: tuple[object, ...]) -> PruneRow | None:
        row = self._database.execute(f"SELECT {_COLUMNS} FROM prunes {where}", values).fetchone()  # noqa: S608 - constant texts
        if row is None:
            return None
        return PruneRow(
            prune_id=int(row[0]),
            job_id=str(row[1]),
            started_at=str(row[2]),
            ended_at=str(row[3]),
            problem=str(row[4]),
            counts={str(name): int(count) for name, count in json.loads(row[5]).items()},
            dry_run=bool(row[6]),
            plan=tuple(str(line) for line in json.loads(row[7])),
            names=tuple(str(name) for name in json.loads(row[8])),
        )

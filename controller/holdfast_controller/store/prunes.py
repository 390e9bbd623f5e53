"""Rounds of pruning: written down before anything is deleted, and what came of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("prunes")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRow:
    """One round. ``ended_at`` is empty while it runs, and for ever when it was cut off."""

    prune_id: int
    started_at: str
    ended_at: str
    problem: str
    counts: Mapping[str, int]


class PruneTable:
    """Thread-safe; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, *, at: str) -> int:
        """Write down that a round begins; its id."""
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO prunes (started_at, ended_at, problem, counts) VALUES (?,'','','{}')",
                (at,),
            )
            return int(cursor.lastrowid or 0)

    def end(self, prune_id: int, *, at: str, counts: Mapping[str, int], problem: str = "") -> None:
        """Write down how it ended."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE prunes SET ended_at = ?, problem = ?, counts = ? WHERE prune_id = ?",
                (at, problem, json.dumps(dict(counts), sort_keys=True), prune_id),
            )

    def latest(self) -> PruneRow | None:
        """The newest round; None: there was none."""
        row = self._database.execute(
            "SELECT prune_id, started_at, ended_at, problem, counts FROM prunes"
            " ORDER BY prune_id DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        return PruneRow(
            prune_id=int(row[0]),
            started_at=str(row[1]),
            ended_at=str(row[2]),
            problem=str(row[3]),
            counts={str(name): int(count) for name, count in json.loads(row[4]).items()},
        )

"""The audit trail: who did what to what, each entry chained to the one before by SHA-256."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from typing import Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.clock import Clock, utc_text
from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("audit")

FIRST_HASH: Final = "0" * 64
_TEXT_LENGTH_MAX: Final = 1024  # names come from outside


@MIGRATIONS()
def create_audit(database: SqliteDatabase) -> None:
    """The chain; nothing ever updates or deletes in it."""
    database.create_table(
        "audit",
        {
            "sequence": int,
            "at": str,
            "actor": str,
            "action": str,
            "object": str,
            "result": str,
            "previous_hash": str,
            "hash": str,
        },
        pk="sequence",
        not_null={"at", "actor", "action", "object", "result", "previous_hash", "hash"},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One act. ``actor``: a certificate's subject and digest, or ``local:<uid>``."""

    sequence: int
    at: str
    actor: str
    action: str
    object: str
    result: str
    previous_hash: str
    hash: str


class AuditTrail:
    """Append and check. Thread-safe; each method is one transaction, or joins the caller's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def append(self, *, actor: str, action: str, object: str, result: str) -> int:  # noqa: A002 - the column's name
        """Write one entry; its sequence number."""
        with self._database.transaction() as connection:
            last = connection.execute(
                "SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1"
            ).fetchone()
            sequence, previous_hash = (last[0] + 1, last[1]) if last else (1, FIRST_HASH)
            texts = (
                utc_text(self._clock.now()),
                *(text[:_TEXT_LENGTH_MAX] for text in (actor, action, object, result)),
            )
            connection.execute(
                "INSERT INTO audit (sequence, at, actor, action, object, result, previous_hash, hash)"
                " VALUES (?,?,?,?,?,?,?,?)",
                (sequence, *texts, previous_hash, _chained(sequence, texts, previous_hash)),
            )
        return int(sequence)

    def entries(self, *, limit: int = 1000) -> list[AuditEntry]:
        """The newest ``limit`` entries, oldest first."""
        rows = self._database.execute(
            "SELECT * FROM (SELECT sequence, at, actor, action, object, result, previous_hash, hash"
            " FROM audit ORDER BY sequence DESC LIMIT ?) ORDER BY sequence",
            (limit,),
        ).fetchall()
        return [_entry(row) for row in rows]

    def first_broken(self) -> int | None:
        """The sequence number of the first entry that is not what was written; None: all are."""
        previous_hash, expected = FIRST_HASH, 1
        for row in self._database.execute(
            "SELECT sequence, at, actor, action, object, result, previous_hash, hash"
            " FROM audit ORDER BY sequence"
        ):
            entry = _entry(row)
            texts = (entry.at, entry.actor, entry.action, entry.object, entry.result)
            if entry.sequence != expected or entry.previous_hash != previous_hash:
                return expected
            if entry.hash != _chained(entry.sequence, texts, previous_hash):
                return expected
            previous_hash, expected = entry.hash, expected + 1
        return None


def _chained(sequence: int, texts: tuple[str, ...], previous_hash: str) -> str:
    """SHA-256 of a form in which no field can flow into the next."""
    return hashlib.sha256(json.dumps([sequence, *texts, previous_hash]).encode()).hexdigest()


def _entry(row: sqlite3.Row | tuple[object, ...]) -> AuditEntry:
    sequence, *texts = row
    at, actor, action, about, result, previous_hash, own_hash = (str(text) for text in texts)
    return AuditEntry(
        sequence=int(str(sequence)),
        at=at,
        actor=actor,
        action=action,
        object=about,
        result=result,
        previous_hash=previous_hash,
        hash=own_hash,
    )

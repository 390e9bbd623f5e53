"""What speaks for each point as far as change tracking had a say in it; stays right when earlier points are forgotten.

Written with the point, in the transaction of `catalogue`; see `decide.confidence`.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.errors import FormatError
from holdfast_common.point_record import PointRecord
from holdfast_controller.decide.confidence import (
    Evidence,
    evidence_of_text,
    evidence_text,
    point_confidence,
    point_evidence,
)
from holdfast_controller.store.database import Database

_QUESTION: Final = "SELECT evidence FROM tracking_evidence WHERE point_id = ?"
MIGRATIONS = Migrations("tracking_evidence")


@MIGRATIONS()
def create_evidence(database: SqliteDatabase) -> None:
    """Of points that are made from now on; nothing is known of older ones."""
    database.create_table(
        "tracking_evidence",
        {"point_id": str, "evidence": str},
        pk="point_id",
        not_null={"evidence"},
    )


@MIGRATIONS()
def keep_the_number_too(database: SqliteDatabase) -> None:
    """``confidence``: what the evidence comes to, for who asks of all VMs at once; NULL: not known."""
    database.table("tracking_evidence").add_column("confidence", float)
    rows = database.execute("SELECT point_id, evidence FROM tracking_evidence").fetchall()
    for point_id, evidence in rows:
        database.execute(
            "UPDATE tracking_evidence SET confidence = ? WHERE point_id = ?",
            (point_confidence(evidence_of_text(str(evidence))), point_id),
        )


def keep_evidence(connection: sqlite3.Connection, point_id: str, record: str) -> None:
    """Within the transaction that adds the point. A record that cannot be read speaks for nothing."""
    try:
        decoded = PointRecord.decode(record)
    except FormatError:
        return
    before = _read(connection, decoded.previous_point_id)
    evidence = point_evidence(decoded.disks, before)
    connection.execute(
        "INSERT OR REPLACE INTO tracking_evidence (point_id, evidence, confidence) VALUES (?, ?, ?)",
        (point_id, evidence_text(evidence), point_confidence(evidence)),
    )


def drop_evidence(connection: sqlite3.Connection, point_id: str) -> None:
    """Within the transaction that removes the point: those that stand on it have their own."""
    connection.execute("DELETE FROM tracking_evidence WHERE point_id = ?", (point_id,))


def evidence_of(database: Database, point_id: str) -> Evidence | None:
    """None: nothing is known. Raises: FormatError."""
    row = database.execute(_QUESTION, (point_id,)).fetchone()
    return None if row is None else evidence_of_text(str(row[0]))


def _read(connection: sqlite3.Connection, point_id: str) -> Evidence | None:
    row = connection.execute(_QUESTION, (point_id,)).fetchone()
    return None if row is None else evidence_of_text(str(row[0]))

"""The ledger's table: effects outside that are still to be undone. See `holdfast_controller.ledger`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import InvalidTransition, NotFound
from holdfast_common.identity import JobId, RunId, new_ulid
from holdfast_controller.ledger import KEPT, EntryId, EntryKind, EntryState, LedgerEntry
from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("ledger")
ERROR_LENGTH_MAX: Final = 2000
_COLUMNS: Final = (
    "entry_id, run_id, job_id, kind, vcenter_id, facts, state, created_at, updated_at, attempts,"
    " last_error"
)


@MIGRATIONS()
def create_ledger(database: SqliteDatabase) -> None:
    """Entries; the open ones are found by state."""
    database.create_table(
        "ledger",
        {
            "entry_id": str,
            "run_id": str,
            "job_id": str,
            "kind": str,
            "vcenter_id": str,
            "facts": str,
            "state": str,
            "created_at": str,
            "updated_at": str,
            "attempts": int,
            "last_error": str,
        },
        pk="entry_id",
        not_null={"run_id", "job_id", "kind", "vcenter_id", "facts", "state", "attempts"},
    )
    database.table("ledger").create_index(["state"])
    database.table("ledger").create_index(["job_id"])


class LedgerTable:
    """The durable ledger. Thread-safe; each method is one transaction."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def intend(
        self,
        kind: EntryKind,
        *,
        run_id: RunId,
        job_id: JobId,
        vcenter_id: str,
        facts: Mapping[str, str],
    ) -> EntryId:
        """Write an entry before the act; durable on return."""
        entry_id = EntryId(new_ulid())
        now = utc_text(self._clock.now())
        with self._database.transaction() as connection:
            connection.execute(
                f"INSERT INTO ledger ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,0,'')",  # noqa: S608 - constant texts
                (
                    entry_id,
                    run_id,
                    job_id,
                    kind,
                    vcenter_id,
                    json.dumps(dict(facts)),
                    EntryState.INTENDED,
                    now,
                    now,
                ),
            )
        return entry_id

    def note(self, entry_id: EntryId, facts: Mapping[str, str]) -> None:
        """Add or replace facts. Raises: NotFound."""
        with self._database.transaction() as connection:
            entry = _entry(connection, entry_id)
            self._write(connection, entry, entry.state, facts)

    def made(self, entry_id: EntryId, facts: Mapping[str, str]) -> None:
        """The act happened. Raises: NotFound, InvalidTransition when it was undone already."""
        with self._database.transaction() as connection:
            entry = _entry(connection, entry_id)
            if entry.state is EntryState.GONE:
                raise InvalidTransition("a ledger entry that is gone cannot be made", id=entry_id)
            self._write(connection, entry, EntryState.MADE, facts)

    def gone(self, entry_id: EntryId) -> None:
        """Nothing is left of it. Raises: NotFound."""
        with self._database.transaction() as connection:
            self._write(connection, _entry(connection, entry_id), EntryState.GONE, {})

    def kept(self, *entry_ids: EntryId) -> None:
        """They were wanted and stay: all of them from one moment on. Raises: NotFound."""
        with self._database.transaction() as connection:
            for entry_id in entry_ids:
                entry = _entry(connection, entry_id)
                self._write(connection, entry, EntryState.GONE, {"outcome": KEPT})

    def debt(self, entry_id: EntryId, error: str) -> None:
        """Undoing it failed; no debt when somebody else undid it meanwhile. Raises: NotFound."""
        with self._database.transaction() as connection:
            entry = _entry(connection, entry_id)
            if entry.state is EntryState.GONE:
                return
            self._write(connection, entry, EntryState.DEBT, {})
            connection.execute(
                "UPDATE ledger SET attempts = attempts + 1, last_error = ? WHERE entry_id = ?",
                (error[:ERROR_LENGTH_MAX], entry_id),
            )

    def entry(self, entry_id: EntryId) -> LedgerEntry:
        """One entry. Raises: NotFound."""
        found = self._select("WHERE entry_id = ?", (entry_id,))
        if not found:
            raise NotFound("there is no such ledger entry", id=entry_id)
        return found[0]

    def open_entries(self, *, vcenter_id: str = "", job_id: str = "") -> list[LedgerEntry]:
        """What is not gone, oldest first; of one vCenter or job when named."""
        return self._select(
            "WHERE state != ? AND (? = '' OR vcenter_id = ?) AND (? = '' OR job_id = ?)"
            " ORDER BY entry_id",
            (EntryState.GONE, vcenter_id, vcenter_id, job_id, job_id),
        )

    def debts(self) -> list[LedgerEntry]:
        """What could not be undone so far, oldest first."""
        return self._select("WHERE state = ? ORDER BY entry_id", (EntryState.DEBT,))

    def of_job(self, job_id: JobId) -> list[LedgerEntry]:
        """Everything that a job wrote, in order."""
        return self._select("WHERE job_id = ? ORDER BY entry_id", (job_id,))

    def _select(self, where: str, values: tuple[object, ...]) -> list[LedgerEntry]:
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM ledger {where}", values)  # noqa: S608 - constant texts
        return [_of_row(row) for row in rows.fetchall()]

    def _write(
        self,
        connection: sqlite3.Connection,
        entry: LedgerEntry,
        state: EntryState,
        facts: Mapping[str, str],
    ) -> None:
        connection.execute(
            "UPDATE ledger SET state = ?, facts = ?, updated_at = ? WHERE entry_id = ?",
            (
                state,
                json.dumps({**entry.facts, **facts}),
                utc_text(self._clock.now()),
                entry.entry_id,
            ),
        )


def _entry(connection: sqlite3.Connection, entry_id: EntryId) -> LedgerEntry:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM ledger WHERE entry_id = ?",  # noqa: S608 - constant text
        (entry_id,),
    ).fetchone()
    if row is None:
        raise NotFound("there is no such ledger entry", id=entry_id)
    return _of_row(row)


def _of_row(row: Sequence[object]) -> LedgerEntry:
    return LedgerEntry(
        entry_id=EntryId(str(row[0])),
        run_id=RunId(str(row[1])),
        job_id=JobId(str(row[2])),
        kind=EntryKind(str(row[3])),
        vcenter_id=str(row[4]),
        facts=json.loads(str(row[5])),
        state=EntryState(str(row[6])),
        created_at=str(row[7]),
        updated_at=str(row[8]),
        attempts=int(str(row[9])),
        last_error=str(row[10]),
    )

"""Single values of this controller: which repository, the recovery sheet's proof, the epoch."""

from __future__ import annotations

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("settings")

REPOSITORY_ID = "repository.id"
REPOSITORY_FOLDER = "repository.folder"
REPOSITORY_CREATED_AT = "repository.created_at"  # of older homes: as they were set up
REPOSITORY_GENERATION = "repository.generation"  # the highest key generation seen
REPOSITORY_AUTHORITY = "repository.authority"  # public key that signed it, as hex
WRITERS_NUMBER = "repository.writers_number"  # the highest list of writers seen
SHEET_CHALLENGE = "recovery_sheet.challenge"
SHEET_CONFIRMED_AT = "recovery_sheet.confirmed_at"
CONTROLLER_EPOCH = "controller.epoch"
CONTROLLER_ID = "controller.id"
DAMAGED_PACKS = "repository.damaged_packs"  # digests, that checks found
LOSS_FOUND_AT = "repository.loss_found_at"  # by a backup, the last time
DATABASE_COPIED_AT = "database.copied_at"  # into the repository, the last time
PAUSED = "paused"  # since when, by whom and why, as JSON; empty: it is not
SELF_BACKUP_NUMBER = "self_backup.number"  # the last that was begun, in this controller epoch
SELF_BACKUP_KEY_EPOCH = "self_backup.key_epoch"  # that it was sealed in
SELF_BACKUP_PROBLEM = "self_backup.problem"  # why the last try failed; empty: it did not
TAKEN_OVER = "controller.taken_over"  # how it is known that another controller took over
CLOCK_SEEN_AT = "clock.seen_at"  # what time it was when the clock was looked at last
CLOCK_DOUBT = "clock.doubt"  # why the clock is not to be believed; empty: it is
KEEPING_FAILING = "keeping.failing"  # tasks that cannot begin, and why
KEEPING_SINCE = "keeping.since"  # of each task its calendar and since when it counts, as JSON
KEEPING_UNPROVEN_BYTES = "keeping.unproven_bytes"  # when the last check ended
VERIFIED_DATA = (
    "repository.verified_data"  # what proofs said when they were looked at last, as JSON
)
SCRUB_CURSOR = "scrub.cursor"  # the pack that was compared last in this round; empty: none was
SCRUB_ROUND_AT = "scrub.round_at"  # when the round began
SCRUBBED_AT = "scrub.scrubbed_at"  # when the last round began that came to its end
BROUGHT_BACK_AT = "controller.brought_back_at"
INITIALISED_AT = "initialised_at"


@MIGRATIONS()
def create_settings(database: SqliteDatabase) -> None:
    """Names and values."""
    database.create_table("settings", {"name": str, "value": str}, pk="name", not_null={"value"})


class Settings:
    """Text by name. Thread-safe; each method is one transaction, or joins the caller's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> str:
        """The value; empty when it was never set."""
        row = self._database.execute(
            "SELECT value FROM settings WHERE name = ?", (name,)
        ).fetchone()
        return "" if row is None else str(row[0])

    def set(self, name: str, value: str) -> None:
        """Set or replace."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO settings (name, value) VALUES (?,?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, value),
            )

    def raise_number(self, name: str, number: int) -> None:
        """Set a number that only grows."""
        with self._database.transaction():
            if number > int(self.get(name) or 0):
                self.set(name, str(number))

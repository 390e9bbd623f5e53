"""The controller's SQLite: one connection per thread, explicit transactions, migrations at opening.

A table module exports ``MIGRATIONS`` and is named in `store.schema`. What is committed is on the
disk: WAL with ``synchronous=FULL``, because vSphere is only asked for things that a crash can undo.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.errors import ConfigurationError, HoldfastError, Locked, StoreFailed

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS: Final = 15_000  # a writer waits this long for another one


class Found(list[Any]):
    """The rows that a question found, all of them: no error comes later, while they are looked at."""

    def fetchone(self) -> Any:  # noqa: ANN401 - a row's columns are of SQLite's types
        """The first row; None: there is none."""
        return self[0] if self else None

    def fetchall(self) -> list[Any]:
        """All rows."""
        return self


class Database:
    """The database of one controller. Thread-safe: every thread has a connection of its own."""

    def __init__(self, path: Path, migrations: Sequence[Migrations]) -> None:
        """Open (or make) it and bring it to the present shape. The folder exists.

        Raises: ConfigurationError when it cannot be used or is newer than this program.
        """
        self.path = path
        self._threads = threading.local()
        self._lock = threading.Lock()
        self._writers = threading.Lock()
        self._open_connections: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._closed = False
        try:
            self._migrate(migrations)
        except (sqlite3.DatabaseError, StoreFailed) as error:
            self.close()
            raise ConfigurationError(
                f"the controller's database cannot be used: {error}", file=str(path)
            ) from error

    def connection(self) -> sqlite3.Connection:
        """This thread's connection, in autocommit; opened when first asked for.

        Raises: ConfigurationError when the database was closed.
        """
        if self._closed:
            raise ConfigurationError("the database is closed", file=str(self.path))
        found: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if found is None:
            found = self._opened()
            self._threads.connection = found
        return found

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> Found:
        """One statement: a question, or a change that is a transaction of its own.

        Raises: Locked, StoreFailed.
        """
        with self._translated():
            return Found(self.connection().execute(sql, tuple(parameters)).fetchall())

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable at the end; the write lock is taken at the start.

        Inside another transaction of the same thread it joins that one.
        Raises: Locked when another writer does not end within 15 s; StoreFailed when the disk is full
        or fails: what was written is undone then, or, when the end itself failed, is there all the same.
        """
        with self._translated():
            connection = self.connection()
            if connection.in_transaction:
                yield connection
                return
            with self._writing():
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        self._roll_back(connection)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer of this process after the other.

        SQLite itself would have each look again and again, with longer and longer pauses: of a crowd of threads some
        would wait for seconds while others write.
        """
        if not self._writers.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            raise self._busy()
        try:
            yield
        finally:
            self._writers.release()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        """Or let go of a connection that cannot: a later transaction must never join this one."""
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            log.exception("a transaction could not be undone; its connection is closed")
            self._threads.connection = None
            connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of SQLite leave as ours: a job that meets one can end, or try again."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._error_of(error) from error

    def _error_of(self, error: sqlite3.Error) -> HoldfastError:
        # the lower byte is the error, the rest says more of it; None: an error of the module itself
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return self._busy()
        return StoreFailed(f"the controller's database failed: {error}", file=str(self.path))

    def _busy(self) -> Locked:
        return Locked("the controller's database is busy", file=str(self.path))

    def copy_to(self, target: Path) -> None:
        """Write all of it, as it was at one moment, into one new file, and look whether that is whole.

        Others read and write meanwhile. Raises: Locked, StoreFailed.
        """
        with self._translated(), closing(sqlite3.connect(target, isolation_level=None)) as copy:
            self.connection().backup(
                copy
            )  # all pages in one step, else a writer makes it begin anew
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
            found = str(copy.execute("PRAGMA quick_check(1)").fetchone()[0])
            if found != "ok":
                raise StoreFailed(f"the controller's database is damaged: {found[:200]}")

    def close(self) -> None:
        """No thread may use the database from now on; a thread that still does so gets an error.

        A connection goes with its thread: closing it below a statement that runs crashes the program.
        """
        with self._lock:
            self._closed = True
            for thread, connection in self._open_connections:
                if thread is threading.current_thread() or not thread.is_alive():
                    connection.close()
            self._open_connections.clear()

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,  # transactions begin and end where `transaction` says
            timeout=BUSY_TIMEOUT_MS / 1000,
            check_same_thread=False,  # only for close()
        )
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        with self._lock:
            if self._closed:
                connection.close()
                raise ConfigurationError("the database is closed", file=str(self.path))
            self._forget_ended_threads()
            self._open_connections.append((threading.current_thread(), connection))
        return connection

    def _forget_ended_threads(self) -> None:
        """Close the connections that ended threads left; the lock is held."""
        kept = []
        for thread, connection in self._open_connections:
            if thread.is_alive():
                kept.append((thread, connection))
            else:
                connection.close()
        self._open_connections = kept

    def _migrate(self, migrations: Sequence[Migrations]) -> None:
        if not self.path.exists():
            self.path.touch(mode=0o600)
        database = SqliteDatabase(self.connection())
        with self.transaction():  # one opener at a time; half a migration is none
            for migration_set in migrations:
                known = {migration.name for migration in migration_set._migrations}
                unknown = {found.name for found in migration_set.applied(database)} - known
                if unknown:
                    raise ConfigurationError(
                        "the database was written by a newer Holdfast",
                        file=str(self.path),
                        migration=min(unknown),
                        advice="use that version, or a copy of the database from before it",
                    )
                migration_set.apply(database)

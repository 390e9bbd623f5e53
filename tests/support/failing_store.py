"""A controller's database whose disk fails at a chosen write, in the ways in which a disk can."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

from holdfast_controller.store.database import Database


class Failure(StrEnum):
    """What happens to a transaction."""

    BUSY = "another program holds the database"
    FULL = "the disk is full"
    STUCK = "the disk is full, and nothing can be undone"
    UNSURE = "it is on the disk, but the answer was an error"


class FailingWrites:
    """Counts the writes, and lets those from number ``first`` to before ``end`` fail."""

    def __init__(self, failure: Failure, first: int, end: int) -> None:
        self.writes = 0
        self.failed = 0
        self._failure = failure
        self._failing = range(first, end)
        self._lock = threading.Lock()

    def begin(self) -> bool:
        """Count one; whether it is to fail."""
        with self._lock:
            self.writes += 1
            fails = self.writes - 1 in self._failing
            self.failed += fails
            return fails

    def before(self, statement: str) -> None:
        """Raises what SQLite would, before a statement of a transaction that is to fail."""
        if self._failure is Failure.BUSY and statement.startswith("BEGIN"):
            raise _error("database is locked", sqlite3.SQLITE_BUSY)
        stuck = self._failure is Failure.STUCK
        if (stuck or self._failure is Failure.FULL) and statement == "COMMIT":
            raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        if stuck and statement == "ROLLBACK":
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR)

    def after(self, statement: str) -> None:
        """Likewise, after it."""
        if self._failure is Failure.UNSURE and statement == "COMMIT":
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR)


class _Connection(sqlite3.Connection):
    plan: FailingWrites | None = None
    fails = False

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:  # type: ignore[override]  # the second is never a mapping here
        plan = self.plan
        if plan is None:
            return super().execute(sql, tuple(parameters))
        if sql.startswith("BEGIN"):
            self.fails = plan.begin()
        if self.fails:
            plan.before(sql)
        found = super().execute(sql, tuple(parameters))
        if self.fails:
            plan.after(sql)
        return found


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@contextmanager
def failing_writes(
    database: Database, failure: Failure, *, first: int, count: int = 1
) -> Iterator[FailingWrites]:
    """Within the block ``count`` writes fail, from the one that comes after ``first`` others."""
    plan = FailingWrites(failure, first, first + count)
    opened = sqlite3.connect
    own = database._threads

    def connect(*args: object, **kwargs: object) -> sqlite3.Connection:
        made: sqlite3.Connection = opened(*args, **{**kwargs, "factory": _Connection})  # type: ignore[call-overload]  # as the database opens it
        return made

    database._threads = threading.local()  # every thread opens a connection anew
    sqlite3.connect = connect  # type: ignore[assignment]  # for the block only
    _Connection.plan = plan
    try:
        yield plan
    finally:
        _Connection.plan = None
        sqlite3.connect = opened
        database._threads = own

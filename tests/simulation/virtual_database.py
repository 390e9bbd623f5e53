"""The product's own database, in memory and in virtual time: it is killed at each commit, and fails before or after it."""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from sqlite_utils import Database as SqliteDatabase

from holdfast_common.errors import StoreFailed
from holdfast_controller.store.database import Database
from holdfast_controller.store.schema import ALL
from simulation.virtual_time import Kernel

STATEMENTS: Final = 2_000  # that stay compiled


@dataclass(eq=False)
class StoreFaults:
    """``before``, ``after``: so many of the next commits fail, with nothing or with everything written."""

    before: int = 0
    after: int = 0
    failed: int = 0


class VirtualDatabase(Database):
    """The product's database over one connection in memory: threads take turns here, and never within a transaction."""

    def __init__(self, kernel: Kernel, connection: sqlite3.Connection, wrong: StoreFaults) -> None:
        self.path = Path(":memory:")
        self._kernel = kernel
        self._only = connection
        self._wrong = wrong
        self._threads = SimpleNamespace(connection=connection)  # type: ignore[assignment]  # one for all
        self._closed = False

    def connection(self) -> sqlite3.Connection:
        self._kernel.check()
        return self._only

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Nobody else can be writing."""
        yield

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        if self._only.in_transaction:
            with super().transaction() as connection:
                yield connection
            return
        self._kernel.step("before a commit")
        if self._wrong.before:
            self._wrong.before -= 1
            self._wrong.failed += 1
            raise StoreFailed("the controller's database failed: disk I/O error")
        with super().transaction() as connection:
            yield connection
        self._kernel.step("after a commit")
        if self._wrong.after:
            self._wrong.after -= 1
            self._wrong.failed += 1
            raise StoreFailed("the controller's database failed: disk is full")


@functools.cache
def _empty_database() -> bytes:
    """A database with everything but VMs, as bytes: migrations take longer than a seed may."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    database = SqliteDatabase(connection)
    for migrations in ALL:
        migrations.apply(database)
    return bytes(connection.serialize())


def new_database() -> sqlite3.Connection:
    """One that is ready, and empty."""
    connection = sqlite3.connect(
        ":memory:", isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS
    )
    connection.deserialize(_empty_database())
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def is_intended(connection: sqlite3.Connection, kind: str, fact: str, value: str) -> bool:
    """Whether the ledger has an open entry of this kind with this fact, committed."""
    if connection.in_transaction:
        return False
    rows = connection.execute(
        "SELECT facts FROM ledger WHERE kind = ? AND state != 'gone'", (kind,)
    ).fetchall()
    return any(json.loads(row[0]).get(fact) == value for row in rows)

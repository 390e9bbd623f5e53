"""One connection per thread, explicit transactions, migrations at opening."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.errors import ConfigurationError, HoldfastError, Locked, StoreFailed
from holdfast_controller.store import database as database_module
from holdfast_controller.store.database import Database
from holdfast_controller.store.schema import open_database
from support.failing_store import Failure, failing_writes


def numbers() -> Migrations:
    migrations = Migrations("numbers")

    @migrations()
    def create(database: SqliteDatabase) -> None:
        database.create_table("numbers", {"number": int}, pk="number")

    return migrations


def count(database: Database) -> int:
    return int(database.execute("SELECT count(*) FROM numbers").fetchone()[0])


def test_what_is_committed_is_on_the_disk_before_the_transaction_returns(tmp_path: Path) -> None:
    database = Database(tmp_path / "d", [numbers()])
    assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert database.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o600


def test_an_error_rolls_everything_back_also_in_a_nested_transaction(tmp_path: Path) -> None:
    database = Database(tmp_path / "d", [numbers()])

    def fail() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO numbers VALUES (1)")
            with database.transaction() as inner:
                inner.execute("INSERT INTO numbers VALUES (2)")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert count(database) == 0


def test_many_threads_read_then_write_without_losing_an_update(tmp_path: Path) -> None:
    database = Database(tmp_path / "d", [numbers()])

    def add() -> None:
        for _ in range(10):
            with database.transaction() as connection:
                number = connection.execute("SELECT count(*) FROM numbers").fetchone()[0]
                connection.execute("INSERT INTO numbers VALUES (?)", (number,))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert count(database) == 80


def test_a_writer_that_waits_too_long_for_another_thread_is_told_that_the_database_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MS", 50)
    database = Database(tmp_path / "d", [numbers()])

    def add() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO numbers VALUES (1)")

    with ThreadPoolExecutor(1) as other:
        with database.transaction(), pytest.raises(Locked):
            other.submit(add).result(30)
        other.submit(add).result(30)  # and the next one is let in
    assert count(database) == 1


def test_an_error_of_sqlite_leaves_as_one_of_ours(tmp_path: Path) -> None:
    database = Database(tmp_path / "d", [numbers()])
    with pytest.raises(StoreFailed, match="no such table"):
        database.execute("SELECT * FROM letters")
    with pytest.raises(StoreFailed, match="UNIQUE"), database.transaction() as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")
        connection.execute("INSERT INTO numbers VALUES (1)")
    assert count(database) == 0


@pytest.mark.parametrize(
    ("failure", "error", "left"),
    [(Failure.BUSY, Locked, 0), (Failure.FULL, StoreFailed, 0), (Failure.UNSURE, StoreFailed, 1)],
)
def test_a_disk_that_fails_leaves_a_database_that_can_be_used(
    tmp_path: Path, failure: Failure, error: type[HoldfastError], left: int
) -> None:
    database = Database(tmp_path / "d", [numbers()])
    with failing_writes(database, failure, first=0):
        with pytest.raises(error) as raised, database.transaction() as connection:
            connection.execute("INSERT INTO numbers VALUES (1)")
        assert raised.value.retryable
        assert count(database) == left
        with database.transaction() as connection:
            connection.execute("INSERT INTO numbers VALUES (2)")
        assert count(database) == left + 1


def test_a_transaction_that_cannot_even_be_undone_is_never_joined_by_a_later_one(
    tmp_path: Path,
) -> None:
    database = Database(tmp_path / "d", [numbers()])
    with failing_writes(database, Failure.STUCK, first=0):
        with pytest.raises(StoreFailed), database.transaction() as connection:
            connection.execute("INSERT INTO numbers VALUES (1)")
        with database.transaction() as connection:
            connection.execute("INSERT INTO numbers VALUES (2)")
        assert database.execute("SELECT number FROM numbers").fetchall() == [(2,)]


def test_a_failed_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    migrations = Migrations("broken")

    @migrations()
    def broken(database: SqliteDatabase) -> None:
        database.create_table("half", {"id": int})
        database.conn.execute("SELECT no_such_function()")

    with pytest.raises(ConfigurationError):
        Database(tmp_path / "d", [numbers(), migrations])
    database = Database(tmp_path / "d", [])
    names = [row[0] for row in database.execute("SELECT name FROM sqlite_master")]
    assert "half" not in names
    assert "numbers" not in names


def test_a_database_of_a_newer_holdfast_is_refused(tmp_path: Path) -> None:
    newer = numbers()

    @newer()
    def later(database: SqliteDatabase) -> None:
        database.create_table("later", {"id": int})

    Database(tmp_path / "d", [newer]).close()
    with pytest.raises(ConfigurationError, match="newer"):
        Database(tmp_path / "d", [numbers()])


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"not a database" * 1000)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        open_database(tmp_path / "d")


def test_the_whole_schema_opens_twice(tmp_path: Path) -> None:
    open_database(tmp_path / "d").close()
    open_database(tmp_path / "d").close()


def test_a_thread_that_goes_on_after_the_end_gets_an_error_and_crashes_nothing(
    tmp_path: Path,
) -> None:
    database = open_database(tmp_path / "d")
    begun, closed = threading.Event(), threading.Event()
    problems: list[str] = []

    def go_on() -> None:
        with pytest.raises(ConfigurationError) as raised, database.transaction() as connection:
            begun.set()
            assert closed.wait(10)
            # what had begun is still whole
            assert connection.execute("SELECT 1").fetchone() == (1,)
            connection.execute("ROLLBACK")
            database.execute("SELECT 1")
        problems.append(raised.value.message)

    thread = threading.Thread(target=go_on)
    thread.start()
    assert begun.wait(10)
    database.close()
    closed.set()
    thread.join(10)
    assert problems == ["the database is closed"]

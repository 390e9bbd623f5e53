"""Another program holds the controller's database for longer than a job waits: the job ends, and nothing is left."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.installation import Installation, whole_installation
from support.waiting import wait_until

HELD_SECONDS = 50.0  # three times as long as a writer waits


@contextmanager
def held(holdfast: Installation) -> Iterator[None]:
    (path,) = holdfast.home.rglob("controller.sqlite")
    connection = sqlite3.connect(path, isolation_level=None, timeout=20)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.long
@pytest.mark.timeout(600)  # the database is held for a minute, on a machine that may be busy
def test_a_database_that_is_busy_for_long_leaves_no_job_hanging(tmp_path: Path) -> None:
    with whole_installation(tmp_path) as holdfast:
        holdfast.misbehave("slow_task", {"description": "*reateSnapshot*"}, seconds="5")
        run = holdfast.holdfast("backup", "web", "--detach").stdout.split()[0]
        wait_until(
            lambda: "snapshotting" in holdfast.holdfast("status").text,
            what="the backup is at its snapshot",
        )
        with held(holdfast):
            assert not threading.Event().wait(HELD_SECONDS)
        followed = holdfast.run("holdfast", "job", "follow", run, seconds=180)
        assert followed.status in (0, 1, 11), followed.text
        wait_until(lambda: not holdfast.own_snapshots("web"), what="the snapshot is given back")
        assert "running" not in holdfast.holdfast("status").text
        holdfast.lab("misbehave", "disarm")
        holdfast.holdfast("backup", "web")

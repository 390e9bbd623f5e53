from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast_common.errors import RepositoryFailed, TimedOut
from holdfast_common.repository import hang_watch, mount_probe
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.file_system import SYSTEM_FILES, SystemFiles
from holdfast_common.repository.hang_watch import locked, watched_files, while_it_answers
from support.unsynced_mount import unsynced_mount

NAME = "packs/ab/abcdef"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_probe, "ANSWER_SECONDS_MAX", 0.2)
    monkeypatch.setattr(hang_watch, "CALL_SECONDS", 0.05)
    monkeypatch.setattr(hang_watch, "LOOK_SECONDS", 0.01)


def test_what_work_finds_and_what_it_raises_comes_through(tmp_path: Path) -> None:
    def put() -> bytes:
        with DirectoryStore.create(tmp_path / "new", files=watched_files(tmp_path)) as store:
            store.put(NAME, b"content")
            return store.get(NAME, length_max=100)

    def fails() -> None:
        raise RepositoryFailed("the disk fails")

    assert while_it_answers(put) == b"content"
    with pytest.raises(RepositoryFailed, match="the disk fails"):
        while_it_answers(fails)
    assert watched_files(tmp_path) is SYSTEM_FILES  # outside of such work


def test_work_for_which_no_thread_is_left_is_refused_in_plain_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(RepositoryFailed, match="can start no thread"):
        while_it_answers(lambda: None)


class Held:
    """Syncs that wait until they are let go; ``asked``: how often the mount was asked meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.asked = 0
        self.ended = threading.Event()
        real = mount_probe.check_answers

        def check(folder: Path) -> None:
            self.asked += 1
            real(folder)
            if self.asked == 3:
                self.enough()

        self.enough = self.let_go.set
        monkeypatch.setattr(hang_watch, "check_answers", check)
        monkeypatch.setattr(SystemFiles, "sync", self.sync)

    def sync(self, _: int) -> None:
        self.begun.set()
        assert self.let_go.wait(60)

    def put(self, root: Path) -> bytes:
        with DirectoryStore.open(root, files=watched_files(root)) as store:
            store.put(NAME, b"content")
            found = store.get(NAME, length_max=100)
        self.ended.set()
        return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    DirectoryStore.create(tmp_path / "repository").close()
    return tmp_path / "repository"


def test_a_slow_call_into_a_mount_that_answers_is_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    assert while_it_answers(lambda: held.put(root)) == b"content"
    assert held.asked >= 3


def test_no_call_is_waited_for_longer_than_a_writer_lease_lives(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_watch, "CALL_SECONDS_MAX", 0.1)
    held = Held(monkeypatch)
    held.enough = lambda: None
    told: list[TimedOut] = []
    with pytest.raises(TimedOut, match="does not come back") as caught:
        while_it_answers(lambda: held.put(root), gave_up=told.append)
    assert told == [caught.value]
    assert caught.value.facts["path"] == str(root)
    held.let_go.set()
    assert held.ended.wait(60)


def test_a_lock_is_waited_for_while_the_mount_answers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = threading.Lock()
    lock.acquire()
    asked: list[Path] = []

    def check(folder: Path) -> None:
        asked.append(folder)
        if len(asked) == 3:
            lock.release()

    monkeypatch.setattr(hang_watch, "check_answers", check)
    with locked(lock, root):
        assert lock.locked()
    assert asked == [root] * 3
    assert not lock.locked()


def test_a_lock_whose_holder_hangs_is_waited_for_no_longer_than_the_mount_answers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(folder: Path) -> None:
        raise TimedOut("the folder's file system does not answer", path=str(folder))

    lock = threading.Lock()
    lock.acquire()
    monkeypatch.setattr(hang_watch, "check_answers", check)
    with pytest.raises(TimedOut, match="does not answer"), locked(lock, root):
        raise AssertionError
    monkeypatch.setattr(hang_watch, "check_answers", lambda _: None)
    monkeypatch.setattr(hang_watch, "CALL_SECONDS_MAX", 0.1)
    with pytest.raises(TimedOut, match="does not come back"), locked(lock, root):
        raise AssertionError
    assert lock.locked()  # its holder's


PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from holdfast_common.errors import TimedOut
from holdfast_common.repository import hang_watch, mount_probe
from holdfast_common.repository.directory_store import DirectoryStore

mount_probe.ANSWER_SECONDS_MAX, hang_watch.CALL_SECONDS, hang_watch.LOOK_SECONDS = 0.2, 0.3, 0.05
root = Path(sys.argv[1])

def work():
    with DirectoryStore.open(root, files=hang_watch.watched_files(root)) as store:
        with ThreadPoolExecutor(2) as pool:  # whose threads Python would wait for
            print("opened", flush=True)
            sys.stdin.readline()
            return list(pool.map(lambda name: store.head(f"packs/{name}"), ["one", "two"]))

try:
    hang_watch.while_it_answers(work)
    hang_watch.leave(0)
except TimedOut as error:
    print(error.line())
    hang_watch.leave(error.exit_status)
"""


def test_a_program_ends_though_threads_of_it_are_stuck(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    with unsynced_mount(tmp_path / "mount") as mount:
        DirectoryStore.create(mount.path / "repository").close()
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mount.path / "repository"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "opened\n"
            mount.hang()
            try:
                told, _ = program.communicate("go on\n", timeout=60)
            finally:
                mount.go_on()
                program.kill()
    assert program.returncode == 124
    assert "does not answer" in told

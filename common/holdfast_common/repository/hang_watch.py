"""Work on a repository whose file system may stop to answer in the middle of it. Beside `mount_probe`.

A call into such a mount does not come back, and nothing gets its thread out. So the work has a thread of its own,
and its calls are noted while they are under way: who waits for it looks at them now and then, and gives the work up
when one takes too long and the mount does not answer another question either. What was given up stays where it is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

from holdfast_common.errors import RepositoryFailed, TimedOut
from holdfast_common.repository.mount_probe import check_answers

if TYPE_CHECKING:  # imported when the first store is opened: guests have no numpy
    from holdfast_common.repository.file_system import FileSystem

T = TypeVar("T")

CALL_SECONDS: Final = 60.0  # from then on the mount is asked; a sync of much data may take longer
CALL_SECONDS_MAX: Final = 1800.0  # a writer lease: whatever the mount says, this call is lost
LOOK_SECONDS: Final = 5.0
_given_up: set[threading.Thread] = set()
_current: ContextVar[_Watch | None] = ContextVar("hang_watch", default=None)


class _Watch:
    """Which calls of one piece of work are under way. Safe for several threads."""

    def __init__(self) -> None:
        self.since: dict[int, tuple[float, Path]] = {}  # by thread

    def oldest(self) -> tuple[float, Path] | None:
        """When the longest one began, and below which folder."""
        return min(list(self.since.values()), default=None, key=lambda each: each[0])


class _WatchedFiles:
    """The operating system's calls, each noted while it is under way: a microsecond a call."""

    def __init__(self, files: FileSystem, watch: _Watch, folder: Path) -> None:
        self._files = files
        self._since = watch.since
        self._folder = folder

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._files, name)
        since, folder = self._since, self._folder

        def noted(*arguments: object, **named: object) -> object:
            thread = threading.get_ident()
            since[thread] = (time.monotonic(), folder)
            try:
                return call(*arguments, **named)
            finally:
                since.pop(thread, None)

        setattr(self, name, noted)
        return noted


class StopWhenGivenUp:
    """For work that looks now and then whether it is still waited for. Safe for several threads."""

    def __init__(self) -> None:
        self._given_up: TimedOut | None = None

    def stop(self, error: TimedOut) -> None:
        """What `while_it_answers` calls as ``gave_up``."""
        self._given_up = error

    def check(self) -> None:
        """Raises: TimedOut: nobody waits any more, and it was told that the work failed."""
        if self._given_up is not None:
            raise self._given_up


def watched_files(folder: Path) -> FileSystem:
    """The system's calls, for a store in ``folder``; watched where `while_it_answers` carries the work out."""
    from holdfast_common.repository.file_system import SYSTEM_FILES

    watch = _current.get()
    if watch is None:
        return SYSTEM_FILES
    return cast("FileSystem", _WatchedFiles(SYSTEM_FILES, watch, folder))


def while_it_answers(
    work: Callable[[], T], *, gave_up: Callable[[TimedOut], None] = lambda _: None
) -> T:
    """Carry ``work`` out, in another thread. Stores are opened in it, with `watched_files`, and closed by it.

    ``gave_up`` is called first when it is given up: it should end by itself if it ever goes on.
    Raises: what ``work`` does; TimedOut; RepositoryFailed when no thread can be started for it.
    """
    watch = _Watch()
    found: list[T] = []
    raised: list[BaseException] = []
    done = threading.Event()

    def carried_out() -> None:
        _current.set(watch)
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001  # it is raised again by who waits
            raised.append(error)
        finally:
            done.set()
            _given_up.discard(thread)

    name = threading.current_thread().name
    thread = threading.Thread(target=carried_out, name=f"{name}-work", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise RepositoryFailed(
            "this machine can start no thread for work on the repository",
            advice="raise the limit of its tasks (systemd's TasksMax, ulimit -u), or end what uses them up",
        ) from error
    try:
        while not done.wait(LOOK_SECONDS):
            _check_oldest(watch)
    except BaseException as error:
        _given_up.add(thread)
        if done.is_set():
            _given_up.discard(thread)
        if isinstance(error, TimedOut):
            gave_up(error)
        raise
    if raised:
        raise raised[0]
    return found[0]


@contextmanager
def locked(lock: threading.Lock, folder: Path) -> Iterator[None]:
    """Hold a lock under which others call into ``folder``: one of their calls may never come back.

    While it is waited for the folder's file system is asked now and then. Raises: TimedOut.
    """
    begun = time.monotonic()
    while not lock.acquire(timeout=CALL_SECONDS):
        check_answers(folder)
        if time.monotonic() - begun >= CALL_SECONDS_MAX:
            raise _never_came_back(folder, time.monotonic() - begun)
    try:
        yield
    finally:
        lock.release()


def leave(status: int) -> NoReturn:
    """End the process: as usual, or at once when something that was given up would hold the end up."""
    if _given_up:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _check_oldest(watch: _Watch) -> None:
    oldest = watch.oldest()
    if oldest is None:
        return
    since, folder = oldest
    age = time.monotonic() - since
    if age < CALL_SECONDS:
        return
    check_answers(folder)
    if age >= CALL_SECONDS_MAX:
        raise _never_came_back(folder, age)


def _never_came_back(folder: Path, seconds: float) -> TimedOut:
    return TimedOut(
        "a call into the repository's file system does not come back",
        advice="look at its mount and at the server behind it",
        path=str(folder),
        waited_seconds=round(seconds),
    )

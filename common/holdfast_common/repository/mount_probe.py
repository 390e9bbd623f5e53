"""Does the file system below a folder answer? Asked before a repository is opened.

A call into a mount whose server is gone does not come back, and nothing but the end of the process gets its
thread out. So a thread of its own asks; whoever waits for it gets an error in time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

from holdfast_common.errors import TimedOut

ANSWER_SECONDS_MAX: Final = 30.0  # a server that starts again is given some time; jobs are retried
_asking: dict[str, threading.Thread] = {}  # by folder: one lost thread for each, however many ask
_lock = threading.Lock()


def check_answers(folder: Path, *, seconds: float | None = None) -> None:
    """Return when the folder's file system answers, be it with an error. Raises: TimedOut."""
    waited_seconds = ANSWER_SECONDS_MAX if seconds is None else seconds
    name = str(folder)
    with _lock:
        thread = _asking.get(name)
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=_ask, args=(name,), name="mount-probe", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # this machine has no thread left: whoever asks finds out himself
                return
            _asking[name] = thread
    thread.join(waited_seconds)
    if thread.is_alive():
        raise TimedOut(
            "the folder's file system does not answer",
            advice="look at its mount and at the server behind it",
            path=name,
            waited_seconds=waited_seconds,
        )
    with _lock:
        if _asking.get(name) is thread:
            del _asking[name]


def _ask(name: str) -> None:
    # What is cached here proves nothing: opening and statvfs go to the server.
    with contextlib.suppress(OSError):
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fstatvfs(descriptor)
            with os.scandir(descriptor) as entries:
                next(entries, None)
        finally:
            os.close(descriptor)

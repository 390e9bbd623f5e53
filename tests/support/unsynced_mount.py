"""`UnsyncedFiles` as a real mount, through FUSE: the production store's own system calls end there.

Another process serves it, so that no call waits for the thread that made it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from support.memory_files import Image
from support.unsynced_files import Node, SyncFault, UnsyncedFiles

START_SECONDS_MAX = 60.0
ANSWER_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class UnsyncedMount:
    """This side of the mount. Its folders are independent of each other; one fault holds for all."""

    def __init__(self, path: Path, connection: Connection, *, server: int = 0) -> None:
        self.path = path
        self._connection = connection
        self.server = server  # its process
        self._loaded = 0

    def hang(self) -> None:
        """From now on nothing is answered: every call waits. Nobody has begun one that is being answered.

        Of what the server has taken already, a process cannot even be killed: so it stands still before.
        """
        os.kill(self.server, signal.SIGSTOP)
        os.waitid(os.P_PID, self.server, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        """Answer what waits, and what comes."""
        os.kill(self.server, signal.SIGCONT)

    @contextmanager
    def loaded(self, image: Image, *, now: float) -> Iterator[str]:
        """A folder with this image, on the disk already; gone at the end."""
        self._loaded += 1
        top = str(self._loaded)
        self._ask("load", image, top, now)
        try:
            yield top
        finally:
            self._ask("unload", top)

    def arm(self, fault: SyncFault | None) -> None:
        """Count syncs from 0 on, and let some fail. None: none."""
        self._ask("arm", fault)

    def set_time(self, seconds: float) -> None:
        """The file system's clock, since 1970."""
        self._ask("time", seconds)

    def hit(self) -> str:
        """At which sync the fault came first; empty: nowhere yet."""
        return str(self._ask("hit"))

    def after_power_cut(self, top: str) -> Image:
        """What is on the disk."""
        image = self._ask("image", top)
        assert isinstance(image, Image)
        return image

    def _ask(self, *question: object) -> object:
        self._connection.send(question)
        assert self._connection.poll(ANSWER_SECONDS_MAX), "the file system does not answer"
        answer = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer


@contextmanager
def unsynced_mount(folder: Path) -> Iterator[UnsyncedMount]:
    """Mount it at ``folder`` until the end."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("a machine with /dev/fuse, and the right to use it, would run this")
    context = get_context("spawn")
    mine, other = context.Pipe()
    server = context.Process(target=_serve, args=(str(folder), other), daemon=True)
    server.start()
    other.close()
    try:
        try:
            is_ready = mine.poll(START_SECONDS_MAX) and mine.recv() == "ready"
        except EOFError:
            is_ready = False
        if not is_ready:
            pytest.skip("libfuse (Debian: fuse3) and the right to mount would run this")
        yield UnsyncedMount(folder, mine, server=server.pid or 0)
    finally:
        _libc.umount2(os.fsencode(folder), _MNT_DETACH)  # ends the server
        server.join(STOP_SECONDS_MAX)
        if server.is_alive():
            server.kill()
            server.join(STOP_SECONDS_MAX)
        mine.close()


def _serve(folder: str, connection: Connection) -> None:
    """The other process."""
    from mfusepy import FUSE  # loads libfuse, which may be missing

    FUSE(
        _Operations(connection),
        folder,
        foreground=True,
        nothreads=True,
        fsname="unsynced",
        default_permissions=True,
    )


class _Operations:
    """What libfuse calls. Open files and directories have numbers."""

    use_ns = True

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._files = UnsyncedFiles()
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Node, str]] = {}
        self._next = 0
        self._now = 0.0
        self._answers: dict[str, Callable[..., object]] = {
            "load": lambda image, top, now: self._files.load(image, top=top, now=now),
            "unload": self._files.unload,
            "arm": self._arm,
            "time": self._set_time,
            "hit": lambda: self._files.hit,
            "image": lambda top: self._files.image(top, on_disk=True),
        }

    def init(self, _: str) -> None:
        threading.Thread(target=self._answer_all, daemon=True).start()
        self._connection.send("ready")

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        with self._lock:
            node = self._open[fh][0] if fh is not None else self._files.find(path)
            seconds = int(node.modified_seconds * 1_000_000_000)
            kind = stat.S_IFDIR | 0o700 if node.is_directory else stat.S_IFREG | 0o600
            return {
                "st_mode": kind,
                "st_nlink": 2 if node.is_directory else 1,
                "st_size": 4096 if node.is_directory else len(node.data),
                "st_uid": os.getuid(),
                "st_gid": os.getgid(),
                "st_mtime": seconds,
                "st_ctime": seconds,
                "st_atime": seconds,
            }

    def statfs(self, _: str) -> dict[str, int]:
        blocks = 1 << 28
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": blocks, "f_bavail": blocks}

    def readdir(self, path: str, fh: int) -> Iterable[str]:
        with self._lock:
            return [".", "..", *self._open[fh][0].names]

    def opendir(self, path: str) -> int:
        return self.open(path, 0)

    def open(self, path: str, flags: int) -> int:
        with self._lock:
            return self._opened(self._files.find(path), path)

    def create(self, path: str, mode: int, flags: int = 0) -> int:
        with self._lock:
            return self._opened(self._files.make(path, is_directory=False, now=self._now), path)

    def mkdir(self, path: str, mode: int) -> None:
        with self._lock:
            self._files.make(path, is_directory=True, now=self._now)

    def rmdir(self, path: str) -> None:
        with self._lock:
            self._files.remove_directory(path)

    def unlink(self, path: str) -> None:
        with self._lock:
            self._files.unlink(path)

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            self._files.rename(old, new)

    def link(self, target: str, source: str) -> None:
        with self._lock:
            self._files.link(source, target)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._lock:
            return bytes(self._open[fh][0].data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._lock:
            self._files.write(self._open[fh][0], data, offset, now=self._now)
            return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        with self._lock:
            node, name = self._open[fh]
            self._files.sync(node, name)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self.fsync(path, datasync, fh)

    def release(self, path: str, fh: int) -> None:
        with self._lock:
            del self._open[fh]

    def releasedir(self, path: str, fh: int) -> None:
        self.release(path, fh)

    def _opened(self, node: Node, path: str) -> int:
        self._next += 1
        self._open[self._next] = (node, path)
        return self._next

    def _arm(self, fault: SyncFault | None) -> None:
        self._files.fault, self._files.syncs, self._files.hit = fault, 0, ""

    def _set_time(self, seconds: float) -> None:
        self._now = seconds

    def _answer_all(self) -> None:
        while True:
            try:
                name, *arguments = self._connection.recv()
            except EOFError:
                return
            try:
                with self._lock:
                    answer = self._answers[name](*arguments)
            except Exception as error:  # noqa: BLE001 - raised again on the other side
                answer = error
            self._connection.send(answer)

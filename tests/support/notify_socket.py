"""What a daemon tells systemd, taken by a test in its place."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.1  # how soon the reader sees that it is to end


class NotifySocket:
    """A real datagram socket, read as it fills; ``told`` holds everything that came so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self._over = False
        self._came = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(POLL_SECONDS)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str, *, seconds: float = 60.0) -> None:
        """Until it was told; what came before counts."""
        self.wait_until(lambda: text in self.told, seconds=seconds, what=text)

    def wait_until(
        self, condition: Callable[[], bool], *, seconds: float = 60.0, what: str = "it"
    ) -> None:
        """Until what was told fulfils it."""
        with self._came:
            assert self._came.wait_for(condition, seconds), f"{what} was not told: {self.told}"

    def is_quiet(self, *, seconds: float) -> bool:
        """Whether nothing more is told for so long."""
        with self._came:
            before = len(self.told)
            return not self._came.wait_for(lambda: len(self.told) > before, seconds)

    def close(self) -> None:
        self._over = True
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._over:
            try:
                text = self._socket.recv(4096).decode()
            except TimeoutError:
                continue
            with self._came:
                self.told.append(text)
                self._came.notify_all()


@contextmanager
def notify_socket(folder: Path) -> Iterator[NotifySocket]:
    """Closed at the end."""
    listening = NotifySocket(folder / "notify")
    try:
        yield listening
    finally:
        listening.close()

"""What a daemon tells systemd, taken by a test in its place."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class NotifySocket:
    """A real datagram socket; ``told`` holds everything that came so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def wait_for(self, text: str, *, seconds: float = 60.0) -> None:
        """Until it was told; what came before counts."""
        self.wait_until(lambda: text in self.told, seconds=seconds, what=text)

    def wait_until(
        self, condition: Callable[[], object], *, seconds: float = 60.0, what: str = "it"
    ) -> None:
        """Take what comes until it holds."""
        self._socket.settimeout(seconds)
        while not condition():
            try:
                self.told.append(self._socket.recv(4096).decode())
            except TimeoutError:
                raise AssertionError(f"{what} was not told, but {self.told}") from None

    def is_quiet(self, *, seconds: float) -> bool:
        """Whether nothing at all is told for so long."""
        self._socket.settimeout(seconds)
        try:
            self.told.append(self._socket.recv(4096).decode())
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@contextmanager
def notify_socket(folder: Path) -> Iterator[NotifySocket]:
    """Closed at the end."""
    listening = NotifySocket(folder / "notify")
    try:
        yield listening
    finally:
        listening.close()

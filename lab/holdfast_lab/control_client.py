"""The client of the control socket. It imports nothing heavy: commands are to start quickly."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from holdfast_lab.errors import LabError

SOCKET_NAME = "control.sock"
LINE_BYTES_MAX = 64 << 20
CONNECT_SECONDS = 10.0


class ControlFailed(LabError):
    """A command failed; the message is the lab's."""


def bound_path(path: Path) -> tuple[str, int]:
    """A short name for a socket's path, and the descriptor that it needs open meanwhile.

    A socket's path has at most 107 bytes; through the folder's descriptor any depth is reached.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    return f"/proc/self/fd/{folder}/{path.name}", folder


class LabClient:
    """Gives commands to a lab, in this process or another one. One thread at a time."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.path = state / SOCKET_NAME

    def call(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - plain values from JSON
        """Give one command; its result. Raises: ControlFailed."""
        given = {name: value for name, value in arguments.items() if value is not None}
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_SECONDS)
            self._connect(connection)
            connection.settimeout(None)
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps({"command": command, **given}).encode() + b"\n")
                stream.flush()
                line = stream.readline(LINE_BYTES_MAX)
        if not line:
            raise ControlFailed("the lab ended before it answered")
        answer = json.loads(line)
        if not answer["ok"]:
            raise ControlFailed(answer["error"])
        return answer["result"]

    def _connect(self, connection: socket.socket) -> None:
        try:
            name, folder = bound_path(self.path)
        except OSError as error:
            raise ControlFailed(f"there is no state directory {self.state}") from error
        try:
            connection.connect(name)
        except OSError as error:
            raise ControlFailed(f"no lab runs in {self.state}: {error}") from error
        finally:
            os.close(folder)

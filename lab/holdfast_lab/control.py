"""The control socket: how tests and people act as the guest, arm misbehaviour and judge restores.

``<state>/control.sock`` takes one JSON object a line, ``{"command": "vm-list", …}``, and answers
one, ``{"ok": true, "result": …}`` or ``{"ok": false, "error": …}``. Each connection has a thread.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast_lab.control_client import LINE_BYTES_MAX, SOCKET_NAME, bound_path
from holdfast_lab.faults import LabError, SoapFault
from holdfast_lab.storage.errors import StorageError

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.server import LabServer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ControlArguments:
    """The values of one command."""

    values: Mapping[str, Any]

    def optional(self, name: str, kind: type[T]) -> T | None:
        """A value, or None when it was not given. Raises: LabError for another type."""
        value = self.values.get(name)
        if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        if kind is bool and isinstance(value, bool):
            return value  # type: ignore[return-value]  # T is bool here
        raise LabError(f"{name} has the wrong type")

    def text(self, name: str) -> str:
        """A text that must be given. Raises: LabError."""
        value = self.optional(name, str)
        if value is None:
            raise LabError(f"{name} is required")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A yes or no."""
        value = self.optional(name, bool)
        return default if value is None else value

    def number(self, name: str, default: int | None = None) -> int:
        """An integer; it must be given when there is no default. Raises: LabError."""
        value = self.optional(name, int)
        if value is None and default is None:
            raise LabError(f"{name} is required")
        return int(value if value is not None else default or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One command's surroundings."""

    lab: Lab
    server: LabServer
    arguments: ControlArguments


CommandBody = Callable[[Control], object]
COMMANDS: dict[str, CommandBody] = {}
Body = TypeVar("Body", bound=CommandBody)


def control_command(name: str) -> Callable[[Body], Body]:
    """Register a command; its answer must be plain values that JSON can hold."""

    def register(body: Body) -> Body:
        COMMANDS[name] = body
        return body

    return register


class ControlServer:
    """Answers on the control socket until it is stopped."""

    def __init__(self, lab: Lab, server: LabServer) -> None:
        self.lab = lab
        self.server = server
        self.path = lab.state / SOCKET_NAME
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name, folder = bound_path(self.path)
        try:
            self._socket.bind(name)
        finally:
            os.close(folder)
        self.path.chmod(0o600)
        self._socket.listen(32)
        self._thread = threading.Thread(target=self._accept, name="lab control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket; commands under way end by themselves."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        finally:
            self._socket.close()
            self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(connection,), name="lab command", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            while line := stream.readline(LINE_BYTES_MAX):
                answer = json.dumps(self._answer(line)).encode() + b"\n"
                try:
                    stream.write(answer)
                    stream.flush()
                except OSError:
                    return

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            given = json.loads(line)
            if not isinstance(given, dict):
                raise LabError("a command is a JSON object")
            command = COMMANDS.get(str(given.pop("command", "")))
            if command is None:
                raise LabError(f"unknown command; known: {', '.join(sorted(COMMANDS))}")
            control = Control(lab=self.lab, server=self.server, arguments=ControlArguments(given))
            return {"ok": True, "result": command(control)}
        except SoapFault as fault:
            return {"ok": False, "error": f"{fault.name}: {fault.message}"}
        except (LabError, StorageError, ValueError, OSError) as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:  # noqa: BLE001 - a bug must reach whoever gave the command
            self.lab.calls.note_bug("control", traceback.format_exc())
            return {"ok": False, "error": f"the lab failed: {error!r}"}

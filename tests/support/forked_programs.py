"""Programs that start at once: a process that has imported everything forks them, each a process of its own.

Importing is most of what a short program costs, and tests start thousands. ``python -m support.forked_programs
SOCKET`` imports, then waits for orders; it has no threads and no connections, and has run none of our code when
it forks. A forked program has its own arguments, environment, files and session, runs the program's ``main`` and
ends as Python ends; it can be stopped and killed by its id as any other.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Final, Protocol

import holdfast_common

# The program's name, or a module to be run, and where its `main` is.
MAINS: Final = {
    "holdfast": "holdfast_controller.main",
    "holdfast-agent": "holdfast_agent.main",
    "holdfast-lab": "holdfast_lab.main",
}
PRELOADED: Final = (
    *MAINS.values(),
    "holdfast_controller.service.daemon",
    "holdfast_agent.pipelines.pipeline_table",
    "holdfast_lab.server",
    "support.traced_program",
)
ORDER_BYTES_MAX: Final = 1 << 20
READY_SECONDS: Final = 60.0
TESTS: Final = Path(__file__).parents[1]
_READ_ONCE: Final = "GRPC_SSL_CIPHER_SUITES"  # by gRPC, when it is imported


class Program(Protocol):
    """What tests need of a process, whoever started it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class ForkedProgram:
    """A program that `Nursery.start` began. Its connection tells how it ended."""

    def __init__(self, connection: socket.socket, what: str) -> None:
        self._connection = connection
        self._what = what
        self._told = connection.makefile("r")
        self._lock = threading.Lock()
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended, None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """As `subprocess.Popen.wait`. Raises: subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._connection, selectors.EVENT_READ)
                    if not selector.select(timeout):
                        raise subprocess.TimeoutExpired(self._what, timeout or 0)
                self.returncode = int(self._told.readline())
                self._told.close()
                self._connection.close()
            return self.returncode

    def send_signal(self, sig: int) -> None:
        """To the process, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks programs; one for each test process, made when it is first needed."""

    def __init__(self) -> None:
        self._address = str(Path(tempfile.mkdtemp(prefix="holdfast-nursery-")) / "orders")
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.forked_programs", self._address],
            stdin=subprocess.PIPE,  # it ends when we do
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        until = time.monotonic() + READY_SECONDS
        while not Path(self._address).exists():
            assert self._process.poll() is None, "the nursery has ended"
            assert time.monotonic() < until, "the nursery does not get ready"
            time.sleep(0.02)

    def close(self) -> None:
        """End it; programs that run go on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(READY_SECONDS)

    def start(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> ForkedProgram:
        """Begin a program: its name or its module, and its arguments."""
        order = {"arguments": list(arguments), "environment": dict(environment)}
        data = json.dumps(order).encode() + b"\n"
        assert len(data) < ORDER_BYTES_MAX
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self._address)
        socket.send_fds(connection, [data[:1]], [stdout.fileno(), stderr.fileno()])
        connection.sendall(data[1:])
        return ForkedProgram(connection, " ".join(arguments))

    def run(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with its output as text. Raises: subprocess.TimeoutExpired."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            program = self.start(arguments, environment=environment, stdout=stdout, stderr=stderr)
            try:
                status = program.wait(seconds)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
                raise
            told = []
            for file in (stdout, stderr):
                file.seek(0)
                told.append(file.read().decode())
        return subprocess.CompletedProcess(list(arguments), status, *told)


_guard = threading.Lock()


@cache
def _one_nursery() -> Nursery:
    made = Nursery()
    atexit.register(made.close)
    return made


def nursery() -> Nursery:
    """This process's own."""
    with _guard:
        return _one_nursery()


# -- the nursery's own process ---------------------------------------------------------------------


def main() -> None:
    """Import, serve; in a forked child: run the program, and end as it ends."""
    for name in (*PRELOADED, *_modules_of("holdfast_controller.commands")):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that collections in children leave shared memory alone
    program = _serve(sys.argv[1])
    if program is None:
        shutil.rmtree(Path(sys.argv[1]).parent)
    else:
        program()


def _modules_of(package: str) -> list[str]:
    found = importlib.import_module(package)
    return [f"{package}.{each.name}" for each in pkgutil.iter_modules(found.__path__)]


def _serve(address: str) -> Callable[[], object] | None:
    """Fork a program for every order, tell each one's end; what to run, in a child. None when nobody orders any more."""
    wake_up, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{address}.new")
    listener.listen(64)
    Path(f"{address}.new").rename(address)
    running: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for source in (wake_up, listener, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return None
            if key.fileobj is wake_up:
                wake_up.recv(4096)
                _tell_ends(running)
                continue
            connection, _ = listener.accept()
            order, files = _order(connection)
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                selector.close()
                for each in (wake_up, waker, listener, connection, *running.values()):
                    each.close()
                return _prepared(order, files)
            for file in files:
                os.close(file)
            running[child] = connection
            connection.sendall(f"{child}\n".encode())


def _order(connection: socket.socket) -> tuple[dict[str, object], list[int]]:
    data, files, _, _ = socket.recv_fds(connection, 1, 2)
    while not data.endswith(b"\n"):
        data += connection.recv(ORDER_BYTES_MAX)
    return json.loads(data), list(files)


def _tell_ends(running: dict[int, socket.socket]) -> None:
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        with running.pop(child) as connection:
            try:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError:
                continue  # nobody waits for it any more


def _prepared(order: dict[str, object], files: list[int]) -> Callable[[], object]:
    """Make this process what was ordered; its `main`."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, *files)):
        os.dup2(file, number)
        os.close(file)
    environment, arguments = order["environment"], order["arguments"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, list)
    kept = os.environ[_READ_ONCE]
    os.environ.clear()
    os.environ.update({**environment, _READ_ONCE: kept})
    sys.argv = [str(each) for each in arguments]
    module = importlib.import_module(MAINS.get(sys.argv[0], sys.argv[0]))
    found: Callable[[], object] = module.main
    return found


assert holdfast_common.__file__, "imported before gRPC"

if __name__ == "__main__":
    main()

"""The HTTPS server in front of the lab, and ``running_lab`` for tests.

One thread per connection; TLS is shaken hands in that thread, so a silent client blocks nobody.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import holdfast_lab.plugins as _plugins  # noqa: F401 - importing it registers all methods and paths
from holdfast_lab.certificate import ServerCertificate, make_certificate
from holdfast_lab.control import ControlServer
from holdfast_lab.control_client import LabClient
from holdfast_lab.faults import ConnectionCut
from holdfast_lab.http_exchange import HttpExchange
from holdfast_lab.inventory_build import build_lab
from holdfast_lab.inventory_plan import InventoryPlan
from holdfast_lab.lab import Lab, Mode
from holdfast_lab.method_registry import HTTP_ROUTES

HANDSHAKE_SECONDS = 10.0
IDLE_CONNECTION_SECONDS = 900.0
STOP_SECONDS = 5.0


class _Handler(BaseHTTPRequestHandler):
    """Hands each request to the route that owns its path."""

    protocol_version = "HTTP/1.1"
    server_version = "lab"
    server: LabServer

    def setup(self) -> None:
        """Set the connection up."""
        self.request.settimeout(IDLE_CONNECTION_SECONDS)
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """The call log says it all."""

    def do_GET(self) -> None:
        """Answer a request."""
        self._answer()

    def do_POST(self) -> None:
        """The same for every method: routes look at it."""
        self._answer()

    def do_PUT(self) -> None:
        """The same."""
        self._answer()

    def do_HEAD(self) -> None:
        """The same."""
        self._answer()

    def do_DELETE(self) -> None:
        """The same."""
        self._answer()

    def do_PATCH(self) -> None:
        """The same."""
        self._answer()

    def _answer(self) -> None:
        lab = self.server.lab
        exchange = HttpExchange(lab, self)
        try:
            for route in HTTP_ROUTES:
                if exchange.path == route.prefix or exchange.path.startswith(
                    route.prefix.rstrip("/") + "/"
                ):
                    route.answer(lab, exchange)
                    if not exchange.body.ended:
                        exchange.drain()
                    return
            exchange.reply(404, b"not found")
        except ConnectionCut:
            exchange.cut()
        except (ssl.SSLError, OSError):
            self.close_connection = True
        except Exception:  # noqa: BLE001 - a bug of the lab must not pass as a network error
            lab.calls.note_bug(exchange.path, traceback.format_exc())
            if exchange.responded:
                exchange.cut()
            else:
                exchange.reply(500, b"the lab failed; see its call log")


class LabServer(ThreadingHTTPServer):
    """Serves one lab over TLS on a loopback address."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, lab: Lab, certificate: ServerCertificate, *, host: str, port: int) -> None:
        super().__init__((host, port), _Handler)
        self.lab = lab
        self.context = certificate.server_context()
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()

    def finish_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Shake hands and answer, in the connection's own thread."""
        assert isinstance(request, socket.socket)
        request.settimeout(HANDSHAKE_SECONDS)
        try:
            wrapped = self.context.wrap_socket(request, server_side=True)
        except (ssl.SSLError, OSError):
            return
        with self._guard:
            self._open.add(wrapped)
        try:
            _Handler(wrapped, client_address, self)
        finally:
            with self._guard:
                self._open.discard(wrapped)
            self._close(wrapped)

    def handle_error(self, request: object, client_address: object) -> None:
        """A bug that left a handler."""
        self.lab.calls.note_bug("connection", traceback.format_exc())

    def use_certificate(self, certificate: ServerCertificate) -> None:
        """Serve another certificate from the next connection on."""
        self.context = certificate.server_context()
        with self.lab.lock:
            set_certificate(self.lab, certificate)

    def close_connections(self) -> None:
        """Cut every open connection."""
        with self._guard:
            connections = list(self._open)
        for each in connections:
            self._close(each)

    @staticmethod
    def _close(connection: socket.socket) -> None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        finally:
            connection.close()


def set_certificate(lab: Lab, certificate: ServerCertificate) -> None:
    """Tell the lab what its server shows."""
    lab.certificate_sha1 = certificate.sha1
    lab.certificate_sha256 = certificate.sha256
    lab.certificate_pem = certificate.pem


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningLab:
    """A lab with its server, in this process."""

    lab: Lab
    server: LabServer
    url: str
    address: str
    port: int
    user: str
    password: str
    state: Path
    certificate: ServerCertificate
    control: LabClient


@contextmanager
def running_lab(
    state: Path,
    *,
    mode: Mode = "vcenter",
    inventory: InventoryPlan | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[RunningLab]:
    """A lab that runs while the block runs.

    with running_lab(tmp_path, inventory=InventoryPlan.demo()) as lab:
        connect(lab.url, lab.user, lab.password)
    """
    state.mkdir(parents=True, exist_ok=True)
    certificate = make_certificate(state)
    lab = build_lab(state, mode=mode, plan=inventory or InventoryPlan.empty())
    set_certificate(lab, certificate)
    server = LabServer(lab, certificate, host=host, port=port)
    bound = int(server.server_address[1])
    lab.address = f"{host}:{bound}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="lab server", daemon=True
    )
    thread.start()
    control = ControlServer(lab, server)
    described = lab.describe()
    write_description(lab)
    try:
        yield RunningLab(
            lab=lab,
            server=server,
            url=str(described["url"]),
            address=lab.address,
            port=bound,
            user=str(described["user"]),
            password=str(described["password"]),
            state=state,
            certificate=certificate,
            control=LabClient(state),
        )
    finally:
        control.stop()
        stop(lab, server)
        thread.join(STOP_SECONDS)


def write_description(lab: Lab) -> None:
    """Write ``lab.json``, whole or not at all."""
    path = lab.state / "lab.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(lab.describe(), indent=2) + "\n", encoding="utf-8")
    temporary.chmod(0o600)
    temporary.replace(path)


def stop(lab: Lab, server: LabServer) -> None:
    """End the server, wake all who wait, let tasks end."""
    lab.stopping.set()
    lab.misbehaviour.disarm()
    with lab.lock:
        lab.changed.notify_all()
    server.shutdown()
    server.close_connections()
    server.server_close()
    lab.tasks.join(STOP_SECONDS)
    lab.calls.close()

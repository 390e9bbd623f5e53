"""Real receivers of notifications on loopback: one speaks HTTP, one SMTP, and one never says a word."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """``url``: as apprise wants it. ``taken``: what came, as text. ``status``: what it answers."""

    url: str = ""
    taken: list[str] = field(default_factory=list)
    status: int = 200

    def titles(self) -> list[str]:
        """Of the JSON documents that came."""
        return [json.loads(text)["title"] for text in self.taken]

    def bodies(self) -> list[str]:
        return [json.loads(text)["message"] for text in self.taken]


@contextmanager
def http_receiver(*, secret: str = "s3cret-t0ken") -> Iterator[Receiver]:
    """Takes JSON; the secret is the password of its address."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if receiver.status == 200:
                receiver.taken.append(body)
            self.send_response(receiver.status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class has it
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.url = f"json://operator:{secret}@127.0.0.1:{server.server_port}/"
    with _served(server):
        yield receiver


@contextmanager
def smtp_receiver() -> Iterator[Receiver]:
    """Takes mails; says 550 to every recipient when its status is not 200."""
    receiver = Receiver()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 here")
            for line in iter(self.rfile.readline, b""):
                verb = line.decode().strip().upper()[:4]
                if verb == "DATA":
                    self._say("354 go on")
                    receiver.taken.append(self._mail())
                if verb == "RCPT" and receiver.status != 200:
                    self._say("550 nobody of this name")
                    continue
                self._say("221 bye" if verb == "QUIT" else "250 fine")
                if verb == "QUIT":
                    return

        def _mail(self) -> str:
            lines = []
            for line in iter(self.rfile.readline, b".\r\n"):
                lines.append(line.decode())
            return "".join(lines)

        def _say(self, text: str) -> None:
            self.wfile.write(text.encode() + b"\r\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port = server.server_address[1]
    receiver.url = (
        f"mailto://127.0.0.1:{port}?from=holdfast@example.org&to=ops@example.org&mode=insecure"
    )
    with _served(server):
        yield receiver


@contextmanager
def silent_receiver() -> Iterator[Receiver]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Receiver(url=f"json://127.0.0.1:{listening.getsockname()[1]}/?rto=600&cto=600")


def closed_port() -> int:
    """One where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

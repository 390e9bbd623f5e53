"""A host of transfer leases for tests: HTTPS on loopback, one file to get or to put.

It can cut connections and refuse, as real hosts do. Not the lab: a transport's own tests need
faults at exact bytes.
"""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme


@dataclass
class LeaseHost:
    """What is served, what came, and how the host misbehaves."""

    url: str = ""
    certificate_sha256: str = ""
    body: bytes = b""
    cut_download_after: int = -1  # bytes; the connection ends then
    chunked_download: bool = False
    status: int = 200
    cut_upload_after: int = -1  # bytes; then ``status`` is answered and the connection ends
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    uploaded: bytes | None = None  # only a body that came to its end
    received: int = 0
    connections: int = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: LeaseHost

    def do_GET(self) -> None:
        host = self._note()
        self.send_response(host.status)
        if host.chunked_download:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(host.body)))
        self.end_headers()
        body = host.body
        if host.cut_download_after >= 0:
            body = body[: host.cut_download_after]
            self.close_connection = True
        if host.chunked_download:
            for start in range(0, len(body), 65536):
                piece = body[start : start + 65536]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if host.cut_download_after < 0:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(body)

    def do_PUT(self) -> None:
        host = self._note()
        body = self._read_chunks(host)
        host.uploaded = body
        self.send_response(host.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_PUT()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Requests are kept in `LeaseHost`, not printed."""

    def _note(self) -> LeaseHost:
        self.host.requests.append((self.command, self.path, dict(self.headers.items())))
        return self.host

    def _read_chunks(self, host: LeaseHost) -> bytes | None:
        assert self.headers["Transfer-Encoding"] == "chunked"
        body = bytearray()
        while True:
            line = self.rfile.readline()
            if not line:
                self.close_connection = True
                return None
            length = int(line, 16)
            body += self.rfile.read(length)
            host.received = len(body)
            self.rfile.readline()
            if length == 0:
                return bytes(body)
            if 0 <= host.cut_upload_after <= len(body):
                self.close_connection = True
                return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext
    host_state: LeaseHost

    def finish_request(self, request: object, client_address: object) -> None:
        self.host_state.connections += 1
        try:
            with self.context.wrap_socket(request, server_side=True) as secured:  # type: ignore[arg-type] # typeshed allows datagrams here
                handler = type("Handler", (_Handler,), {"host": self.host_state})
                handler(secured, client_address, self)
        except OSError:
            pass  # the client went away, which some tests want


@contextmanager
def lease_host(body: bytes = b"") -> Iterator[LeaseHost]:
    """A running host."""
    authority = trustme.CA()
    issued = authority.issue_cert("esx1.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    server = _Server(("127.0.0.2", 0), _Handler)
    server.context = context
    port = server.server_address[1]
    server.host_state = host = LeaseHost(
        url=f"https://127.0.0.2:{port}/nfc/5200-aa/disk-0.vmdk",
        certificate_sha256=hashlib.sha256(der).hexdigest(),
        body=body,
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

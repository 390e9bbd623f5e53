"""One HTTP request and its answer, as the modules that answer data requests see it."""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from holdfast_lab.faults import ConnectionCut
from holdfast_lab.sessions import (
    SESSION_COOKIE,
    TICKET_COOKIE,
    ServiceTicket,
    Session,
    cookie_value,
)

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab

SOAP_BODY_BYTES_MAX = 16 << 20
CHUNK_LINE_BYTES_MAX = 256
DRAIN_BYTES_MAX = 8 << 20
DRAIN_SECONDS = 2.0


class BodyReader:
    """The request's body as a stream, whether it has a length or comes in chunks.

    ``read(n)`` returns 1 to n bytes, and nothing at the end. Raises: ConnectionCut when the client
    went away in the middle.
    """

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._source = handler.rfile
        self.chunked = "chunked" in handler.headers.get("Transfer-Encoding", "").lower()
        length = handler.headers.get("Content-Length", "0")
        self._left = 0 if self.chunked else int(length if length.isdecimal() else "0")
        self._ended = not self.chunked and self._left == 0
        self.started = False

    def read(self, length: int) -> bytes:
        """The next bytes, at most ``length``; empty at the end."""
        self.started = True
        if self.chunked and self._left == 0 and not self._ended:
            self._next_chunk()
        if self._ended:
            return b""
        data = self._source.read1(min(length, self._left))
        if not data:
            raise ConnectionCut("the client went away in the middle of a body")
        self._left -= len(data)
        if self._left == 0:
            if self.chunked:
                self._source.readline(CHUNK_LINE_BYTES_MAX)
            else:
                self._ended = True
        return data

    def _next_chunk(self) -> None:
        line = self._source.readline(CHUNK_LINE_BYTES_MAX)
        try:
            self._left = int(line.split(b";")[0].strip(), 16)
        except ValueError as error:
            raise ConnectionCut("a chunk without its length") from error
        if self._left == 0:
            while self._source.readline(CHUNK_LINE_BYTES_MAX).strip():
                pass
            self._ended = True

    @property
    def ended(self) -> bool:
        """Whether the whole body was read."""
        return self._ended


class HttpExchange:
    """A request (``method``, ``path`` without the query and percent codes, ``query``) and its answer.

    Answer with ``respond`` once, then ``write`` exactly the promised bytes; or ``reply`` for a small
    answer. One thread only.
    """

    def __init__(self, lab: Lab, handler: BaseHTTPRequestHandler) -> None:
        self.lab = lab
        self._handler = handler
        parts = urlsplit(handler.path)
        self.method = handler.command
        self.path = unquote(parts.path)
        self.query: Mapping[str, str] = {
            name: values[-1] for name, values in parse_qs(parts.query).items()
        }
        self.headers = handler.headers
        self.body = BodyReader(handler)
        self.address = str(handler.client_address[0])
        self.responded = False

    def header(self, name: str) -> str:
        """A request header, empty when absent."""
        return str(self.headers.get(name, ""))

    def session_identifier(self) -> str | None:
        """The session cookie of the request."""
        return cookie_value(self.header("Cookie"), SESSION_COOKIE)

    def session(self) -> Session | None:
        """The logged-in session of the request, or None. Takes the lock; counts as activity."""
        with self.lab.lock:
            session = self.lab.sessions.find(self.session_identifier())
            if session is None or session.user is None:
                return None
            self.lab.sessions.note_activity(session)
            return session

    def ticket(self) -> ServiceTicket | None:
        """The service ticket of the request; it is used up by this. Takes the lock."""
        identifier = cookie_value(self.header("Cookie"), TICKET_COOKIE)
        if identifier is None:
            return None
        with self.lab.lock:
            return self.lab.sessions.redeem_ticket(identifier)

    def whole_body(self, limit: int = SOAP_BODY_BYTES_MAX) -> bytes:
        """The body in memory. Raises: ConnectionCut when it is longer than ``limit``."""
        parts: list[bytes] = []
        size = 0
        while data := self.body.read(1 << 16):
            size += len(data)
            if size > limit:
                raise ConnectionCut("the body is too long")
            parts.append(data)
        return b"".join(parts)

    def respond(
        self, status: int, *, length: int | None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send status and headers. ``length`` None: the body ends with the connection."""
        self.responded = True
        self._handler.send_response(status)
        for name, value in (headers or {}).items():
            self._handler.send_header(name, value)
        if length is None:
            self._handler.send_header("Connection", "close")
            self._handler.close_connection = True
        else:
            self._handler.send_header("Content-Length", str(length))
        if not self.body.ended:
            # the rest of an unread body must not be taken for the next request
            self._handler.send_header("Connection", "close")
            self._handler.close_connection = True
        self._handler.end_headers()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a part of the answer's body."""
        self._handler.wfile.write(data)

    def reply(
        self,
        status: int,
        data: bytes = b"",
        *,
        content_type: str = "text/plain",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A whole small answer; only its headers when the request is HEAD."""
        self.respond(
            status, length=len(data), headers={"Content-Type": content_type, **(headers or {})}
        )
        if self.method != "HEAD":
            self.write(data)

    def drain(self) -> None:
        """Read what is left of a small body, so that closing does not destroy the answer.

        A connection that is closed with bytes unread is reset, and the client may never see why.
        """
        left = DRAIN_BYTES_MAX
        self._handler.connection.settimeout(DRAIN_SECONDS)
        try:
            while left > 0 and (data := self.body.read(min(left, 1 << 16))):
                left -= len(data)
        except (OSError, ConnectionCut):
            return

    def cut(self) -> None:
        """Close the connection at once, without (the rest of) an answer."""
        self._handler.close_connection = True
        try:
            self._handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def client_gone(self) -> bool:
        """Whether the client closed its end; for those who wait long. Reads nothing."""
        connection = self._handler.connection
        try:
            readable, _, _ = select.select([connection], [], [], 0)
        except (OSError, ValueError):
            return True
        # a client that waits for its answer sends nothing: readable means closed
        return bool(readable)

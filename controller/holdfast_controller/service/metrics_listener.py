"""``GET /metrics``: a listener of its own, with few threads, that asks nothing of the event loop.

What it costs is bounded whoever asks: figures are gathered on one thread, at most every few seconds, and every
other request gets the same text. There is no password and no TLS: it belongs on localhost or behind a proxy.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

from holdfast_common.clock import Clock
from holdfast_common.errors import ConfigurationError, HoldfastError

log = logging.getLogger(__name__)

PATH: Final = "/metrics"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
REQUESTS_AT_ONCE_MAX: Final = 8
REQUEST_SECONDS_MAX: Final = 10.0  # a client that sends or reads slower is let go
GATHERING_SECONDS_MAX: Final = 20.0  # Prometheus waits ten by itself
FRESH_SECONDS: Final = 2.0  # figures are not gathered again before
STOP_POLL_SECONDS: Final = 0.1


class SharedText:
    """The text for all who ask. Thread-safe."""

    def __init__(self, gather: Callable[[], bytes], clock: Clock) -> None:
        """``gather`` runs on one thread, one call at a time."""
        self._gather = gather
        self._clock = clock
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="figures")
        self._lock = threading.Lock()
        self._asked_at = 0.0
        self._asked: Future[bytes] | None = None

    def text(self) -> bytes:
        """Gathered a moment ago at most. Raises: TimeoutError, or what gathering raised."""
        with self._lock:
            now = self._clock.monotonic_seconds()
            old = self._asked is None or (
                self._asked.done() and now - self._asked_at > FRESH_SECONDS
            )
            if old:
                self._asked_at, self._asked = now, self._executor.submit(self._gather)
            asked = self._asked
        assert asked is not None
        return asked.result(GATHERING_SECONDS_MAX)

    def close(self) -> None:
        """Gather no more; what gathers ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class MetricsListener:
    """Listens from `start` to `close`."""

    def __init__(self, address: str, text: SharedText) -> None:
        """Raises: ConfigurationError when the address cannot be used."""
        host, _, port = address.rpartition(":")
        try:
            self._server = _Server((host.strip("[]"), int(port)), text)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen for metrics: {error.strerror}",
                address=address,
                advice="is another program there? metrics_address in controller.toml changes it",
            ) from error
        self._text = text
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(STOP_POLL_SECONDS,),
            name="metrics",
            daemon=True,
        )

    @property
    def port(self) -> int:
        """The port in use."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Listen no more; requests at work end by themselves."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self._text.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], text: SharedText) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.text = text
        self._free = threading.BoundedSemaphore(REQUESTS_AT_ONCE_MAX)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the base class's question to a name server, which may not answer while we start."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base class has it
        """In a thread of its own, if one is free; otherwise the caller may come again."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the machine has no thread left
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base class has it
        """One connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the base class has it
        """A client that went away is no news."""
        log.debug("a request for metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS_MAX
    protocol_version = "HTTP/1.0"  # one answer, then the connection ends: no idle ones pile up

    def do_GET(self) -> None:
        """The one page that there is."""
        if self.path.partition("?")[0] != PATH:
            self._answer(HTTPStatus.NOT_FOUND, b"see /metrics\n", "text/plain")
            return
        try:
            text = self.server.text.text()
        except (HoldfastError, TimeoutError) as error:
            log.warning("no metrics could be gathered", extra={"error": str(error)})
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"no figures now\n", "text/plain")
            return
        except Exception:
            # a bug in one figure must not look like the end of the controller
            log.exception("no metrics could be gathered")
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"no figures\n", "text/plain")
            return
        self._answer(HTTPStatus.OK, text, CONTENT_TYPE)

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """What stands in the header; no version of anything."""
        return "holdfast"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - as the base class has it
        """Nothing: scrapes come every few seconds."""

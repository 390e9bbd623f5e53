"""The listener of /metrics: whoever asks, and however, it costs little and tells no old figures."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import ConfigurationError, StoreFailed
from holdfast_controller.service.metrics_listener import (
    FRESH_SECONDS,
    REQUESTS_AT_ONCE_MAX,
    MetricsListener,
    SharedText,
)


class SetClock(SystemClock):
    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic_seconds(self) -> float:
        return self.seconds


@contextmanager
def listening(
    gather: Callable[[], bytes], clock: SystemClock | None = None
) -> Iterator[MetricsListener]:
    listener = MetricsListener("127.0.0.1:0", SharedText(gather, clock or SystemClock()))
    listener.start()
    try:
        yield listener
    finally:
        listener.close()


def asked(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_there_is_one_page_and_it_can_only_be_read() -> None:
    with listening(lambda: b"figures\n") as listener:
        assert asked(listener.port) == (200, b"figures\n")
        assert asked(listener.port, "/metrics?name=value") == (200, b"figures\n")
        assert asked(listener.port, "/")[0] == 404
        assert asked(listener.port, "/metrics/../../etc/passwd")[0] == 404
        assert asked(listener.port, method="POST")[0] == 501


def test_figures_are_gathered_again_only_after_a_while() -> None:
    clock, gathered = SetClock(), []

    def gather() -> bytes:
        gathered.append(clock.seconds)
        return str(len(gathered)).encode()

    with listening(gather, clock) as listener:
        assert [asked(listener.port)[1] for _ in range(3)] == [b"1", b"1", b"1"]
        clock.seconds += FRESH_SECONDS + 0.1
        assert [asked(listener.port)[1] for _ in range(2)] == [b"2", b"2"]


def test_an_error_is_told_as_one_and_not_as_old_figures() -> None:
    clock, errors = SetClock(), [StoreFailed("disk full"), ValueError("a bug")]

    def gather() -> bytes:
        if errors:
            raise errors.pop(0)
        return b"figures"

    with listening(gather, clock) as listener:
        assert asked(listener.port) == (503, b"no figures now\n")
        clock.seconds += FRESH_SECONDS + 0.1
        assert asked(listener.port) == (500, b"no figures\n")
        clock.seconds += FRESH_SECONDS + 0.1
        assert asked(listener.port) == (200, b"figures")


def test_clients_that_never_end_their_request_are_few() -> None:
    with listening(lambda: b"figures") as listener:
        slow = [
            socket.create_connection(("127.0.0.1", listener.port), 30)
            for _ in range(REQUESTS_AT_ONCE_MAX)
        ]
        for each in slow:
            each.sendall(b"GET /metrics HTTP/1.0\r\n")  # and no end
        names = [thread.name for thread in threading.enumerate()]
        with pytest.raises((http.client.HTTPException, OSError)):
            while True:  # until the slow ones have taken every thread
                asked(listener.port)
        assert len(threading.enumerate()) <= len(names) + REQUESTS_AT_ONCE_MAX
        for each in slow:
            each.close()


def test_it_listens_where_it_is_told_without_asking_a_name_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hangs(_: str) -> str:
        raise AssertionError("a name server was asked")

    monkeypatch.setattr(socket, "getfqdn", hangs)
    listener = MetricsListener("[::1]:0", SharedText(lambda: b"figures", SystemClock()))
    listener.start()
    connection = http.client.HTTPConnection("::1", listener.port, timeout=30)
    connection.request("GET", "/metrics")
    assert connection.getresponse().read() == b"figures"
    connection.close()
    listener.close()


def test_an_address_in_use_is_named() -> None:
    with (
        listening(lambda: b"") as listener,
        pytest.raises(ConfigurationError, match="cannot listen for metrics"),
    ):
        MetricsListener(f"127.0.0.1:{listener.port}", SharedText(lambda: b"", SystemClock()))

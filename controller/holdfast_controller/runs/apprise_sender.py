"""The program that sends one message with apprise: started for it, ended after it, killed when it hangs.

Of `sending`. The controller itself never imports apprise: it costs a sixth of a second and some 25 MiB, and what a
service's library does with a name server or a proxy that does not answer is nothing to wait for.

    standard input    {"urls": [...], "title": "...", "body": "...", "is_bad": true}
    standard output   one JSON document a line, in the order in which they come:
                      {"index": 0, "name": "json://host/***", "error": ""}
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Final

THREADS_MAX: Final = 8
SECONDS_MAX: Final = 90  # the controller waits less
NAME_LENGTH_MAX: Final = 120
ERROR_LENGTH_MAX: Final = 300
NOT_TAKEN: Final = "the service did not take it"  # apprise says more
_SECRET_LENGTH_MIN: Final = 6


class NotInstalled(Exception):
    """Apprise is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be sent."""

    urls: tuple[str, ...]
    title: str
    body: str
    is_bad: bool


class _Complaints(logging.Handler):
    """What apprise says of a failure, by the thread that it says it in."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.of_thread: dict[int, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.of_thread.setdefault(record.thread or 0, []).append(record.getMessage())


def deliver(order: Order, tell: Callable[[dict[str, object]], None]) -> None:
    """Send to each address, several at a time; each is told as soon as it is known. Raises: NotInstalled."""
    try:
        import apprise
    except ImportError as error:
        raise NotInstalled(
            "apprise is not installed: pip install 'holdfast-controller[notifications]'"
        ) from error
    complaints = _Complaints()
    logger = logging.getLogger("apprise")
    logger.handlers, logger.propagate = [complaints], False
    asset = apprise.AppriseAsset(app_id="Holdfast", app_desc="Holdfast", async_mode=False)

    def one(index: int, url: str) -> dict[str, object]:
        thread = threading.get_ident()
        complaints.of_thread.pop(thread, None)
        name, error = _send(apprise, asset, url, order)
        if error:
            said = complaints.of_thread.get(thread, []) if error == NOT_TAKEN else []
            error = without_secrets("; ".join(said) or error, url)[:ERROR_LENGTH_MAX]
        return {"index": index, "name": name, "error": error}

    with ThreadPoolExecutor(THREADS_MAX) as executor:
        sent = [executor.submit(one, index, url) for index, url in enumerate(order.urls)]
        for each in as_completed(sent):
            tell(each.result())


def without_secrets(text: str, url: str) -> str:
    """The text with nothing of the address in it but its scheme and host."""
    text = text.replace(url, "***")
    _, _, rest = url.partition("://")
    host = re.split(r"[/?]", rest, maxsplit=1)[0].rpartition("@")[2]
    for piece in re.split(r"[/:@?&=,]+", rest):
        if len(piece) >= _SECRET_LENGTH_MIN and piece not in host:
            text = text.replace(piece, "***")
    return " ".join(text.split())


def _send(apprise: Any, asset: Any, url: str, order: Order) -> tuple[str, str]:  # noqa: ANN401 - a module that is imported late
    """A name that tells no secret, and why it was not taken; empty: it was."""
    name = f"{re.split(r'[^A-Za-z0-9+.-]', url, maxsplit=1)[0][:20]}://***"
    try:
        service = apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
        if service is None:
            return name, "not an address that apprise knows"
        name = service.url(privacy=True).partition("?")[0][:NAME_LENGTH_MAX]
        kind = apprise.NotifyType.FAILURE if order.is_bad else apprise.NotifyType.INFO
        taken = service.notify(body=order.body, title=order.title, notify_type=kind)
    except Exception as error:  # noqa: BLE001 - a hundred services, each with errors of its own
        return name, f"{type(error).__name__}: {error}"
    return name, "" if taken else NOT_TAKEN


def _tell(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] = ()) -> int:
    """One order from standard input."""
    assert not arguments, "secrets never come as arguments"
    signal.alarm(SECONDS_MAX)  # whoever started it may be gone
    found = json.loads(sys.stdin.read())
    order = Order(
        urls=tuple(map(str, found["urls"])),
        title=str(found["title"]),
        body=str(found["body"]),
        is_bad=bool(found["is_bad"]),
    )
    try:
        deliver(order, _tell)
    except NotInstalled as error:
        for index in range(len(order.urls)):
            _tell({"index": index, "name": "", "error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

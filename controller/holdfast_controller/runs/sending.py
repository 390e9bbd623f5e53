"""Sends a message to addresses, in a program of its own that ends in time. See `apprise_sender`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_common.logs import Secret
from holdfast_controller.decide.notices import Message, NoticeKind

SENDING_SECONDS_MAX: Final = 60.0
_NOT_INHERITED: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of a message at one address. ``name`` tells no secret. ``error`` empty: it was taken."""

    name: str
    error: str


def send(
    message: Message, urls: Sequence[Secret], *, seconds_max: float = SENDING_SECONDS_MAX
) -> list[Sent]:
    """One answer for each address, in their order. Raises: HoldfastError when no program can be started."""
    order = {
        "urls": [url.reveal().decode() for url in urls],
        "title": message.title,
        "body": message.body,
        "is_bad": message.kind is not NoticeKind.DIGEST,
    }
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    late = f"no answer within {seconds_max:.0f} s"
    try:
        found = subprocess.run(
            [sys.executable, "-m", "holdfast_controller.runs.apprise_sender"],
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=seconds_max,
            env=environment,
            check=False,
        )
        output, why = found.stdout, f"the sending program ended with {found.returncode}"
    except subprocess.TimeoutExpired as error:
        output, why = error.stdout or b"", late
    except OSError as error:
        raise HoldfastError(
            f"no program can be started to send a notification: {error.strerror}"
        ) from error
    return _answers(output, why, count=len(urls))


def _answers(output: bytes, why: str, *, count: int) -> list[Sent]:
    found = {}
    for line in output.split(b"\n")[:-1]:  # what has no end was cut off
        answer = json.loads(line)
        found[int(answer["index"])] = Sent(name=str(answer["name"]), error=str(answer["error"]))
    return [
        found.get(index, Sent(name=f"address {index + 1}", error=why)) for index in range(count)
    ]

"""What a daemon tells systemd of itself: ready, stopping, alive. Without systemd nothing is told.

A unit with ``Type=notify`` counts as started when the daemon says so, and one with ``WatchdogSec=`` is
killed and started anew when it says nothing for so long. See `pulses` for when a daemon is alive.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

SEND_SECONDS_MAX: Final = 1.0  # the manager reads at once, or something is wrong with it
ALIVE_SECONDS_MAX: Final = 0.0  # said again and again, so never waited for
_STATUS_LENGTH_MAX: Final = 500


class ServiceManager:
    """One process's line to whoever started it. Thread-safe; raises nothing."""

    def __init__(self, address: str = "", *, watchdog_seconds: float = 0.0) -> None:
        """``address`` of its socket, "": nobody listens. ``watchdog_seconds`` 0: it does not wait for signs of life."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds if address else 0.0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> ServiceManager:
        """As systemd says it to the processes that it starts."""
        variables = os.environ if environment is None else environment
        meant_for = variables.get("WATCHDOG_PID", "")
        asked = variables.get("WATCHDOG_USEC", "")
        is_for_us = not meant_for or meant_for == str(os.getpid())
        microseconds = int(asked) if is_for_us and asked.isascii() and asked.isdecimal() else 0
        return cls(variables.get("NOTIFY_SOCKET", ""), watchdog_seconds=microseconds / 1_000_000)

    @property
    def alive_every_seconds(self) -> float:
        """How often to say `alive`: three times before anybody misses it. 0: nobody waits for it."""
        return self.watchdog_seconds / 3

    def ready(self) -> None:
        """Everything listens."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """It ends, and gives back what it holds."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """It works."""
        self._tell("WATCHDOG=1", seconds_max=ALIVE_SECONDS_MAX)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._tell("STATUS=" + " ".join(text.split())[:_STATUS_LENGTH_MAX])

    def _tell(self, text: str, *, seconds_max: float = SEND_SECONDS_MAX) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.settimeout(seconds_max)
                channel.connect(self._address)
                channel.sendall(text.encode())
        except OSError as error:
            log.warning(
                "systemd could not be told", extra={"told": text, "error": error.strerror or ""}
            )

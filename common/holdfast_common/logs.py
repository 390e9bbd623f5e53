"""Logging: standard library, constant messages, fields in ``extra``, one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from typing import Final

_TEXT_LENGTH_MAX: Final = 4096  # a hostile name must not fill the disk
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Secret:
    """A value that shows as ``***`` wherever it is printed."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The secret itself; call it where it is used, and keep no copy."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


class JsonLines(logging.Formatter):
    """One JSON object a line; control characters escaped, long texts cut."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        fields: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:_TEXT_LENGTH_MAX],
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                plain = isinstance(value, int | float | bool) or value is None
                fields[name] = value if plain else str(value)[:_TEXT_LENGTH_MAX]
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def log_to_stderr(*, level: int = logging.INFO) -> None:
    """Send this process's log to stderr as JSON lines. Call once, from ``main``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)

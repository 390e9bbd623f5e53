"""Ids with types. A name or a path is a label, never an identity."""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import datetime
from typing import Final, NewType

from holdfast_common.errors import UsageError

RunId = NewType("RunId", str)
JobId = NewType("JobId", str)
AgentId = NewType("AgentId", str)
PointId = NewType("PointId", str)
LineageId = NewType("LineageId", str)
RepositoryId = NewType("RepositoryId", str)
DatastoreId = NewType("DatastoreId", str)

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID = re.compile(r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$")
_lock = threading.Lock()
_last = 0


def new_ulid() -> str:
    """A ULID (48 bits of milliseconds, 80 random bits); ascending within this process."""
    global _last  # noqa: PLW0603 - one counter per process keeps ids in order
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    with _lock:
        value = max(value, _last + 1)
        _last = value
    return _ulid_text(value)


def first_ulid_of(moment: datetime) -> str:
    """Not above any ULID made at that moment (aware) or later: for questions by time."""
    return _ulid_text(max(0, int(moment.timestamp() * 1000)) << 80)


def _ulid_text(value: int) -> str:
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def checked_ulid(text: str) -> str:
    """The text itself when it is a ULID. Raises: UsageError."""
    if not _ULID.fullmatch(text):
        raise UsageError("not a ULID", value=text[:64])
    return text

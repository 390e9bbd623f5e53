"""What this agent has promised: attempts it accepted, and results that were not acknowledged yet.

One small file each, in the agent's private folder, synced before anything is said about it. No
secret stands in them. After a crash, an attempt that was accepted and has no result was interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from holdfast_common.errors import ConfigurationError
from holdfast_common.identity import JobId
from holdfast_common.job_spec import Attempt
from holdfast_common.places import private_folder
from holdfast_common.trust.keys import write_private

_NAME: Final = re.compile(r"^([0-9A-HJKMNP-TV-Z]{26})-(\d{1,10})\.(accepted|result)$")


class AgentLedger:
    """The folder of attempts. Thread-safe: each attempt has files of its own."""

    def __init__(self, folder: Path) -> None:
        """Raises: ConfigurationError, Refused when the folder cannot be used."""
        self._folder = private_folder(folder)
        for leftover in self._folder.glob(".*.new"):
            leftover.unlink(missing_ok=True)

    def accepted(self, attempt: Attempt) -> None:
        """Durable before the controller is told. Raises: ConfigurationError."""
        write_private(self._file(attempt, "accepted"), b"")

    def write_result(self, attempt: Attempt, encoded: bytes) -> None:
        """Durable before it is sent; replaces nothing. Raises: ConfigurationError."""
        write_private(self._file(attempt, "result"), encoded)

    def results(self) -> list[tuple[Attempt, bytes]]:
        """All that were not acknowledged. Raises: ConfigurationError."""
        found = []
        for attempt in self._attempts("result"):
            try:
                found.append((attempt, self._file(attempt, "result").read_bytes()))
            except OSError as error:
                raise ConfigurationError(
                    f"cannot read a result: {error.strerror}", folder=str(self._folder)
                ) from error
        return found

    def unfinished(self) -> list[Attempt]:
        """Accepted, and without a result."""
        finished = set(self._attempts("result"))
        return [attempt for attempt in self._attempts("accepted") if attempt not in finished]

    def acknowledged(self, attempt: Attempt) -> None:
        """The controller has the result: forget the attempt. Twice is harmless."""
        # In this order: a crash in between leaves a result that is sent once more, not an
        # accepted attempt that would count as interrupted.
        with contextlib.suppress(OSError):
            self._file(attempt, "accepted").unlink(missing_ok=True)
            self._sync()
            self._file(attempt, "result").unlink(missing_ok=True)

    def _attempts(self, kind: str) -> list[Attempt]:
        matches = (_NAME.fullmatch(path.name) for path in sorted(self._folder.iterdir()))
        return [
            Attempt(job_id=JobId(match[1]), number=int(match[2]))
            for match in matches
            if match is not None and match[3] == kind
        ]

    def _file(self, attempt: Attempt, kind: str) -> Path:
        name = f"{attempt.job_id}-{attempt.number}.{kind}"
        assert _NAME.fullmatch(name), "ids are checked where they enter"
        return self._folder / name

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

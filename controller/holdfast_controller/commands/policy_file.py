"""Files of policies, as an operator gives them."""

from __future__ import annotations

import sys
from pathlib import Path

from holdfast_common.errors import UsageError
from holdfast_controller.decide.policy_text import TEXT_LENGTH_MAX

STANDARD_INPUT = Path("-")


def read_text(path: Path) -> str:
    """A whole file, or what comes in. Raises: UsageError naming the file, and the line that is no text."""
    try:
        if path == STANDARD_INPUT:
            content = sys.stdin.buffer.read(4 * TEXT_LENGTH_MAX + 1)
        else:
            with path.open("rb") as file:
                content = file.read(4 * TEXT_LENGTH_MAX + 1)
    except OSError as error:
        raise UsageError(f"the file cannot be read: {error.strerror}", file=str(path)) from error
    try:
        return content.decode("utf-8-sig")  # some editors of Windows begin a file with a mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError("this is not UTF-8", file=str(path), line=line) from error

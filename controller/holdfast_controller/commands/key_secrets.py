"""Secrets that commands take: from files or a prompt, never from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from holdfast_common.errors import UsageError
from holdfast_common.trust.keys import read_file

STANDARD_INPUT: Final = Path("-")


def first_line(file: Path) -> str:
    """The first line of a file that holds a secret; "-": of standard input. Raises: UsageError, ConfigurationError."""
    content = sys.stdin.buffer.readline() if file == STANDARD_INPUT else read_file(file)
    lines = content.splitlines()
    try:
        text = lines[0].decode() if lines else ""
    except UnicodeDecodeError as error:
        raise UsageError("this file is not text", file=str(file)) from error
    if not text:
        raise UsageError("this file is empty", file=str(file))
    return text

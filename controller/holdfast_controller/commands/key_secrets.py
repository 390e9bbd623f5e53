"""Secrets that commands take: from files or a prompt, never from the command line."""

from __future__ import annotations

from pathlib import Path

from holdfast_common.errors import UsageError
from holdfast_common.trust.keys import read_file


def first_line(file: Path) -> str:
    """The first line of a file that holds a secret. Raises: UsageError, ConfigurationError."""
    lines = read_file(file).splitlines()
    try:
        text = lines[0].decode() if lines else ""
    except UnicodeDecodeError as error:
        raise UsageError("this file is not text", file=str(file)) from error
    if not text:
        raise UsageError("this file is empty", file=str(file))
    return text

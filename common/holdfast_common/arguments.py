"""What the programs' command lines must be before anything of them is used."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast_common.errors import UsageError


def check_text(arguments: Iterable[str]) -> None:
    """Raises: UsageError when one is no text: Python keeps such bytes, but nothing can store or send them."""
    for text in arguments:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("an argument is not UTF-8 text", argument=ascii(text)[:100]) from error

"""Whether a folder is one that an administrator listed: asked by who chooses a proxy, and by that proxy itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath


def is_listed(folder: str, listed: Iterable[str]) -> bool:
    """Whether it is one of these, or below one. By its text: nothing is looked at."""
    wanted = PurePosixPath(folder)
    if not wanted.is_absolute() or ".." in wanted.parts:
        return False
    above = (wanted, *wanted.parents)
    return any(each.is_absolute() and each in above for each in map(PurePosixPath, listed))

"""Paths below folders that the administrator named, and nowhere else.

Before every transport that opens files. Each component is opened relative to the one above it and
never through a symbolic link, so neither a name nor somebody who plants links leads outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from holdfast_common.errors import HoldfastError, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A bare file name in an open directory; the file need not exist."""

    directory_fd: int
    name: str


@contextmanager
def place_below(folder: Path, relative: str, *, failure: type[HoldfastError]) -> Iterator[Place]:
    """Where ``relative`` lies below ``folder``, whose own path is trusted.

    Raises: Refused (the path could lead outside), ``failure`` (a directory cannot be opened).
    """
    parts = PurePosixPath(relative).parts
    if (
        not parts
        or PurePosixPath(relative).is_absolute()
        or relative.endswith("/")
        or any(part == ".." or "\0" in part for part in parts)
    ):
        raise Refused("a path must lead to a file below its folder", path=relative[:300])
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    directory_fd = _opened(str(folder), flags, None, failure, shown=str(folder))
    try:
        for part in parts[:-1]:
            inner = _opened(part, flags | os.O_NOFOLLOW, directory_fd, failure, shown=relative)
            os.close(directory_fd)
            directory_fd = inner
        yield Place(directory_fd=directory_fd, name=parts[-1])
    finally:
        os.close(directory_fd)


def below_one_of(folders: tuple[str, ...], path: str) -> tuple[Path, str]:
    """The folder that the absolute ``path`` lies in, and the rest of the path. Raises: Refused."""
    wanted = PurePosixPath(path)
    if not wanted.is_absolute() or ".." in wanted.parts:
        raise Refused("a file is named by its absolute path without `..`", path=path[:300])
    for folder in folders:
        allowed = PurePosixPath(folder)
        if allowed.is_absolute() and allowed in wanted.parents:
            return Path(folder), str(wanted.relative_to(allowed))
    raise Refused(
        "this agent may not use files there",
        path=path[:300],
        advice="name the folder under [restore] folders in the agent's configuration",
    )


def can_read_directly(place: Place) -> bool:
    """Whether the file's file system lets it be read past the page cache."""
    try:
        descriptor = os.open(
            place.name,
            os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            dir_fd=place.directory_fd,
        )
    except OSError:
        return False
    os.close(descriptor)
    return True


def _opened(
    name: str, flags: int, directory_fd: int | None, failure: type[HoldfastError], *, shown: str
) -> int:
    try:
        return os.open(name, flags, dir_fd=directory_fd)
    except OSError as error:
        raise failure(
            "folder cannot be opened", path=shown[:300], component=name[:300], reason=str(error)
        ) from error

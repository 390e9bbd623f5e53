"""What an error of the operating system means for a repository."""

from __future__ import annotations

import errno
from typing import Final

from holdfast_common.errors import (
    HoldfastError,
    ObjectExists,
    ObjectMissing,
    RepositoryFailed,
    RepositoryFull,
)

STORAGE_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def translated(error: OSError, *, name: str) -> HoldfastError:
    """The error to raise in its place. ``name``: the object, or the path, that was worked on."""
    if error.errno in STORAGE_FULL:
        return RepositoryFull("the repository has no room left", name=name)
    if error.errno == errno.EEXIST:
        return ObjectExists("an object of this name is already stored", name=name)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ObjectMissing("there is no such object", name=name)
    return RepositoryFailed("the repository's storage failed", name=name, cause=error.strerror)

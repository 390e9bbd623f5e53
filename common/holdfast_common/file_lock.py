"""A lock on a file, for what may run only once on a machine. It ends with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast_common.errors import ConfigurationError, Locked


@contextmanager
def only_holder(path: Path, *, problem: str, advice: str = "") -> Iterator[None]:
    """Hold the lock of a file (made when it is not there) for as long as the block runs.

    Raises: Locked with ``problem`` when another process holds it; ConfigurationError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"cannot open the lock: {error.strerror}", file=str(path)
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Locked(problem, advice=advice, file=str(path)) from error
        yield
    finally:
        os.close(descriptor)

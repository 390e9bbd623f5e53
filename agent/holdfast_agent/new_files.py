"""Files that come into being whole or not at all, and never in the place of others.

Under the transports that write files. What was made and not kept is removed again on `close`.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from itertools import count
from typing import BinaryIO

from holdfast_agent.contained_paths import Place
from holdfast_common.errors import Refused, TargetFailed

_BAD = ".bad"
_PARTIAL = ".{name}.holdfast-partial"
_MAKE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NewFiles:
    """New files in one directory. One thread; close it, a second time does nothing."""

    def __init__(self, place: Place) -> None:
        self._directory_fd = os.dup(place.directory_fd)
        self._made: list[str] = []

    def refuse_existing(self, name: str) -> None:
        """Raises: Refused, when something of this name is there."""
        try:
            os.stat(name, dir_fd=self._directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed("file cannot be looked at", name, error) from error
        raise Refused("something of this name exists, and nothing is overwritten", name=name[:300])

    def check_writable(self) -> None:
        """Raises: TargetFailed, when nothing can be made in the directory."""
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._directory_fd, effective_ids=True):
            raise TargetFailed("the agent may not write into the folder")

    def make(self, name: str) -> BinaryIO:
        """A new file under its final name, unbuffered, readable too. Raises: Refused, TargetFailed."""
        try:
            descriptor = os.open(name, _MAKE, 0o600, dir_fd=self._directory_fd)
        except FileExistsError as error:
            raise Refused(
                "something of this name exists, and nothing is overwritten", name=name[:300]
            ) from error
        except OSError as error:
            raise _failed("file cannot be made", name, error) from error
        self._made.append(name)
        return os.fdopen(descriptor, "w+b", buffering=0)

    def make_partial(self, name: str) -> BinaryIO:
        """Like `make`, under a name that says it is not complete; `publish` gives the final one.

        A partial file that its dead maker left behind is replaced.
        """
        self.refuse_existing(name)
        partial = _PARTIAL.format(name=name)
        self._remove_abandoned(partial)
        file = self.make(partial)
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)  # says: its maker lives
        except OSError as error:
            file.close()
            raise _failed("file cannot be locked", name, error) from error
        return file

    def publish(self, name: str) -> None:
        """Give a partial file, synced before, its final name. Raises: Refused, TargetFailed."""
        partial = _PARTIAL.format(name=name)
        try:
            # a link never replaces anything, on NFS neither, where renameat2 is unknown
            os.link(partial, name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        except FileExistsError as error:
            raise Refused(
                "something of this name exists, and nothing is overwritten", name=name[:300]
            ) from error
        except OSError:
            self._rename_over_own_placeholder(partial, name)
            return
        self._made.append(name)
        self._remove(partial)

    def set_aside(self, name: str) -> str:
        """Give a file that must not be used a name that says so, which it returns. Raises: TargetFailed."""
        for number in count(1):
            aside = f"{name}{_BAD}" if number == 1 else f"{name}{_BAD}-{number}"
            try:
                self.make(aside).close()  # nobody else has this name, nor gets it now
            except Refused:
                continue
            break
        try:
            os.rename(name, aside, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        except OSError as error:
            raise _failed("file cannot be set aside", name, error) from error
        return aside

    def keep(self) -> None:
        """All that was made stays: the directory is durable. Raises: TargetFailed."""
        try:
            os.fsync(self._directory_fd)
        except OSError as error:
            raise TargetFailed("directory cannot be made durable", reason=str(error)) from error
        self._made.clear()

    def close(self) -> None:
        """Remove what was not kept. Raises: TargetFailed, after trying all."""
        if self._directory_fd < 0:
            return
        failure: TargetFailed | None = None
        for name in list(self._made):
            try:
                self._remove(name)
            except TargetFailed as error:
                failure = error
        os.close(self._directory_fd)
        self._directory_fd = -1
        if failure is not None:
            raise failure

    def _remove(self, name: str) -> None:
        try:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory_fd)
        except OSError as error:
            raise _failed("file cannot be removed", name, error) from error
        self._made.remove(name)

    def _remove_abandoned(self, partial: str) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(partial, flags, dir_fd=self._directory_fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed("partial file cannot be opened", partial, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(partial, dir_fd=self._directory_fd)
        except BlockingIOError as error:
            raise Refused("another restore is writing this file", name=partial[:300]) from error
        except OSError as error:
            raise _failed("partial file cannot be removed", partial, error) from error
        finally:
            os.close(descriptor)

    def _rename_over_own_placeholder(self, partial: str, name: str) -> None:
        """For file systems without hard links: reserve the name, then rename onto the reservation."""
        self.make(name).close()
        try:
            os.rename(partial, name, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
        except OSError as error:
            raise _failed("file cannot get its final name", name, error) from error
        self._made.remove(partial)


def sync(file: BinaryIO, *, name: str) -> None:
    """Make a file's content durable. Raises: TargetFailed."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        raise _failed("file cannot be made durable", name, error) from error


def _failed(message: str, name: str, error: OSError) -> TargetFailed:
    return TargetFailed(message, name=name[:300], reason=str(error))

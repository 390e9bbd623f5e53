"""Who has which file of a datastore open beside the running VMs themselves.

A transfer over ``/folder`` or NFC and an attached frozen disk are such holders; a running VM's own
disks are found from the inventory (``disk_locks``). A lock is on a file's path, as on a datastore.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


class FileBusy(Exception):
    """A file is held by somebody else in a way that excludes this use."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {holder}")
        self.path = path
        self.holder = holder


@dataclass(frozen=True, slots=True)
class Hold:
    """One holder's claim on one file."""

    holder: str  # for messages and for the control API: "nfc lease-12", "folder", "vm-7"
    kind: str  # "folder", "nfc", "device" or "task"
    exclusive: bool


class HeldFiles:
    """Claims that are given back together; releasing twice is harmless."""

    def __init__(self, locks: FileLocks, paths: tuple[Path, ...], hold: Hold) -> None:
        self._locks = locks
        self.paths = paths
        self.hold = hold
        self._released = False

    def release(self) -> None:
        """Give the files back."""
        if not self._released:
            self._released = True
            self._locks.drop(self.paths, self.hold)

    def __enter__(self) -> HeldFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class FileLocks:
    """The table of claims. Any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holds: dict[Path, list[Hold]] = {}

    def take(self, paths: Iterable[Path], *, holder: str, kind: str, exclusive: bool) -> HeldFiles:
        """Claim all the files or none.

        Shared claims of one kind live together; an exclusive one lives alone; ``/folder`` and NFC
        exclude each other on a file even when both only read.

        Raises: FileBusy.
        """
        wanted = tuple(dict.fromkeys(path.resolve() for path in paths))
        hold = Hold(holder, kind, exclusive)
        with self._guard:
            for path in wanted:
                for present in self._holds.get(path, ()):
                    if _excludes(present, hold):
                        raise FileBusy(path, present.holder)
            for path in wanted:
                self._holds.setdefault(path, []).append(hold)
        return HeldFiles(self, wanted, hold)

    def holds(self, path: Path) -> list[Hold]:
        """The claims on one file."""
        with self._guard:
            return list(self._holds.get(path.resolve(), ()))

    def held(self) -> dict[Path, list[Hold]]:
        """Every claim, for the control API and for tests."""
        with self._guard:
            return {path: list(holds) for path, holds in self._holds.items()}

    def drop(self, paths: Iterable[Path], hold: Hold) -> None:
        """Give one claim back; ``HeldFiles.release`` calls this once."""
        with self._guard:
            for path in paths:
                remaining = self._holds.get(path, [])
                if hold in remaining:
                    remaining.remove(hold)
                if not remaining:
                    self._holds.pop(path, None)


def _excludes(present: Hold, wanted: Hold) -> bool:
    if present.exclusive or wanted.exclusive:
        return True
    return {present.kind, wanted.kind} == {"folder", "nfc"}

"""The index on this machine: one mapped file for each index object, made anew from the repository at any time.

A file that is damaged (`index_cache_file`) is noticed and dropped.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.repository.index_cache_file import CachedSegment, ProvenFile, proven_file
from holdfast_common.repository.key_sets import ReaderKeys

log = logging.getLogger(__name__)

HELD_BYTES_MAX: Final = 8 << 20  # of small files in memory: some 300 incrementals' worth


class SmallFiles:
    """Those that were opened last, within a budget of memory. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, ProvenFile] = OrderedDict()
        self._held_bytes = 0

    def get(self, path: str) -> ProvenFile | None:
        """The file of that name, if it is held."""
        with self._lock:
            found = self._files.get(path)
            if found is not None:
                self._files.move_to_end(path)
            return found

    def keep(self, path: str, file: ProvenFile) -> None:
        """Hold a file, and let go of those that nobody asked for the longest time."""
        with self._lock:
            self._drop(path)
            self._files[path] = file
            self._held_bytes += len(file.rest)
            while self._held_bytes > HELD_BYTES_MAX:
                self._drop(next(iter(self._files)))

    def drop(self, path: str) -> None:
        """Let go of a file. Harmless when it is not held."""
        with self._lock:
            self._drop(path)

    def _drop(self, path: str) -> None:
        found = self._files.pop(path, None)
        if found is not None:
            self._held_bytes -= len(found.rest)


class IndexCache:
    """A private folder of such files, one folder for each repository. Several processes may share it.

    A file appears at once, under its object's id; who finds it damaged or stale removes it. Whatever goes
    wrong here only costs time: nothing in it is ever the only copy. Small files that were proven once stay
    in memory as they are on the disk, without any key. Safe for several threads.
    """

    def __init__(self, folder: Path) -> None:
        """``folder``: made when it is needed, readable by its owner only."""
        self.folder = folder
        self._memory = SmallFiles()

    def open(self, name: str, keys: ReaderKeys) -> CachedSegment | None:
        """The file of an index object; None: there is none that can be used."""
        path = f"{self.folder}/{keys.repository_id.hex()}/{name.rpartition('/')[2]}"
        try:
            found = self._memory.get(path)
            segment = found.opened(keys) if found is not None else None
            if segment is not None:
                return segment
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                file = proven_file(descriptor, keys)
            finally:
                os.close(descriptor)
            if file.head.rest_digest:
                self._memory.keep(path, file)
            return file.opened(keys)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, IntegrityError, FormatError) as error:
            log.warning("local index dropped", extra={"object": name, "reason": str(error)})
            self.drop(name, keys)
            return None

    def drop(self, name: str, keys: ReaderKeys) -> None:
        """Remove the file of an index object. Harmless when there is none."""
        path = self._path(name, keys)
        self._memory.drop(str(path))
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("local index stays", extra={"object": name, "reason": str(error)})

    def keep_only(self, names: set[str], keys: ReaderKeys) -> None:
        """Remove the files of all other index objects."""
        wanted = {name.rpartition("/")[2] for name in names}
        try:
            with os.scandir(self._path("x", keys).parent) as entries:
                found = {entry.name for entry in entries}
        except OSError:
            return
        for name in found - wanted:
            if not name.startswith("."):
                self.drop(name, keys)

    def new_file(self, name: str, keys: ReaderKeys) -> CacheFile:
        """A file to be filled and then kept. Raises: OSError."""
        path = self._path(name, keys)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return CacheFile(path)

    def _path(self, name: str, keys: ReaderKeys) -> Path:
        return self.folder / keys.repository_id.hex() / name.rpartition("/")[2]


class CacheFile:
    """A file on its way in: has no name that anyone would open until `keep`. Ends with `keep` or `discard`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.parent / f".{path.name}.{os.urandom(4).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.descriptor = os.open(self._temporary, flags, 0o600)

    def keep(self, *, synced: bool) -> None:
        """Give it its name. Raises: OSError."""
        if synced:
            os.fsync(self.descriptor)
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Close it, and remove it unless it was kept."""
        os.close(self.descriptor)
        self._temporary.unlink(missing_ok=True)

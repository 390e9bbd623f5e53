"""What this agent keeps of repositories between its jobs: nothing in it is secret, nothing is needed.

Below the state folder lies the local index, whose entries are enciphered with a key that only a job has;
the listings of packs are in memory, and so are small files of the local index, as they are on the disk.
"""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast_common.repository.index_cache import IndexCache
    from holdfast_common.repository.pack_listing import PackListing


class RepositoryMemory:
    """One for each agent. Safe for several threads. Imports what only proxies need when a job asks."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: of the local index, made when it is needed; None: there is no local index."""
        self._folder = folder
        self._lock = threading.Lock()
        self._listings: dict[tuple[str, Path], PackListing] = {}

    @cached_property
    def cache(self) -> IndexCache | None:
        """The local index."""
        from holdfast_common.repository.index_cache import IndexCache

        return IndexCache(self._folder) if self._folder is not None else None

    def listing(self, repository_id: str, path: Path) -> PackListing:
        """The listing of the packs of the repository at that place."""
        from holdfast_common.repository.pack_listing import PackListing

        with self._lock:
            return self._listings.setdefault((repository_id, path), PackListing())

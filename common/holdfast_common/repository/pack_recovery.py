"""Packs that no index names, asked for their own footers. Below `repository_index`."""

from __future__ import annotations

import logging
from collections.abc import Container

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.repository.index import IndexBuilder
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import read_contents
from holdfast_common.repository.stored_objects import stored_objects

log = logging.getLogger(__name__)


class PackRecovery:
    """Asks each pack once."""

    def __init__(self, keys: ReaderKeys) -> None:
        self._keys = keys
        self._asked: set[bytes] = set()

    def contents(self, store: ObjectStore, *, known: Container[bytes]) -> bytes:
        """The body of an index segment of all packs that are not known; empty: there is none.

        Raises: RepositoryFailed.
        """
        builder = IndexBuilder()
        for info in stored_objects(store, "packs/"):
            digest = bytes.fromhex(info.name.rpartition("/")[2])
            if digest in known or digest in self._asked:
                continue
            self._asked.add(digest)
            try:
                builder.add(read_contents(store, digest, length=info.length, keys=self._keys))
            except (FormatError, IntegrityError) as error:
                log.warning("pack unreadable", extra={"object": info.name, "reason": str(error)})
        # written by nobody: never trusted for dedup
        return builder.encode(writer=bytes(32)) if builder.chunk_count else b""

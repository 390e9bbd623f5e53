"""Packs that no index names, or not as they are, asked for their own footers. Below `repository_index`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from holdfast_common.errors import FormatError, IntegrityError, ObjectMissing
from holdfast_common.repository.chunk_location import ChunkLocation
from holdfast_common.repository.index import IndexBuilder
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import read_contents
from holdfast_common.repository.stored_objects import stored_objects
from holdfast_common.repository.trusted_chunks import names_all

log = logging.getLogger(__name__)


class PackRecovery:
    """Asks each pack once."""

    def __init__(self, keys: ReaderKeys) -> None:
        self._keys = keys
        self._asked: set[bytes] = set()
        self._compared = False

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
        return _body(builder)

    def contradicted(
        self,
        store: ObjectStore,
        indexed: Callable[[Sequence[bytes]], Iterable[Mapping[bytes, Sequence[ChunkLocation]]]],
    ) -> bytes:
        """The same of all packs of which the index does not say what their footers say; only the first time.

        Any writer may name anybody's pack and say too little of it. ``indexed``: what is said of packs, some
        after the others. Raises: RepositoryFailed.
        """
        builder = IndexBuilder()
        if self._compared:
            return b""
        self._compared = True
        lengths = {
            bytes.fromhex(info.name.rpartition("/")[2]): info.length
            for info in stored_objects(store, "packs/")
        }
        for group in indexed(sorted(lengths)):
            for digest, places in group.items():
                try:
                    contents = read_contents(store, digest, length=lengths[digest], keys=self._keys)
                except (FormatError, IntegrityError, ObjectMissing):
                    continue
                if not names_all(contents, places):
                    log.warning("pack not named as it is", extra={"object": digest.hex()})
                    builder.add(contents)
        return _body(builder)


def _body(builder: IndexBuilder) -> bytes:
    """Written by nobody: never trusted for dedup."""
    return builder.encode(writer=bytes(32)) if builder.chunk_count else b""

"""The index objects of one attempt: what its durable packs hold is collected, and stored whenever that is enough.

Between `writer`, which makes packs durable first, and the repository's index, which knows the new chunks from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from holdfast_common.repository.frame_worker import KnownChunks
from holdfast_common.repository.index import IndexBuilder
from holdfast_common.repository.layout import ObjectKind, index_name
from holdfast_common.repository.manifest import ObjectReference
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import PackContents
from holdfast_common.repository.repository_index import RepositoryIndex
from holdfast_common.repository.sealed_object import ObjectHeader
from holdfast_common.repository.writers import WriterList

INDEX_CHUNKS_MAX: Final = (
    16_384  # one index object per 16 GiB of new data: some 5 MiB while it is collected
)


class NewIndexes:
    """`add` and `flush` are called by one thread at a time."""

    def __init__(
        self,
        store: ObjectStore,
        index: RepositoryIndex,
        known: KnownChunks,
        *,
        writer: bytes,
        writers: Callable[[], WriterList],
        sealed: Callable[[ObjectKind, bytes], bytes],
    ) -> None:
        """``writer``: the public key of who writes. ``sealed`` makes an object of a body, signed with that key."""
        self._store = store
        self._index = index
        self._known = known
        self._writer = writer
        self._writers = writers
        self._sealed = sealed
        self._lock = threading.Lock()
        self._builder = IndexBuilder()
        self._pending_ids: list[bytes] = []
        self.stored: list[ObjectReference] = []

    def add(self, contents: PackContents) -> None:
        """A pack that is durable. Raises: what `flush` raises."""
        with self._lock:
            self._builder.add(contents)
            self._pending_ids += [blob.chunk_id for blob in contents.blobs]
            full = self._builder.chunk_count >= INDEX_CHUNKS_MAX
        if full:
            self.flush()

    def flush(self) -> None:
        """Store what is collected. Raises: RepositoryFull, RepositoryFailed, Refused."""
        with self._lock:
            builder, self._builder = self._builder, IndexBuilder()
            ids, self._pending_ids = self._pending_ids, []
        if not builder.chunk_count:
            return
        data = self._sealed(ObjectKind.INDEX, builder.encode(writer=self._writer))
        object_id = ObjectHeader.decode(data).object_id
        name = index_name(object_id)
        self._store.put(name, data)
        found = self._index.load(data, name, self._writers())
        self._known.forget(ids)
        self.stored.append(
            ObjectReference(object_id=object_id, digest=found.digest, length=len(data))
        )

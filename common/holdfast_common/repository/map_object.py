"""The object in which one attempt's map pages lie together; disks of one point share it."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from holdfast_common.errors import HoldfastError
from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.disk_map import DiskMap
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import ObjectKind, map_name
from holdfast_common.repository.manifest import ObjectReference
from holdfast_common.repository.map_editor import MapEditor
from holdfast_common.repository.object_store import ObjectStore, Upload
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.sealed_object import SealedStream


class MapObject:
    """Streams pages to an upload, which is begun at once. Safe for several threads."""

    def __init__(self, store: ObjectStore, keys: ReaderKeys, randomness: Randomness) -> None:
        self._store = store
        self._keys = keys
        self._lock = threading.Lock()
        self._upload: Upload | None = None
        self._stored_length = 0
        try:
            self._stream: SealedStream = keys.stream(
                ObjectKind.MAP, signing_key=None, randomness=randomness, write=self._write
            )
        except HoldfastError:
            self.abort()  # the header is written at once, and nobody holds this object yet
            raise

    def editor(
        self,
        previous: DiskMap,
        hasher: Hasher,
        *,
        previous_pages: Mapping[bytes, int] | None = None,
    ) -> MapEditor:
        """An editor of one disk's map that writes its pages here."""
        return MapEditor(
            previous,
            object_id=self._stream.header.object_id,
            write_page=self._write_page,
            hasher=hasher,
            previous_pages=previous_pages,
        )

    def finish(self) -> ObjectReference | None:
        """Make the pages durable; None when there is none. Raises: RepositoryFull, RepositoryFailed."""
        with self._lock:
            if not self._stream.body_length:
                self.abort()
                return None
            digest = self._stream.finish()
            object_id = self._stream.header.object_id
            assert self._upload is not None
            try:
                self._upload.commit(map_name(self._keys.lineage_tag, object_id))
            finally:
                self._upload.abort()
            return ObjectReference(object_id=object_id, digest=digest, length=self._stored_length)

    def abort(self) -> None:
        """Discard what was written. Harmless after `finish`."""
        if self._upload is not None:
            self._upload.abort()

    def _write_page(self, page: bytes) -> int:
        with self._lock:
            return self._stream.write(page)

    def _write(self, data: bytes) -> None:
        if self._upload is None:
            self._upload = self._store.begin()
        self._upload.write(data)
        self._stored_length += len(data)

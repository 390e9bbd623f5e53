"""The blocks' digests in index objects: read from the repository, a segment of 1 MiB at a time."""

from __future__ import annotations

import threading
from typing import Final

from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import ObjectKind
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.sealed_object import SEGMENT_BYTES, SealedRanges, body_length

SEGMENTS_KEPT: Final = 8  # of 1 MiB; digests stand in the order in which disks were read


class ColdDigests:
    """Ranges of index objects' bodies. Safe for several threads."""

    def __init__(self, store: ObjectStore, keys: ReaderKeys) -> None:
        self._store = store
        self._keys = keys
        self._lock = threading.Lock()
        self._ranges: dict[str, SealedRanges] = {}
        self._kept: dict[tuple[str, int], bytes] = {}

    def read(self, name: str, *, stored_length: int, start: int, end: int) -> bytes:
        """``[start, end)`` of the body of an index object. Raises: IntegrityError, RepositoryFailed."""
        pieces = []
        with self._lock:
            for number in range(start // SEGMENT_BYTES, -(-end // SEGMENT_BYTES)):
                plain = self._segment(name, number, stored_length)
                origin = number * SEGMENT_BYTES
                pieces.append(plain[max(start - origin, 0) : end - origin])
        return b"".join(pieces)

    def _segment(self, name: str, number: int, stored_length: int) -> bytes:
        plain = self._kept.get((name, number))
        if plain is None:
            ranges = self._ranges.get(name)
            if ranges is None:
                object_id = bytes.fromhex(name.rpartition("/")[2])
                ranges = self._ranges[name] = SealedRanges(
                    self._store,
                    name,
                    expected=self._keys.expected(ObjectKind.INDEX, object_id),
                    body=body_length(stored_length, kind=ObjectKind.INDEX),
                    class_key=self._keys.class_key,
                )
            while len(self._kept) >= SEGMENTS_KEPT:
                self._kept.pop(next(iter(self._kept)))
            plain = self._kept[name, number] = ranges.segment(number)
        return plain

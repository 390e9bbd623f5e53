"""Which index objects are contained in which merged one. Below `repository_index`."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from holdfast_common.repository.index import Array

_ID: Final = struct.Struct("<QQ")


def object_id_of(name: str) -> bytes:
    """The object id in an index object's name."""
    return bytes.fromhex(name.rpartition("/")[2])


class MergedSegments:
    """Merged index objects by name, each with the ids of all that it contains; 16 bytes an id."""

    def __init__(self) -> None:
        self._contained: dict[str, Array] = {}

    def add(self, name: str, contained: Array) -> None:
        """Note what an index object contains, if anything."""
        if len(contained):
            pairs: Array = contained.view("<u8").reshape(-1, _ID.size // 8)
            self._contained = {**self._contained, name: pairs}

    def into(self, name: str) -> str:
        """The merged object that contains that one and is in none itself; empty: there is none."""
        found = ""
        for _ in self._contained:
            object_id = object_id_of(found or name)
            container = next(
                (
                    each
                    for each, pairs in self._contained.items()
                    if each != found and _holds(pairs, object_id)
                ),
                "",
            )
            if not container:
                break
            found = container
        return found


def _holds(pairs: Array, object_id: bytes) -> bool:
    """Numbers are compared many times faster than 16 bytes are, and half an id mostly tells."""
    first, second = _ID.unpack(object_id)
    rows = np.flatnonzero(pairs[:, 0] == first)
    return bool(len(rows)) and bool((pairs[rows, 1] == second).any())

"""Which index objects are contained in which merged one. Below `repository_index`."""

from __future__ import annotations

import numpy as np

from holdfast_common.repository.index import Array
from holdfast_common.repository.layout import ID_BYTES


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
            self._contained = {**self._contained, name: contained}

    def into(self, name: str) -> str:
        """The merged object that contains that one and is in none itself; empty: there is none."""
        found = ""
        for _ in self._contained:
            object_id = np.frombuffer(object_id_of(found or name), f"V{ID_BYTES}")
            container = next(
                (
                    each
                    for each, contained in self._contained.items()
                    if each != found and (contained == object_id).any()
                ),
                "",
            )
            if not container:
                break
            found = container
        return found

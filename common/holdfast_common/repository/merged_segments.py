"""Which index objects are contained in which merged one. Below `repository_index`."""

from __future__ import annotations

import numpy as np

from holdfast_common.repository.index import Array


def object_id_of(name: str) -> bytes:
    """The object id in an index object's name."""
    return bytes.fromhex(name.rpartition("/")[2])


class MergedSegments:
    """Merged index objects by name, each with the ids of all that it contains; 16 bytes an id.

    Answers are remembered: the same few live index objects are asked for several times in each job.
    """

    def __init__(self) -> None:
        self._contained: dict[str, Array] = {}  # ids as two numbers, ascending by the first one
        self._asked: dict[str, str] = {}

    def add(self, name: str, contained: Array) -> None:
        """Note what an index object contains, if anything."""
        if len(contained):
            halves = np.frombuffer(contained.tobytes(), "<u8").reshape(-1, 2)
            ordered = halves[np.argsort(halves[:, 0])].T
            self._contained = {**self._contained, name: np.ascontiguousarray(ordered)}
            self._asked = {}  # after that: who looked before notes his answer in the old one

    def into(self, name: str) -> str:
        """The merged object that contains that one and is in none itself; empty: there is none."""
        asked, contained = self._asked, self._contained
        found = asked.get(name)
        if found is None:
            found = asked[name] = _outermost(contained, name)
        return found


def _outermost(contained: dict[str, Array], name: str) -> str:
    found = ""
    for _ in contained:
        container = _container(contained, found or name)
        if not container:
            break
        found = container
    return found


def _container(contained: dict[str, Array], name: str) -> str:
    first, second = np.frombuffer(object_id_of(name), "<u8")
    for each, (firsts, seconds) in contained.items():
        if each != name:
            at = int(firsts.searchsorted(first))
            while at < len(firsts) and firsts[at] == first:
                if seconds[at] == second:
                    return each
                at += 1
    return ""

"""Which index objects are contained in which merged one. Below `repository_index`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from holdfast_common.repository.index import Array


def object_id_of(name: str) -> bytes:
    """The object id in an index object's name."""
    return bytes.fromhex(name.rpartition("/")[2])


class MergedSegments:
    """Merged index objects by name, each with the ids of all that it contains; 16 bytes an id.

    Answers are remembered: the same few live index objects are asked for several times in each job. Those that are
    expected to be asked for are looked up together: one by one they would cost what there are merged ones.
    """

    def __init__(self) -> None:
        self._contained: dict[str, Array] = {}  # ids as two numbers, ascending by the first one
        self._expected: list[str] = []
        self._asked: dict[str, str] = {}

    def expect(self, names: Iterable[str]) -> None:
        """These will be asked for."""
        self._expected = [*self._expected, *names]
        self._asked = {}

    def add(self, name: str, contained: Array) -> None:
        """Note what an index object contains, if anything."""
        if len(contained):
            halves = in_order(contained).view("<u8").reshape(-1, 2)
            self._contained = {**self._contained, name: np.ascontiguousarray(halves.T)}
            self._asked = {}  # after that: who looked before notes his answer in the old one

    def into(self, name: str) -> str:
        """The merged object that contains that one and is in none itself; empty: there is none."""
        asked, contained = self._asked, self._contained
        if not contained:
            return ""
        if name not in asked:
            names = [name] if asked else [*self._expected, name]
            asked |= _outermost(_containers(contained, names), contained)
        return asked[name]


def in_order(ids: Array) -> Array:
    """Object ids as they are looked up, by their first halves as numbers. Cheap for those that are so already."""
    ids = np.ascontiguousarray(ids)
    firsts = ids.view("<u8")[::2]
    return ids if (firsts[:-1] <= firsts[1:]).all() else ids[np.argsort(firsts)]


def _outermost(containers: dict[str, str], contained: dict[str, Array]) -> dict[str, str]:
    """What each of those names is in, and that in turn. Ends also where damaged ones contain each other."""
    of_merged = _containers(contained, list(contained))
    found = {}
    for name, container in containers.items():
        outermost = container
        for _ in contained:
            if not (outer := of_merged.get(outermost)):
                break
            outermost = outer
        found[name] = outermost
    return found


def _containers(contained: dict[str, Array], names: list[str]) -> dict[str, str]:
    """By name the first merged object that contains it; empty: there is none."""
    found = dict.fromkeys(names, "")
    wanted = np.frombuffer(b"".join(map(object_id_of, names)), "<u8").reshape(-1, 2)
    for each, (firsts, seconds) in contained.items():
        begins = firsts.searchsorted(wanted[:, 0])
        ends = firsts.searchsorted(wanted[:, 0], side="right")
        for number in (begins < ends).nonzero()[0]:
            name = names[number]
            if not found[name] and name != each:
                same = seconds[begins[number] : ends[number]] == wanted[number, 1]
                found[name] = each if same.any() else ""
    return found

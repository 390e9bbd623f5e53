"""Which index object is contained in which, however many were merged."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.repository.layout import index_name
from holdfast_common.repository.merged_segments import MergedSegments, in_order

LEAVES = 40


def object_id(number: int) -> bytes:
    # Ids share their halves, so that both of them must be looked at.
    return bytes([number % 7]) * 8 + bytes([number // 7]) * 8


def name(number: int) -> str:
    return index_name(object_id(number))


def ids(numbers: list[int]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    return np.frombuffer(b"".join(map(object_id, numbers)), "V16")


@given(st.lists(st.sets(st.integers(0, LEAVES - 1), min_size=1, max_size=8), max_size=6))
def test_an_object_is_found_in_the_outermost_that_contains_it(groups: list[set[int]]) -> None:
    """Each merge takes what is not merged yet, and now and then an earlier result with all that it contained."""
    merged = MergedSegments()
    roots: dict[int, set[int]] = {}
    taken: set[int] = set()
    for number, group in enumerate(groups):
        fresh = group - taken
        older = {root for root in roots if root % 2 == number % 2}
        contained = fresh | older | {each for root in older for each in roots.pop(root)}
        if not contained:
            continue
        taken |= fresh
        merged.add(name(LEAVES + number), ids(sorted(contained)))
        roots[LEAVES + number] = contained
        wanted = {each: name(root) for root, inside in roots.items() for each in inside}
        for each in range(LEAVES + len(groups)):
            assert merged.into(name(each)) == wanted.get(each, "")


def test_an_answer_is_not_remembered_beyond_the_next_merge() -> None:
    merged = MergedSegments()
    assert merged.into(name(1)) == ""
    merged.add(name(50), ids([1, 2]))
    assert merged.into(name(1)) == name(50)
    merged.add(name(51), ids([50, 1, 2, 3]))
    assert [merged.into(name(number)) for number in (1, 3, 50, 51)] == [name(51)] * 3 + [""]


def test_objects_that_contain_themselves_or_each_other_do_not_stop_anybody() -> None:
    merged = MergedSegments()
    merged.add(name(50), ids([50, 51]))
    assert merged.into(name(50)) == ""
    merged.add(name(51), ids([50, 51]))
    assert merged.into(name(50)) in {name(50), name(51)}


def test_ids_are_found_whatever_order_they_come_in() -> None:
    shuffled = [7, 3, 900, 12, 1, 44, 5]
    for contained in (ids(shuffled), in_order(ids(shuffled))):
        merged = MergedSegments()
        merged.add(name(50), contained)
        assert [merged.into(name(each)) for each in shuffled] == [name(50)] * len(shuffled)
        assert merged.into(name(2)) == ""
    ordered = in_order(ids(shuffled))
    assert in_order(ordered) is ordered
    assert sorted(each.tobytes() for each in ordered) == sorted(map(object_id, shuffled))

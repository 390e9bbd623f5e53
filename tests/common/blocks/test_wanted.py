from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.blocks.wanted import CompactExtents, ascending, told_apart
from holdfast_common.extents import Extent, aligned, intersected, merged

CAPACITY = 10_000
extents = st.lists(
    st.builds(Extent, offset=st.integers(0, 12_000), length=st.integers(1, 3_000)), max_size=12
)


@given(extents)
def test_ascending_is_the_same_as_aligning_a_list(given_extents: list[Extent]) -> None:
    lazily = list(ascending(sorted(given_extents), unit=64, capacity_bytes=CAPACITY))
    assert lazily == aligned(given_extents, unit=64, capacity_bytes=CAPACITY)


@given(extents, extents)
def test_told_apart_covers_what_is_wanted_and_tells_what_is_allocated(
    wanted: list[Extent], allocated: list[Extent]
) -> None:
    wanted, allocated = merged(wanted), merged(allocated)
    pieces = list(told_apart(wanted, allocated))
    assert merged(piece for piece, _ in pieces) == wanted
    inside = [piece for piece, is_allocated in pieces if is_allocated]
    assert inside == intersected(wanted, allocated)


@given(extents)
def test_compact_extents_are_the_list_they_were_made_from(given_extents: list[Extent]) -> None:
    expected = merged(given_extents)
    compact = CompactExtents(expected)
    assert list(compact) == expected
    assert len(compact) == len(expected)
    assert compact[1:3] == expected[1:3]
    assert compact.total_bytes == sum(extent.length for extent in expected)

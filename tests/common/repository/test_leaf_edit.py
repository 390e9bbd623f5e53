from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import IntegrityError
from holdfast_common.repository.disk_map import Leaf
from holdfast_common.repository.layout import BLOCKS_PER_LEAF
from holdfast_common.repository.leaf_edit import EditedLeaf

Content = dict[int, tuple[int, int] | None]


def frame(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def changed(leaf: Leaf | EditedLeaf, content: Content) -> Leaf | EditedLeaf:
    for block, what in content.items():
        if what is None:
            leaf.set(block, None)
        else:
            leaf.set(block, frame(what[0]), what[1])
    return leaf


@st.composite
def runs(draw: st.DrawFn) -> Content:
    """Some runs of blocks, each of one frame or zero."""
    content: Content = {}
    for _ in range(draw(st.integers(0, 40))):
        first, length = draw(st.integers(0, BLOCKS_PER_LEAF - 1)), draw(st.integers(1, 16))
        number = draw(st.none() | st.integers(0, 12))
        place = draw(st.integers(0, 16 - length))
        for step in range(min(length, BLOCKS_PER_LEAF - first)):
            content[first + step] = None if number is None else (number, place + step)
    return content


@settings(max_examples=300, deadline=None)
@given(before=runs(), changes=st.lists(runs(), min_size=1, max_size=3))
def test_an_edited_leaf_is_what_a_leaf_that_was_taken_apart_would_be(
    before: Content, changes: list[Content]
) -> None:
    wanted = Leaf.empty(7)
    changed(wanted, before)
    edited = EditedLeaf(wanted.encode(), 7)
    for change in changes:
        changed(wanted, change)
        changed(edited, change)
        assert edited.mapped_blocks() == wanted.mapped_blocks()
        assert edited.encode() == wanted.encode()


@settings(max_examples=300, deadline=None)
@given(before=runs(), change=runs())
def test_a_small_edit_is_too(before: Content, change: Content) -> None:
    wanted = Leaf.empty(7)
    changed(wanted, before)
    edited = EditedLeaf(wanted.encode(), 7)
    few = dict(list(change.items())[:5])
    assert changed(edited, few).encode() == changed(wanted, few).encode()


def test_a_leaf_of_as_many_frames_as_blocks_can_be_edited() -> None:
    wanted = Leaf.empty(1)
    changed(wanted, {block: (block, 0) for block in range(BLOCKS_PER_LEAF)})
    edited = EditedLeaf(wanted.encode(), 1)
    change: Content = {40: (1000, 3), 41: (1000, 4), 200: None}
    assert changed(edited, change).encode() == changed(wanted, change).encode()


def test_what_is_set_as_it_was_changes_nothing() -> None:
    leaf = Leaf.empty(1)
    changed(leaf, {block: (block // 16, block % 16) for block in range(BLOCKS_PER_LEAF)})
    before = leaf.encode()
    assert changed(EditedLeaf(before, 1), {37: (2, 5), 48: (3, 0)}).encode() == before


def test_another_leaf_is_refused() -> None:
    with pytest.raises(IntegrityError):
        EditedLeaf(Leaf.empty(1).encode(), 2)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_a_hostile_page_is_refused_where_taking_it_apart_refuses_it(
    position: int, value: int
) -> None:
    leaf = Leaf.empty(3)
    changed(leaf, {block: (block % 3, block % 16) for block in range(60)})
    page = bytearray(leaf.encode())
    page[position % len(page)] = value
    try:
        wanted = Leaf.decode(bytes(page)).number == 3
    except IntegrityError:
        wanted = False
    try:
        EditedLeaf(bytes(page), 3)
        found = True
    except IntegrityError:
        found = False
    assert found == wanted

"""Writes the map of a new point: the previous one with changed leaves, in one ascending pass.

Only changed pages are written; the rest is referred to. Memory: one open page per level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from holdfast_common.repository.derivation import Hasher
from holdfast_common.repository.disk_map import DiskMap, InnerPage, Leaf, PageReference
from holdfast_common.repository.layout import MAP_FANOUT
from holdfast_common.repository.leaf_edit import EditedLeaf

WritePage = Callable[[bytes], int]


class MapEditor:
    """Takes changed leaves in ascending order and makes the new root. One thread."""

    def __init__(
        self,
        previous: DiskMap,
        *,
        object_id: bytes,
        write_page: WritePage,
        hasher: Hasher,
        previous_pages: Mapping[bytes, int] | None = None,
    ) -> None:
        """``previous_pages``: how many pages of the previous map lie in which object; None: not known."""
        self._previous = previous
        self._object_id = object_id
        self._write_page = write_page  # appends to the attempt's map object; returns the offset
        self._hasher = hasher
        self._open: list[_OpenPage | None] = [None] * (previous.root_level + 1)
        self._root: PageReference | None = previous.root
        self._pages: dict[bytes, int] | None = {}
        if previous.root is not None:
            self._pages = None if previous_pages is None else dict(previous_pages)
        self._previous_reference: PageReference | None = None
        self._last_leaf = -1

    def previous_leaf(self, number: int) -> EditedLeaf | None:
        """What the previous point has there; to be changed and given to `put`."""
        self._previous_reference = None
        found = next(self._previous.references(number, number + 1), None)
        if found is None:
            return None
        self._previous_reference = found[1]
        return EditedLeaf(self._previous.leaf_page(found[1]), number)

    def put(self, leaf: Leaf | EditedLeaf) -> None:
        """Replace the leaf that `previous_leaf` was asked for last; an all-zero one vanishes from the map."""
        assert leaf.number > self._last_leaf, "leaves come in ascending order"
        self._last_leaf = leaf.number
        before, self._previous_reference = self._previous_reference, None
        blocks = leaf.mapped_blocks()
        if not blocks:
            if before is not None:
                self._set(0, leaf.number, None)
            return
        page = leaf.encode()
        digest = self._hasher.page_digest(page)
        # A page's bytes follow from what it maps: an unchanged leaf keeps its reference.
        if before is None or digest != before.digest:
            self._set(0, leaf.number, self._written(page, digest, blocks=blocks))

    def clear(self, first: int, end: int) -> None:
        """Make whole leaves zero; costs what the previous point has there, not what the range spans."""
        for number, _ in self._previous.references(first, end):
            assert number > self._last_leaf
            self._last_leaf = number
            self._set(0, number, None)

    @property
    def pages(self) -> Mapping[bytes, int] | None:
        """After `finish`: how many pages of the new map lie in which object; None: not known."""
        return self._pages

    def finish(self) -> PageReference | None:
        """Write what is open; the new root, None for a disk that is all zero."""
        for level in range(1, len(self._open)):
            self._close(level)
        return self._root

    def _set(self, level: int, number: int, reference: PageReference | None) -> None:
        parent_level = level + 1
        if parent_level > self._previous.root_level:
            self._count(self._root, reference)
            self._root = reference
            return
        parent = number // MAP_FANOUT
        page = self._open[parent_level]
        if page is not None and page.number != parent:
            self._close(parent_level)
            page = None
        if page is None:
            page = _OpenPage(parent, self._previous_children(parent_level, parent))
            self._open[parent_level] = page
        slot = number % MAP_FANOUT
        self._count(page.children.get(slot), reference)
        if reference is None:
            page.children.pop(slot, None)
        else:
            page.children[slot] = reference

    def _count(self, before: PageReference | None, now: PageReference | None) -> None:
        if self._pages is None:
            return
        if before is not None:
            self._pages[before.object_id] -= 1
            if not self._pages[before.object_id]:
                del self._pages[before.object_id]
        if now is not None:
            self._pages[now.object_id] = self._pages.get(now.object_id, 0) + 1

    def _close(self, level: int) -> None:
        page = self._open[level]
        if page is None:
            return
        assert level == 1 or self._open[level - 1] is None, "pages are closed from below"
        self._open[level] = None
        reference = None
        if page.children:
            encoded = InnerPage(level=level, number=page.number, children=page.children).encode()
            blocks = sum(child.blocks for child in page.children.values())
            digest = self._hasher.page_digest(encoded)
            reference = self._written(encoded, digest, blocks=blocks)
        self._set(level, page.number, reference)

    def _previous_children(self, level: int, number: int) -> dict[int, PageReference]:
        reference = self._previous.root
        current = self._previous.root_level
        while reference is not None and current > level:
            span = MAP_FANOUT ** (current - level - 1)
            position = number // span
            children = self._previous.children(
                reference, level=current, number=position // MAP_FANOUT
            )
            reference = children.get(position % MAP_FANOUT)
            current -= 1
        if reference is None:
            return {}
        return dict(self._previous.children(reference, level=level, number=number))

    def _written(self, page: bytes, digest: bytes, *, blocks: int) -> PageReference:
        return PageReference(
            object_id=self._object_id,
            offset=self._write_page(page),
            length=len(page),
            blocks=blocks,
            digest=digest,
        )


class _OpenPage:
    __slots__ = ("children", "number")

    def __init__(self, number: int, children: dict[int, PageReference]) -> None:
        self.number = number
        self.children = children

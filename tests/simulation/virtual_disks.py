"""Disks of a vSphere that is only a model: files in chains, what the guest wrote, and what change tracking says of it.

A block stands for 64 KiB, and a number for what the guest wrote there: no number is written twice, so two disks are
equal byte by byte when their numbers are. Of `virtual_vsphere`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

BLOCK_BYTES: Final = 64 * 1024
EMPTY: Final = 0  # a block that was never written

# What change tracking is known to get wrong, by the numbers that the project's rules give them.
LIES: Final = ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9")


@dataclass(eq=False)
class VirtualFile:
    """One link of a chain: the blocks that were written to it."""

    path: str
    parent: VirtualFile | None
    blocks: dict[int, int] = field(default_factory=dict)

    def links(self) -> list[VirtualFile]:
        """The chain from its base to this link."""
        below = self.parent.links() if self.parent is not None else []
        return [*below, self]

    def block(self, number: int) -> int:
        """What is read there now."""
        link: VirtualFile | None = self
        while link is not None:
            if number in link.blocks:
                return link.blocks[number]
            link = link.parent
        return EMPTY

    def content(self, count: int) -> list[int]:
        """All of it now."""
        return [self.block(number) for number in range(count)]


@dataclass(eq=False)
class VirtualDisk:
    """A VM's disk. ``changes``: every write that tracking saw, with its number in order."""

    key: int
    uuid: str
    count: int
    tip: VirtualFile
    tracking: str  # its id; empty: it is not active
    sequence: int = 1
    changes: list[tuple[int, int]] = field(default_factory=list)
    files_made: int = 0
    lying_since: int = 0  # the size at which tracking went wrong (C1)
    untold: set[int] = field(default_factory=set)  # writes that tracking lost

    @property
    def change_id(self) -> str:
        return f"{self.tracking}/{self.sequence}" if self.tracking else ""

    def write(self, number: int, value: int, *, lost: bool) -> None:
        """By the guest; ``lost``: tracking does not see it."""
        self.tip.blocks[number] = value
        self.sequence += 1
        if lost and self.tracking:
            self.untold.add(value)
        elif self.tracking:
            self.changes.append((self.sequence, number))

    def freeze(self) -> VirtualFile:
        """A new link; the one before it is what a snapshot holds."""
        frozen = self.tip
        self.files_made += 1
        base = frozen.links()[0].path.removesuffix(".vmdk")
        self.tip = VirtualFile(f"{base}-{self.files_made:06d}.vmdk", frozen)
        return frozen

    def merge(self, frozen: VirtualFile) -> VirtualFile | None:
        """Put the link above ``frozen`` into it; the link that is no more. None: nothing stands on it."""
        above = next((link for link in self.tip.links() if link.parent is frozen), None)
        if above is None:
            return None
        frozen.blocks.update(above.blocks)
        for link in self.tip.links():
            if link.parent is above:
                link.parent = frozen
        if self.tip is above:
            self.tip = frozen
        return above

    def changed_since(self, since: str, until: int) -> list[int] | None:
        """Blocks, ascending; None: that change id is not known any more."""
        if since == "*":
            return [n for n in range(self.count) if self.tip.block(n) != EMPTY]
        tracking, _, sequence = since.partition("/")
        if tracking != self.tracking or not sequence.isdigit():
            return None
        return sorted({n for at, n in self.changes if int(sequence) < at <= until})

    def lineage(self) -> Iterator[str]:
        """Paths of the chain, base first."""
        return (link.path for link in self.tip.links())


def some_numbers(source: random.Random, count: int) -> list[int]:
    """Blocks of a disk, without order."""
    return source.sample(range(count), source.randint(1, max(1, count // 3)))

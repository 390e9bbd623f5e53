"""Which disks of a VM are backed up: by device key or label, and each that is not, by name. Pure.

A selector is ``disk:2000`` (the device key) or ``disk:Hard disk 2`` (the label, a glob, also in quotes).
No selector chooses all disks. What no snapshot freezes is left out whatever was chosen.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from holdfast_common.errors import UsageError
from holdfast_common.units import size_text
from holdfast_controller.decide.selection import check_length
from holdfast_controller.facts import DiskFacts, VmFacts

NOT_CHOSEN: Final = "not chosen"
_KIND: Final = "disk:"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutDisk:
    """A disk that the backup does not have, and why."""

    device_key: int
    label: str
    capacity_bytes: int
    reason: str

    def text(self) -> str:
        """By name, as results and status tell it."""
        size = size_text(self.capacity_bytes)
        return f"{self.label or 'disk'} (key {self.device_key}, {size}): {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskChoice:
    """What becomes of a VM's disks: each is in one of both lists, in the VM's order.

    ``unmatched``: selectors that name no disk of this VM; another VM may have it.
    """

    chosen: tuple[DiskFacts, ...]
    left_out: tuple[LeftOutDisk, ...]
    unmatched: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return not self.left_out


def choose_disks(
    disks: Sequence[DiskFacts], selectors: Sequence[str] = (), *, excludes: Sequence[str] = ()
) -> DiskChoice:
    """What the selectors name, but for what ``excludes`` name. Raises: UsageError for one that names nothing."""
    for selector in (*selectors, *excludes):
        check_disk_selector(selector)
    chosen, without = [], []
    for disk in disks:
        reason = _reason(disk, selectors, excludes)
        if not reason:
            chosen.append(disk)
            continue
        without.append(
            LeftOutDisk(
                device_key=disk.device_key,
                label=disk.label,
                capacity_bytes=disk.capacity_bytes,
                reason=reason,
            )
        )
    unmatched = [
        selector
        for selector in (*selectors, *excludes)
        if not any(names_disk(selector, disk) for disk in disks)
    ]
    return DiskChoice(
        chosen=tuple(chosen), left_out=tuple(without), unmatched=tuple(dict.fromkeys(unmatched))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedDisks:
    """Which disks of any VM somebody wants. ``selectors``: none: all; but for what ``excludes`` name."""

    selectors: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    def marked(self, disks: Sequence[DiskFacts]) -> tuple[DiskFacts, ...]:
        """The same disks; those that are not wanted say why."""
        return tuple(
            replace(disk, excluded_by=_choice(disk, self.selectors, self.excludes))
            for disk in disks
        )

    def of_vm(self, vm: VmFacts) -> VmFacts:
        """The VM with its disks marked."""
        return replace(vm, disks=self.marked(vm.disks)) if self.selectors or self.excludes else vm


ALL_DISKS: Final = WantedDisks()


def unsaved_disks(
    disks: Sequence[DiskFacts], wishes: Sequence[WantedDisks]
) -> tuple[LeftOutDisk, ...]:
    """The disks that nothing saves: what no snapshot freezes, and what none of the wishes wants.

    No wish at all leaves no disk out: whether anybody backs the VM up is another question.
    """
    found = []
    marked = [each.marked(disks) for each in wishes]
    for number, disk in enumerate(disks):
        reasons = [each[number].excluded_by for each in marked]
        reason = "; ".join(dict.fromkeys(reasons)) if reasons and all(reasons) else ""
        if reason or disk.unprotected_reason:
            found.append(left_out(replace(disk, excluded_by=reason)))
    return tuple(found)


def left_out(disk: DiskFacts) -> LeftOutDisk:
    """A disk that says why it is left out."""
    return LeftOutDisk(
        device_key=disk.device_key,
        label=disk.label,
        capacity_bytes=disk.capacity_bytes,
        reason=disk.left_out_reason,
    )


def check_disk_selector(selector: str) -> None:
    """Whether it can name a disk. Raises: UsageError."""
    check_length(selector)
    if not selector.startswith(_KIND) or not _pattern(selector):
        raise UsageError(
            "not a selector of disks",
            selector=selector,
            advice='write disk:2000 (the device key) or disk:"Hard disk 2" (the label);'
            " `holdfast inventory show` tells both",
        )


def names_disk(selector: str, disk: DiskFacts) -> bool:
    """Whether a selector names this disk. A number is a key and never a label."""
    pattern = _pattern(selector)
    if _is_number(pattern):
        return disk.device_key == int(pattern)
    return fnmatch.fnmatchcase(disk.label, pattern) or disk.label == pattern


def _reason(disk: DiskFacts, selectors: Sequence[str], excludes: Sequence[str]) -> str:
    """Why it is left out; empty: it is backed up."""
    return _choice(disk, selectors, excludes) or disk.unprotected_reason


def _choice(disk: DiskFacts, selectors: Sequence[str], excludes: Sequence[str]) -> str:
    """Why it is not wanted; empty: it is."""
    for selector in excludes:
        if names_disk(selector, disk):
            return f"excluded by {selector}"
    if selectors and not any(names_disk(selector, disk) for selector in selectors):
        return NOT_CHOSEN
    return ""


def _pattern(selector: str) -> str:
    pattern = selector.removeprefix(_KIND).strip()
    if len(pattern) >= 2 and pattern[0] == pattern[-1] == '"':
        pattern = pattern[1:-1]
    return pattern


def _is_number(pattern: str) -> bool:
    return pattern.isascii() and pattern.isdecimal()

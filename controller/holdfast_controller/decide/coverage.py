"""Which VMs each policy selects, which none does, and which promises are broken. Pure.

A VM is told by its place in the list of all VMs that the caller has: every function here takes the same list. Whoever
asks more than once gives a `VmIndex`.
A policy that is switched off covers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from holdfast_controller.decide.disk_choice import ALL_DISKS, WantedDisks
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.selection import SelectableVm, names_tags
from holdfast_controller.decide.tag_knowledge import TagSource, check_choosing, check_excluding
from holdfast_controller.decide.vm_index import VmIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a policy's selectors name now; numbers are places in the list of all VMs, rising.

    ``excluded``: named by ``vms`` and taken out by ``exclude``. ``unmatched``: field and place in it of each
    selector that names no VM at all.
    """

    chosen: tuple[int, ...]
    excluded: tuple[int, ...]
    unmatched: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPolicy:
    """A policy, and since when it promises something."""

    policy: Policy
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VmCover:
    """What policies say of one VM.

    ``policies``: those that select it, in the order given; none: nothing protects it by itself. ``promised``: how old
    its last good point may be, the least of what they promise; None: nothing is promised. ``late``: how long a
    promise has been broken, the longest; None: none is. ``broken``: by which policy that was promised.
    ``disks``: which disks each of them saves; none: all save all.
    """

    policies: tuple[str, ...] = ()
    disks: tuple[WantedDisks, ...] = ()
    promised: timedelta | None = None
    late: timedelta | None = None
    broken: str = ""


_Selecting = tuple[KnownPolicy, timedelta | None]  # and what it promises, read once


def select(policy: Policy, vms: Sequence[SelectableVm]) -> Selection:
    """What its selectors name of these VMs, whether it is switched on or not."""
    index = vms if isinstance(vms, VmIndex) else VmIndex(vms)
    unmatched: list[tuple[str, int]] = []

    def named(field: str, selectors: Sequence[str]) -> set[int]:
        all_named: set[int] = set()
        for position, selector in enumerate(selectors):
            found = index.named(selector)
            if not found:
                unmatched.append((field, position))
            all_named |= found
        return all_named

    wanted = named("vms", policy.vms)
    spared = named("exclude", policy.exclude)
    return Selection(
        chosen=tuple(sorted(wanted - spared)),
        excluded=tuple(sorted(wanted & spared)),
        unmatched=tuple(unmatched),
    )


def check_tags(policy: Policy, vms: Sequence[SelectableVm], sources: Sequence[TagSource]) -> None:
    """Whether the policy can say which VMs it selects, as far as tags decide it. Raises: CapabilityAbsent."""
    for selector in policy.vms:
        if names_tags(selector):
            check_choosing(selector, sources)
    # whoever is excluded otherwise needs no tags
    others = tuple(each for each in policy.exclude if not names_tags(each))
    if len(others) == len(policy.exclude):
        return
    chosen = [vms[number] for number in select(replace(policy, exclude=others), vms).chosen]
    for selector in policy.exclude:
        if names_tags(selector):
            check_excluding(selector, chosen, sources)


def cover(
    policies: Sequence[KnownPolicy],
    vms: Sequence[SelectableVm],
    last_good: Sequence[datetime | None],
    *,
    now: datetime,
    first_seen: Sequence[datetime | None] = (),
) -> list[VmCover]:
    """For each VM, with when its last good point was taken (None: it has none).

    Of a VM without a good point the time counts from when the policy was made, or the VM was seen first if that was
    later. ``first_seen``: of each VM (None: nobody knows); empty: of none.
    """
    assert len(vms) == len(last_good), (len(vms), len(last_good))
    seen = first_seen or [None] * len(last_good)
    index = vms if isinstance(vms, VmIndex) else VmIndex(vms)
    of_vm: list[list[_Selecting]] = [[] for _ in index]
    for known in policies:
        if known.policy.enabled:
            selecting = (known, known.policy.promised)
            for number in select(known.policy, index).chosen:
                of_vm[number].append(selecting)
    return [
        _cover_of(each, good, came, now)
        for each, good, came in zip(of_vm, last_good, seen, strict=True)
    ]


def promised_since(policy_created_at: datetime, first_seen: datetime | None) -> datetime:
    """From when the age of a point counts that a VM does not have yet."""
    return policy_created_at if first_seen is None else max(policy_created_at, first_seen)


def _cover_of(
    selecting: Sequence[_Selecting],
    last_good: datetime | None,
    first_seen: datetime | None,
    now: datetime,
) -> VmCover:
    promised, late, broken = None, None, ""
    for known, each in selecting:
        if each is None:
            continue
        promised = each if promised is None else min(promised, each)
        over = now - (last_good or promised_since(known.created_at, first_seen)) - each
        if over > timedelta(0) and (late is None or over > late):
            late, broken = over, known.policy.name
    wanted = tuple(known.policy.wanted_disks for known, _ in selecting)
    return VmCover(
        policies=tuple(known.policy.name for known, _ in selecting),
        disks=wanted if any(each != ALL_DISKS for each in wanted) else (),
        promised=promised,
        late=late,
        broken=broken,
    )

"""What is wrong with a policy for what is there: VMs, their earlier backups, and the time. Pure.

A policy by itself is checked when it is made (see `policy`). Here is what only the inventory and the jobs can tell.
What a change brings in is refused unless it is allowed by name; what was so before is only told, so that a policy of
which one selector has become idle can still be changed and switched off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import Final

from holdfast_common.errors import Fact
from holdfast_controller.decide.calendar import due_after, next_due
from holdfast_controller.decide.coverage import Selection
from holdfast_controller.decide.disk_choice import names_disk
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.selection import SelectableVm
from holdfast_controller.decide.windows import is_open, longest_opening

DUE_MOMENTS_LOOKED_AT: Final = 5


class Oddity(StrEnum):
    """What may be meant all the same; an operator allows it by this name."""

    UNMATCHED = "unmatched"  # a selector names no VM
    SHORT_WINDOW = "short-window"  # no backup of a VM was ever as short as the window
    FORGET = "forget"  # points that are kept now will be dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLengths:
    """How long the backups of a VM took that came to their end."""

    shortest_seconds: float
    longest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something odd. ``oddity``: None for what is only told."""

    oddity: Oddity | None
    field: str
    message: str
    advice: str
    facts: Mapping[str, Fact]

    def text(self) -> str:
        """As a warning."""
        facts = ", ".join(f"{name}={value}" for name, value in self.facts.items())
        return f"{self.field}: {self.message}" + (f" ({facts})" if facts else "")


def check_due(policy: Policy, now: datetime) -> None:
    """Raises: UsageError when one of its calendars is never due in the years to come."""
    next_due(policy.calendar, now)
    for calendar in policy.level_calendars.values():
        next_due(calendar, now)


def findings(
    policy: Policy,
    selection: Selection,
    vms: Sequence[SelectableVm],
    lengths: Mapping[int, RunLengths],
    *,
    now: datetime,
) -> list[Finding]:
    """What is odd about a policy. ``lengths``: of VMs by their place in ``vms``; those without a backup are left out."""
    return [
        *_unmatched(policy, selection),
        *_disks(policy, [vms[number] for number in selection.chosen]),
        *_never_open(policy, now),
        *_too_short(policy, selection, vms, lengths, now),
    ]


def refused(
    found: Sequence[Finding], before: Sequence[Finding], allowed: Collection[Oddity]
) -> list[Finding]:
    """Those that a change brings in and nobody allowed. ``before``: of the policy as it was; none for a new one."""
    known = {(each.oddity, each.field, str(each.facts)) for each in before}
    return [
        each
        for each in found
        if each.oddity is not None
        and each.oddity not in allowed
        and (each.oddity, each.field, str(each.facts)) not in known
    ]


def _unmatched(policy: Policy, selection: Selection) -> list[Finding]:
    found = [
        Finding(
            oddity=Oddity.UNMATCHED,
            field=field,
            message="a selector names no VM",
            advice="see `holdfast inventory list`, and `holdfast vcenter refresh`;"
            f" if it is meant for VMs to come, give `--allow {Oddity.UNMATCHED}`",
            facts={"selector": getattr(policy, field)[position]},
        )
        for field, position in selection.unmatched
    ]
    if not selection.chosen and selection.excluded:
        found.append(
            Finding(
                oddity=Oddity.UNMATCHED,
                field="exclude",
                message="every VM that the policy selects is excluded",
                advice=f"if it is meant for VMs to come, give `--allow {Oddity.UNMATCHED}`",
                facts={"vms": len(selection.excluded)},
            )
        )
    return found


def _disks(policy: Policy, vms: Sequence[SelectableVm]) -> list[Finding]:
    """What is odd about its choice of disks, with the VMs that it selects now."""
    if not vms or not (policy.disks or policy.exclude_disks):
        return []
    found = []
    for field in ("disks", "exclude_disks"):
        for selector in getattr(policy, field):
            if any(names_disk(selector, disk) for each in vms for disk in each.vm.disks):
                continue
            found.append(
                Finding(
                    oddity=Oddity.UNMATCHED,
                    field=field,
                    message="a selector names no disk of the VMs that the policy selects",
                    advice="see `holdfast inventory show`;"
                    f" if it is meant for disks to come, give `--allow {Oddity.UNMATCHED}`",
                    facts={"selector": selector},
                )
            )
    wanted = policy.wanted_disks
    bare = [
        each.vm.name for each in vms if each.vm.disks and not wanted.of_vm(each.vm).protected_disks
    ]
    if bare:
        found.append(
            Finding(
                oddity=Oddity.UNMATCHED,
                field="disks" if policy.disks else "exclude_disks",
                message="the policy leaves no disk of a VM: its backups will fail",
                advice="exclude the VM, or leave it a disk;"
                f" if it is meant for disks to come, give `--allow {Oddity.UNMATCHED}`",
                facts={"vm": bare[0], "vms_like_it": len(bare)},
            )
        )
    return found


def _never_open(policy: Policy, now: datetime) -> list[Finding]:
    moments = list(islice(due_after(policy.calendar, now), DUE_MOMENTS_LOOKED_AT))
    if any(is_open(policy.windows, moment) for moment in moments):
        return []
    return [
        Finding(
            oddity=None,
            field="window",
            message="the window is closed whenever the policy is due: its runs wait until it opens",
            advice="",
            facts={"window": policy.window, "start": policy.start},
        )
    ]


def _too_short(
    policy: Policy,
    selection: Selection,
    vms: Sequence[SelectableVm],
    lengths: Mapping[int, RunLengths],
    now: datetime,
) -> list[Finding]:
    longest = longest_opening(policy.windows, now).seconds
    if longest is None:
        return []
    known = {number: lengths[number] for number in selection.chosen if number in lengths}
    never = [number for number, each in known.items() if each.shortest_seconds > longest]
    once = [number for number, each in known.items() if each.longest_seconds > longest]
    if never:
        slowest = max(never, key=lambda number: known[number].shortest_seconds)
        return [
            Finding(
                oddity=Oddity.SHORT_WINDOW,
                field="window",
                message="the longest opening of the window is shorter than any backup of a VM was",
                advice="make the window longer, or leave the VM to another policy;"
                f" if it will be faster now, give `--allow {Oddity.SHORT_WINDOW}`",
                facts={
                    "longest_opening": duration_text(longest),
                    "vm": vms[slowest].vm.name,
                    "shortest_backup": duration_text(known[slowest].shortest_seconds),
                    "vms_like_it": len(never),
                },
            )
        ]
    if once:
        slowest = max(once, key=lambda number: known[number].longest_seconds)
        return [
            Finding(
                oddity=None,
                field="window",
                message="some backups took longer than the longest opening of the window",
                advice="",
                facts={
                    "longest_opening": duration_text(longest),
                    "vm": vms[slowest].vm.name,
                    "longest_backup": duration_text(known[slowest].longest_seconds),
                    "vms_like_it": len(once),
                },
            )
        ]
    return []


def duration_text(seconds: float) -> str:
    """For people: 45 s, 12 min, 26.5 h, 3.2 d."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"

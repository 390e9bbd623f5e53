"""Whether a selection by tags can be answered. Pure.

Tags come by a way of their own and may be missing where the VMs are known. Then nobody may believe that
a tag was looked at: a `tag:` that chooses is refused where a vCenter's tags were never read, one that
excludes as soon as a chosen VM's tags are not known. Tags that are old are used, and their age is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from holdfast_common.clock import parse_utc
from holdfast_common.errors import CapabilityAbsent
from holdfast_controller.facts import VmFacts, VmTag

NAMES_TOLD_MAX: Final = 5
NEVER_READ: Final = "they were never read"
SINGLE_HOST: Final = "a single host has no tags"
_DAY: Final = timedelta(days=1)
_HOUR: Final = timedelta(hours=1)
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TagSource:
    """Tags of one vCenter or host. ``taken_at`` "": they are not known; ``problem`` "": they were read last time."""

    vcenter_name: str
    is_vcenter: bool
    taken_at: str
    problem: str

    @property
    def known(self) -> bool:
        """Whether there are any to judge by."""
        return self.is_vcenter and bool(self.taken_at)

    @property
    def reason(self) -> str:
        """Why they are not known."""
        return (self.problem or NEVER_READ) if self.is_vcenter else SINGLE_HOST


class TaggedVm(Protocol):
    """A VM with what is known of its tags; None: nothing."""

    @property
    def vcenter_name(self) -> str:
        """Where it is."""
        ...

    @property
    def vm(self) -> VmFacts:
        """The VM."""
        ...

    @property
    def tags(self) -> tuple[VmTag, ...] | None:
        """None: not known."""
        ...


def check_choosing(selector: str, sources: Sequence[TagSource]) -> None:
    """Whether `tag:` may choose VMs of these. Raises: CapabilityAbsent.

    Single hosts beside a vCenter are passed over: they have no tags, and `told` says so.
    """
    missing = [each for each in sources if each.is_vcenter and not each.known]
    if not missing and not any(each.known for each in sources):
        missing = list(sources)
    if missing:
        raise CapabilityAbsent(
            "VMs cannot be selected by tag: the tags there are not known",
            selector=selector,
            vcenter=_names([each.vcenter_name for each in missing]),
            reason=missing[0].reason,
            advice="select with --vcenter where tags are known, or by name, folder: or another kind;"
            " `holdfast vcenter refresh` reads tags again",
        )


def check_excluding(
    selector: str, chosen: Iterable[TaggedVm], sources: Sequence[TagSource]
) -> None:
    """Whether `tag:` may exclude of these VMs. Raises: CapabilityAbsent when tags of one are not known."""
    reasons = {each.vcenter_name: each.reason for each in sources if not each.known}
    unknown = [each for each in chosen if each.tags is None]
    if unknown:
        name = unknown[0].vcenter_name
        raise CapabilityAbsent(
            "VMs cannot be excluded by tag: the tags of some that are chosen are not known",
            selector=selector,
            vms=_names([each.vm.name for each in unknown]),
            vcenter=name,
            reason=reasons.get(
                name, "the VM was not there, or not ours to see, when tags were read"
            ),
            advice="exclude them by name or folder:, or choose with --vcenter where tags are known;"
            " `holdfast vcenter refresh` reads tags again",
        )


def told(
    sources: Iterable[TagSource],
    vms: Sequence[TaggedVm],
    now: datetime,
    *,
    silent: Sequence[str] = (),
) -> list[str]:
    """What whoever selects by tags should know: where there are none, and how old others are.

    ``silent``: vCenters of whose tags a reading still goes on.
    """
    lines = []
    for each in sources:
        if not each.is_vcenter:
            lines.append(f"{each.vcenter_name}: {SINGLE_HOST}, and `tag:` names none of its VMs")
            continue
        problem = "it does not answer" if each.vcenter_name in silent else each.problem
        if each.known and problem:
            lines.append(
                f"the tags of the VMs of {each.vcenter_name} are {age_text(each.taken_at, now)} old:"
                f" they could not be read again: {problem}"
            )
        unknown = [
            vm.vm.name for vm in vms if vm.vcenter_name == each.vcenter_name and vm.tags is None
        ]
        if each.known and unknown:
            lines.append(
                f"the tags of {len(unknown)} VMs of {each.vcenter_name} are not known, and `tag:`"
                f" names none of them: {_names(unknown)}"
            )
    return lines


def age_text(taken_at: str, now: datetime) -> str:
    """``7 minutes``, ``3 hours``, ``12 days``."""
    age = max(timedelta(0), now - parse_utc(taken_at))
    for unit, name, enough in ((_DAY, "days", 2), (_HOUR, "hours", 2)):
        if age >= unit * enough:
            return f"{age // unit} {name}"
    return f"{age // _MINUTE} minutes"


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMES_TOLD_MAX
    return ", ".join(names[:NAMES_TOLD_MAX]) + (f" and {more} more" if more > 0 else "")

"""The tags of VMs: beside the inventory, over `rest`, in few requests however many VMs there are.

A tag that the account may not read is left out by vCenter without a word. So a missing tag proves nothing
about rights; that a selector names no VM is an error of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import CapabilityAbsent, NotFound
from holdfast_controller.facts import TagReading, VmTag
from holdfast_controller.vsphere.rest import RIGHTS, RestSession
from holdfast_controller.vsphere.session import VsphereSession

VMS_OF_ONE_REQUEST: Final = 1000  # vCenter's own advice is at most 2,000
REFUSED_VMS_MAX: Final = 20  # more refused one by one: it is the account, not the VM
PATIENCE_SECONDS: Final = 60.0  # the inventory itself is read; its tags may be older
CATEGORY: Final = "cis/tagging/category"
TAG: Final = "cis/tagging/tag"
ASSOCIATION: Final = "cis/tagging/tag-association"
ATTACHED: Final = "list-attached-tags-on-objects"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObjectId:
    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObjectTags:
    object_id: _ObjectId
    tag_ids: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tag:
    name: str
    category_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Category:
    name: str


def read_vm_tags(session: VsphereSession, morefs: Iterable[str]) -> TagReading:
    """The tags of these VMs as they are now; a VM of which vCenter tells nothing is left out.

    Raises: CapabilityAbsent (a single host, no REST, no right), AuthenticationFailed, VsphereUnavailable and
    its kin.
    """
    if not session.is_vcenter:
        raise CapabilityAbsent("a single host has no tags", host=session.address.host)
    wanted = tuple(morefs)

    def read() -> TagReading:
        taken_at = utc_text(session.clock.now())
        with RestSession(session) as rest:
            attached = _attached(rest, wanted)
            named = _named(rest, {each for ids in attached.values() for each in ids})
        found = {
            moref: tuple(sorted((named[each] for each in ids if each in named), key=_order))
            for moref, ids in attached.items()
        }
        return TagReading(taken_at=taken_at, vms=found)

    return session.patiently(read, seconds_max=PATIENCE_SECONDS)


def _order(tag: VmTag) -> tuple[str, str]:
    return tag.category, tag.name


def _attached(rest: RestSession, morefs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The ids of the tags by VM. One VM that is refused (it is gone, or is not ours to see) spoils no other."""
    found: dict[str, tuple[str, ...]] = {}
    starts = range(0, len(morefs), VMS_OF_ONE_REQUEST)
    waiting = [morefs[start : start + VMS_OF_ONE_REQUEST] for start in starts]
    refused = 0
    while waiting:
        batch = waiting.pop()
        try:
            found |= _attached_of(rest, batch)
        except (CapabilityAbsent, NotFound) as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                waiting += [batch[:middle], batch[middle:]]
                continue
            refused += 1
            if refused > REFUSED_VMS_MAX or refused == len(morefs):
                raise CapabilityAbsent(
                    "the account may not read the tags of VMs", cause=str(error), advice=RIGHTS
                ) from error
    return found


def _attached_of(rest: RestSession, morefs: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    objects = [{"type": "VirtualMachine", "id": moref} for moref in morefs]
    answer = rest.ask(
        ASSOCIATION,
        ATTACHED,
        {"object_ids": objects},
        list[_ObjectTags] | None,  # type: ignore[arg-type]  # a union is a type to msgspec
    )
    # one without tags may be left out of the answer
    found: dict[str, tuple[str, ...]] = dict.fromkeys(morefs, ())
    for each in answer or ():
        if each.object_id.id in found:
            found[each.object_id.id] = tuple(each.tag_ids or ())
    return found


def _named(rest: RestSession, identifiers: set[str]) -> Mapping[str, VmTag]:
    """Tags by id; one that was removed meanwhile is left out."""
    categories: dict[str, str] = {}
    found = {}
    for identifier in sorted(identifiers):
        try:
            tag = rest.get(TAG, identifier, _Tag)
            if tag.category_id not in categories:
                category = rest.get(CATEGORY, tag.category_id, _Category)
                categories[tag.category_id] = category.name
        except NotFound:
            continue
        found[identifier] = VmTag(category=categories[tag.category_id], name=tag.name)
    return found

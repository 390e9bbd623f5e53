"""Which VMs a selector names. Pure: what was seen in vSphere in, yes or no out.

A selector is a VM's name, its instance uuid, ``glob*``, ``vcenter/glob*``, or a kind and a pattern:
``folder:/Berlin/web``, ``host:esx1*``, ``cluster:prod*``, ``pool:gold``, ``datastore:nfs1``,
``tag:gold``, ``tag:Backup/gold``, ``power:on``. Folders and pools name all that is below them.
Whether the tags of a VM are known at all is looked at in `tag_knowledge`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import UsageError
from holdfast_controller.facts import HostFacts, PlaceFacts, VmFacts, VmTag

POWER_STATES: Final[Mapping[str, str]] = {
    "on": "poweredOn",
    "off": "poweredOff",
    "suspended": "suspended",
}
SELECTOR_LENGTH_MAX: Final = 1024  # a dozen folders below each other, of 80 characters each
SHOWN_LENGTH_MAX: Final = 100
_CLUSTER_KIND: Final = "ClusterComputeResource"
_POOL_KINDS: Final = frozenset({"ResourcePool", "VirtualApp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectableVm:
    """A VM and where it is. ``cluster_name``: empty for a host that is in none.

    ``pool_path``: as `PlaceFacts`; ``pool_names``: of its resource pool or vApp and of those above it.
    ``tags`` None: they are not known, and no `tag:` names it.
    """

    vcenter_name: str
    vm: VmFacts
    cluster_name: str = ""
    pool_path: str = ""
    pool_names: tuple[str, ...] = ()
    tags: tuple[VmTag, ...] | None = None


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Clusters and pools of one vCenter, to be asked for each VM."""

    cluster_of_host: Mapping[str, str]
    places: Mapping[str, PlaceFacts]

    @classmethod
    def of(cls, hosts: Iterable[HostFacts], places: Iterable[PlaceFacts]) -> Whereabouts:
        """From what was read of the vCenter."""
        by_moref = {place.moref: place for place in places}
        clusters = {}
        for host in hosts:
            compute = by_moref.get(host.compute_moref)
            if compute is not None and compute.kind == _CLUSTER_KIND:
                clusters[host.moref] = compute.name
        return cls(clusters, by_moref)

    def selectable(
        self, vcenter_name: str, vm: VmFacts, tags: tuple[VmTag, ...] | None = None
    ) -> SelectableVm:
        """The VM with where it is; ``tags`` None: they are not known."""
        return SelectableVm(
            vcenter_name=vcenter_name,
            vm=vm,
            cluster_name=self.cluster_of_host.get(vm.host_moref, ""),
            pool_path=self.places[vm.pool_moref].path if vm.pool_moref in self.places else "",
            pool_names=tuple(self._pool_names(vm.pool_moref)),
            tags=tags,
        )

    def _pool_names(self, moref: str) -> Iterator[str]:
        seen: set[str] = set()
        while moref in self.places and moref not in seen:
            seen.add(moref)
            place = self.places[moref]
            if place.kind not in _POOL_KINDS:
                return
            yield place.name
            moref = place.parent_moref


def cluster_of_host(moref: str, hosts: Iterable[HostFacts], places: Iterable[PlaceFacts]) -> str:
    """The name of the cluster that a host is in; empty: in none, or the host is not known."""
    compute = next((host.compute_moref for host in hosts if host.moref == moref), "")
    found = (
        place.name for place in places if place.moref == compute and place.kind == _CLUSTER_KIND
    )
    return next(found, "")


def matches(each: SelectableVm, selector: str) -> bool:
    """Whether the selector names this VM. Raises: UsageError for a pattern that its kind cannot have."""
    kind, colon, pattern = selector.partition(":")
    if colon and kind in _KINDS:
        return _KINDS[kind](each, pattern)
    if selector in (each.vm.name, each.vm.instance_uuid):
        return True
    vcenter, slash, name = selector.partition("/")
    if slash and vcenter == each.vcenter_name:
        return fnmatch.fnmatchcase(each.vm.name, name)
    return fnmatch.fnmatchcase(each.vm.name, selector)


def check_length(selector: str) -> None:
    """Raises: UsageError when it is longer than anything in vSphere is named."""
    if len(selector) > SELECTOR_LENGTH_MAX:
        raise UsageError(
            "a selector is too long",
            selector=f"{selector[:SHOWN_LENGTH_MAX]}…",
            length=len(selector),
            length_max=SELECTOR_LENGTH_MAX,
        )


def check_selector(selector: str) -> None:
    """Whether it can be answered at all. Raises: UsageError, which says what can."""
    check_length(selector)
    kind, colon, pattern = selector.partition(":")
    if not selector or (colon and kind in _KINDS and not pattern):
        raise UsageError("a selector names nothing", selector=selector, advice=_ADVICE)
    if colon and kind == "tag" and pattern != pattern.strip("/"):
        raise UsageError("write tag:name or tag:Category/name", selector=selector, advice=_ADVICE)
    if colon and kind == "power":
        _power_state(pattern)


def names_tags(selector: str) -> bool:
    """Whether it can be answered only where tags are known."""
    return selector.startswith("tag:")


def _power_state(pattern: str) -> str:
    state = POWER_STATES.get(pattern)
    if state is None:
        raise UsageError(
            "a VM is on, off or suspended", selector=f"power:{pattern}", advice=_ADVICE
        )
    return state


def _is_below(path: str, pattern: str) -> bool:
    wanted = "/" + pattern.strip("/")
    return path == wanted or path.startswith(wanted.rstrip("/") + "/")


def _in_pool(each: SelectableVm, pattern: str) -> bool:
    """By its path, or by the name of the pool itself or of one above it."""
    return _is_below(each.pool_path, pattern) or any(
        fnmatch.fnmatchcase(name, pattern) for name in each.pool_names
    )


def _has_tag(each: SelectableVm, pattern: str) -> bool:
    """``name``, or ``category/name``; both may have slashes of their own."""
    parts = pattern.split("/")
    pairs = [("/".join(parts[:at]), "/".join(parts[at:])) for at in range(1, len(parts))]
    return any(
        fnmatch.fnmatchcase(tag.name, pattern)
        or any(
            fnmatch.fnmatchcase(tag.category, category) and fnmatch.fnmatchcase(tag.name, name)
            for category, name in pairs
        )
        for tag in each.tags or ()
    )


_KINDS: Final[Mapping[str, Callable[[SelectableVm, str], bool]]] = {
    "folder": lambda each, pattern: _is_below(each.vm.place, pattern),
    "host": lambda each, pattern: fnmatch.fnmatchcase(each.vm.host_name, pattern),
    "cluster": lambda each, pattern: (
        fnmatch.fnmatchcase(each.cluster_name, pattern) and bool(each.cluster_name)
    ),
    "pool": _in_pool,
    "datastore": lambda each, pattern: any(
        fnmatch.fnmatchcase(name, pattern) for name in each.vm.datastore_names
    ),
    "tag": _has_tag,
    "power": lambda each, pattern: each.vm.power_state == _power_state(pattern),
}
_ADVICE: Final = (
    "a selector is a name, a glob, or one of "
    + ", ".join(f"{kind}:" for kind in _KINDS)
    + " with what follows; see `holdfast inventory list --help`"
)

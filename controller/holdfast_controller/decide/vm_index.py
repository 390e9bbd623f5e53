"""All VMs, for many selectors: each is answered by what VMs differ in, not by a look at every VM. Pure.

It names what `selection.matches` names. Ten thousand VMs are on some hundred hosts and in some hundred folders, so a
selector of such a kind is asked once for each of those; a name without a pattern is looked up.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final, overload

from holdfast_controller.decide.selection import SelectableVm, matches

_PATTERN: Final = frozenset("*?[")  # a selector without any of these is a plain name
# By kind: what its answer depends on. Of a kind that is not here every VM is asked.
_DEPENDS_ON: Final[Mapping[str, Callable[[SelectableVm], Hashable]]] = {
    "folder": lambda each: each.vm.place,
    "host": lambda each: each.vm.host_name,
    "cluster": lambda each: each.cluster_name,
    "pool": lambda each: (each.pool_path, each.pool_names),
    "datastore": lambda each: each.vm.datastore_names,
    "tag": lambda each: each.tags,
    "power": lambda each: each.vm.power_state,
}


class VmIndex(Sequence[SelectableVm]):
    """The VMs, in their order. One thread at a time."""

    def __init__(self, vms: Iterable[SelectableVm]) -> None:
        self._vms = tuple(vms)
        self._by_name: defaultdict[str, list[int]] = defaultdict(list)
        self._of_vcenter: defaultdict[str, list[int]] = defaultdict(list)
        for number, each in enumerate(self._vms):
            self._of_vcenter[each.vcenter_name].append(number)
            for name in {each.vm.name, each.vm.instance_uuid}:
                self._by_name[name].append(number)
        self._alike: dict[str, list[tuple[SelectableVm, list[int]]]] = {}

    @overload
    def __getitem__(self, place: int) -> SelectableVm: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[SelectableVm]: ...

    def __getitem__(self, place: int | slice) -> SelectableVm | Sequence[SelectableVm]:
        return self._vms[place]

    def __len__(self) -> int:
        return len(self._vms)

    def named(self, selector: str) -> set[int]:
        """The places of the VMs that it names. Raises: UsageError, as `matches` does."""
        kind, colon, _ = selector.partition(":")
        if not colon:
            return self._by_pattern(selector)
        if kind in _DEPENDS_ON:
            return {
                number
                for one, numbers in self._groups(kind)
                if matches(one, selector)
                for number in numbers
            }
        return {number for number, each in enumerate(self._vms) if matches(each, selector)}

    def _by_pattern(self, selector: str) -> set[int]:
        vcenter, slash, name = selector.partition("/")
        there = self._of_vcenter.get(vcenter, []) if slash else []
        found = self._with_names(name, there)
        if _PATTERN & set(selector):
            everywhere = range(len(self._vms))
            elsewhere = set(everywhere).difference(there) if there else everywhere
            found |= self._with_names(selector, elsewhere)
        return found | set(self._by_name.get(selector, ()))  # also a name that looks like a pattern

    def _with_names(self, pattern: str, among: Iterable[int]) -> set[int]:
        match = re.compile(fnmatch.translate(pattern)).match
        return {number for number in among if match(self._vms[number].vm.name)}

    def _groups(self, kind: str) -> list[tuple[SelectableVm, list[int]]]:
        """VMs that a selector of this kind cannot tell apart: one of them, and the places of all."""
        if kind not in self._alike:
            groups: defaultdict[Hashable, list[int]] = defaultdict(list)
            for number, each in enumerate(self._vms):
                groups[_DEPENDS_ON[kind](each)].append(number)
            self._alike[kind] = [(self._vms[numbers[0]], numbers) for numbers in groups.values()]
        return self._alike[kind]

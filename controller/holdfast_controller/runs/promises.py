"""How old the last good point of each VM may be, by the policies that select it. For figures and notices.

Which VMs a policy selects is looked for anew when policies change, and every ten minutes: all VMs have to be decoded
for it. Whether a promise is kept is asked of the catalogue each time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.identity import LineageId
from holdfast_controller.decide.coverage import promised_since, select
from holdfast_controller.decide.disk_choice import ALL_DISKS, WantedDisks
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store.protection import ProtectedVm

FRESH: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The strictest of a VM. ``since``: from when its age counts if it has no point (see `promised_since`)."""

    policy: str
    age_max: timedelta
    since: datetime

    def is_broken(self, vm: ProtectedVm, now: datetime) -> bool:
        """Whether the VM's newest good point is too old."""
        last = parse_utc(vm.last_good_at) if vm.last_good_at else self.since
        return now - last > self.age_max


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """``covered``: VMs that any policy selects. ``promises``: of those to which one promises something.

    ``disks``: what each policy saves of a VM; only of VMs of which one saves less than all.
    """

    covered: frozenset[LineageId]
    promises: Mapping[LineageId, Promise]
    disks: Mapping[LineageId, tuple[WantedDisks, ...]] = field(default_factory=dict)


class Promises:
    """One thread."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._found: Promised | None = None
        self._found_at: datetime | None = None
        self._seen: tuple[tuple[str, int], ...] = ()

    def now(self) -> Promised:
        """As of some minutes ago at most. Raises: Locked, StoreFailed."""
        world, now = self._world, self._world.clock.now()
        seen = tuple((each.policy_id, each.revision) for each in world.policies.policies())
        is_old = self._found_at is None or not timedelta(0) <= now - self._found_at < FRESH
        if self._found is None or is_old or seen != self._seen:
            self._found, self._found_at, self._seen = self._look(), now, seen
        return self._found

    def _look(self) -> Promised:
        world = self._world
        policies = [each for each in world.policies.policies() if each.policy.enabled]
        if not policies:
            return Promised(covered=frozenset(), promises={})
        uuids = {row.vcenter_id: row.instance_uuid for row in world.vcenters.table.all()}
        pairs = [
            (known, vm)
            for known, vm in world.vcenters.inventory.selectable()
            if known.vcenter_id in uuids
        ]
        lineages = [
            lineage_of(
                vcenter_instance_uuid=uuids[known.vcenter_id],
                vm_instance_uuid=known.vm.instance_uuid,
            )
            for known, _ in pairs
        ]
        covered: set[LineageId] = set()
        promises: dict[LineageId, Promise] = {}
        disks: defaultdict[LineageId, list[WantedDisks]] = defaultdict(list)
        for stored in policies:
            chosen = {
                lineages[n]: pairs[n][0]
                for n in select(stored.policy, [vm for _, vm in pairs]).chosen
            }
            covered.update(chosen)
            for lineage in chosen:
                disks[lineage].append(stored.policy.wanted_disks)
            age_max = stored.policy.promised
            if age_max is None:
                continue
            for lineage, known in chosen.items():
                if lineage not in promises or age_max < promises[lineage].age_max:
                    came = parse_utc(known.first_seen_at) if known.first_seen_at else None
                    promises[lineage] = Promise(
                        policy=stored.policy.name,
                        age_max=age_max,
                        since=promised_since(stored.created_at, came),
                    )
        return Promised(
            covered=frozenset(covered),
            promises=promises,
            disks={
                lineage: tuple(wanted)
                for lineage, wanted in disks.items()
                if any(each != ALL_DISKS for each in wanted)
            },
        )

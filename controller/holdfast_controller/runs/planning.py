"""What a plan of the days to come stands on: policies, VMs, limits, and how long backups took so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import CapabilityAbsent, Refused
from holdfast_controller.configuration import KeepingSettings
from holdfast_controller.decide.coverage import check_tags, select
from holdfast_controller.decide.dispatch import Way
from holdfast_controller.decide.keeping import begins_ahead, keeping_times
from holdfast_controller.decide.lanes import LANES_MAX, lanes_of
from holdfast_controller.decide.level import FULL, INCREMENTAL
from holdfast_controller.decide.plan import Plan, PlanDecision, PlannedPolicy, PlannedVm, VmKey
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.runs.loads import backup_loads, stream_limits, ways_of
from holdfast_controller.runs.placing import SeenFromHere
from holdfast_controller.runs.policy_runs import history_of
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store.inventory import KnownVm

HISTORY: Final = timedelta(days=60)  # of backups that tell how long the next ones take
# Of VMs that were never backed up: a guess, and told as one.
GUESSED_FULL_BYTES_PER_SECOND: Final = 100 << 20
GUESSED_INCREMENTAL_SHARE: Final = 0.05
GUESSED_OVERHEAD_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOfDays:
    """``decisions`` as they come, once.

    ``guessed``: VMs of policies whose backups were never timed. ``uncovered``: names of VMs that no policy selects, but for proxies.
    ``told``: VMs of policies that the backup itself stands on, and how they are handled; when the repository is kept.
    """

    decisions: Iterator[PlanDecision]
    policies: int
    vms: int
    guessed: int
    uncovered: tuple[str, ...]
    told: tuple[str, ...] = ()


def plan_of(world: World, *, days: float, now: datetime) -> PlanOfDays:
    """Raises: NotFound when a vCenter was never read; NoRepository."""
    inventory = world.vcenters.inventory
    pairs, sources = inventory.selectable(), inventory.tags.sources()
    index = VmIndex(vm for _, vm in pairs)
    policies, chosen = [], dict[VmKey, tuple[KnownVm, Policy]]()
    for stored in world.policies.policies():
        if not stored.policy.enabled:
            continue
        problem, vms = "", list[KnownVm]()
        try:
            check_tags(stored.policy, index, sources)
            vms = [pairs[number][0] for number in select(stored.policy, index).chosen]
        except CapabilityAbsent as error:
            problem = str(error)
        for known in vms:
            chosen.setdefault(_key(known), (known, stored.policy))
        policies.append(
            PlannedPolicy(
                policy_id=stored.policy_id,
                policy=stored.policy,
                history=history_of(world, stored, now),
                vms=tuple(_key(known) for known in vms),
                problem=problem,
            )
        )
    seconds = world.runs.backup_seconds(now - HISTORY)
    seen = SeenFromHere(world)
    planned = {
        key: _planned(world, seen, known, policy, seconds)
        for key, (known, policy) in chosen.items()
    }
    configuration, until = world.configuration, now + timedelta(days=days)
    plan = Plan(
        vms=planned,
        policies=policies,
        limits=stream_limits(configuration.jobs_at_once_max, configuration.limits),
        now=now,
        until=until,
    )
    return PlanOfDays(
        decisions=plan.decisions(),
        policies=len(policies),
        vms=len(planned),
        uncovered=tuple(
            known.vm.name
            for known, _ in pairs
            if _key(known) not in chosen and not known.vm.template and not seen.is_proxy(known)
        ),
        told=(
            *(text for known, _ in chosen.values() for text in seen.told_of_role(known)),
            *_keeping_told(configuration.keeping, now, until),
        ),
        guessed=sum((*key, INCREMENTAL) not in seconds for key in planned),
    )


def _keeping_told(settings: KeepingSettings, now: datetime, until: datetime) -> Iterator[str]:
    """When each task of keeping the repository begins, beside the backups."""
    for task, times in keeping_times(settings, now).items():
        begins = begins_ahead(times, now, until)
        if not begins:
            continue
        first = begins[0]
        assert first.opens_at is not None, "a moment in which it begins"
        text = f"keeping: {task} begins {first.opens_at:%Y-%m-%d %H:%M} UTC"
        if first.closes_at is not None:
            text += f" and stops by {first.closes_at:%H:%M}"
        yield text + (f", and {len(begins) - 1} more times" if len(begins) > 1 else "")


def _planned(
    world: World,
    seen: SeenFromHere,
    known: KnownVm,
    policy: Policy,
    seconds: Mapping[tuple[str, str, str], float],
) -> PlannedVm:
    key = _key(known)
    known = replace(known, vm=policy.wanted_disks.of_vm(known.vm))
    problem, ways = "", tuple[Way, ...]()
    try:
        request = BackupRequest(selectors=(), transport=policy.transport)
        ways = ways_of(known, seen.ways(known, request))
    except Refused as error:
        problem = str(error)
    if not known.vm.protected_disks:
        problem = "it has no disk that this policy saves"
    vcenter = world.vcenters.table.vcenter(known.vcenter_id)
    lineage_id = lineage_of(
        vcenter_instance_uuid=vcenter.instance_uuid, vm_instance_uuid=known.vm.instance_uuid
    )
    latest = world.catalogue.latest(lineage_id)
    full = world.catalogue.last_full_at(lineage_id)
    guessed_full = _size_bytes(known) / GUESSED_FULL_BYTES_PER_SECOND + GUESSED_OVERHEAD_SECONDS
    full_seconds = seconds.get((*key, FULL), guessed_full)
    guessed = GUESSED_OVERHEAD_SECONDS + full_seconds * GUESSED_INCREMENTAL_SHARE
    return PlannedVm(
        key=key,
        name=known.vm.name,
        loads=backup_loads(seen.around(known.vcenter_id), known),
        ways=ways,
        seconds=seconds.get((*key, INCREMENTAL), guessed),
        full_seconds=full_seconds,
        last_good=None if latest is None else parse_utc(latest.created_at),
        last_full=parse_utc(full) if full else None,
        problem=problem,
        storages=len(lanes_of(known.vm.protected_disks, lanes_max=LANES_MAX)),
    )


def _size_bytes(known: KnownVm) -> int:
    return sum(disk.capacity_bytes for disk in known.vm.protected_disks)


def _key(known: KnownVm) -> VmKey:
    return known.vcenter_id, known.vm.instance_uuid

"""What a policy asks for: which VMs it selects now, at which level, and how. For its calendar, and for who runs it by hand."""

from __future__ import annotations

from datetime import datetime

from holdfast_common.clock import parse_utc
from holdfast_common.errors import NothingProtected
from holdfast_controller.decide.coverage import check_tags, select
from holdfast_controller.decide.level import COMPARE, FULL
from holdfast_controller.decide.load_limits import LoadKey
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.left_of_run import busy_vms
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.policies import StoredPolicy


def selected_vms(world: World, engine: Engine, policy: Policy) -> tuple[list[KnownVm], list[str]]:
    """The VMs that it names now, without those at work, and what is to be told of its selection.

    Empty when all of them are at work. Raises: NothingProtected when there is none at all; CapabilityAbsent and
    its kin when it cannot be said.
    """
    told = engine.read_inventories((*policy.vms, *policy.exclude))
    inventory = world.vcenters.inventory
    pairs = inventory.selectable()
    vms = VmIndex(vm for _, vm in pairs)
    check_tags(policy, vms, inventory.tags.sources())
    selection = select(policy, vms)
    # a selector that names nothing holds no run up at night, but it is told
    told += [
        f"the selector {getattr(policy, field)[position]} names no VM"
        for field, position in selection.unmatched
    ]
    chosen = {
        (known.vcenter_id, known.vm.instance_uuid): known
        for known in (pairs[number][0] for number in selection.chosen)
    }
    if not chosen:
        raise NothingProtected("the policy selects no VM", policy=policy.name)
    busy = busy_vms(world)
    for identity in [each for each in chosen if each in busy]:
        name = chosen.pop(identity).vm.name
        told.append(f"{name}: left out, it is at work in job {busy[identity]}")
    return list(chosen.values()), told


def level_of_vm(
    world: World, policy: Policy, known: KnownVm, *, level: str, slot: datetime
) -> tuple[str, str]:
    """The level of one VM, and why when the policy's calendars alone, which say ``level``, do not say it."""
    if level == FULL:
        return FULL, ""
    vcenter = world.vcenters.table.vcenter(known.vcenter_id)
    lineage_id = lineage_of(
        vcenter_instance_uuid=vcenter.instance_uuid, vm_instance_uuid=known.vm.instance_uuid
    )
    read_whole = world.catalogue.last_full_at(lineage_id)
    last_full = parse_utc(read_whole) if read_whole else None
    if policy.full_is_due(last_full=last_full, slot=slot):
        return (
            COMPARE,
            f"read whole and compared, {policy.level.full_days} days after it was last",
        )
    return level, ""


def policy_request(
    stored: StoredPolicy, *, level: str, priority: int, gates: tuple[LoadKey, ...]
) -> BackupRequest:
    """As the policy says it. ``level`` "": incremental."""
    policy = stored.policy
    return BackupRequest(
        selectors=policy.vms,
        excludes=policy.exclude,
        level=level or "incremental",
        consistency=policy.consistency,
        transport=policy.transport,
        policy=policy.name,
        when_not_reached=policy.when_not_reached,
        priority=priority,
        attempts_max=policy.attempts_max,
        lanes=policy.lanes,
        resume_seconds=policy.resume_seconds,
        disks=policy.wanted_disks,
        gates=gates,
    )

"""What `doctor` looks at in VMs: what forbids a snapshot, change tracking, Tools, disks that no image holds, own VMs."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast_common.errors import HoldfastError
from holdfast_controller.decide.coverage import select
from holdfast_controller.decide.machine_roles import OwnVms
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.facts import VmFacts
from holdfast_controller.runs.check_lines import FAILED, OK, WARNING, Check, CheckLine
from holdfast_controller.runs.own_machines import own_machines
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.vsphere.change_tracking import HARDWARE_VERSION_MIN, hindrance
from holdfast_controller.vsphere.preflight import judge

TOOLS_RUN = "guestToolsRunning"


def vm_lines(world: World) -> Iterator[CheckLine]:
    """Every VM that somebody might want a backup of."""
    quiesced = _quiesced(world)
    for known in world.vcenters.inventory.vms():
        vm = known.vm
        if vm.template:
            continue
        name = f"VM {vm.name}"
        refusals = judge(vm, {}).refusals
        if refusals:
            yield CheckLine(
                check=Check.VM_SNAPSHOT,
                name=name,
                state=FAILED,
                detail=f"cannot be backed up: {'; '.join(refusals)}",
                advice="put that right in vSphere; each of its backups is refused before that",
            )
        yield from _tracking(world, known)
        asked = quiesced.get(vm.instance_uuid)
        if asked and vm.power_state == "poweredOn" and vm.tools_running != TOOLS_RUN:
            yield CheckLine(
                check=Check.VM_TOOLS,
                name=name,
                state=WARNING,
                detail=f"policy {asked} wants it quiesced, and VMware Tools do not run in it",
                advice="start or install VMware Tools in the guest",
            )
        for disk in vm.unprotected_disks:
            yield CheckLine(
                check=Check.VM_DISKS,
                name=name,
                state=WARNING,
                detail=f"{disk.label} is in no image backup: {disk.unprotected_reason}",
                advice="back its data up from inside the guest",
            )


def own_vm_lines(world: World) -> list[CheckLine]:
    """The VMs that the backup itself stands on, and how they are handled."""
    own = OwnVms(own_machines(world))
    return [
        CheckLine(check=Check.OWN_VM, name=f"VM {known.vm.name}", state=OK, detail=role.text)
        for known in world.vcenters.inventory.vms()
        for role in own.roles(known.vm)
    ]


def _tracking(world: World, known: KnownVm) -> Iterator[CheckLine]:
    vm = known.vm
    if not vm.protected_disks:
        return
    if vm.hardware_version < HARDWARE_VERSION_MIN:
        yield CheckLine(
            check=Check.VM_HARDWARE,
            name=f"VM {vm.name}",
            state=WARNING,
            detail=f"{hindrance(vm)}: there is no change tracking, and every backup reads everything",
            advice="upgrade its virtual hardware while it is switched off",
        )
        return
    problem = "" if vm.change_tracking_enabled else _why_off(world, known)
    if problem:
        yield CheckLine(
            check=Check.VM_TRACKING,
            name=f"VM {vm.name}",
            state=WARNING,
            detail=f"change tracking is off: {problem}",
            advice="remove its snapshots, or find out who switches it off; a backup then switches it on again",
        )


def _why_off(world: World, known: KnownVm) -> str:
    """Empty when the next backup just switches it on, as the first one does."""
    problem = hindrance(known.vm)
    if problem:
        return problem
    vcenter = world.vcenters.table.vcenter(known.vcenter_id)
    lineage_id = lineage_of(
        vcenter_instance_uuid=vcenter.instance_uuid, vm_instance_uuid=known.vm.instance_uuid
    )
    if world.catalogue.latest(lineage_id) is None:
        return ""
    return "somebody switched it off after an earlier backup"


def _quiesced(world: World) -> dict[str, str]:
    """By instance uuid the policy that wants the VM quiesced."""
    wanted = [
        stored.policy
        for stored in world.policies.policies()
        if stored.policy.enabled and stored.policy.consistency in ("filesystem", "application")
    ]
    if not wanted:
        return {}
    found: dict[str, str] = {}
    pairs = world.vcenters.inventory.selectable()
    index = VmIndex(vm for _, vm in pairs)
    for policy in wanted:
        try:
            chosen: list[VmFacts] = [pairs[each][0].vm for each in select(policy, index).chosen]
        except HoldfastError:
            continue  # its runs say what is wrong with it
        for vm in chosen:
            found.setdefault(vm.instance_uuid, policy.name)
    return found

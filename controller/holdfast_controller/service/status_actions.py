"""What `holdfast status` tells: each VM's last good point against what policies promise, what is wrong, what is owed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import NotFound
from holdfast_common.identity import LineageId
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.coverage import KnownPolicy, VmCover, cover
from holdfast_controller.decide.disk_choice import unsaved_disks
from holdfast_controller.runs.keeping_state import keeping_warnings
from holdfast_controller.runs.notifier import sending_problem
from holdfast_controller.runs.repository_verdict import repository_verdict
from holdfast_controller.runs.schedule_warnings import schedule_warnings
from holdfast_controller.runs.self_backup import copy_verdict
from holdfast_controller.runs.verified_data import read_back_at
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.service.keeping_messages import keeping_message
from holdfast_controller.service.operator_messages import debt_message, job_message
from holdfast_controller.store import settings as names
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.protection import NewestOfVm, ProtectedVm

VMS_OF_STATUS_MAX: Final = 10_000
DOUBTS_OF_STATUS_MAX: Final = 3
NOTHING_YET: Final = NewestOfVm(point_id="", result="")  # a VM that came just now


class StatusActions:
    """Thread-safe: everything that it uses is."""

    def __init__(self, world: World, *, told: Callable[[], Sequence[str]] = tuple) -> None:
        """``told``: what else is to be told now, of datastores that are slow."""
        self._world = world
        self._told = told

    def status(self) -> operator_pb2.Status:
        """All but agents and vCenters. VMs whose promise is broken come first, the latest before the others."""
        world = self._world
        verdict = repository_verdict(world)
        repository_id = world.settings.get(names.REPOSITORY_ID)
        pairs = world.vcenters.inventory.selectable()
        known = [each for each, _ in pairs]
        lineages = self._lineages(known)
        protected = {vm.lineage_id: vm for vm in world.protection.vms()}
        good = [protected.get(each or LineageId("")) for each in lineages]
        good_at = ["" if each is None else each.last_good_at for each in good]
        policies = [
            KnownPolicy(policy=stored.policy, created_at=stored.created_at)
            for stored in world.policies.policies()
        ]
        covers = cover(
            policies,
            [vm for _, vm in pairs],
            [_moment(text) for text in good_at],
            now=world.clock.now(),
            first_seen=[_moment(each.first_seen_at) for each in known],
        )
        read_back = read_back_at(world)
        newest = world.protection.newest()
        order = sorted(range(len(known)), key=lambda n: _lateness(covers[n]), reverse=True)
        return operator_pb2.Status(
            vms=[
                _vm_message(
                    known[n],
                    newest.get((known[n].vcenter_id, known[n].vm.instance_uuid), NOTHING_YET),
                    good[n],
                    covers[n],
                    read_back_at=read_back.get(lineages[n] or LineageId(""), ""),
                )
                for n in order[:VMS_OF_STATUS_MAX]
            ],
            running=[job_message(job) for job in world.jobs.unfinished()],
            debts=[
                debt_message(entry, vcenter=self._vcenter_name(entry.vcenter_id))
                for entry in world.ledger.debts()
            ],
            warnings=[
                *self._warnings(verdict.doubt),
                *schedule_warnings(world),
                *keeping_warnings(world),
                *self._told(),
                *_idle_policies(policies, covers),
            ],
            repository_id=repository_id,
            repository_problem=world.keeper.problem() or verdict.damage,
            uncovered=sum(not each.policies for each in covers),
            late=sum(each.late is not None for each in covers),
            policies=sum(each.policy.enabled for each in policies),
            keeping=keeping_message(
                world,
                covered={
                    lineage_id
                    for lineage_id, each in zip(lineages, covers, strict=True)
                    if lineage_id is not None and each.policies
                },
            ),
        )

    def _lineages(self, known: Sequence[KnownVm]) -> list[LineageId | None]:
        """Of each VM: in another vCenter another one may have its instance uuid. None: the vCenter was removed."""
        instance_uuids: Mapping[str, str] = {
            row.vcenter_id: row.instance_uuid for row in self._world.vcenters.table.all()
        }
        return [
            lineage_of(
                vcenter_instance_uuid=instance_uuids[each.vcenter_id],
                vm_instance_uuid=each.vm.instance_uuid,
            )
            if each.vcenter_id in instance_uuids
            else None
            for each in known
        ]

    def _warnings(self, doubt: str) -> list[str]:
        world = self._world
        warnings = [f"{doubt}: run `holdfast check`"] if doubt else []
        if world.settings.get(names.REPOSITORY_ID) and not world.settings.get(
            names.SHEET_CONFIRMED_AT
        ):
            warnings.append("the recovery sheet was never confirmed: no backup will start")
        if notifying := sending_problem(world):
            warnings.append(notifying)
        copy = copy_verdict(world)
        warnings += [copy.problem] if copy.problem else []
        suspects = world.catalogue.suspects()
        if suspects:
            told = "; ".join(sorted(set(suspects.values()))[:DOUBTS_OF_STATUS_MAX])
            warnings.append(
                f"restore points in doubt: {len(suspects)}, see `holdfast point list`: {told}"
            )
        for row in world.vcenters.table.all():
            if row.last_error:
                warnings.append(f"vCenter {row.name}: {row.last_error}")
        return warnings

    def _vcenter_name(self, vcenter_id: str) -> str:
        try:
            return self._world.vcenters.table.vcenter(vcenter_id).name
        except NotFound:
            return vcenter_id


def _vm_message(
    known: KnownVm,
    newest: NewestOfVm,
    good: ProtectedVm | None,
    covered: VmCover,
    *,
    read_back_at: str,
) -> operator_pb2.VmStatus:
    vm = known.vm
    return operator_pb2.VmStatus(
        vcenter=known.vcenter_name,
        name=vm.name,
        instance_uuid=vm.instance_uuid,
        last_good_at="" if good is None else good.last_good_at,
        confidence=None if good is None else good.confidence,
        last_point_id=newest.point_id,
        last_result=newest.result,
        unprotected=[
            f"{disk.label}: {disk.reason}" for disk in unsaved_disks(vm.disks, covered.disks)
        ],
        policies=covered.policies,
        promised_seconds=0 if covered.promised is None else int(covered.promised.total_seconds()),
        late_seconds=0 if covered.late is None else max(1, int(covered.late.total_seconds())),
        broken_by=covered.broken,
        read_back_at=read_back_at,
    )


def _idle_policies(policies: Sequence[KnownPolicy], covers: Sequence[VmCover]) -> list[str]:
    selecting = {name for each in covers for name in each.policies}
    return [
        f"policy {each.policy.name} selects no VM: see `holdfast policy show`"
        for each in policies
        if each.policy.enabled and each.policy.name not in selecting
    ]


def _lateness(covered: VmCover) -> float:
    return 0.0 if covered.late is None else covered.late.total_seconds()


def _moment(text: str) -> datetime | None:
    """None: never, or at a time that nobody can read."""
    try:
        return parse_utc(text) if text else None
    except ValueError:
        return None

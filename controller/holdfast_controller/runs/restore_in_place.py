"""A point's disks take the places of a VM's present ones: proven twice before anything old is deleted.

A helper VM is made beside the VM and its disks are written and read back, as for a new VM. They are
detached from it, moved beside the VM's own and exchanged in one change. Then they are read back once
more through the VM itself; only then the present disks go. On any other way out the VM has its old disks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from holdfast_common.errors import HoldfastError, Refused, SourceGone, UsageError, VsphereFailed
from holdfast_common.identity import LineageId
from holdfast_common.job_result import JobResult, Outcome, Warned
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.decide.placement import Placement
from holdfast_controller.facts import VmFacts
from holdfast_controller.runs.disks_in_place import (
    file_of,
    foreign_disks,
    present_disks,
    refuse_foreign_disks,
)
from holdfast_controller.runs.earlier_attempts import give_back_earlier
from holdfast_controller.runs.made_vms import MadeVm, VmWish, made_vm, read_back_tickets
from holdfast_controller.runs.point_facts import PointFacts
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.runs.restore_target import RestoreTarget, check_room
from holdfast_controller.runs.restore_vm import (
    DiskMover,
    original_vm,
    place_restore,
    raise_unless_done_with,
)
from holdfast_controller.runs.results import judged
from holdfast_controller.runs.tracking_audits import doubts_of
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.vsphere.configuration import parse_configuration
from holdfast_controller.vsphere.datastore_files import place_of
from holdfast_controller.vsphere.disk_swap import (
    RestoredDisk,
    refuse_unless_possible,
    swapped_disks,
)
from holdfast_controller.vsphere.inventory import Surroundings, read_surroundings, read_vm
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.virtual_machines import detach_disk, power_on


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """What every step of one attempt needs."""

    job: JobRow
    session: VsphereSession
    wish: VmWish
    mover: DiskMover


class RestoreInPlace:
    """The work of one such job: callable with the job's row. The constructor raises what makes it impossible."""

    def __init__(self, world: World, request: RestoreVmRequest) -> None:
        self._world = world
        self._request = request
        self._point = world.catalogue.point(request.point_id)
        self._record = self._point.decoded()
        self._vcenter = world.vcenters.by_instance(self._record.vcenter_id)
        if request.vcenter and request.vcenter != self._vcenter.name:
            raise Refused(
                "in place means in the vCenter that the VM is in", vcenter=self._vcenter.name
            )
        if not self._record.disks:
            raise Refused("the point has no disks", point=self._point.point_id)
        _refuse_places(request)

    def plan(self) -> list[str]:
        """For people. Raises: Refused, SourceGone."""
        session = self._world.vcenters.session(self._vcenter.vcenter_id)
        around = read_surroundings(session)
        vm = self._present(session)
        placement = self._place(around, self._target(around, vm))
        present = present_disks(vm, self._record.disks)
        foreign = foreign_disks(self._world.catalogue, self._point.lineage_id, present)
        lines = doubts_of(self._world, self._point) + [
            f"replace {disk.label} of {vm.name} ({file_of(disk)}) by its state of {self._point.created_at}"
            for disk in present.values()
        ]
        lines.extend(
            f"NO restore point holds {file_of(disk)}: it is DELETED, and cannot be restored"
            for disk in foreign
        )
        lines.extend(
            f"{disk.label} of {vm.name} is not in the point and stays as it is"
            for disk in vm.disks
            if self._record.disk(disk.device_key) is None
        )
        lines.append(
            f"{placement.reason}; the present disks are kept aside until the restored ones are read"
            " back, then deleted; the next backup is a full"
        )
        return lines

    def new_job(self) -> NewJob:
        """The job's row: while it is there, no backup of this VM starts."""
        return NewJob(
            kind="restore",
            subject=self._record.vm_name,
            vcenter_id=self._vcenter.vcenter_id,
            instance_uuid=self._record.instance_uuid,
            lineage_id=self._point.lineage_id,
            transport=self._request.transport,
        )

    def __call__(self, job: JobRow) -> JobResult:
        """One attempt. Raises: errors of ours; the VM has its old disks or its restored ones, whole."""
        world = self._world
        session = world.vcenters.session(self._vcenter.vcenter_id)
        ledger = world.job_ledger(job)
        give_back_earlier(world, session, job)
        around = read_surroundings(session)
        vm = self._present(session)
        target = self._target(around, vm)
        placement = self._place(around, target)
        wish = VmWish(
            name=f"holdfast-restore-{job.job_id}",
            configuration=parse_configuration(
                PointFacts.decode(self._record.configuration).configuration
            ),
            disks=self._record.disks,
            target=target,
            transport=placement.transport,
            proxy_instance_uuid=placement.proxy_instance_uuid,
            keep=False,
        )
        mover = DiskMover(world, job, self._point, self._record, placement)
        world.jobs.advance(job.job_id, JobEvent.PREPARE, placement.reason)
        with (
            made_vm(session, ledger, around=around, wish=wish, write=mover.write) as helper,
            world.lifecycle.cleaning(job.job_id),
        ):
            attempt = _Attempt(job=job, session=session, wish=wish, mover=mover)
            self._read_back(attempt, helper.vm, helper.keys)
            restored = self._detached(session, helper, vm)
            # before the change: should it be rolled back, a full too many harms nobody
            world.catalogue.require_full(
                LineageId(self._point.lineage_id), "the VM was restored in place"
            )
            world.jobs.advance(job.job_id, JobEvent.SWITCH, f"exchanging {len(restored)} disks")
            with (
                swapped_disks(session, ledger, vm=vm, restored=restored) as changed,
                world.lifecycle.cleaning(job.job_id),
            ):
                keys = self._keys(vm, changed)
                self._note_restored(changed, keys)
                result = self._read_back(attempt, changed, keys)
        return judged(self._finished(session, vm, result), ledger)

    def _note_restored(self, vm: VmFacts, keys: Mapping[int, int]) -> None:
        """The next restore in place knows these disks as ours, be there a backup of them or not."""
        by_key = {disk.device_key: disk for disk in vm.disks}
        uuids = {key: by_key[found].backing_uuid for key, found in keys.items()}
        self._world.catalogue.add_restored_disks(LineageId(self._point.lineage_id), uuids)

    def _read_back(self, attempt: _Attempt, vm: VmFacts, keys: Mapping[int, int]) -> JobResult:
        with read_back_tickets(
            attempt.session,
            self._world.job_ledger(attempt.job),
            vm=vm,
            keys=keys,
            transport=attempt.wish.transport,
            proxy_instance_uuid=attempt.wish.proxy_instance_uuid,
        ) as tickets:
            result = attempt.mover.read_back(tickets)
        raise_unless_done_with(attempt.mover, result)
        return result

    def _detached(self, session: VsphereSession, helper: MadeVm, vm: VmFacts) -> list[RestoredDisk]:
        """The helper gives its disks up; its files stay where they are."""
        now = read_vm(session, helper.vm.moref)
        present = present_disks(vm, self._record.disks)
        by_key = {disk.device_key: disk for disk in now.disks}
        restored = []
        for point_key, key in helper.keys.items():
            disk = by_key[key]
            if disk.tip is None:
                raise VsphereFailed("a restored disk has no file", disk=disk.label)
            restored.append(
                RestoredDisk(
                    device_key=point_key,
                    replaced_uuid=present[point_key].backing_uuid,
                    link=disk.tip,
                    capacity_bytes=disk.capacity_bytes,
                )
            )
        for key in helper.keys.values():
            detach_disk(session, now, by_key[key])
        return restored

    def _finished(self, session: VsphereSession, vm: VmFacts, result: JobResult) -> JobResult:
        warnings = [
            Warned(
                code="not_replaced",
                message=f"{disk.label} is not in the point and stayed as it was",
            )
            for disk in vm.disks
            if self._record.disk(disk.device_key) is None
        ]
        result = replace(result, warnings=(*warnings, *result.warnings))
        if not self._request.power_on:
            return result
        try:
            power_on(session, vm)
        except HoldfastError as error:  # whatever it is: the restore is done, and is not done twice
            warned = Warned(code="power_on", message=f"restored, but not started: {error}")
            return replace(result, outcome=Outcome.PARTIAL, warnings=(*result.warnings, warned))
        return result

    def _present(self, session: VsphereSession) -> VmFacts:
        """The VM as it is now, fit for it. Raises: SourceGone, Refused."""
        vm = original_vm(session, self._vcenter, self._record)
        if vm is None:
            raise SourceGone(
                "the VM is no longer there, so nothing can be replaced",
                vm=self._record.vm_name,
                advice="restore it as a new one with --name",
            )
        refuse_unless_possible(vm)
        present = present_disks(vm, self._record.disks)
        foreign = foreign_disks(self._world.catalogue, self._point.lineage_id, present)
        refuse_foreign_disks(foreign, present, self._request.replaced_files)
        return vm

    def _target(self, around: Surroundings, vm: VmFacts) -> RestoreTarget:
        """The helper lies where the VM lies: its disks need no move between datastores."""
        places, stores = {}, {}
        for key, disk in present_disks(vm, self._record.disks).items():
            assert disk.tip is not None, "present disks have files"
            places[key] = place_of(around, disk.tip.datastore_moref)
            stores[key] = around.names.by_moref[disk.tip.datastore_moref]
        check_room(self._record.disks, stores)  # until the end both are there
        folder, host = around.places.get(vm.folder_moref), around.hosts.get(vm.host_moref)
        if folder is None or host is None or vm.vmx is None:
            raise Refused("the VM's folder or host is not known", vm=vm.name)
        return RestoreTarget(
            folder=folder,
            pool_moref=vm.pool_moref,
            host=host,
            home=place_of(around, vm.vmx.datastore_moref),
            disks=places,
        )

    def _place(self, around: Surroundings, target: RestoreTarget) -> Placement:
        return place_restore(
            self._world,
            self._vcenter.vcenter_id,
            around,
            target,
            self._record.disks,
            wanted_transport=self._request.transport,
            wanted_agent=self._request.agent,
        )

    def _keys(self, before: VmFacts, now: VmFacts) -> dict[int, int]:
        """The point's keys -> the VM's keys after the exchange, by place: a new disk may have a new key."""
        by_slot = {(disk.controller_key, disk.unit_number): disk.device_key for disk in now.disks}
        keys = {}
        for key, old in present_disks(before, self._record.disks).items():
            found = by_slot.get((old.controller_key, old.unit_number))
            if found is None:
                raise VsphereFailed("a restored disk is not in the VM", vm=now.name, disk=old.label)
            keys[key] = found
        return keys


def _refuse_places(request: RestoreVmRequest) -> None:
    """In place, everything stays where it is. Raises: UsageError."""
    given = {
        "--name": request.name,
        "--host": request.host,
        "--folder": request.folder,
        "--datastore": request.datastore,
        "--disk": request.disk_datastores,
    }
    wrong = [option for option, value in given.items() if value]
    if wrong:
        raise UsageError(
            f"--in-place leaves the VM and its disks where they are: {', '.join(wrong)} does not go with it",
            advice="leave it out, or restore a new VM with --name",
        )

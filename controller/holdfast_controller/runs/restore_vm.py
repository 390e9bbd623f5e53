"""A whole VM from a point: made anew beside whatever is there, its disks written, read back, compared.

preflight -> folders and VM (ledger first) -> the agent writes -> a fresh open reads back -> kept; on any
other way out nothing of it is left. A restore in place is `restore_in_place`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from holdfast_common.errors import HoldfastError, Refused, SourceGone, UsageError
from holdfast_common.identity import AgentId
from holdfast_common.job_result import JobResult, Outcome, Warned
from holdfast_common.job_spec import Blob, DiskTicket, DiskToRestore, RestoreDisks, VerifyDisks
from holdfast_common.point_record import DiskRecord, PointRecord
from holdfast_controller.decide.hot_add import IDE, DatastoreSeen
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.decide.placement import DiskPlace, Placement, WantedReach, place
from holdfast_controller.facts import VmFacts
from holdfast_controller.runs.agent_work import raise_unless_done, read_with_agent
from holdfast_controller.runs.earlier_attempts import give_back_earlier
from holdfast_controller.runs.made_vms import MadeVm, Tickets, VmWish, made_vm, read_back_tickets
from holdfast_controller.runs.placing import present_proxies
from holdfast_controller.runs.point_facts import PointFacts
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.runs.restore_disk import joined
from holdfast_controller.runs.restore_target import RestoreTarget, choose_target
from holdfast_controller.runs.results import judged
from holdfast_controller.runs.tracking_audits import doubts_of
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.store.vcenters import VcenterRow
from holdfast_controller.vsphere.configuration import parse_configuration
from holdfast_controller.vsphere.datastore_files import place_of, upload
from holdfast_controller.vsphere.entity_names import check_new_name
from holdfast_controller.vsphere.inventory import Surroundings, find_vm, read_surroundings, read_vm
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.virtual_machines import has_vm_named, power_on
from holdfast_controller.vsphere.vm_settings import set_other_settings

log = logging.getLogger(__name__)

NVRAM = "nvram"


class RestoreVm:
    """The work of one such job: callable with the job's row. The constructor raises what makes it impossible."""

    def __init__(self, world: World, request: RestoreVmRequest) -> None:
        self._world = world
        self._request = request
        self._point = world.catalogue.point(request.point_id)
        self._record = self._point.decoded()
        self._vcenter = vcenter_for(world, request, self._record)
        if not self._record.disks:
            raise Refused("the point has no disks", point=self._point.point_id)
        unknown = {key for key, _ in request.disk_datastores} - {
            disk.device_key for disk in self._record.disks
        }
        if unknown:
            raise UsageError("the point has no such disk", device_key=min(unknown))

    def plan(self) -> list[str]:
        """For people. Raises: Refused, NotFound."""
        session = self._world.vcenters.session(self._vcenter.vcenter_id)
        around = read_surroundings(session)
        target = choose_target(
            around, self._request, self._record, original=self._original(session)
        )
        self._check_name(session, around, target)
        placement = self._place(around, target)
        where = ", ".join(
            f"disk {key} on {store.name}" for key, store in sorted(target.disks.items())
        )
        return [
            *doubts_of(self._world, self._point),
            f"make {self._request.name} from {self._record.vm_name} of {self._point.created_at}"
            f" in {self._vcenter.name}: folder {target.folder.path}, host {target.host.name}, {where}",
            f"{placement.reason}; powered off, networks unplugged, new MAC and uuid;"
            " read back and compared",
        ]

    def new_job(self) -> NewJob:
        """The job's row."""
        return NewJob(
            kind="restore",
            subject=self._request.name,
            vcenter_id=self._vcenter.vcenter_id,
            lineage_id=self._point.lineage_id,
            transport=self._request.transport,
        )

    def __call__(self, job: JobRow) -> JobResult:
        """One attempt. Raises: errors of ours; nothing of the new VM is left then, or it is a debt."""
        world = self._world
        session = world.vcenters.session(self._vcenter.vcenter_id)
        ledger = world.job_ledger(job)
        give_back_earlier(world, session, job)
        around = read_surroundings(session)
        target = choose_target(
            around, self._request, self._record, original=self._original(session)
        )
        self._check_name(session, around, target)
        placement = self._place(around, target)
        wish = VmWish(
            name=self._request.name,
            configuration=parse_configuration(
                PointFacts.decode(self._record.configuration).configuration
            ),
            disks=self._record.disks,
            target=target,
            transport=placement.transport,
            proxy_instance_uuid=placement.proxy_instance_uuid,
            keep=self._request.keep,
        )
        mover = DiskMover(world, job, self._point, self._record, placement)
        world.jobs.advance(job.job_id, JobEvent.PREPARE, placement.reason)
        with (
            made_vm(session, ledger, around=around, wish=wish, write=mover.write) as made,
            world.lifecycle.cleaning(job.job_id),
        ):
            with read_back_tickets(
                session,
                ledger,
                vm=made.vm,
                keys=made.keys,
                transport=placement.transport,
                proxy_instance_uuid=wish.proxy_instance_uuid,
            ) as tickets:
                result = mover.read_back(tickets)
            raise_unless_done_with(mover, result)
            left_out = (*made.notes, *set_other_settings(session, made.vm, wish.configuration))
            warnings = [Warned(code="left_out", message=note) for note in left_out]
            warnings += put_nvram(session, around, made.vm, mover.blobs)
        result = replace(result, warnings=(*warnings, *result.warnings))
        if self._request.power_on:
            result = self._started(session, made, result)
        return judged(result, ledger)

    def _started(self, session: VsphereSession, made: MadeVm, result: JobResult) -> JobResult:
        try:
            power_on(session, made.vm)
        except HoldfastError as error:
            warned = Warned(code="power_on", message=f"restored, but not started: {error}")
            return replace(result, outcome=Outcome.PARTIAL, warnings=(*result.warnings, warned))
        return result

    def _original(self, session: VsphereSession) -> VmFacts | None:
        return original_vm(session, self._vcenter, self._record)

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

    def _check_name(
        self, session: VsphereSession, around: Surroundings, target: RestoreTarget
    ) -> None:
        """Asked of vSphere itself: a stored inventory may be old, and all data would be moved first."""
        check_new_name(self._request.name)
        name, folder = self._request.name, target.folder
        if has_vm_named(session, folder.moref, name) or any(
            place.name == name and place.parent_moref == folder.moref
            for place in around.places.values()
        ):
            raise Refused(
                "there is a VM or a folder of this name in that folder",
                name=name,
                folder=folder.path,
                advice="choose another --name or --folder",
            )


class DiskMover:
    """Has an agent write a point's disks and read them back, with the job's states. One thread."""

    def __init__(
        self,
        world: World,
        job: JobRow,
        point: PointRow,
        record: PointRecord,
        placement: Placement,
    ) -> None:
        self._world = world
        self._job = job
        self._point = point
        self._record = record
        self._agent_id = AgentId(placement.agent_id)
        self._written: JobResult | None = None
        self.blobs: tuple[Blob, ...] = ()
        world.jobs.set_plan(
            job.job_id,
            level="",
            level_reason="",
            transport=placement.transport,
            agent_id=self._agent_id,
        )

    def write(self, tickets: Tickets) -> None:
        """Raises: TargetFailed and its kin, IntegrityError (the repository's data), LeaseExpired."""
        world = self._world
        world.lifecycle.check(self._job.job_id)
        world.jobs.advance(self._job.job_id, JobEvent.TRANSFER, f"{len(tickets)} disks")
        result = read_with_agent(
            world,
            self._job,
            agent_id=self._agent_id,
            work=RestoreDisks(
                point_id=self._point.point_id,
                lineage_id=self._point.lineage_id,
                disks=self._disks(tickets),
                keys=world.keeper.reader_keys(self._point.lineage_id),
                blob_kinds=tuple(kind for kind in (NVRAM,) if kind in self._record.blob_kinds),
            ),
        )
        self._written = raise_unless_done(result)
        self.blobs = result.blobs

    def read_back(self, tickets: Tickets) -> JobResult:
        """The comparison's result with the counts of both; a difference is in its error."""
        world = self._world
        world.lifecycle.check(self._job.job_id)
        world.jobs.advance(self._job.job_id, JobEvent.VERIFY, "reading it back")
        compared = read_with_agent(
            world,
            self._job,
            agent_id=self._agent_id,
            work=VerifyDisks(
                point_id=self._point.point_id,
                lineage_id=self._point.lineage_id,
                disks=self._disks(tickets),
                keys=world.keeper.reader_keys(self._point.lineage_id),
            ),
        )
        assert self._written is not None, "written before it is read back"
        return joined(self._written, compared)

    def keep_counts(self, result: JobResult) -> None:
        """What a failed read-back found belongs to the job, also when its error is raised."""
        self._world.jobs.set_result(
            self._job.job_id, error=result.error, disks=result.disks, warnings=result.warnings
        )

    def _disks(self, tickets: Mapping[int, DiskTicket]) -> tuple[DiskToRestore, ...]:
        return tuple(
            DiskToRestore(
                device_key=disk.device_key,
                backing_uuid=disk.uuid,
                adapter_type=_adapter_type(disk),
                ticket=tickets[disk.device_key],
            )
            for disk in self._record.disks
        )


def raise_unless_done_with(mover: DiskMover, result: JobResult) -> None:
    """Keep what the read-back found, then raise its error."""
    if result.outcome is not Outcome.DONE:
        mover.keep_counts(result)
        raise_unless_done(result)


def vcenter_for(world: World, request: RestoreVmRequest, record: PointRecord) -> VcenterRow:
    """The vCenter that was asked for, else the one that the point came from. Raises: NotFound."""
    if request.vcenter:
        return world.vcenters.table.named(request.vcenter)
    return world.vcenters.by_instance(record.vcenter_id)


def original_vm(
    session: VsphereSession, vcenter: VcenterRow, record: PointRecord
) -> VmFacts | None:
    """The VM as it is now; None: it was deleted, or this is another vCenter."""
    if vcenter.instance_uuid != record.vcenter_id:
        return None
    try:
        return find_vm(session, instance_uuid=record.instance_uuid)
    except SourceGone:
        return None


def place_restore(
    world: World,
    vcenter_id: str,
    around: Surroundings,
    target: RestoreTarget,
    disks: tuple[DiskRecord, ...],
    *,
    wanted_transport: str,
    wanted_agent: str,
) -> Placement:
    """Agent and transport that can write to all target datastores. Raises: Refused."""
    by_moref = around.names.by_moref
    stores = {key: by_moref[place_there.moref] for key, place_there in target.disks.items()}
    return place(
        agents=present_proxies(world, world.vcenters.session(vcenter_id), vcenter_id),
        reach=WantedReach(
            disks=[
                DiskPlace(
                    datastores=(stores[disk.device_key].datastore_id,),
                    seen=(
                        DatastoreSeen(
                            moref=stores[disk.device_key].moref, name=stores[disk.device_key].name
                        ),
                    ),
                    hot_add_problem=IDE if disk.adapter.partition(" ")[0] == "ide" else "",
                )
                for disk in disks
            ],
            repository_id=world.keeper.repository_id,
            datacenter_moref=by_moref[target.home.moref].datacenter_moref,
            writing=True,
        ),
        wanted_transport=wanted_transport,
        wanted_agent=wanted_agent,
    )


def put_nvram(
    session: VsphereSession, around: Surroundings, vm: VmFacts, blobs: tuple[Blob, ...]
) -> list[Warned]:
    """The NVRAM of the point beside the new VM's .vmx; what fails is a warning: the VM starts without it."""
    found = [blob for blob in blobs if blob.kind == NVRAM]
    now = read_vm(session, vm.moref)
    if not found:
        return [Warned(code="nvram", message="the point holds no NVRAM: firmware settings are new")]
    if now.vmx is None:
        return [Warned(code="nvram", message="the new VM's folder is not known: no NVRAM")]
    try:
        place_there = place_of(around, now.vmx.datastore_moref)
        upload(session, place_there, now.vmx.path.removesuffix(".vmx") + ".nvram", found[0].data)
    except HoldfastError as error:
        return [Warned(code="nvram", message=f"the NVRAM could not be put back: {error}")]
    return []


def _adapter_type(disk: DiskRecord) -> str:
    kind = disk.adapter.partition(" ")[0]
    return kind if kind in ("ide", "buslogic") else "lsilogic"

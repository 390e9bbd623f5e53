"""The image backup of one VM, step by step. THE function to read first on the controller's side is `__call__`.

preflight -> snapshot (ledger first) -> what changed -> tickets -> the agent copies -> was a disk moved
meanwhile? -> commit grant -> the agent publishes -> disks and snapshot given back -> recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from holdfast_common.errors import (
    NotFound,
    NothingProtected,
    QuiesceFailed,
    QuiesceFailedNow,
    Refused,
)
from holdfast_common.identity import AgentId
from holdfast_common.job_result import JobResult, Outcome, Warned
from holdfast_common.job_spec import (
    BackUpDisks,
    DiskTicket,
    JobSpec,
)
from holdfast_controller.decide.dispatch import Begun
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.decide.lanes import lanes_of
from holdfast_controller.decide.level import (
    FULL,
    decide_level,
    host_build_text,
    snapshot_tree_text,
    tracking_warning,
)
from holdfast_controller.decide.machine_roles import OwnVms
from holdfast_controller.decide.placement import Placement
from holdfast_controller.decide.policy import WhenNotReached
from holdfast_controller.facts import SnapshotFacts, VmFacts
from holdfast_controller.runs.agent_link import SignedGrant
from holdfast_controller.runs.agent_work import next_attempt, progress_to_table
from holdfast_controller.runs.attempt import AttemptAnswers, run_attempt
from holdfast_controller.runs.committed_points import unless_committed
from holdfast_controller.runs.copying import copying, note_lanes
from holdfast_controller.runs.earlier_attempts import give_back_earlier, refuse_while_left
from holdfast_controller.runs.free_space_watch import FreeSpaceWatch, free_space_watched
from holdfast_controller.runs.frozen_vm import Frozen, backup_work, note_unwanted, wanted_part
from holdfast_controller.runs.own_machines import consistency_wish, own_machines
from holdfast_controller.runs.placing import check_connected, place_now
from holdfast_controller.runs.point_facts import (
    doubt_of_history,
    expected_level,
    point_below,
    previous_point,
)
from holdfast_controller.runs.repository_verdict import note_loss
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.results import (
    LOWER_CONSISTENCY,
    NOT_PROTECTED,
    judged,
    record_point,
)
from holdfast_controller.runs.source_tickets import source_tickets
from holdfast_controller.runs.start_tracking import start_tracking
from holdfast_controller.runs.vm_blobs import read_blobs, with_ovf
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.vsphere import preflight
from holdfast_controller.vsphere.changed_areas import areas_of_disk
from holdfast_controller.vsphere.inventory import find_moref, read_vm_around
from holdfast_controller.vsphere.quiesce import is_lower
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_controller.vsphere.still_frozen import check_still_frozen

log = logging.getLogger(__name__)

VMFS = "VMFS"
VTPM = (
    "the VM has a virtual TPM: its NVRAM is saved, but opens only with the key of its key provider,"
    " which is not in the backup"
)


class ImageBackup:
    """The work of one such job: callable with the job's row."""

    def __init__(self, world: World, request: BackupRequest, known: KnownVm) -> None:
        self._world = world
        self._request = request
        self._floor = world.configuration.datastores
        self._vcenter_id = known.vcenter_id
        self._vcenter = world.vcenters.table.vcenter(known.vcenter_id)
        self._known = known
        self._lineage_id = lineage_of(
            vcenter_instance_uuid=self._vcenter.instance_uuid,
            vm_instance_uuid=known.vm.instance_uuid,
        )
        self._lanes_max = 1  # until it begins

    @property
    def lanes_wanted(self) -> int:
        """How many streams the VM may have at once, as it was seen last."""
        found = lanes_of(self._known.vm.protected_disks, lanes_max=self._request.lanes)
        return max(1, len(found))

    def begins(self, begun: Begun) -> None:
        """With how many lanes."""
        self._lanes_max = begun.lanes

    def plan(self, ways: Sequence[Placement]) -> list[str]:
        """For people: what would be done with this VM, and why."""
        vm = self._known.vm
        lines = [
            f"{vm.name}: {expected_level(self._world, self._lineage_id, self._request.level)}, {ways[0].reason}"
        ]
        lines.extend(
            f"{vm.name}: {disk.label} is NOT in the backup: {disk.left_out_reason}"
            for disk in vm.disks
            if disk.left_out_reason
        )
        return lines

    def last_good(self) -> str:
        """When the VM's last point was made; empty: never."""
        previous = self._previous()
        return "" if previous is None else previous.created_at

    def new_job(self) -> NewJob:
        """The job's row."""
        return NewJob(
            kind="backup",
            subject=self._known.vm.name,
            vcenter_id=self._vcenter_id,
            instance_uuid=self._known.vm.instance_uuid,
            lineage_id=self._lineage_id,
            level_asked=self._request.level,
            transport=self._request.transport,
        )

    def __call__(self, job: JobRow) -> JobResult:
        """One attempt. Raises: errors of ours; whatever was made outside is given back or a debt."""
        try:
            result = unless_committed(self._world, job, self._attempt)
        except QuiesceFailed as error:
            if self._request.when_not_reached is WhenNotReached.RETRY:
                raise QuiesceFailedNow(error.message, advice=error.advice, **error.facts) from error
            raise
        return judged(result, self._world.job_ledger(job))

    def _attempt(self, job: JobRow) -> JobResult:
        world = self._world
        session = world.vcenters.session(self._vcenter_id)
        ledger = world.job_ledger(job)
        give_back_earlier(world, session, job)
        vm, warnings = self._preflight(session)
        placement = place_now(
            world,
            session,
            vm,
            self._request,
            vcenter_id=self._vcenter_id,
            dispatched_to=job.agent_id,
        )
        agent_id = AgentId(placement.agent_id)
        world.keeper.authorise(agent_id)
        world.jobs.note(job.job_id, "placed", placement.reason)
        note_unwanted(world, job.job_id, vm)
        roles = OwnVms(own_machines(world)).roles(vm)
        for role in roles:
            world.jobs.note(job.job_id, "told", role.text)
        wish = consistency_wish(self._request, roles)
        warnings += start_tracking(world, session, vm, self._lineage_id)
        world.lifecycle.check(job.job_id)
        world.jobs.advance(job.job_id, JobEvent.QUIESCE, f"asked: {self._request.consistency}")
        world.jobs.advance(job.job_id, JobEvent.SNAPSHOT)
        with (
            temporary_snapshot(session, ledger, vm=vm, wish=wish) as snapshot,
            world.lifecycle.cleaning(job.job_id),
            free_space_watched(session, snapshot, self._floor) as space,
        ):
            frozen = self._freeze(session, wanted_part(snapshot, self._request.disks), vm, space)
            check_connected(world, placement)  # nothing is attached to a proxy that is away
            with (
                source_tickets(
                    session,
                    ledger,
                    snapshot=frozen.snapshot,
                    transport=placement.transport,
                    proxy_instance_uuid=placement.proxy_instance_uuid,
                ) as tickets,
                world.lifecycle.cleaning(job.job_id),
            ):
                world.jobs.set_plan(
                    job.job_id,
                    level=frozen.decision.level,
                    level_reason=frozen.decision.reason,
                    transport=placement.transport,
                    agent_id=agent_id,
                )
                work = backup_work(
                    world,
                    job,
                    frozen,
                    tickets,
                    placement=placement,
                    vcenter_uuid=self._vcenter.instance_uuid,
                    audit_share=self._request.audit_share,
                )
                world.jobs.advance(job.job_id, JobEvent.TRANSFER, placement.reason)
                result = self._transfer(job, agent_id, frozen, tickets, work)
        found = [*warnings, *_not_protected(frozen.snapshot.warnings)]
        found += [*frozen.vm_files.warnings, *_lowered(snapshot)]
        return replace(result, warnings=(*found, *result.warnings))

    # -- before the snapshot ------------------------------------------------------------------

    def _preflight(self, session: VsphereSession) -> tuple[VmFacts, list[Warned]]:
        moref = find_moref(session, instance_uuid=self._known.vm.instance_uuid)
        examined = preflight.examine(
            session, moref, floor=self._floor, wanted=self._request.disks.of_vm
        )
        vm = examined.vm
        refuse_while_left(self._world, self._vcenter_id, vm)
        examined.check()
        warnings = _not_protected(examined.warnings)
        if vm.has_vtpm:
            warnings.append(Warned(code="vtpm", message=VTPM))
        warning = tracking_warning(vm)
        if warning and self._previous() is None:
            warnings.append(Warned(code="change_tracking", message=warning))
        return vm, warnings

    def _previous(self) -> PointRow | None:
        return point_below(self._world, self._lineage_id, self._request.level)

    # -- with the snapshot ----------------------------------------------------------------------

    def _freeze(
        self,
        session: VsphereSession,
        snapshot: SnapshotFacts,
        before: VmFacts,
        space: FreeSpaceWatch,
    ) -> Frozen:
        if not snapshot.protected_disks:
            raise NothingProtected("the snapshot froze no disk", vm=snapshot.vm.name)
        _, around = read_vm_around(session, snapshot.vm.moref)
        previous = self._previous()
        full_needed = self._world.catalogue.full_needed(self._lineage_id)
        doubt = self._world.catalogue.tracking_doubt(self._lineage_id)
        # where the VM stood in its own snapshots before ours
        tree = snapshot_tree_text(snapshot.vm.snapshots, before.current_snapshot_moref)
        decision = decide_level(
            disks=snapshot.disks,
            snapshot_tree=tree,
            host=around.hosts.get(snapshot.vm.host_moref),
            vmfs_datastores={
                store.datastore_id
                for store in around.names.by_moref.values()
                if store.kind.upper() == VMFS
            },
            previous=None if previous is None else previous_point(previous.decoded()),
            level_asked=self._request.level,
            full_needed=full_needed or doubt or doubt_of_history(self._world, previous, before),
            is_doubted=bool(doubt),
        )
        decided = {each.device_key: each for each in decision.disks}
        return Frozen(
            session=session,
            snapshot=snapshot,
            snapshot_tree=tree,
            host_build=host_build_text(around.hosts.get(snapshot.vm.host_moref)),
            # a full that is wanted stands on nothing: it heals what an earlier point may have lost
            previous=None if full_needed or self._request.level == FULL else previous,
            decision=decision,
            areas={
                disk.device_key: areas_of_disk(session, snapshot, disk, decided[disk.device_key])
                for disk in snapshot.protected_disks
            },
            vm_files=with_ovf(read_blobs(session, snapshot.vm), snapshot),
            space=space,
            lanes=lanes_of(snapshot.protected_disks, lanes_max=self._lanes_max),
        )

    # -- the agent works --------------------------------------------------------------------------

    def _transfer(
        self,
        job: JobRow,
        agent_id: AgentId,
        frozen: Frozen,
        tickets: Mapping[int, DiskTicket],
        work: BackUpDisks,
    ) -> JobResult:
        world = self._world
        attempt = next_attempt(world, job)
        granted: list[bytes] = []

        def grant(manifest_digest: bytes) -> SignedGrant:
            if not granted:
                world.lifecycle.check(job.job_id)
                check_still_frozen(frozen.session, frozen.snapshot)
                granted.append(manifest_digest)
            elif granted != [manifest_digest]:
                raise Refused("one attempt publishes one manifest", attempt=attempt.number)
            world.jobs.advance(job.job_id, JobEvent.COMMIT, manifest_digest.hex())
            return world.keeper.grant(
                attempt,
                manifest_digest,
                controller_epoch=world.controller_epoch,
                job_keys=work.keys,
            )

        def renewed(device_key: int) -> DiskTicket:
            if device_key not in tickets:
                raise NotFound("this job has no such disk", device_key=device_key)
            return tickets[device_key]

        def keep(result: JobResult) -> None:
            if result.outcome is Outcome.DONE:
                record_point(world, job.job_id, result)
            elif result.error is not None:
                note_loss(world, job, result.error)

        frozen.space.check()
        with copying(world, attempt, agent_id, frozen.snapshot.protected_disks):
            result = run_attempt(
                world.link,
                agent_id=agent_id,
                attempt=attempt,
                spec=JobSpec(
                    run_id=job.run_id, repository_id=world.keeper.repository_id, work=work
                ),
                answers=AttemptAnswers(
                    on_result=keep,
                    on_progress=progress_to_table(world, job),
                    extents={key: each.extents for key, each in frozen.areas.items()},
                    renew_ticket=renewed,
                    grant_commit=grant,
                    lease_seconds=self._request.resume_seconds,
                ),
                stopped=lambda: frozen.space.is_low or world.lifecycle.stopped(job.job_id),
            )
        note_lanes(world, job.job_id, frozen.lanes, result)
        return frozen.space.judged(result)


def _not_protected(texts: Iterable[str]) -> list[Warned]:
    return [Warned(code=NOT_PROTECTED, message=text) for text in texts]


def _lowered(snapshot: SnapshotFacts) -> list[Warned]:
    if not is_lower(snapshot.reached, snapshot.asked):
        return []
    text = f"{snapshot.asked} was asked, {snapshot.reached} was reached: {snapshot.evidence}"
    return [Warned(code=LOWER_CONSISTENCY, message=text)]

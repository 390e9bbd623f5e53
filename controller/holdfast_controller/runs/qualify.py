"""`holdfast qualify`: what a vSphere does with a VM that nobody needs, and which behaviours hold there.

Probes, a full backup, one audited backup by each transport, a trial restore by each; then the points are
forgotten. Each part is a job of its own, so whatever it makes is in the ledger first, and given back.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import Cancelled, HoldfastError, Refused
from holdfast_common.identity import JobId, PointId, new_ulid
from holdfast_common.job_spec import TransportKind
from holdfast_controller.decide.behaviours import Behaviour, Finding, Verdict, findings
from holdfast_controller.decide.level import FULL, INCREMENTAL
from holdfast_controller.decide.machine_roles import OwnVms
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.loads import backup_loads
from holdfast_controller.runs.own_machines import own_machines
from holdfast_controller.runs.placing import SeenFromHere
from holdfast_controller.runs.planned_job import Planned
from holdfast_controller.runs.qualify_probes import Probes
from holdfast_controller.runs.requests import BackupRequest, RestoreVmRequest
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob

LOOK_SECONDS: Final = 0.2
ACTOR: Final = "qualify"
READS: Final = {
    TransportKind.NFC: Behaviour.READ_NFC,
    TransportKind.DIRECT: Behaviour.READ_DIRECT,
    TransportKind.HOTADD: Behaviour.READ_HOTADD,
}
RESTORES: Final = {
    TransportKind.NFC: Behaviour.RESTORE_NFC,
    TransportKind.DIRECT: Behaviour.RESTORE_DIRECT,
    TransportKind.HOTADD: Behaviour.RESTORE_HOTADD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualifyRequest:
    """``vm``: its very name or identity; nobody must need it."""

    vm: str
    vcenter: str = ""


class Qualification:
    """One of them, on a caller's thread. `plan` first, then `steps` once, to its end or closed."""

    def __init__(self, world: World, engine: Engine, request: QualifyRequest) -> None:
        """Raises: NotFound, Refused when the VM is one that somebody needs."""
        self._world = world
        self._engine = engine
        found = world.vcenters.inventory.select([request.vm], vcenter=request.vcenter)
        if len(found) != 1:
            raise Refused("several VMs are named so", vm=request.vm, advice="add --vcenter")
        self.known: KnownVm = found[0]
        self._points: list[PointId] = []
        self._jobs: list[JobId] = []
        self.tried: list[Finding] = []
        _refuse_needed(world, self.known)

    def plan(self) -> list[str]:
        """For people: all that would be done with the VM."""
        name = self.known.vm.name
        return [
            f"{name}: change tracking is switched on, and stays on",
            f"{name}: two snapshots are made and removed, the second one quiesced",
            f"{name}: backed up by nfc (full), and audited whole by each transport; restored as a new VM by each,"
            " read back, and destroyed",
            f"{name}: the points that this makes are forgotten",
        ]

    def findings(self) -> list[Finding]:
        """One for each behaviour, as far as it is known now."""
        return findings(self.tried)

    def steps(self) -> Generator[str, None, None]:
        """Carry it out; what is done next. Whatever happens, its points are forgotten at the end."""
        session = self._world.vcenters.session(self.known.vcenter_id)
        unanswered, ended = session.troubles.unanswered, session.troubles.logins_ended
        try:
            yield "snapshots, and what vSphere tells about them"
            if self._probed():
                yield from self._transports()
        finally:
            self._forget()
            self._clean()
            self._count(
                Behaviour.CALLS_ANSWERED, session.troubles.unanswered - unanswered, "not answered"
            )
            self._count(Behaviour.LOGIN_LASTS, session.troubles.logins_ended - ended, "ended")

    # -- the parts ------------------------------------------------------------------------------

    def _probed(self) -> bool:
        """Whether a snapshot could be made at all."""
        probes = Probes(self._world, self.known)
        vm = self.known.vm
        around = SeenFromHere(self._world).around(self.known.vcenter_id)
        planned = Planned(
            job=NewJob(
                kind="qualify",
                subject=vm.name,
                vcenter_id=self.known.vcenter_id,
                instance_uuid=vm.instance_uuid,
            ),
            work=probes,
            loads=backup_loads(around, self.known),
            attempts_max=1,
        )
        started = self._engine.start_probes(planned, self.plan())
        job = self._ended(started.job_ids[0])
        self.tried += probes.tried
        if job.error is not None:
            self._tell(Behaviour.SNAPSHOT_FREEZES, Verdict.BROKEN, job.error.text())
        return any(
            each.behaviour is Behaviour.SNAPSHOT_FREEZES and each.verdict is Verdict.HOLDS
            for each in self.tried
        )

    def _transports(self) -> Iterator[str]:
        usable = [kind for kind in READS if self._offered(kind)]
        if not usable:
            return
        yield f"a full backup by {usable[0]}"
        if not self._backed_up(usable[0], level=FULL):
            return
        for kind in usable:
            yield f"an audited backup by {kind}"
            self._backed_up(kind, level=INCREMENTAL)
        for kind in usable:
            yield f"a trial restore by {kind}"
            self._restored(kind)

    def _offered(self, kind: TransportKind) -> bool:
        request = BackupRequest(selectors=(), transport=kind)
        try:
            SeenFromHere(self._world).ways(self.known, request)
        except Refused as error:
            self._tell(READS[kind], Verdict.UNSEEN, error.message)
            self._tell(RESTORES[kind], Verdict.UNSEEN, error.message)
            return False
        return True

    def _backed_up(self, kind: TransportKind, *, level: str) -> bool:
        request = BackupRequest(
            selectors=(self.known.vm.instance_uuid,),
            transport=kind,
            level=level,
            attempts_max=1,
            audit_share=1.0,
        )
        behaviour = READS[kind]
        try:
            started = self._engine.start_backup(request, dry_run=False)
        except HoldfastError as error:
            self._tell(behaviour, Verdict.BROKEN, error.line())
            return False
        job = self._ended(started.job_ids[0])
        if not job.point_id or job.error is not None:
            moved = job.error is not None and job.error.code == "disk_moved"
            text = job.error.text() if job.error else f"the backup is {job.state}"
            self._tell(Behaviour.DISKS_STAY if moved else behaviour, Verdict.BROKEN, text)
            return False
        self._points.append(PointId(job.point_id))
        record = self._world.catalogue.point(job.point_id).decoded()
        untold = sum(disk.untold_bytes for disk in record.disks)
        audited = sum(disk.audited_bytes for disk in record.disks)
        self._tell(behaviour, Verdict.HOLDS, job.level_reason)
        if untold:
            text = f"{untold} bytes had changed that it had called unchanged, read by {kind}"
            self._tell(Behaviour.CHANGES_TRUE, Verdict.BROKEN, text)
        elif audited:
            text = f"{audited} bytes that it calls unchanged are, read by {kind}"
            self._tell(Behaviour.CHANGES_TRUE, Verdict.HOLDS, text)
        return True

    def _restored(self, kind: TransportKind) -> None:
        behaviour = RESTORES[kind]
        request = RestoreVmRequest(
            point_id=self._points[-1],
            name=f"holdfast-qualify-{new_ulid()[-8:].lower()}",
            transport=kind,
            keep=False,
        )
        try:
            started = self._engine.start_restore_vm(request, dry_run=False)
        except HoldfastError as error:
            unseen = isinstance(error, Refused)
            self._tell(behaviour, Verdict.UNSEEN if unseen else Verdict.BROKEN, error.line())
            return
        job = self._ended(started.job_ids[0])
        if job.error is not None:
            self._tell(behaviour, Verdict.BROKEN, job.error.text())
        else:
            self._tell(behaviour, Verdict.HOLDS, "made, read back, and destroyed")

    # -- the end ----------------------------------------------------------------------------------

    def _forget(self) -> None:
        if not self._points:
            return
        try:
            plan = self._engine.care.forget(self._points, actor=ACTOR, dry_run=False)
        except HoldfastError as error:
            self._tell(Behaviour.CLEAN, Verdict.BROKEN, f"its points stay: {error.line()}")
            return
        kept = [reason for _, reason in plan.kept]
        if kept:
            self._tell(Behaviour.CLEAN, Verdict.BROKEN, f"points stay: {'; '.join(kept)}")

    def _clean(self) -> None:
        left = [
            entry
            for job_id in self._jobs
            for entry in self._world.ledger.open_entries(job_id=job_id)
        ]
        if left:
            text = ", ".join(sorted({f"{entry.kind}: {entry.last_error}" for entry in left}))
            self._tell(Behaviour.CLEAN, Verdict.BROKEN, text)
        else:
            self._tell(Behaviour.CLEAN, Verdict.HOLDS, f"after {len(self._jobs)} jobs")

    def _count(self, behaviour: Behaviour, count: int, what: str) -> None:
        verdict = Verdict.HANDLED if count else Verdict.HOLDS
        self._tell(behaviour, verdict, f"{what}: {count}" if count else "")

    def _tell(self, behaviour: Behaviour, verdict: Verdict, detail: str) -> None:
        self.tried.append(Finding(behaviour=behaviour, verdict=verdict, detail=detail))

    def _ended(self, job_id: JobId) -> JobRow:
        """Raises: Cancelled when the controller stops; the job's own end is the reconciler's then."""
        self._jobs.append(job_id)
        while not (job := self._world.jobs.job(job_id)).ended:
            if self._world.stopping.wait(LOOK_SECONDS):
                raise Cancelled("the controller is stopping")
        return job


def _refuse_needed(world: World, known: KnownVm) -> None:
    """Raises: Refused with every reason why this VM is one that somebody needs."""
    vm = known.vm
    reasons = [role.text for role in OwnVms(own_machines(world)).roles(vm)]
    if vm.snapshots:
        reasons.append("it has snapshots")
    if vm.template:
        reasons.append("it is a template")
    vcenter = world.vcenters.table.vcenter(known.vcenter_id)
    lineage_id = lineage_of(
        vcenter_instance_uuid=vcenter.instance_uuid, vm_instance_uuid=vm.instance_uuid
    )
    if world.catalogue.latest(lineage_id) is not None:
        reasons.append("it has restore points")
    if reasons:
        raise Refused(
            "a VM that somebody may need is not qualified with",
            vm=vm.name,
            reasons="; ".join(reasons),
            advice="make a small VM for it, whose content may be anything, and name that one",
        )

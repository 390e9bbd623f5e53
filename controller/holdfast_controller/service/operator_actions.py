"""What operators can do, as plain functions on executor threads: message in, message out."""

from __future__ import annotations

import threading

from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import HoldfastError, NotFound, UsageError, WrongKey
from holdfast_common.identity import AgentId, JobId, PointId, RunId
from holdfast_common.job_spec import FileFormat
from holdfast_common.logs import Secret
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.check_lines import CheckLine
from holdfast_controller.runs.doctor import examine
from holdfast_controller.runs.doctor_vcenters import test_vcenter
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.recovery_proof import confirm_recovery_sheet
from holdfast_controller.runs.requests import (
    RestoreDiskRequest,
    RestoreVmRequest,
)
from holdfast_controller.runs.vcenters import host_and_port
from holdfast_controller.runs.world import World
from holdfast_controller.service.agent_administration import AgentAdministration
from holdfast_controller.service.backup_actions import BackupActions
from holdfast_controller.service.check_actions import CheckActions
from holdfast_controller.service.follower import RunFollower
from holdfast_controller.service.key_actions import KeyActions
from holdfast_controller.service.notification_actions import NotificationActions
from holdfast_controller.service.operator_messages import (
    agent_message,
    job_detail_message,
    job_message,
    started_message,
    vcenter_message,
    vm_message,
)
from holdfast_controller.service.plan_pages import PlanPages
from holdfast_controller.service.point_actions import PointActions
from holdfast_controller.service.policy_actions import PolicyActions
from holdfast_controller.service.qualify_pages import QualifyPages
from holdfast_controller.service.repository_actions import RepositoryActions
from holdfast_controller.service.repository_listing import RepositoryListing
from holdfast_controller.service.status_actions import StatusActions
from holdfast_controller.store import settings as names
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.vcenters import VcenterRow
from holdfast_controller.vsphere.pinning import fetch_certificate


class OperatorActions:
    """Thread-safe: everything that it uses is."""

    def __init__(self, world: World, engine: Engine, administration: AgentAdministration) -> None:
        self._world = world
        self._engine = engine
        self._administration = administration
        self.backups = BackupActions(world, engine)
        self.checks = CheckActions(world, engine)
        self.keys = KeyActions(world)
        self.notifications = NotificationActions(world)
        self.points = PointActions(world, engine.care)
        self.policies = PolicyActions(world, engine)
        self.repository = RepositoryActions(world, engine)
        self.repositories = RepositoryListing(world)
        self._status = StatusActions(world, told=engine.latency.told)

    @property
    def stopping(self) -> threading.Event:
        """Set when the controller is to end."""
        return self._world.stopping

    # -- status -----------------------------------------------------------------------------

    def status(self, request: operator_pb2.Empty) -> operator_pb2.Status:
        """One screen."""
        found = self._status.status()
        found.agents.extend(self.list_agents(request).agents)
        found.vcenters.extend(self.list_vcenters(request).vcenters)
        return found

    def run_doctor(self, _: operator_pb2.Empty) -> operator_pb2.DoctorReport:
        """Every precondition."""
        return operator_pb2.DoctorReport(checks=_lines(examine(self._world)))

    # -- vCenters and inventory ---------------------------------------------------------------

    def show_vcenter_certificate(
        self, request: operator_pb2.VcenterAddress
    ) -> operator_pb2.VcenterCertificate:
        """What a server shows, before anything is sent to it."""
        host, port = host_and_port(request.url)
        shown = fetch_certificate(host, port)
        return operator_pb2.VcenterCertificate(
            sha256=shown.sha256, subject=shown.subject, not_after=shown.not_after
        )

    def add_vcenter(self, request: operator_pb2.AddVcenterRequest) -> operator_pb2.Vcenter:
        """Log in, read the inventory, remember it."""
        if not request.name or not request.user:
            raise UsageError("a vCenter needs a name and a user")
        if not request.name.isprintable() or any(c in request.name for c in "/:*?["):
            raise UsageError(
                "a vCenter's name stands in selectors: no / : * ? [ in it", name=request.name
            )
        row, inventory = self._world.vcenters.add(
            name=request.name,
            url=request.url,
            user=request.user,
            password=Secret(request.password),
            certificate_sha256=request.certificate_sha256,
        )
        return self._vcenter(row, vms=len(inventory.vms), refreshed_at=inventory.taken_at)

    def list_vcenters(self, _: operator_pb2.Empty) -> operator_pb2.VcenterList:
        """All of them."""
        messages = []
        for row in self._world.vcenters.table.all():
            vms = self._world.vcenters.inventory.vms(row.vcenter_id)
            taken = self._world.vcenters.inventory.taken_at(row.vcenter_id)
            messages.append(self._vcenter(row, vms=len(vms), refreshed_at=taken))
        return operator_pb2.VcenterList(vcenters=messages)

    def test_vcenter(self, request: operator_pb2.VcenterName) -> operator_pb2.VcenterTest:
        """Log in and look around."""
        row = self._world.vcenters.table.named(request.name)
        return operator_pb2.VcenterTest(checks=_lines(test_vcenter(self._world, row)))

    def refresh_vcenter(self, request: operator_pb2.VcenterName) -> operator_pb2.InventorySummary:
        """Read the inventory again."""
        row = self._world.vcenters.table.named(request.name)
        inventory, seconds = self._world.vcenters.refresh(row.vcenter_id)
        self._world.vcenters.refresh_tags(row.vcenter_id)
        return operator_pb2.InventorySummary(
            vms=len(inventory.vms),
            hosts=len(inventory.hosts),
            datastores=len(inventory.datastores),
            duration_seconds=seconds,
            tags_problem=self._vcenter(row, vms=0, refreshed_at="").tags_problem,
        )

    def _vcenter(self, row: VcenterRow, *, vms: int, refreshed_at: str) -> operator_pb2.Vcenter:
        sources = self._world.vcenters.inventory.tags.sources(row.name)
        return vcenter_message(
            row, vms=vms, refreshed_at=refreshed_at, tags=next(iter(sources), None)
        )

    def list_inventory(self, request: operator_pb2.InventoryQuery) -> operator_pb2.VmList:
        """VMs by selector. Raises: NotFound."""
        if request.vcenter:
            self._world.vcenters.table.named(request.vcenter)
        inventory = self._world.vcenters.inventory
        found = (
            inventory.select([request.selector], vcenter=request.vcenter)
            if request.selector
            else inventory.vms()
        )
        chosen = [
            known for known in found if not request.vcenter or known.vcenter_name == request.vcenter
        ]
        return operator_pb2.VmList(vms=[vm_message(known) for known in chosen])

    def show_vm(self, request: operator_pb2.VmQuery) -> operator_pb2.Vm:
        """Exactly one VM. Raises: NotFound, UsageError when the name fits more."""
        if request.vcenter:
            self._world.vcenters.table.named(request.vcenter)
        chosen = [
            known
            for known in self._world.vcenters.inventory.select([request.vm])
            if not request.vcenter or known.vcenter_name == request.vcenter
        ]
        if not chosen:
            raise NotFound("no VM is named so in that vCenter", vm=request.vm)
        if len(chosen) > 1:
            raise UsageError(
                "this names more than one VM",
                vm=request.vm,
                advice="use the instance uuid, or --vcenter",
            )
        return vm_message(chosen[0])

    # -- agents -------------------------------------------------------------------------------

    def create_token(self, request: operator_pb2.CreateTokenRequest) -> operator_pb2.Token:
        """A join token."""
        token, expires_at = self._administration.create_token(
            role=request.role, host_name=request.host_name, minutes=request.valid_minutes or 15
        )
        return operator_pb2.Token(token=token, expires_at=utc_text(expires_at))

    def list_agents(self, _: operator_pb2.Empty) -> operator_pb2.AgentList:
        """All agents that ever joined."""
        connected = {agent.agent_id for agent in self._world.link.connected()}
        return operator_pb2.AgentList(
            agents=[
                agent_message(agent, connected=agent.agent_id in connected)
                for agent in self._world.agents.all()
            ]
        )

    def revoke_agent(self, request: operator_pb2.AgentRevocation) -> operator_pb2.Agent:
        """Shut an agent out: its session is cut, its writer's key refused.

        The first is done whatever state the repository is in.
        """
        agent = self._world.agents.named(request.agent)
        self._administration.revoke(AgentId(agent.agent_id))
        if not self._world.keeper.has_repository:
            message = agent_message(self._world.agents.get(agent.agent_id), connected=False)
            message.told.append("it has no session; there is no repository in which it could write")
            return message
        try:
            given_up = self._world.keeper.revoke(
                agent.agent_id, give_up_unread=request.give_up_damaged
            )
        except HoldfastError as error:
            raise type(error)(
                "the agent is shut out: no session, no keys, no leave to publish a point. Still to do: its"
                f" signing key is not yet refused in the repository: {error}",
                advice=error.advice or "revoke it again when the repository can be reached",
            ) from error
        message = agent_message(self._world.agents.get(agent.agent_id), connected=False)
        message.told.append("it has no session, gets no keys and no leave to publish a point")
        message.told.append(
            "its signing key is refused in the repository; what it stored before stays"
        )
        message.told.extend(f"given up: {name}" for name in given_up)
        return message

    # -- runs and jobs --------------------------------------------------------------------------

    def start_restore(self, request: operator_pb2.StartRestoreRequest) -> operator_pb2.RunStarted:
        """Begin (or only plan) a restore."""
        point_id = PointId(request.point_id)
        if request.WhichOneof("what") == "disk":
            try:
                file_format = FileFormat(request.disk.format or "sparse")
            except ValueError as error:
                raise UsageError("unknown file format", format=request.disk.format) from error
            disk_request = RestoreDiskRequest(
                point_id=point_id,
                disk_number=request.disk.device_key,
                path=request.disk.path,
                format=file_format,
                agent=request.agent,
            )
            started = self._engine.start_restore_disk(disk_request, dry_run=request.dry_run)
            return started_message(self._world, started)
        vm = request.vm
        if bool(vm.name) == vm.in_place:
            raise UsageError("give either a name or in place")
        if vm.replaced_files and not vm.in_place:
            raise UsageError("only a restore in place replaces disks")
        vm_request = RestoreVmRequest(
            point_id=point_id,
            name=vm.name,
            vcenter=vm.vcenter,
            host=vm.host,
            folder=vm.folder,
            datastore=vm.datastore,
            disk_datastores=tuple((disk.device_key, disk.datastore) for disk in vm.disks),
            in_place=vm.in_place,
            replaced_files=tuple(vm.replaced_files),
            power_on=vm.power_on,
            transport=request.transport,
            agent=request.agent,
        )
        return started_message(
            self._world, self._engine.start_restore_vm(vm_request, dry_run=request.dry_run)
        )

    def plan_pages(self, request: operator_pb2.PlanRequest) -> PlanPages:
        """What policies would do in the days to come. Raises: UsageError, NotFound, NoRepository."""
        return PlanPages(self._world, request)

    def qualify_pages(self, request: operator_pb2.QualifyRequest) -> QualifyPages:
        """What this vSphere does with a VM that nobody needs. Raises: NotFound, Refused."""
        return QualifyPages(self._world, self._engine, request)

    def follower(self, request: operator_pb2.RunName) -> RunFollower:
        """Follow a run, or the run of a job. Raises: NotFound."""
        jobs = self._world.jobs.jobs_of_run(RunId(request.run_id))
        if not jobs:
            jobs = [self._world.jobs.job(JobId(request.run_id))]
        return RunFollower(self._world, jobs[0].run_id)

    def list_jobs(self, request: operator_pb2.JobQuery) -> operator_pb2.JobList:
        """Newest first, or all of a run. Raises: NotFound."""
        if request.run_id:
            found = self._world.jobs.jobs_of_run(RunId(request.run_id))
            if not found:
                raise NotFound("there is no such run", run=request.run_id)
            jobs = [job for job in found if request.vm in ("", job.subject)]
            jobs = jobs[: request.limit or None]
        else:
            jobs = self._world.jobs.latest(subject=request.vm, limit=request.limit or 50)
        return operator_pb2.JobList(jobs=[job_message(job) for job in jobs])

    def show_job(self, request: operator_pb2.JobName) -> operator_pb2.JobDetail:
        """One job."""
        job = self._world.jobs.job(JobId(request.job_id))
        return self._detail(job)

    def cancel_job(self, request: operator_pb2.JobName) -> operator_pb2.JobDetail:
        """Ask it to stop."""
        return self._detail(self._engine.cancel(JobId(request.job_id)))

    def _detail(self, job: JobRow) -> operator_pb2.JobDetail:
        return job_detail_message(
            job,
            self._world.jobs.events(job.job_id),
            prune=self._world.prunes.of_job(job.job_id),
            damages=self._world.damages.totals(job.job_id),
        )

    def confirm_recovery_sheet(
        self, request: operator_pb2.RecoverySheetProof
    ) -> operator_pb2.Empty:
        """Part of the sheet, typed back. Raises: WrongKey, NoRepository."""
        if not confirm_recovery_sheet(self._world.settings, request.typed):
            raise WrongKey(
                "that is not what the recovery sheet says",
                advice="`holdfast doctor` tells which of its groups to type, one after the other",
            )
        self._world.settings.set(names.SHEET_CONFIRMED_AT, utc_text(SystemClock().now()))
        return operator_pb2.Empty()


def _lines(checks: list[CheckLine]) -> list[operator_pb2.CheckLine]:
    return [
        operator_pb2.CheckLine(
            name=check.name,
            state=check.state,
            detail=check.detail,
            advice=check.advice,
            check=check.check,
        )
        for check in checks
    ]

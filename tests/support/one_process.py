"""The controller's engine, an agent's pipelines and a lab in one process: whole jobs in a second.

Everything is real but the session between controller and agent, which is a thread here.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.pipelines.context import Grant
from holdfast_agent.pipelines.pipeline_table import PIPELINES
from holdfast_common.clock import SystemClock
from holdfast_common.errors import Cancelled, HoldfastError
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, DatastoreId, PointId, RepositoryId, new_ulid
from holdfast_common.job_result import ErrorReport, JobResult, Outcome, Warned
from holdfast_common.job_spec import Attempt, DiskTicket, FileFormat, JobSpec, TransportKind
from holdfast_common.logs import Secret
from holdfast_common.places import Places, find_places
from holdfast_common.point_record import PointRecord
from holdfast_controller.commands.init import initialise
from holdfast_controller.configuration import ControllerConfiguration
from holdfast_controller.runs.agent_link import AgentLink, AttemptHandler, ConnectedAgent
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.key_keeper import KeyKeeper
from holdfast_controller.runs.lifecycle import Lifecycle
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.requests import BackupRequest, RestoreDiskRequest, Started
from holdfast_controller.runs.vcenters import Vcenters
from holdfast_controller.runs.world import World
from holdfast_controller.store.agents import AgentTable, NewAgent
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.database import Database
from holdfast_controller.store.inventory import InventoryTable
from holdfast_controller.store.jobs import JobRow, JobTable
from holdfast_controller.store.ledger import LedgerTable
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.settings import Settings
from holdfast_controller.store.vcenters import VcenterTable
from holdfast_controller.vsphere.session import CallGate, VsphereSession
from holdfast_lab.server import RunningLab
from support.agent_configurations import agent_configuration
from support.waiting import wait_until

HOST_NAME = "proxy"
JOB_SECONDS = 60.0


def nothing(_: JobSpec) -> None:
    """Nothing happens."""


def unchanged(_: JobSpec, result: JobResult) -> JobResult:
    """The result as it is."""
    return result


@dataclass
class AgentInThisProcess:
    """An `AgentLink` with one agent, whose jobs are threads here.

    ``before`` is called in the job's thread before it works, ``after`` may change its result.
    """

    agent: ConnectedAgent
    signing_key: Ed25519PrivateKey
    repository: Path
    configuration: AgentConfiguration
    before: Callable[[JobSpec], None] = nothing
    after: Callable[[JobSpec, JobResult], JobResult] = unchanged
    specs: list[JobSpec] = field(default_factory=list)
    _stops: dict[Attempt, threading.Event] = field(default_factory=dict)

    def connected(self) -> list[ConnectedAgent]:
        return [self.agent]

    def start(
        self, agent_id: AgentId, attempt: Attempt, spec: JobSpec, handler: AttemptHandler
    ) -> None:
        assert agent_id == self.agent.agent_id
        self.specs.append(spec)
        stop = self._stops[attempt] = threading.Event()
        context = _Context(self, attempt, handler, stop)
        thread = threading.Thread(target=self._work, args=(spec, context), daemon=True)
        thread.start()

    def cancel(self, attempt: Attempt) -> None:
        self._stops[attempt].set()

    def _work(self, spec: JobSpec, context: _Context) -> None:
        try:
            self.before(spec)
            result = PIPELINES[type(spec.work)](spec, context)
        except HoldfastError as error:
            outcome = Outcome.CANCELLED if isinstance(error, Cancelled) else Outcome.FAILED
            result = JobResult(outcome=outcome, error=ErrorReport.of(error))
        result = replace(result, warnings=(*result.warnings, *context.warnings))
        context.handler.finished(self.after(spec, result))


class _Context:
    """A `JobContext` that asks the attempt's handler directly."""

    def __init__(
        self,
        owner: AgentInThisProcess,
        attempt: Attempt,
        handler: AttemptHandler,
        stop: threading.Event,
    ) -> None:
        self.handler = handler
        self.warnings: list[Warned] = []
        self._owner = owner
        self._attempt = attempt
        self._stop = stop

    @property
    def attempt(self) -> Attempt:
        return self._attempt

    @property
    def agent_id(self) -> AgentId:
        return self._owner.agent.agent_id

    @property
    def configuration(self) -> AgentConfiguration:
        return self._owner.configuration

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        return self._owner.signing_key

    def repository_path(self, repository_id: RepositoryId) -> Path:
        assert repository_id in self._owner.agent.repositories
        return self._owner.repository

    def check(self) -> None:
        if self._stop.is_set():
            raise Cancelled("cancelled by the controller")

    def report(self, *, done_bytes: int, total_bytes: int, device_key: int, phase: str) -> None:
        """Nobody looks."""

    def warn(self, code: str, message: str) -> None:
        self.warnings.append(Warned(code=code, message=message))

    def fetch_extents(self, device_key: int) -> Iterable[Extent]:
        return self.handler.extents(device_key)

    def open_segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        return self.handler.segment_keys(headers)

    def renew_ticket(self, device_key: int) -> DiskTicket:
        return self.handler.renewed_ticket(device_key)

    def request_commit(self, manifest_digest: bytes) -> Grant:
        granted = self.handler.grant_commit(manifest_digest)
        return Grant(controller_epoch=granted.controller_epoch, signature=granted.signature)


@dataclass(frozen=True)
class OneProcess:
    """A controller that is ready, its agent, and the lab that it protects."""

    folder: Path
    lab: RunningLab
    world: World
    engine: Engine
    reconciler: Reconciler
    agent: AgentInThisProcess
    vcenter_id: str

    @property
    def session(self) -> VsphereSession:
        return self.world.vcenters.session(self.vcenter_id)

    def start(self, vm: str, **wish: str) -> Started:
        """Start a backup of one VM."""
        return self.engine.start_backup(BackupRequest(selectors=(vm,), **wish), dry_run=False)

    def ended(self, started: Started) -> JobRow:
        """The run's one job at its end."""
        (job_id,) = started.job_ids
        wait_until(
            lambda: self.world.jobs.job(job_id).ended, seconds=JOB_SECONDS, what="the job ends"
        )
        return self.world.jobs.job(job_id)

    def back_up(self, vm: str, **wish: str) -> JobRow:
        """A backup of one VM, to its end."""
        return self.ended(self.start(vm, **wish))

    def record(self, job: JobRow) -> PointRecord:
        """The point that a job made."""
        assert str(job.state) == "done", f"{job.state}: {job.error}"
        return self.world.catalogue.point(job.point_id).decoded()

    def refresh(self) -> None:
        """Read the inventory again."""
        self.world.vcenters.refresh(self.vcenter_id)


@contextmanager
def one_process(
    folder: Path,
    lab: RunningLab,
    *,
    gate: CallGate | None = None,
    transports: tuple[TransportKind, ...] = tuple(TransportKind),
    reconciled: bool = True,
) -> Iterator[OneProcess]:
    """Set up, with the lab added as a vCenter; ended at the end of the block."""
    places = find_places({"HOLDFAST_HOME": str(folder / "home")})
    configuration = ControllerConfiguration(jobs_at_once_max=2, attempts_max=1)
    made = initialise(places, folder / "repository", configuration, accepted=True)
    database = open_database(places.database)
    agent = _agent(database, lab, folder, RepositoryId(made.repository_id), transports)
    world = _world(places, configuration, database, agent, gate)
    row, _ = world.vcenters.add(
        name="lab",
        url=lab.url,
        user=lab.user,
        password=Secret(lab.password.encode()),
        certificate_sha256=lab.certificate.sha256,
    )
    engine = Engine(world)
    orphans = Orphans()
    orphans.attach(world)
    if reconciled:
        engine.reconciled()
    try:
        yield OneProcess(
            folder, lab, world, engine, Reconciler(world, orphans), agent, row.vcenter_id
        )
    finally:
        lab.lab.misbehaviour.disarm()
        engine.close()
        world.vcenters.close()
        database.close()


def _agent(
    database: Database,
    lab: RunningLab,
    folder: Path,
    repository_id: RepositoryId,
    transports: tuple[TransportKind, ...],
) -> AgentInThisProcess:
    with lab.lab.lock:
        mounted = {
            DatastoreId(store.url): store.root
            for store in lab.lab.datastores()
            if store.kind_name == "NFS"
        }
        proxy = lab.lab.machine(HOST_NAME)
        bios_uuid = proxy.bios_uuid
    restores = folder / "restores"
    restores.mkdir()
    signing_key = Ed25519PrivateKey.generate()
    agent_id = AgentId(new_ulid())
    clock = SystemClock()
    table = AgentTable(database, clock)
    table.add_token(
        token_hash="t",
        role="proxy",
        host_name=HOST_NAME,
        expires_at=clock.now() + timedelta(hours=1),
    )
    table.join(
        "t",
        NewAgent(
            agent_id=agent_id,
            role="proxy",
            host_name=HOST_NAME,
            signing_public_key=signing_key.public_key().public_bytes_raw(),
            certificate_serial="1",
            certificate_ends_at="2099-01-01T00:00:00.000000Z",
        ),
    )
    return AgentInThisProcess(
        agent=ConnectedAgent(
            agent_id=agent_id,
            role="proxy",
            host_name=HOST_NAME,
            version="0",
            transports=transports,
            datastores=tuple(mounted),
            writable_datastores=tuple(mounted),
            repositories=(repository_id,),
            restore_folders=(str(restores),),
            vm_bios_uuid=bios_uuid,
        ),
        signing_key=signing_key,
        repository=folder / "repository",
        configuration=agent_configuration(
            datastores={str(name): path for name, path in mounted.items()},
            restore_folders=(restores,),
            device_folder=lab.state / "devices" / HOST_NAME,
        ),
    )


def _world(
    places: Places,
    configuration: ControllerConfiguration,
    database: Database,
    link: AgentLink,
    gate: CallGate | None,
) -> World:
    clock = SystemClock()
    stopping = threading.Event()
    settings = Settings(database)
    jobs = JobTable(database, clock)
    audit = AuditTrail(database, clock)
    agents = AgentTable(database, clock)
    seal = SecretSeal.from_file(places.controller_state / "secrets.key")
    return World(
        configuration=configuration,
        clock=clock,
        stopping=stopping,
        settings=settings,
        jobs=jobs,
        catalogue=Catalogue(database),
        ledger=LedgerTable(database, clock),
        agents=agents,
        audit=audit,
        vcenters=Vcenters(
            table=VcenterTable(database, clock, seal),
            inventory=InventoryTable(database),
            clock=clock,
            gate=gate,
        ),
        keeper=KeyKeeper(
            settings=settings,
            agents=agents,
            audit=audit,
            key_folder=places.controller_state / "keys",
            clock=clock,
        ),
        link=link,
        lifecycle=Lifecycle(jobs=jobs, stopping=stopping, attempts_max=configuration.attempts_max),
    )


def disk_content(holdfast: OneProcess, job: JobRow, device_key: int = 2000) -> bytes:
    """One disk of the point that a backup made, restored to a file and read back."""
    record = holdfast.record(job)
    path = holdfast.folder / "restores" / f"{record.point_id}-{device_key}.vmdk"
    started = holdfast.engine.start_restore_disk(
        RestoreDiskRequest(
            point_id=PointId(record.point_id),
            device_key=device_key,
            path=str(path),
            format=FileFormat.FLAT,
        ),
        dry_run=False,
    )
    restored = holdfast.ended(started)
    assert str(restored.state) == "done", f"{restored.state}: {restored.error}"
    return path.with_name(f"{path.stem}-flat.vmdk").read_bytes()


def disk_truth(lab: RunningLab, vm: str, number: int = 0, *, at: int | None = None) -> bytes:
    """What the guest wrote to a disk, replayed from the lab's log of its writes."""
    disk = lab.lab.machine(vm).disks()[number].disk
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth"
        disk.truth(path, at)
        return path.read_bytes()


def guest_writes(
    lab: RunningLab, vm: str, offset: int, *, number: int = 0, length: int = 512
) -> None:
    """The guest writes something new."""
    lab.lab.machine(vm).disks()[number].disk.guest_write(offset, secrets.token_bytes(length))

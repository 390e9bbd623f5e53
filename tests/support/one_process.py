"""The controller's engine, an agent's pipelines and a lab in one process: whole jobs in a second.

Everything is real but the session between controller and agent, which is a thread here.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from holdfast_common.clock import SystemClock
from holdfast_common.identity import (
    JobId,
    PointId,
    RepositoryId,
    RunId,
    new_ulid,
)
from holdfast_common.job_spec import FileFormat, TransportKind
from holdfast_common.logs import Secret
from holdfast_common.places import Places, find_places
from holdfast_common.point_record import PointRecord
from holdfast_controller.commands.init import initialise
from holdfast_controller.configuration import ControllerConfiguration, StreamLimits
from holdfast_controller.ledger import JobLedger
from holdfast_controller.runs import doctor
from holdfast_controller.runs.agent_link import AgentLink
from holdfast_controller.runs.check_lines import CheckLine
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.key_keeper import KeyKeeper
from holdfast_controller.runs.lifecycle import Lifecycle
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.requests import BackupRequest, RestoreDiskRequest, Started
from holdfast_controller.runs.vcenters import Vcenters
from holdfast_controller.runs.world import World
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.damages import DamageTable
from holdfast_controller.store.database import Database
from holdfast_controller.store.inventory import InventoryTable
from holdfast_controller.store.job_figures import JobFigures
from holdfast_controller.store.jobs import JobRow, JobTable
from holdfast_controller.store.keeping import KeepingTable
from holdfast_controller.store.ledger import LedgerTable
from holdfast_controller.store.notices import NoticeTable
from holdfast_controller.store.point_use import PointUse
from holdfast_controller.store.policies import PolicyTable
from holdfast_controller.store.policy_slots import PolicySlotTable
from holdfast_controller.store.protection import Protection
from holdfast_controller.store.prunes import PruneTable
from holdfast_controller.store.runs import RunTable
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.settings import Settings
from holdfast_controller.store.vcenters import VcenterTable
from holdfast_controller.vsphere.session import CallGate, VsphereSession
from holdfast_lab.server import RunningLab
from support.agent_in_this_process import AgentInThisProcess, agent_in_this_process
from support.waiting import wait_until

JOB_SECONDS = 60.0
Value = TypeVar("Value")


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
    database: Database
    never_left: list[AbstractContextManager[object]] = field(default_factory=list)

    @property
    def session(self) -> VsphereSession:
        return self.world.vcenters.session(self.vcenter_id)

    def start(self, vm: str, **wish: str) -> Started:
        """Start a backup of one VM."""
        request = replace(BackupRequest(selectors=(vm,)), **wish)  # type: ignore[arg-type]  # texts
        return self.engine.start_backup(request, dry_run=False)

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
        assert str(job.state) in ("done", "partial"), f"{job.state}: {job.error}"
        return self.world.catalogue.point(job.point_id).decoded()

    def forgotten_ledger(self) -> JobLedger:
        """The ledger as a job writes it that no database knows any more."""
        return JobLedger(
            ledger=self.world.ledger,
            run_id=RunId(new_ulid()),
            job_id=JobId(new_ulid()),
            vcenter_id=self.vcenter_id,
        )

    def crashed_in(self, block: AbstractContextManager[Value]) -> Value:
        """Enter a block and never leave it, as a controller does that is killed in it."""
        self.never_left.append(block)
        return block.__enter__()

    def doctor(self) -> list[CheckLine]:
        """What `holdfast doctor` tells."""
        return doctor.examine(self.world)

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
    backups_at_once_max: int = 2,
    limits: StreamLimits | None = None,
    configuration: ControllerConfiguration | None = None,
) -> Iterator[OneProcess]:
    """Set up, with the lab added as a vCenter; ended at the end of the block. ``configuration``: instead of limits."""
    folder.mkdir(parents=True, exist_ok=True)
    places = find_places({"HOLDFAST_HOME": str(folder / "home")})
    configuration = configuration or ControllerConfiguration(
        jobs_at_once_max=backups_at_once_max, attempts_max=1, limits=limits or StreamLimits()
    )
    made = initialise(places, folder / "repository", configuration, accepted=True)
    database = open_database(places.database)
    agent = agent_in_this_process(
        database, lab, folder, RepositoryId(made.repository_id), transports
    )
    world = controller_world(places, configuration, database, agent, gate)
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
    ready = OneProcess(
        folder, lab, world, engine, Reconciler(world, orphans), agent, row.vcenter_id, database
    )
    try:
        yield ready
    finally:
        lab.lab.misbehaviour.disarm()
        for block in reversed(ready.never_left):
            block.__exit__(None, None, None)
        engine.close()
        world.vcenters.close()
        database.close()


def controller_world(
    places: Places,
    configuration: ControllerConfiguration,
    database: Database,
    link: AgentLink,
    gate: CallGate | None,
) -> World:
    """The controller's parts, over a home that was initialised."""
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
        job_figures=JobFigures(database),
        protection=Protection(database),
        notices=NoticeTable(database, seal),
        runs=RunTable(database),
        catalogue=Catalogue(database),
        ledger=LedgerTable(database, clock),
        agents=agents,
        audit=audit,
        prunes=PruneTable(database),
        damages=DamageTable(database),
        point_use=PointUse(database),
        policies=PolicyTable(database, clock, audit),
        policy_slots=PolicySlotTable(database, clock),
        keeping=KeepingTable(database, clock),
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


def one_round(reconciler: Reconciler) -> None:
    """Everything looked after once, to the end."""
    for worker in reconciler.begin_round():
        worker.join(JOB_SECONDS)
        assert not worker.is_alive(), f"{worker.name} does not end"


def disk_content(holdfast: OneProcess, job: JobRow, device_key: int = 2000) -> str:
    """The digest of one disk of the point that a backup made, restored to a file."""
    record = holdfast.record(job)
    path = holdfast.folder / "restores" / f"{record.point_id}-{device_key}.vmdk"
    started = holdfast.engine.start_restore_disk(
        RestoreDiskRequest(
            point_id=PointId(record.point_id),
            disk_number=device_key,
            path=str(path),
            format=FileFormat.FLAT,
        ),
        dry_run=False,
    )
    restored = holdfast.ended(started)
    assert str(restored.state) == "done", f"{restored.state}: {restored.error}"
    return digest(path.with_name(f"{path.stem}-flat.vmdk").read_bytes())


def disk_truth(lab: RunningLab, vm: str, number: int = 0, *, at: int | None = None) -> str:
    """The digest of what the guest wrote to a disk, replayed from the lab's log of its writes."""
    disk = lab.lab.machine(vm).disks()[number].disk
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth"
        disk.truth(path, at)
        return digest(path.read_bytes())


def digest(content: bytes) -> str:
    """Content that a failed test can show."""
    return hashlib.sha256(content).hexdigest()


def guest_writes(
    lab: RunningLab, vm: str, offset: int, *, number: int = 0, length: int = 512
) -> None:
    """The guest writes something new."""
    lab.lab.machine(vm).disks()[number].disk.guest_write(offset, secrets.token_bytes(length))

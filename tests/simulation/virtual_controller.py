"""A controller of the simulation: the product's own world, engine, reconciler, scheduler and SQLite, in virtual time.

What is replaced: the login at vSphere, the agents' sessions, the keys of the repository, and everything that would make
two runs of one seed differ (`product_in_virtual_time`). A life ends at any step; the database stays.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from holdfast_common import identity
from holdfast_common.errors import HoldfastError
from holdfast_common.logs import Secret
from holdfast_controller.configuration import (
    CheckKeeping,
    ControllerConfiguration,
    KeepingSettings,
    KeepingTimes,
    PruneKeeping,
    ScrubKeeping,
    StreamLimits,
)
from holdfast_controller.runs.clock_watch import clock_doubt
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.keeping import Keeping
from holdfast_controller.runs.lifecycle import Lifecycle
from holdfast_controller.runs.pausing import keep_paused
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.scheduler import Scheduler
from holdfast_controller.runs.vcenters import Vcenters
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.damages import DamageTable
from holdfast_controller.store.inventory import InventoryTable
from holdfast_controller.store.job_figures import JobFigures
from holdfast_controller.store.jobs import JobTable
from holdfast_controller.store.keeping import KeepingTable
from holdfast_controller.store.ledger import LedgerTable
from holdfast_controller.store.notices import NoticeTable
from holdfast_controller.store.point_use import PointUse
from holdfast_controller.store.policies import PolicyTable
from holdfast_controller.store.policy_slots import PolicySlotTable
from holdfast_controller.store.protection import Protection
from holdfast_controller.store.prunes import PruneTable
from holdfast_controller.store.runs import RunTable
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.settings import Settings
from holdfast_controller.store.vcenters import NewVcenter, VcenterTable
from holdfast_controller.vsphere import hot_add
from simulation.virtual_agents import VirtualAgents
from simulation.virtual_database import StoreFaults, VirtualDatabase
from simulation.virtual_facts import INSTANCE, inventory_of
from simulation.virtual_keys import VirtualKeeper
from simulation.virtual_link import VirtualLink
from simulation.virtual_repository import REPOSITORY
from simulation.virtual_threading import VirtualThreading
from simulation.virtual_time import Kernel, Life, VirtualClock
from simulation.virtual_vsphere import VirtualVsphere

CONTROLLER_ID: Final = "simulated"
LEASE_SECONDS: Final = 8.0
RECONCILE_SECONDS: Final = 20.0
PROXY_STREAMS_MAX: Final = 2
STREAMS_MAX: Final = 3
WATCH_SECONDS: Final = 2.0
KEEPING_START: Final = "* * * * *"  # of forgetting and of pruning
KEEPING_CYCLE_SECONDS: Final = 60.0
KEEPING_LOOK_SECONDS: Final = 15.0
GRACE_SECONDS: Final = 20.0
_SEAL: Final = SecretSeal(Secret(bytes(32)))


def _keeping(start: str) -> KeepingSettings:
    """``start``: of what deletes; nothing is checked or scrubbed by itself."""
    return KeepingSettings(
        forget=KeepingTimes(start=start, window=""),
        prune=PruneKeeping(start=start, window="", grace_hours=GRACE_SECONDS / 3600),
        scrub=ScrubKeeping(start="", window=""),
        check=CheckKeeping(start="", window=""),
    )


class VirtualController:
    """One life after the other, over one database."""

    def __init__(
        self,
        kernel: Kernel,
        model: VirtualVsphere,
        agents: VirtualAgents,
        connection: sqlite3.Connection,
        *,
        audit_share: float,
        keeps: bool = False,
        streams_max: int = STREAMS_MAX,
    ) -> None:
        self.kernel = kernel
        self.wrong = StoreFaults()
        self.life = Life("controller", dead=True)
        self.lives = 0
        self.started_at = 0.0
        self.world: World | None = None
        self.engine: Engine | None = None
        self.scheduler: Scheduler | None = None
        self.link: VirtualLink | None = None
        self.vcenter_id = ""
        self._model = model
        self._agents = agents
        self._connection = connection
        self._clock = VirtualClock(kernel)
        self._configuration = ControllerConfiguration(
            jobs_at_once_max=streams_max,
            reconcile_seconds=RECONCILE_SECONDS,
            job_lease_seconds=LEASE_SECONDS,
            audit_share=audit_share,
            own_vm_uuid="none",
            limits=StreamLimits(each_proxy=PROXY_STREAMS_MAX),
            keeping=_keeping(KEEPING_START if keeps else ""),
        )
        self._keeps = keeps
        agents.limit_at_once = streams_max
        agents.limit_of_one = PROXY_STREAMS_MAX

    def set_up(self) -> None:
        """Once, before the first life."""
        database = VirtualDatabase(self.kernel, self._connection, StoreFaults())
        settings = Settings(database)
        for name, value in (
            (names.REPOSITORY_ID, REPOSITORY),
            (names.SHEET_CONFIRMED_AT, "2026-01-01T00:00:00.000000Z"),
            (names.CONTROLLER_ID, CONTROLLER_ID),
            (names.CONTROLLER_EPOCH, "1"),
        ):
            settings.set(name, value)
        row = VcenterTable(database, self._clock, _SEAL).add(
            NewVcenter(
                name="vc",
                host="vcenter.example",
                port=443,
                user_name="backup",
                password=Secret(b"secret"),
                certificate_sha256="00" * 32,
                instance_uuid=INSTANCE,
                product="model",
                version="8.0.2",
                is_vcenter=True,
            )
        )
        self.vcenter_id = row.vcenter_id
        inventory = inventory_of(self._model.vms.values(), seconds=self.kernel.now)
        InventoryTable(database).replace(row.vcenter_id, inventory)

    def start(self) -> None:
        """Begin a life."""
        self.lives += 1
        self.started_at = self.kernel.now
        identity._last = 0  # of the process: ids ascend in one, and no longer
        self.life = Life("controller")
        self.world = self.engine = self.scheduler = self.link = None
        hot_add._proxies.clear()
        self.kernel.spawn(self.life, "controller", self._run)

    def stop(self) -> None:
        """As systemd does: it may end its work."""
        engine, life = self.engine, self.life
        if engine is None or life.dead:
            return

        def ends() -> None:
            engine.close()
            self.kernel.kill(life)

        self.kernel.spawn(life, "stop", ends)

    @property
    def is_up(self) -> bool:
        return self.engine is not None and not self.life.dead

    def _run(self) -> None:
        life = self.life
        try:
            orphans = Orphans()
            link = VirtualLink(self._agents, life, orphans, LEASE_SECONDS)
            world = self._made_world(link)
            orphans.attach(world)
            engine = Engine(world)
            keep_paused(world, engine)
            reconciler = Reconciler(world, orphans)
        except HoldfastError:
            self.kernel.kill(life)  # the program ends; it is started again
            return
        self.world, self.engine, self.link = world, engine, link
        self.scheduler = Scheduler(world, engine)
        self._agents.link = link
        self.kernel.spawn(life, "leases", lambda: self._watch(link))
        if self._keeps:
            self.kernel.spawn(life, "keeping", lambda: self._keep(world, engine))
        reconciler.run(engine.reconciled)

    def _keep(self, world: World, engine: Engine) -> None:
        """As `Keeping.run`, which would take a bug for something to be logged."""
        keeping = Keeping(world, engine)
        while not world.stopping.wait(KEEPING_LOOK_SECONDS):
            try:
                keeping._clock_watch.look()
                keeping.look(world.clock.now())
            except HoldfastError as error:
                self.kernel.trace.append(f"{self.kernel.now:.3f} keeping: {error.line()}")
            if clock_doubt(world):
                self._agents.count("the clock was not believed")

    def _watch(self, link: VirtualLink) -> None:
        while True:
            link.watch()
            self.kernel.sleep(WATCH_SECONDS)

    def _made_world(self, link: VirtualLink) -> World:
        database = VirtualDatabase(self.kernel, self._connection, self.wrong)
        clock, configuration = self._clock, self._configuration
        stopping: Any = VirtualThreading(self.kernel).Event()
        jobs, audit = JobTable(database, clock), AuditTrail(database, clock)
        keeper: Any = VirtualKeeper()
        return World(
            configuration=configuration,
            clock=clock,
            stopping=stopping,
            settings=Settings(database),
            jobs=jobs,
            keeping=KeepingTable(database, clock),
            job_figures=JobFigures(database),
            protection=Protection(database),
            notices=NoticeTable(database, _SEAL),
            runs=RunTable(database),
            catalogue=Catalogue(database),
            ledger=LedgerTable(database, clock),
            agents=AgentTable(database, clock),
            audit=audit,
            prunes=PruneTable(database),
            damages=DamageTable(database),
            point_use=PointUse(database),
            policies=PolicyTable(database, clock, audit),
            policy_slots=PolicySlotTable(database, clock),
            vcenters=Vcenters(
                table=VcenterTable(database, clock, _SEAL),
                inventory=InventoryTable(database),
                clock=clock,
            ),
            keeper=keeper,
            link=link,
            lifecycle=Lifecycle(
                jobs=jobs, stopping=stopping, attempts_max=configuration.attempts_max
            ),
        )

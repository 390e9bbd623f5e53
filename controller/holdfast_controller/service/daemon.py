"""The controller, put together: database, keys, sessions, engine, reconciler, listeners; and taken apart."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from holdfast_common.clock import Clock, SystemClock
from holdfast_common.places import Places
from holdfast_common.pulses import Pulses
from holdfast_common.service_manager import ServiceManager
from holdfast_common.trust.controller_trust import ControllerTrust, load_trust
from holdfast_controller.configuration import ControllerConfiguration
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.keeping import Keeping
from holdfast_controller.runs.key_keeper import KeyKeeper
from holdfast_controller.runs.lifecycle import Lifecycle
from holdfast_controller.runs.pausing import keep_paused
from holdfast_controller.runs.reconcile import Orphans, Reconciler
from holdfast_controller.runs.scheduler import Scheduler
from holdfast_controller.runs.self_backup import SelfBackup
from holdfast_controller.runs.vcenters import Vcenters
from holdfast_controller.runs.world import World
from holdfast_controller.service.agent_administration import AgentAdministration
from holdfast_controller.service.agent_sessions import AgentSessions
from holdfast_controller.service.listeners import (
    BoundPorts,
    ListenerAddresses,
    ListenerParts,
    serve,
)
from holdfast_controller.service.operator_actions import OperatorActions
from holdfast_controller.service.operators import OperatorService
from holdfast_controller.service.self_care import SelfCare
from holdfast_controller.service.session_timing import SessionTiming
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.damages import DamageTable
from holdfast_controller.store.database import Database
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
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.settings import Settings
from holdfast_controller.store.vcenters import VcenterTable
from holdfast_controller.vsphere.session import CallGate

log = logging.getLogger(__name__)

OPERATOR_THREADS = 16
SELF_BACKUP_STOP_SECONDS = 5.0  # what it leaves is an upload that nobody sees
RECONCILER_STOP_SECONDS = 10.0  # a thread that hangs at its vCenter ends with the program


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What `holdfast init` made, opened."""

    places: Places
    configuration: ControllerConfiguration
    database: Database
    clock: Clock
    gate: CallGate | None


async def run_daemon(
    places: Places,
    configuration: ControllerConfiguration,
    *,
    stop: asyncio.Event,
    ready: Callable[[BoundPorts], None],
    gate: CallGate | None = None,
    manager: ServiceManager | None = None,
) -> None:
    """Run until ``stop`` is set. The caller holds `only_controller`.

    Raises: ConfigurationError when something of the installation cannot be used.
    """
    clock = SystemClock()
    trust = load_trust(places.trust, clock)
    installation = Installation(
        places=places,
        configuration=configuration,
        database=open_database(places.database),
        clock=clock,
        gate=gate,
    )
    daemon = Daemon(installation, trust)
    try:
        await daemon.serve(stop=stop, ready=ready, manager=manager or ServiceManager())
    finally:
        await daemon.take_apart()


class Daemon:
    """All parts of a running controller. `serve` once, then `take_apart`."""

    def __init__(self, installation: Installation, trust: ControllerTrust) -> None:
        self._installation = installation
        agents = AgentTable(installation.database, installation.clock)
        orphans = Orphans()
        sessions = AgentSessions(agents, orphans, timing=_timing(installation.configuration))
        self._world = _world(installation, agents, sessions)
        orphans.attach(self._world)
        self._engine = Engine(self._world)
        self._reconciler = Reconciler(self._world, orphans)
        self._reconciling = threading.Thread(
            target=self._reconciler.run,
            args=(self._engine.reconciled,),
            name="reconciler",
            daemon=True,
        )
        self._watching = threading.Thread(
            target=self._engine.watch_inventories, name="inventories", daemon=True
        )
        keep_paused(self._world, self._engine)
        self._scheduling = threading.Thread(
            target=Scheduler(self._world, self._engine).run, name="scheduler", daemon=True
        )
        self._keeping = threading.Thread(
            target=Keeping(self._world, self._engine).run, name="keeping", daemon=True
        )
        self._self_backup = threading.Thread(
            target=SelfBackup(self._world, installation.database, installation.places).run,
            name="self-backup",
            daemon=True,
        )
        self._operator_threads = ThreadPoolExecutor(OPERATOR_THREADS, thread_name_prefix="operator")
        self._listeners = self._listener_parts(trust, sessions)
        self._self_care = SelfCare(self._world)

    async def serve(
        self,
        *,
        stop: asyncio.Event,
        ready: Callable[[BoundPorts], None],
        manager: ServiceManager,
    ) -> None:
        """Listen until ``stop`` is set and no job runs any more."""
        listeners_stop = asyncio.Event()
        stopping = asyncio.create_task(self._stop_jobs_first(stop, listeners_stop, manager))
        living = asyncio.create_task(feed_watchdog(manager, self._world.pulses))

        def started(ports: BoundPorts) -> None:
            self._reconciling.start()
            self._watching.start()
            self._scheduling.start()
            self._engine.latency.start()
            self._keeping.start()
            self._self_backup.start()
            self._self_care.start()
            ready(replace(ports, metrics=self._self_care.metrics_port))
            log.info("controller ready", extra={"session_port": ports.session})

        try:
            addresses = _addresses(self._installation.configuration)
            await serve(self._listeners, addresses, stop=listeners_stop, ready=started)
        finally:
            stopping.cancel()
            living.cancel()

    async def take_apart(self) -> None:
        """End what runs in the order of who uses whom; the database is the last."""
        self._world.stopping.set()
        self._operator_threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._self_care.close)
        await asyncio.to_thread(self._engine.close)
        await asyncio.to_thread(self._world.vcenters.close)
        if self._reconciling.is_alive():
            await asyncio.to_thread(self._reconciling.join, RECONCILER_STOP_SECONDS)
        await asyncio.to_thread(self._reconciler.join, RECONCILER_STOP_SECONDS)
        if self._self_backup.is_alive():
            await asyncio.to_thread(self._self_backup.join, SELF_BACKUP_STOP_SECONDS)
        self._installation.database.close()

    async def _stop_jobs_first(
        self, stop: asyncio.Event, listeners_stop: asyncio.Event, manager: ServiceManager
    ) -> None:
        await stop.wait()
        manager.stopping()
        log.info("stopping; running jobs give everything back first")
        # agents must still be reachable meanwhile
        await asyncio.to_thread(self._engine.close)
        listeners_stop.set()

    def _listener_parts(self, trust: ControllerTrust, sessions: AgentSessions) -> ListenerParts:
        world, installation = self._world, self._installation
        administration = AgentAdministration(
            database=installation.database,
            agents=world.agents,
            audit=world.audit,
            sessions=sessions,
            authority=trust.authority,
            clock=installation.clock,
        )
        actions = OperatorActions(world, self._engine, administration)
        return ListenerParts(
            places=installation.places,
            trust=trust,
            agents=world.agents,
            audit=world.audit,
            clock=installation.clock,
            sessions=sessions,
            administration=administration,
            operators=OperatorService(actions, self._operator_threads),
        )


async def feed_watchdog(manager: ServiceManager, pulses: Pulses) -> None:
    """Tell systemd that the controller lives, while this event loop and all that beats do; until cancelled.

    Whoever is started anew by systemd then finds every job of before: see `reconcile`.
    """
    while manager.alive_every_seconds:
        missed = pulses.silent()
        if missed:
            log.error("the watchdog is not fed: loops stand still", extra={"loops": str(missed)})
        else:
            manager.alive()
        await asyncio.sleep(manager.alive_every_seconds)


def _timing(configuration: ControllerConfiguration) -> SessionTiming:
    return SessionTiming(
        heartbeat=configuration.heartbeat_seconds, job_lease=configuration.job_lease_seconds
    )


def _addresses(configuration: ControllerConfiguration) -> ListenerAddresses:
    return ListenerAddresses(
        session=configuration.session_address,
        enrolment=configuration.enrolment_address,
        operators=configuration.operator_address,
        advertised=configuration.advertised_address,
    )


def _world(installation: Installation, agents: AgentTable, sessions: AgentSessions) -> World:
    stopping = threading.Event()
    settings = Settings(installation.database)
    jobs = JobTable(installation.database, installation.clock)
    audit = AuditTrail(installation.database, installation.clock)
    seal = SecretSeal.from_file(installation.places.controller_state / "secrets.key")
    return World(
        configuration=installation.configuration,
        clock=installation.clock,
        stopping=stopping,
        settings=settings,
        jobs=jobs,
        job_figures=JobFigures(installation.database),
        protection=Protection(installation.database),
        notices=NoticeTable(installation.database, seal),
        runs=RunTable(installation.database),
        catalogue=Catalogue(installation.database),
        ledger=LedgerTable(installation.database, installation.clock),
        agents=agents,
        audit=audit,
        prunes=PruneTable(installation.database),
        damages=DamageTable(installation.database),
        point_use=PointUse(installation.database),
        policies=PolicyTable(installation.database, installation.clock, audit),
        policy_slots=PolicySlotTable(installation.database, installation.clock),
        keeping=KeepingTable(installation.database, installation.clock),
        vcenters=Vcenters(
            table=VcenterTable(installation.database, installation.clock, seal),
            inventory=InventoryTable(installation.database),
            clock=installation.clock,
            gate=installation.gate,
        ),
        keeper=KeyKeeper(
            settings=settings,
            agents=agents,
            audit=audit,
            key_folder=installation.places.controller_state / "keys",
            clock=installation.clock,
        ),
        link=sessions,
        lifecycle=Lifecycle(
            jobs=jobs, stopping=stopping, attempts_max=installation.configuration.attempts_max
        ),
    )

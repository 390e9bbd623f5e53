"""The controller, put together: database, keys, sessions, engine, reconciler, listeners; and taken apart."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from holdfast_common.clock import Clock, SystemClock
from holdfast_common.places import Places
from holdfast_common.trust.controller_trust import load_trust
from holdfast_controller.configuration import ControllerConfiguration
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.key_keeper import KeyKeeper
from holdfast_controller.runs.lifecycle import Lifecycle
from holdfast_controller.runs.reconcile import Orphans, Reconciler
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
from holdfast_controller.service.session_timing import SessionTiming
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.catalogue import Catalogue
from holdfast_controller.store.database import Database
from holdfast_controller.store.inventory import InventoryTable
from holdfast_controller.store.jobs import JobTable
from holdfast_controller.store.ledger import LedgerTable
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.settings import Settings
from holdfast_controller.store.vcenters import VcenterTable
from holdfast_controller.vsphere.session import CallGate

log = logging.getLogger(__name__)

OPERATOR_THREADS = 16
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
) -> None:
    """Run until ``stop`` is set. The caller holds `only_controller`.

    Raises: ConfigurationError when something of the installation cannot be used.
    """
    clock = SystemClock()
    trust = load_trust(places.trust, clock)
    database = open_database(places.database)
    orphans = Orphans()
    agents = AgentTable(database, clock)
    timing = SessionTiming(
        heartbeat=configuration.heartbeat_seconds, job_lease=configuration.job_lease_seconds
    )
    sessions = AgentSessions(agents, orphans, timing=timing)
    installation = Installation(
        places=places,
        configuration=configuration,
        database=database,
        clock=clock,
        gate=gate,
    )
    world = _world(installation, agents, sessions)
    orphans.attach(world)
    engine = Engine(world)
    reconciler = Reconciler(world, orphans)
    administration = AgentAdministration(
        database=database,
        agents=agents,
        audit=world.audit,
        sessions=sessions,
        authority=trust.authority,
        clock=clock,
    )
    executor = ThreadPoolExecutor(OPERATOR_THREADS, thread_name_prefix="operator")
    operators = OperatorService(OperatorActions(world, engine, administration), executor)
    parts = ListenerParts(
        places=places,
        trust=trust,
        agents=agents,
        audit=world.audit,
        clock=clock,
        sessions=sessions,
        administration=administration,
        operators=operators,
    )

    reconciling = threading.Thread(
        target=reconciler.run, args=(engine.reconciled,), name="reconciler", daemon=True
    )

    def started(ports: BoundPorts) -> None:
        reconciling.start()
        ready(ports)
        log.info("controller ready", extra={"session_port": ports.session})

    listeners_stop = asyncio.Event()

    async def stop_jobs_first() -> None:
        await stop.wait()
        log.info("stopping; running jobs give everything back first")
        # agents must still be reachable meanwhile
        await asyncio.to_thread(engine.close)
        listeners_stop.set()

    stopping = asyncio.create_task(stop_jobs_first())
    try:
        await serve(parts, _addresses(configuration), stop=listeners_stop, ready=started)
    finally:
        stopping.cancel()
        world.stopping.set()
        executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(engine.close)
        await asyncio.to_thread(world.vcenters.close)
        if reconciling.is_alive():
            await asyncio.to_thread(reconciling.join, RECONCILER_STOP_SECONDS)
        await asyncio.to_thread(reconciler.join, RECONCILER_STOP_SECONDS)
        database.close()


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
        catalogue=Catalogue(installation.database),
        ledger=LedgerTable(installation.database, installation.clock),
        agents=agents,
        audit=audit,
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

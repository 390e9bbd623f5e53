"""An agent without a session: the controller's jobs run in threads here, by the real pipelines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.pacing import DiskPaces
from holdfast_agent.pipelines.context import Grant
from holdfast_agent.pipelines.pipeline_table import PIPELINES
from holdfast_agent.repository_memory import RepositoryMemory
from holdfast_common.clock import SystemClock
from holdfast_common.errors import Cancelled, HoldfastError
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, DatastoreId, JobId, RepositoryId, new_ulid
from holdfast_common.job_result import ErrorReport, JobResult, Outcome, Warned
from holdfast_common.job_spec import Attempt, BackUpDisks, DiskTicket, JobSpec, TransportKind
from holdfast_controller.runs.agent_link import AttemptHandler, ConnectedAgent
from holdfast_controller.store.agents import AgentTable, NewAgent
from holdfast_controller.store.database import Database
from holdfast_lab.server import RunningLab
from support.agent_configurations import agent_configuration

HOST_NAME = "proxy"
RESULT_TRIES = 5
RESULT_AGAIN_SECONDS = 0.1


def nothing(_: JobSpec) -> None:
    """Nothing happens."""


def unchanged(_: JobSpec, result: JobResult) -> JobResult:
    """The result as it is."""
    return result


@dataclass
class AgentInThisProcess:
    """An `AgentLink` with one agent, whose jobs are threads here.

    ``before`` is called in a backup's thread before it works, ``after`` may change its result.
    """

    agent: ConnectedAgent
    signing_key: Ed25519PrivateKey
    repository: Path
    configuration: AgentConfiguration
    before: Callable[[JobSpec], None] = nothing
    after: Callable[[JobSpec, JobResult], JobResult] = unchanged
    specs: list[JobSpec] = field(default_factory=list)
    lost: bool = False
    away: bool = False
    cancelled: list[Attempt] = field(default_factory=list)
    limited: list[tuple[Attempt, Mapping[int, int]]] = field(default_factory=list)
    leases_seconds: list[float] = field(default_factory=list)  # one for each of ``specs``
    _contexts: dict[Attempt, _Context] = field(default_factory=dict)
    _stops: dict[Attempt, threading.Event] = field(default_factory=dict)

    def connected(self) -> list[ConnectedAgent]:
        return [] if self.away else [self.agent]

    def start(
        self,
        agent_id: AgentId,
        attempt: Attempt,
        spec: JobSpec,
        handler: AttemptHandler,
        *,
        lease_seconds: float = 0.0,
    ) -> None:
        self.leases_seconds.append(lease_seconds)
        assert agent_id == self.agent.agent_id
        self.specs.append(spec)
        stop = self._stops[attempt] = threading.Event()
        context = self._contexts[attempt] = _Context(self, attempt, handler, stop)
        thread = threading.Thread(target=self._work, args=(spec, context), daemon=True)
        thread.start()

    def cancel(self, attempt: Attempt) -> None:
        self._stops[attempt].set()
        self.cancelled.append(attempt)

    def limit(self, attempt: Attempt, rates: Mapping[int, int]) -> bool:
        self.limited.append((attempt, dict(rates)))
        if attempt not in self._contexts:
            return False
        self._contexts[attempt].paces.limit(rates)
        return True

    def slow_down(self, rates: Mapping[int, int]) -> None:
        """Every attempt that is here now reads these disks no faster than that."""
        for attempt in list(self._contexts):
            self.limit(attempt, rates)

    def is_revoked(self, agent_id: AgentId) -> bool:
        del agent_id
        return False

    def may_be_at_work(self, job_id: JobId) -> bool:
        del job_id
        return False

    def lose(self) -> None:
        """Called by ``before``: nobody ever hears of this attempt again, and its lease ends."""
        self.lost = True

    def _work(self, spec: JobSpec, context: _Context) -> None:
        try:
            if isinstance(spec.work, BackUpDisks):
                self.before(spec)
            if self.lost:
                self.lost = False
                context.handler.lost()
                return
            result = PIPELINES[type(spec.work)](spec, context)
        except HoldfastError as error:
            outcome = Outcome.CANCELLED if isinstance(error, Cancelled) else Outcome.FAILED
            result = JobResult(outcome=outcome, error=ErrorReport.of(error))
        except BaseException:
            context.handler.lost()  # a failed assertion of a test: the job must end all the same
            raise
        result = replace(result, warnings=(*result.warnings, *context.warnings))
        if isinstance(spec.work, BackUpDisks):
            result = self.after(spec, result)
        _tell(context.handler, result)


def _tell(handler: AttemptHandler, result: JobResult) -> None:
    """As an agent does: again and again until the result is kept; at last it dies."""
    for _ in range(RESULT_TRIES):
        try:
            handler.finished(result)
        except HoldfastError:
            threading.Event().wait(RESULT_AGAIN_SECONDS)
        else:
            return
    handler.lost()


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
        self.repositories = RepositoryMemory()
        self.paces = DiskPaces(SystemClock())
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

    def pace(self, device_key: int, length: int) -> int:
        return self.paces.wait(device_key, length, check=self.check)

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


def agent_in_this_process(
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
            version=version("holdfast-controller"),
            transports=transports,
            datastores=tuple(mounted),
            writable_datastores=tuple(mounted),
            repositories=(repository_id,),
            restore_folders=(str(restores),),
            vm_bios_uuid=bios_uuid,
            repair_folders=(str(folder / "copies"),),
        ),
        signing_key=signing_key,
        repository=folder / "repository",
        configuration=agent_configuration(
            datastores={str(name): path for name, path in mounted.items()},
            restore_folders=(restores,),
            repair_folders=(folder / "copies",),
            device_folder=lab.state / "devices" / HOST_NAME,
        ),
    )

"""A real controller's listeners and real agents, on loopback, with certificates, in one process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from holdfast_agent.configuration import (
    AgentConfiguration,
    HotAddConfiguration,
    RestoreConfiguration,
)
from holdfast_agent.daemon import AgentDaemon, DaemonTiming
from holdfast_agent.enrolment import Enrolment, enrol
from holdfast_agent.job_runner import Pipeline, PipelineTable
from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.session import AgentTiming
from holdfast_common.clock import SystemClock
from holdfast_common.errors import HoldfastError, Refused
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, JobId, RepositoryId, RunId, new_ulid
from holdfast_common.job_result import JobResult, Outcome, ProgressReport
from holdfast_common.job_spec import (
    Attempt,
    ChainFile,
    CheckRepository,
    DirectTicket,
    DiskTicket,
    JobSpec,
)
from holdfast_common.places import Places, find_places
from holdfast_common.trust.authority import Credentials
from holdfast_common.trust.channels import KEEPALIVE, Keepalive
from holdfast_common.trust.controller_trust import ControllerTrust, create_trust
from holdfast_common.trust.join_token import parse_join_token
from holdfast_common.trust.peer import Role, Subject
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.agent_link import SignedGrant
from holdfast_controller.service.access_rules import Caller, current_caller
from holdfast_controller.service.agent_administration import AgentAdministration
from holdfast_controller.service.agent_sessions import AgentSessions
from holdfast_controller.service.listeners import (
    BoundPorts,
    ListenerAddresses,
    ListenerParts,
    serve,
)
from holdfast_controller.service.session_timing import SessionTiming
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.schema import open_database

# Some twenty times faster than the real ones; still slow enough for a busy machine.
FAST = SessionTiming(
    heartbeat=0.3,
    job_lease=2.5,
    lost_after_lease=0.7,
    silence_heartbeats=5.0,
    hello=10.0,
    start_answer=2.0,
    seen_noted=0.1,
)
FAST_AGENT = DaemonTiming(
    session=AgentTiming(
        reconnect_min=0.05, reconnect_max=0.2, result_again=2.0, silence_heartbeats=5.0, poll=0.05
    ),
    watch=0.1,
    renewal_again=0.2,
    jobs_stop=20.0,
    lease_wait=1.0,
)


def patience(condition: Callable[[], object], *, seconds: float = 30.0) -> None:
    """Wait until it holds; fail the test when it does not in time."""
    pause = threading.Event()
    ends_at = SystemClock().monotonic_seconds() + seconds
    while not condition():
        assert SystemClock().monotonic_seconds() < ends_at, "it did not happen in time"
        pause.wait(0.01)


@dataclass(kw_only=True)
class RecordingHandler:
    """An `AttemptHandler` that notes what it is told."""

    disk_extents: Sequence[Extent] = ()
    grant_error: HoldfastError | None = None
    finish_error: HoldfastError | None = None
    results: list[JobResult] = field(default_factory=list)
    progress: list[ProgressReport] = field(default_factory=list)
    grants: list[bytes] = field(default_factory=list)
    was_lost: threading.Event = field(default_factory=threading.Event)
    has_finished: threading.Event = field(default_factory=threading.Event)
    hold_grant: threading.Event | None = None
    losses: int = 0

    def extents(self, device_key: int) -> Iterable[Extent]:
        assert device_key == 2000
        return iter(self.disk_extents)

    def segment_keys(self, headers: Sequence[bytes]) -> list[bytes]:
        if not headers:
            raise Refused("this kind of job gets no keys")
        return [header[::-1] for header in headers]

    def renewed_ticket(self, device_key: int) -> DiskTicket:
        return DirectTicket(chain=(ChainFile(datastore_id="d", path=f"{device_key}.vmdk"),))  # type: ignore[arg-type]  # an id in a test

    def grant_commit(self, manifest_digest: bytes) -> SignedGrant:
        if self.hold_grant is not None:
            assert self.hold_grant.wait(30)
        self.grants.append(manifest_digest)
        if self.grant_error is not None:
            raise self.grant_error
        return SignedGrant(controller_epoch=7, signature=b"signed " + manifest_digest)

    def progressed(self, progress: ProgressReport) -> None:
        self.progress.append(progress)

    def finished(self, result: JobResult) -> None:
        if self.finish_error is not None:
            raise self.finish_error
        self.results.append(result)
        self.has_finished.set()

    def lost(self) -> None:
        self.losses += 1
        self.was_lost.set()


@dataclass(kw_only=True)
class RecordingOrphans:
    """An `OrphanResults` that notes what it is told."""

    results: list[tuple[Attempt, JobResult]] = field(default_factory=list)
    agents: list[AgentId] = field(default_factory=list)

    def finished(self, agent_id: AgentId, attempt: Attempt, result: JobResult) -> None:
        self.agents.append(agent_id)
        self.results.append((attempt, result))


class AnsweringOperators:
    """An operators' service of which every method answers, with nothing or ``replies``; it notes who called."""

    def __init__(self, replies: Mapping[str, Message] | None = None) -> None:
        self.calls: list[tuple[str, Caller]] = []
        self.requests: list[Message] = []
        self.replies = dict(replies or {})
        service = operator_pb2.DESCRIPTOR.services_by_name["Operators"]
        for method in service.methods:
            reply = message_class(method.output_type)
            answer = self._stream if method.server_streaming else self._single
            setattr(self, method.name, answer(method.name, reply))

    def _single(self, name: str, reply: type[Message]) -> object:
        async def answer(request: Message, _context: object) -> Message:
            self.calls.append((name, current_caller()))
            self.requests.append(request)
            return self.replies.get(name) or reply()

        return answer

    def _stream(self, name: str, reply: type[Message]) -> object:
        async def answer(request: Message, _context: object) -> AsyncIterator[Message]:
            self.calls.append((name, current_caller()))
            self.requests.append(request)
            yield self.replies.get(name) or reply()

        return answer


def message_class(descriptor: Descriptor) -> type[Message]:
    found: type[Message] = GetMessageClass(descriptor)
    return found


class ControllerRig:
    """The controller's side. `start`, `stop` and `restart` run its event loop in a thread."""

    def __init__(
        self,
        home: Path,
        *,
        timing: SessionTiming = FAST,
        keepalive: Keepalive = KEEPALIVE,
        operators: AnsweringOperators | None = None,
        operator_address: str = "",
    ) -> None:
        self.places: Places = find_places({"HOLDFAST_HOME": str(home)})
        self.places.controller_state.mkdir(parents=True)
        self.clock = SystemClock()
        self.trust: ControllerTrust = create_trust(self.places.trust, self.clock)
        self.database = open_database(self.places.database)
        self.agents = AgentTable(self.database, self.clock)
        self.audit = AuditTrail(self.database, self.clock)
        self.orphans = RecordingOrphans()
        self.operators = operators or AnsweringOperators()
        self.operator_address = operator_address
        self.timing = timing
        self.keepalive = keepalive
        self.bound: BoundPorts
        self.sessions: AgentSessions
        self.administration: AgentAdministration
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.sessions = AgentSessions(self.agents, self.orphans, timing=self.timing)
        self.administration = AgentAdministration(
            database=self.database,
            agents=self.agents,
            audit=self.audit,
            sessions=self.sessions,
            authority=self.trust.authority,
            clock=self.clock,
        )
        ready = threading.Event()
        self._failure: BaseException | None = None

        def run() -> None:
            try:
                asyncio.run(self._serve(ready))
            except BaseException as error:  # noqa: BLE001 - handed to the test
                self._failure = error
                ready.set()

        self._thread = threading.Thread(target=run, name="controller", daemon=True)
        self._thread.start()
        assert ready.wait(30)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
            assert not self._thread.is_alive()
            self._thread = None
            if self._failure is not None:
                raise self._failure

    def restart(self) -> None:
        """A new controller on the same database; it knows nothing of running attempts."""
        self.stop()
        self.start()

    def token(self, *, role: str = "proxy", host_name: str = "proxy-one", minutes: int = 15) -> str:
        return self.administration.create_token(role=role, host_name=host_name, minutes=minutes)[0]

    def credentials(self, role: Role, name: str) -> Credentials:
        return self.trust.authority.issue_with_key(
            Subject(role=role, name=name), now=self.clock.now()
        )

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()

        def note(bound: BoundPorts) -> None:
            self.bound = bound
            ready.set()

        await serve(
            ListenerParts(
                places=self.places,
                trust=self.trust,
                agents=self.agents,
                audit=self.audit,
                clock=self.clock,
                sessions=self.sessions,
                administration=self.administration,
                operators=self.operators,  # type: ignore[arg-type]  # it has all methods, made at run time
            ),
            ListenerAddresses(
                session="127.0.0.1:0", enrolment="127.0.0.1:0", operators=self.operator_address
            ),
            stop=self._stop,
            ready=note,
            keepalive=self.keepalive,
        )


class AgentRig:
    """One agent, enrolled; `start` runs its daemon in a thread. ``pipeline`` does all its work."""

    def __init__(
        self,
        controller: ControllerRig,
        home: Path,
        pipeline: Pipeline,
        *,
        host_name: str = "proxy-one",
        session_port: int = 0,
        timing: DaemonTiming = FAST_AGENT,
        keepalive: Keepalive = KEEPALIVE,
    ) -> None:
        self.places = find_places({"HOLDFAST_HOME": str(home)})
        port = session_port or controller.bound.session
        self.configuration: AgentConfiguration = enrol(
            self.places,
            Enrolment(
                token=parse_join_token(controller.token(host_name=host_name)),
                controller=f"127.0.0.1:{port}",
                role="proxy",
                host_name=host_name,
                repositories={"repository": "/nowhere"},
                datastores={},
                hot_add=HotAddConfiguration(),
                restore=RestoreConfiguration(),
            ),
        )
        self.agent_id = AgentId(self.configuration.agent_id)
        self.controller = controller
        self._pipeline = pipeline
        self._timing = timing
        self._keepalive = keepalive
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stop = threading.Event()
        table: PipelineTable = {CheckRepository: self._pipeline}
        self.daemon = AgentDaemon(
            self.places,
            pipelines=lambda: table,
            stop=self._stop,
            timing=self._timing,
            keepalive=self._keepalive,
        )
        self._thread = threading.Thread(target=self.daemon.run, name="agent", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join(60)
            assert not self._thread.is_alive()
            self._thread = None

    def is_connected(self) -> bool:
        connected = [agent.agent_id for agent in self.controller.sessions.connected()]
        return self.agent_id in connected and self.daemon.session.connected.is_set()

    def wait_connected(self) -> None:
        patience(self.is_connected)


@contextmanager
def controller_rig(home: Path, **options: object) -> Iterator[ControllerRig]:
    rig = ControllerRig(home, **options)  # type: ignore[arg-type]  # handed through to one place
    rig.start()
    try:
        yield rig
    finally:
        rig.stop()


@contextmanager
def agent_rig(
    controller: ControllerRig, home: Path, pipeline: Pipeline, **options: object
) -> Iterator[AgentRig]:
    rig = AgentRig(controller, home, pipeline, **options)  # type: ignore[arg-type]  # handed through to one place
    rig.start()
    try:
        rig.wait_connected()
        yield rig
    finally:
        rig.stop()


def new_attempt(number: int = 1, job_id: str = "") -> Attempt:
    return Attempt(job_id=JobId(job_id or new_ulid()), number=number)


def check_spec(run_id: str = "") -> JobSpec:
    """The smallest job; what it does is the rig's pipeline."""
    return JobSpec(
        run_id=RunId(run_id or new_ulid()),
        repository_id=RepositoryId("repository"),
        work=CheckRepository(read_data=False, point_ids=(), keys=()),
    )


def done_at_once(_spec: JobSpec, _context: JobContext) -> JobResult:
    return JobResult(outcome=Outcome.DONE)


class GatedPipeline:
    """Runs until `gate` opens, checking its lease at every turn; `began` tells that it is at work."""

    def __init__(self, *, commit: bytes = b"") -> None:
        self.began = threading.Event()
        self.gate = threading.Event()
        self.turns = 0
        self.runs = 0
        self.contexts: list[JobContext] = []
        self._commit = commit

    def __call__(self, _spec: JobSpec, context: JobContext) -> JobResult:
        self.runs += 1
        self.contexts.append(context)
        self.began.set()
        while not self.gate.wait(0.02):
            context.check()
            self.turns += 1
            context.report(done_bytes=self.turns, total_bytes=0, device_key=2000, phase="transfer")
        context.check()
        record = b""
        if self._commit:
            grant = context.request_commit(self._commit)
            record = grant.signature
        return JobResult(outcome=Outcome.DONE, record=record)

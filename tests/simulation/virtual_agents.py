"""Agents, the messages between them and the controller, and the repository: models with the rules of the real ones.

An agent holds a lease that the controller's answers renew; without it nothing is published. It keeps a result until
somebody took it, and tells a controller that connects what it is at work on. See `runs.agent_link`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from holdfast_common.clock import utc_text
from holdfast_common.errors import (
    Cancelled,
    HoldfastError,
    IntegrityError,
    LeaseExpired,
    RepositoryFull,
    SourceFailed,
    TimedOut,
)
from holdfast_common.identity import AgentId, JobId, LineageId, PointId, RepositoryId
from holdfast_common.job_result import DiskResult, ErrorReport, JobResult, Outcome, PointFound
from holdfast_common.job_spec import (
    AreaSource,
    Attempt,
    BackUpDisks,
    DirectTicket,
    DiskToBackUp,
    HotAddTicket,
    JobSpec,
    ListPoints,
    TransportKind,
)
from holdfast_common.point_record import DiskRecord, PointRecord
from holdfast_controller.runs.agent_link import AttemptHandler, ConnectedAgent, OrphanResults
from simulation.virtual_disks import BLOCK_BYTES, EMPTY
from simulation.virtual_time import Kernel, Life, VirtualClock, VirtualEvent
from simulation.virtual_vsphere import DATASTORE, Violation, VirtualVm, VirtualVsphere

REPOSITORY: Final = RepositoryId("01REPOSITORY00000000000000")
HEARTBEAT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 5.0  # an agent asks again after it
_ALL: Final = 1_000_000
Value = TypeVar("Value")


@dataclass(eq=False)
class Manifest:
    """One committed point: the disks as the agent read them; ``allocated``: those read by what is said to be allocated."""

    record: PointRecord
    disks: Mapping[int, list[int]]
    allocated: frozenset[int]


@dataclass(eq=False)
class VirtualRepository:
    """What is committed, in order. ``full``: nothing more can be."""

    points: dict[str, Manifest] = field(default_factory=dict)
    full: bool = False

    def of_job(self, job_id: str) -> list[Manifest]:
        return [each for each in self.points.values() if each.record.job_id == job_id]


@dataclass(eq=False)
class Work:
    """An attempt at an agent. ``lease_over``: the controller gave it up; no later sign of life renews its lease."""

    attempt: Attempt
    spec: JobSpec
    lease_seconds: float
    lease_over: bool = False
    cancelled: bool = False
    ended: bool = False
    result: JobResult | None = None
    granted: bytes = b""


@dataclass(eq=False)
class VirtualAgent:
    """One proxy's agent. ``away_until``: no message passes before it."""

    agent_id: AgentId
    host_name: str
    vm: VirtualVm
    life: Life
    transports: tuple[TransportKind, ...]
    away_until: float = -1.0
    last_answer: float = 0.0  # the controller's last sign of life
    works: dict[Attempt, Work] = field(default_factory=dict)
    lost_messages: int = 0
    repeated_messages: int = 0

    def seen(self) -> ConnectedAgent:
        """As the controller knows it."""
        return ConnectedAgent(
            agent_id=self.agent_id,
            role="proxy",
            host_name=self.host_name,
            version="1",
            transports=self.transports,
            datastores=(DATASTORE.datastore_id,) if self.vm.name == "proxy1" else (),
            writable_datastores=(),
            repositories=(REPOSITORY,),
            restore_folders=(),
            vm_bios_uuid=f"bios-{self.vm.moref}",
        )


@dataclass(eq=False)
class _Route:
    """Where messages of an attempt go in one controller's life."""

    handler: AttemptHandler
    agent: VirtualAgent
    last_heard: float
    lease_seconds: float
    ended: bool = False


class VirtualLink:
    """An `AgentLink` of one controller's life, over messages that may be lost."""

    def __init__(
        self, agents: VirtualAgents, life: Life, orphans: OrphanResults, lease_seconds: float
    ) -> None:
        self._agents = agents
        self._life = life
        self._orphans = orphans
        self._lease_seconds = lease_seconds
        self._routes: dict[Attempt, _Route] = {}
        self._connected: dict[AgentId, Life] = {}

    # -- as the product asks ------------------------------------------------------------------------

    def connected(self) -> list[ConnectedAgent]:
        return [
            agent.seen()
            for agent in self._agents.all
            if self._connected.get(agent.agent_id) is agent.life and self._agents.reachable(agent)
        ]

    def start(
        self,
        agent_id: AgentId,
        attempt: Attempt,
        spec: JobSpec,
        handler: AttemptHandler,
        *,
        lease_seconds: float = 0.0,
    ) -> None:
        kernel = self._agents.kernel
        kernel.step("start a job at an agent")
        agent = self._agents.named(agent_id)
        if all(each.agent_id != agent_id for each in self.connected()):
            raise TimedOut("the agent is not connected")
        try:
            self._agents.may_begin(agent, attempt, spec)
        except Violation as error:  # the product would take it for a failed job
            kernel.failure = kernel.failure or error
            raise
        lease = max(self._lease_seconds, lease_seconds)
        self._routes[attempt] = _Route(handler, agent, kernel.now, lease)
        kernel.sleep(self._agents.delay())
        if agent.life.dead or not self._agents.reachable(agent):
            return  # the message was lost: the lease ends
        self._agents.begin(agent, attempt, spec, lease)
        if agent.repeated_messages:
            agent.repeated_messages -= 1
            self._agents.count("a message came twice")
            self._agents.begin(agent, attempt, spec, lease)
        kernel.step("a job was started at an agent")

    def cancel(self, attempt: Attempt) -> None:
        route = self._routes.get(attempt)
        if route is not None and self._agents.reachable(route.agent):
            work = route.agent.works.get(attempt)
            if work is not None:
                work.cancelled = True

    def limit(self, attempt: Attempt, rates: Mapping[int, int]) -> bool:
        del attempt, rates
        return False

    def is_revoked(self, agent_id: AgentId) -> bool:
        del agent_id
        return False

    def may_be_at_work(self, job_id: JobId) -> bool:
        return any(
            attempt.job_id == job_id and not work.ended and attempt not in self._routes
            for agent in self._agents.all
            for attempt, work in agent.works.items()
        )

    # -- as messages come ---------------------------------------------------------------------------

    def heartbeat(self, agent: VirtualAgent) -> None:
        """An agent is there; whatever it is at work on that nobody waits for is to be stopped."""
        if self._connected.get(agent.agent_id) is not agent.life:
            self._connected[agent.agent_id] = agent.life
            for attempt, route in list(self._routes.items()):
                if route.agent is agent and attempt not in agent.works and not route.ended:
                    self._lose(attempt)  # it was started anew, and knows nothing of it
        agent.last_answer = self._agents.kernel.now
        for attempt, route in list(self._routes.items()):
            if route.agent is agent and attempt in agent.works:
                route.last_heard = self._agents.kernel.now
        for attempt, work in agent.works.items():
            if attempt not in self._routes or work.lease_over:
                work.cancelled = True

    def watch(self) -> None:
        """Routes whose agents were not heard for a lease and 15 s more are lost."""
        now = self._agents.kernel.now
        for attempt, route in list(self._routes.items()):
            if not route.ended and now > route.last_heard + route.lease_seconds + 15.0:
                self._lose(attempt)

    def ask(self, agent: VirtualAgent, attempt: Attempt, question: Callable[[Any], Value]) -> Value:
        """What a handler answers. Raises: TimedOut when nothing came back; what it raises."""
        route = self._routes.get(attempt)
        if route is None or route.ended:
            raise LeaseExpired("nobody waits for this attempt")
        return self._agents.call(self._life, agent, lambda: question(route.handler))

    def finished(self, agent: VirtualAgent, attempt: Attempt, result: JobResult) -> None:
        """Raises: TimedOut when it was not taken; what the controller raises."""
        route = self._routes.get(attempt)
        if route is None:
            self._agents.call(
                self._life, agent, lambda: self._orphans.finished(agent.agent_id, attempt, result)
            )
            return
        if not route.ended:
            self._agents.call(self._life, agent, lambda: route.handler.finished(result))
            route.ended = True

    def _lose(self, attempt: Attempt) -> None:
        route = self._routes[attempt]
        route.ended = True
        work = route.agent.works.get(attempt)
        if work is not None:
            work.lease_over = True
        self._agents.count("an attempt was lost")
        route.handler.lost()


class VirtualAgents:
    """All agents of a simulation; the controller's link changes with its lives."""

    def __init__(self, kernel: Kernel, model: VirtualVsphere, seed: int) -> None:
        self.kernel = kernel
        self.model = model
        self.random = random.Random(seed * 32452843 + 11)
        self.repository = VirtualRepository()
        self.all: list[VirtualAgent] = []
        self.link: VirtualLink | None = None
        self.counts: dict[str, int] = {}
        self.most_at_once = 0
        self.limit_at_once = 0
        self.most_of_one = 0  # of all proxies
        self.limit_of_one = 0
        self.delays = 1.0
        self._clock = VirtualClock(kernel)
        self._points = 0

    def add(self, vm: VirtualVm, transports: tuple[TransportKind, ...]) -> VirtualAgent:
        """An agent in a proxy's VM."""
        number = len(self.all) + 1
        agent = VirtualAgent(
            AgentId(f"01AGENT{number:019d}"), vm.name, vm, Life(f"agent {number}"), transports
        )
        self.all.append(agent)
        return agent

    def run(self, agent: VirtualAgent) -> None:
        """Begin its heartbeats, in its present life."""
        self.kernel.spawn(agent.life, f"{agent.host_name} heartbeats", lambda: self._beat(agent))

    def restart(self, agent: VirtualAgent) -> None:
        """A new life that knows nothing of what the one before did."""
        self.kernel.kill(agent.life)
        agent.life = Life(agent.life.name)
        agent.works = {}
        self.run(agent)

    def named(self, agent_id: AgentId) -> VirtualAgent:
        return next(each for each in self.all if each.agent_id == agent_id)

    def reachable(self, agent: VirtualAgent) -> bool:
        return not agent.life.dead and self.kernel.now >= agent.away_until

    def delay(self) -> float:
        return self.random.uniform(0.001, 0.05) * self.delays

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def may_begin(self, agent: VirtualAgent, attempt: Attempt, spec: JobSpec) -> None:
        """What must hold whenever a backup is given to an agent."""
        if not isinstance(spec.work, BackUpDisks):
            return
        for other in self.all:
            for known, work in other.works.items():
                same = isinstance(work.spec.work, BackUpDisks) and (
                    work.spec.work.lineage_id == spec.work.lineage_id
                )
                if same and known != attempt and not work.ended and self._holds_lease(other, work):
                    raise Violation(f"{agent.host_name} begins what {other.host_name} still does")
        previous = spec.work.previous_point_id
        if previous is not None and previous not in self.repository.points:
            raise Violation("a backup stands on a point that was never committed")
        if self.repository.of_job(attempt.job_id):
            raise Violation("a job begins again although it has committed")

    def begin(
        self, agent: VirtualAgent, attempt: Attempt, spec: JobSpec, lease_seconds: float
    ) -> None:
        """A second StartJob of one attempt changes nothing."""
        if attempt in agent.works:
            return
        work = agent.works[attempt] = Work(attempt, spec, lease_seconds)
        self.kernel.spawn(agent.life, f"work {attempt.job_id}", lambda: self._work(agent, work))
        at_work = [
            sum(
                isinstance(each.spec.work, BackUpDisks) and not each.ended and not each.cancelled
                for each in other.works.values()
            )
            for other in self.all
        ]
        self.most_at_once = max(self.most_at_once, sum(at_work))
        self.most_of_one = max(self.most_of_one, *at_work)

    def call(self, life: Life, agent: VirtualAgent, question: Callable[[], Value]) -> Value:
        """A question in a thread of the controller; its answer may be lost. Raises: TimedOut."""
        kernel = self.kernel
        answers: list[Any] = []
        answered = VirtualEvent(kernel)

        def answer() -> None:
            try:
                answers.append(question())
            except HoldfastError as error:
                answers.append(error)
            answered.set()

        kernel.sleep(self.delay())
        if not self.reachable(agent) or life.dead:
            raise TimedOut("the controller does not answer")
        kernel.spawn(life, "an agent's question", answer)
        if agent.repeated_messages:
            agent.repeated_messages -= 1
            self.count("a message came twice")
            kernel.spawn(life, "an agent's question, again", answer)
        if not answered.wait(ANSWER_SECONDS):
            raise TimedOut("the controller does not answer")
        kernel.sleep(self.delay())
        if agent.lost_messages or not self.reachable(agent):
            agent.lost_messages = max(0, agent.lost_messages - 1)
            self.count("an answer was lost")
            raise TimedOut("the answer was lost")
        found = answers[0]
        if isinstance(found, HoldfastError):
            raise found
        value: Value = found
        return value

    # -- an agent ------------------------------------------------------------------------------------

    def _beat(self, agent: VirtualAgent) -> None:
        while True:
            link = self.link
            if link is not None and self.reachable(agent):
                link.heartbeat(agent)
            self.kernel.sleep(HEARTBEAT_SECONDS)

    def _holds_lease(self, agent: VirtualAgent, work: Work) -> bool:
        renewed = self.kernel.now < agent.last_answer + work.lease_seconds
        return renewed and not work.lease_over and not agent.life.dead

    def _work(self, agent: VirtualAgent, work: Work) -> None:
        try:
            if isinstance(work.spec.work, BackUpDisks):
                result = self._back_up(agent, work, work.spec.work)
            else:
                assert isinstance(work.spec.work, ListPoints)
                result = self._list(work.spec.work)
        except HoldfastError as error:
            outcome = Outcome.CANCELLED if isinstance(error, Cancelled) else Outcome.FAILED
            result = JobResult(outcome=outcome, error=ErrorReport.of(error))
        work.ended = True
        work.result = result
        while True:
            try:
                link = self.link
                if link is not None and self.reachable(agent):
                    link.finished(agent, work.attempt, result)
                    break
            except HoldfastError:
                pass
            self.kernel.sleep(1.0)
        agent.works.pop(work.attempt, None)

    def _asked(
        self, agent: VirtualAgent, work: Work, question: Callable[[AttemptHandler], Value]
    ) -> Value:
        """Again and again while nothing comes back and the lease holds."""
        while True:
            self._check(agent, work)
            link = self.link
            try:
                if link is None:
                    raise TimedOut("no controller is there")
                return link.ask(agent, work.attempt, question)
            except TimedOut:
                self.kernel.sleep(self.random.uniform(0.5, 2.0))

    def _check(self, agent: VirtualAgent, work: Work) -> None:
        if work.cancelled:
            raise Cancelled("cancelled by the controller")
        if not self._holds_lease(agent, work):
            raise LeaseExpired("the controller was not heard for too long")

    def _list(self, work: ListPoints) -> JobResult:
        self.kernel.sleep(self.random.uniform(0.05, 0.5))
        found = tuple(
            PointFound(
                point_id=PointId(each.record.point_id),
                job_id=JobId(each.record.job_id),
                lineage_id=LineageId(each.record.lineage_id),
                record=each.record.encode(),
            )
            for each in self.repository.points.values()
            if work.job_id in (None, each.record.job_id)
        )
        return JobResult(outcome=Outcome.DONE, points=found)

    def _back_up(self, agent: VirtualAgent, work: Work, asked: BackUpDisks) -> JobResult:
        contents: dict[int, list[int]] = {}
        records = []
        for disk in asked.disks:
            content, of_disk = self._disk(agent, work, asked, disk)
            contents[disk.device_key] = content
            records.append(of_disk)
        self._points += 1
        record = self._record(agent, work, asked, tuple(records))
        digest = hashlib.sha256(
            json.dumps([record.point_id, sorted(contents.items())]).encode()
        ).digest()
        self._asked(agent, work, lambda handler: handler.grant_commit(digest))
        self.kernel.step("leave to publish was given")
        self.kernel.sleep(self.random.uniform(0.01, 1.0))
        self._check(agent, work)
        if self.repository.full:
            raise RepositoryFull("the repository is full")
        if self.repository.of_job(work.attempt.job_id):
            raise IntegrityError("another attempt of this job has published")
        self.repository.points[record.point_id] = Manifest(
            record,
            contents,
            frozenset(
                each.device_key for each in asked.disks if each.areas is AreaSource.ALLOCATED
            ),
        )
        self.count("a point was committed")
        self.kernel.trace.append(f"{self.kernel.now:.3f} committed {record.point_id}")
        self.kernel.step("a point was published")
        return JobResult(
            outcome=Outcome.DONE,
            point_id=PointId(record.point_id),
            record=record.encode(),
            disks=tuple(
                DiskResult(device_key=each.device_key, transport=str(asked.transport))
                for each in asked.disks
            ),
        )

    def _disk(
        self, agent: VirtualAgent, work: Work, asked: BackUpDisks, disk: DiskToBackUp
    ) -> tuple[list[int], DiskRecord]:
        """What is stored of a disk: read where the controller says, the rest as it was before."""
        count = disk.capacity_bytes // BLOCK_BYTES
        extents = self._asked(agent, work, lambda handler: list(handler.extents(disk.device_key)))
        wanted = sorted({n for each in extents for n in _blocks(each)})
        before = [EMPTY] * count
        if disk.areas is AreaSource.CHANGED:
            before = self._before(asked, disk, count)
        content = list(before)
        half = len(wanted) // 2
        for part in (wanted[:half], wanted[half:]):
            self.kernel.sleep(self.random.uniform(0.05, 1.5) * self.delays)
            self.kernel.step("an agent reads")
            self._check(agent, work)
            for number in part:
                content[number] = self._read(agent, disk, number)
        audited = untold = 0
        if disk.areas is AreaSource.CHANGED:
            sample = _sample(asked, disk, count, frozenset(wanted))
            audited = len(sample)
            if any(self._read(agent, disk, number) != before[number] for number in sample):
                content = [self._read(agent, disk, number) for number in range(count)]
                untold = 1
                self.count("an audit found a lie")
        record = DiskRecord(
            device_key=disk.device_key,
            uuid=disk.backing_uuid,
            label=disk.label,
            capacity_bytes=disk.capacity_bytes,
            change_id=disk.change_id,
            adapter=disk.adapter,
            chain=disk.chain,
            read_bytes=len(wanted) * BLOCK_BYTES,
            level_reason=disk.areas_reason
            if not untold
            else "the disk was read whole and compared",
            audited_bytes=audited * BLOCK_BYTES,
            untold_bytes=untold * BLOCK_BYTES,
        )
        return content, record

    def _before(self, asked: BackUpDisks, disk: DiskToBackUp, count: int) -> list[int]:
        assert asked.previous_point_id is not None, "changes since nothing"
        previous = self.repository.points[asked.previous_point_id].disks[disk.device_key]
        return [*previous, *[EMPTY] * (count - len(previous))][:count]

    def _read(self, agent: VirtualAgent, disk: DiskToBackUp, number: int) -> int:
        """Raises: SourceFailed when the file is not there (any more)."""
        ticket = disk.ticket
        if isinstance(ticket, DirectTicket):
            path = ticket.chain[-1].path
        else:
            assert isinstance(ticket, HotAddTicket)
            path = self._attached(agent, ticket)
        file = self.model.files.get(path)
        if file is None:
            raise SourceFailed("a disk cannot be opened", file=path)
        return file.block(number)

    def _attached(self, agent: VirtualAgent, ticket: HotAddTicket) -> str:
        for device in agent.vm.devices:
            if device.key >= 2000 and device.unitNumber == ticket.unit_number:
                return str(device.backing.fileName).partition("] ")[2]
        raise SourceFailed("no such disk is attached", unit=ticket.unit_number)

    def _record(
        self, agent: VirtualAgent, work: Work, asked: BackUpDisks, disks: tuple[DiskRecord, ...]
    ) -> PointRecord:
        return PointRecord(
            point_id=f"01POINT{self._points:019d}",
            job_id=work.attempt.job_id,
            lineage_id=asked.lineage_id,
            agent_id=agent.agent_id,
            run_id=work.spec.run_id,
            created_at=utc_text(self._clock.now()),
            snapshot_at=asked.snapshot_time,
            vcenter_id=asked.vm.vcenter_id,
            instance_uuid=asked.vm.instance_uuid,
            bios_uuid=asked.vm.bios_uuid,
            vm_name=asked.vm.name,
            moref=asked.vm.moref,
            method="image",
            transport=str(asked.transport),
            level_asked=asked.level_asked,
            level=asked.level,
            level_reason=asked.level_reason,
            consistency_asked=asked.consistency.asked,
            consistency_reached=asked.consistency.reached,
            evidence=asked.consistency.evidence,
            previous_point_id=asked.previous_point_id or "",
            group_id=asked.group_id,
            configuration=asked.configuration,
            disks=disks,
        )


def _blocks(extent: Any) -> Iterable[int]:
    return range(extent.offset // BLOCK_BYTES, -(-extent.end // BLOCK_BYTES))


def _sample(
    asked: BackUpDisks, disk: DiskToBackUp, count: int, changed: frozenset[int]
) -> list[int]:
    """Blocks that are called unchanged and are read again: as many turns as shares read all of them."""
    share = asked.audit.share_millionths
    if not share:
        return []
    turns = -(-_ALL // min(share, _ALL))
    cycle, turn = divmod(asked.audit.turn, turns)

    def chosen(number: int) -> bool:
        digest = hashlib.sha256(f"{disk.backing_uuid} {cycle} {number}".encode()).digest()
        return digest[0] % turns == turn

    return [n for n in range(count) if n not in changed and chosen(n)]

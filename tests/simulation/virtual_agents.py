"""All agents: models with the rules of the real ones.

An agent holds a lease that the controller's answers renew; without it nothing is published. It keeps a result until
somebody took it, and tells a controller that connects what it is at work on. See `runs.agent_link`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, TypeVar

from holdfast_common.errors import (
    Cancelled,
    HoldfastError,
    LeaseExpired,
    NotFound,
    TimedOut,
)
from holdfast_common.identity import AgentId, JobId, LineageId, PointId
from holdfast_common.job_result import ErrorReport, JobResult, Outcome, PointFound
from holdfast_common.job_spec import (
    Attempt,
    BackUpDisks,
    CheckRepository,
    JobSpec,
    ListPoints,
    TransportKind,
)
from holdfast_controller.runs.agent_link import AttemptHandler
from simulation.virtual_agent import VirtualAgent, Work
from simulation.virtual_backups import VirtualBackups
from simulation.virtual_link import VirtualLink
from simulation.virtual_repository import VirtualRepository
from simulation.virtual_threading import VirtualEvent
from simulation.virtual_time import Kernel, Life, Violation, VirtualClock
from simulation.virtual_vms import VirtualVm
from simulation.virtual_vsphere import VirtualVsphere

HEARTBEAT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 5.0  # an agent asks again after it
READS: Final = 4  # of one point by a check
Value = TypeVar("Value")


class VirtualAgents:
    """All agents of a simulation; the controller's link changes with its lives."""

    def __init__(self, kernel: Kernel, model: VirtualVsphere, seed: int) -> None:
        self.kernel = kernel
        self.model = model
        self.random = random.Random(seed * 32452843 + 11)
        self.repository = VirtualRepository(kernel, seed)
        self.all: list[VirtualAgent] = []
        self.link: VirtualLink | None = None
        self.counts: dict[str, int] = {}
        self.most_at_once = 0
        self.limit_at_once = 0
        self.most_of_one = 0  # of all proxies
        self.limit_of_one = 0
        self.delays = 1.0
        self.clock = VirtualClock(kernel)
        self._backups = VirtualBackups(self)

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
        if previous is not None and previous not in self.repository.committed:
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
                result = self._backups.back_up(agent, work, work.spec.work)
            elif isinstance(work.spec.work, CheckRepository):
                result = self._read(agent, work, work.spec.work)
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

    def asked(
        self, agent: VirtualAgent, work: Work, question: Callable[[AttemptHandler], Value]
    ) -> Value:
        """Again and again while nothing comes back and the lease holds."""
        while True:
            self.check(agent, work)
            link = self.link
            try:
                if link is None:
                    raise TimedOut("no controller is there")
                return link.ask(agent, work.attempt, question)
            except TimedOut:
                self.kernel.sleep(self.random.uniform(0.5, 2.0))

    def check(self, agent: VirtualAgent, work: Work) -> None:
        """Whether it may go on. Raises: Cancelled, LeaseExpired."""
        if work.cancelled:
            raise Cancelled("cancelled by the controller")
        if not self._holds_lease(agent, work):
            raise LeaseExpired("the controller was not heard for too long")

    def _read(self, agent: VirtualAgent, work: Work, asked: CheckRepository) -> JobResult:
        """Some points, block after block. Raises: NotFound, Cancelled, LeaseExpired."""
        for point_id in asked.point_ids:
            for _ in range(READS):
                self.kernel.sleep(self.random.uniform(0.1, 2.0) * self.delays)
                self.check(agent, work)
                if not self.repository.is_visible(point_id):
                    raise NotFound("the point is not in the repository", point=point_id)
                point = self.repository.committed[point_id]
                if not self.repository.is_there(point):
                    self.kernel.failure = Violation(f"point {point_id} lacks blocks")
                self.kernel.step("an agent reads a point")
            self.count("a point was read")
        return JobResult(outcome=Outcome.DONE, objects_checked=len(asked.point_ids))

    def _list(self, work: ListPoints) -> JobResult:
        self.kernel.sleep(self.random.uniform(0.05, 0.5))
        found = tuple(
            PointFound(
                point_id=PointId(each.record.point_id),
                job_id=JobId(each.record.job_id),
                lineage_id=LineageId(each.record.lineage_id),
                record=each.record.encode(),
            )
            for each in self.repository.visible()
            if work.job_id in (None, each.record.job_id)
        )
        return JobResult(outcome=Outcome.DONE, points=found)

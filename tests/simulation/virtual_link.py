"""The messages between agents and one life of the controller: they may be lost, come twice or late. See `runs.agent_link`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast_common.errors import LeaseExpired, TimedOut
from holdfast_common.identity import AgentId, JobId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import Attempt, JobSpec
from holdfast_controller.runs.agent_link import AttemptHandler, ConnectedAgent, OrphanResults
from simulation.virtual_agent import VirtualAgent
from simulation.virtual_time import Life, Violation

if TYPE_CHECKING:
    from simulation.virtual_agents import VirtualAgents

Value = TypeVar("Value")


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

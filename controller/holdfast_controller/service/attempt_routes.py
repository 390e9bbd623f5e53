"""The attempts that agents work on, and until when each may: the controller's side of job leases.

Owned by the event loop. A lease is counted here from the moment its grant left us, by the agent
from the moment it sent the heartbeat that was answered, which is never later. So when the time
here is over, it is over there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from holdfast_common.errors import LeaseExpired, Refused
from holdfast_common.identity import AgentId, JobId
from holdfast_common.job_result import ErrorReport, ProgressReport
from holdfast_common.job_spec import Attempt
from holdfast_common.wire import session_pb2
from holdfast_controller.runs.agent_link import AttemptHandler

_CLOSED_MAX: Final = 100_000  # ids of some 26 bytes; older ones are settled long ago


@dataclass(slots=True, kw_only=True, eq=False)
class Route:
    """One attempt at one agent. ``handler`` None: an orphan that may only finish its commit.

    ``accepted`` gets None, or why the agent refused. ``lock`` keeps the handler's calls one at a
    time. ``abandoned``: nobody waits for it any more, it gets no lease and its result no reader.
    """

    attempt: Attempt
    agent_id: AgentId
    handler: AttemptHandler | None
    start_message: session_pb2.StartJob | None
    lease_seconds: float  # from each heartbeat on
    lease_ends_at: float
    accepted: asyncio.Future[ErrorReport | None]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    cancel_asked: bool = False
    rates: Mapping[int, int] | None = (
        None  # of its disks, bytes per second; None: it was never slowed
    )
    abandoned: bool = False
    finishing: bool = False
    commit_asked: bool = False
    latest_progress: ProgressReport | None = None
    progress_running: bool = False


class AttemptRoutes:
    """All routes, one per job at most. Only on the event loop."""

    def __init__(self, *, lease_seconds: float, orphans_until: float) -> None:
        """``orphans_until``: loop time after which no attempt of an earlier controller goes on."""
        self.lease_seconds = lease_seconds
        self._orphans_until = orphans_until
        self._routes: dict[JobId, Route] = {}
        self._closed: OrderedDict[JobId, int] = OrderedDict()
        self._winding_up: set[Attempt] = set()

    def __iter__(self) -> Iterator[Route]:
        return iter(list(self._routes.values()))

    def add(self, route: Route) -> None:
        """Raises: Refused while an earlier attempt of the job may still be at work."""
        job_id, number = route.attempt.job_id, route.attempt.number
        if job_id in self._routes:
            raise Refused("an attempt of this job has not ended", job=job_id)
        if self._closed.get(job_id, -1) >= number:
            raise Refused("this attempt has ended", job=job_id, attempt=number)
        self._routes[job_id] = route

    def get(self, attempt: Attempt) -> Route | None:
        """The route of exactly this attempt; None when it ended or was never ours."""
        route = self._routes.get(attempt.job_id)
        return route if route is not None and route.attempt == attempt else None

    def leased(self, attempt: Attempt, agent_id: AgentId, now: float) -> Route:
        """The route of an attempt that this agent holds a live lease for. Raises: LeaseExpired."""
        route = self.get(attempt)
        if route is None or route.agent_id != agent_id or route.abandoned:
            raise LeaseExpired("this agent does not hold this attempt", job=attempt.job_id)
        if now >= route.lease_ends_at:
            raise LeaseExpired("the lease of this attempt has ended", job=attempt.job_id)
        return route

    def result_is_due(self, attempt: Attempt) -> None:
        """The agent has a result that it will tell at once: until then it is not settled."""
        self._winding_up.add(attempt)

    def settled(self, attempt: Attempt) -> None:
        """The agent has told the result: it is no longer at work on it."""
        self._winding_up.discard(attempt)

    def is_winding_up(self, job_id: JobId) -> bool:
        """Whether an attempt of this job was aborted or orphaned, and its end is not told yet."""
        return any(attempt.job_id == job_id for attempt in self._winding_up.copy())

    def close(self, route: Route) -> None:
        """The attempt can do nothing any more; it is never let go on again."""
        route.ended.set()
        if self._routes.get(route.attempt.job_id) is route:
            del self._routes[route.attempt.job_id]
        self._note_closed(route.attempt)

    def renew(self, agent_id: AgentId, now: float) -> list[tuple[Attempt, int]]:
        """Leases for all that this agent works on: (attempt, valid ms from the heartbeat's sending)."""
        leases = []
        for route in self._routes.values():
            if route.agent_id != agent_id or route.abandoned:
                continue
            ends_at = now + route.lease_seconds
            if route.handler is None:
                ends_at = min(ends_at, self._orphans_until)
            if ends_at > now:
                route.lease_ends_at = ends_at
                leases.append((route.attempt, int((ends_at - now) * 1000)))
        return leases

    def may_continue(
        self, agent_id: AgentId, attempt: Attempt, *, committing: bool, now: float
    ) -> bool:
        """The verdict over an attempt that an agent says it works on.

        One that is unknown here, because an earlier controller started it, may go on only when it
        has that controller's leave to commit, and only as long as that one's lease could last.
        """
        route = self.get(attempt)
        if route is not None and route.agent_id == agent_id and not route.abandoned:
            return True
        self._winding_up.add(attempt)
        if route is not None:
            return False
        known = attempt.job_id in self._routes or attempt.job_id in self._closed
        if known or not committing or now >= self._orphans_until:
            return False
        self._routes[attempt.job_id] = Route(
            attempt=attempt,
            agent_id=agent_id,
            handler=None,
            start_message=None,
            lease_seconds=self.lease_seconds,
            lease_ends_at=now,
            accepted=asyncio.get_running_loop().create_future(),
        )
        return True

    def vanished(self, agent_id: AgentId, known: Iterable[Attempt]) -> list[Route]:
        """Routes that the agent had accepted and does not know any more."""
        still_there = set(known)
        return [
            route
            for route in self._routes.values()
            if route.agent_id == agent_id
            and route.attempt not in still_there
            and (route.accepted.done() or route.handler is None)
            and not route.finishing
        ]

    def _note_closed(self, attempt: Attempt) -> None:
        highest = max(self._closed.pop(attempt.job_id, -1), attempt.number)
        self._closed[attempt.job_id] = highest
        while len(self._closed) > _CLOSED_MAX:
            self._closed.popitem(last=False)

"""All agents' sessions, and `runs.agent_link.AgentLink` for the threads that run jobs.

Inside, everything happens on the event loop. `connected`, `start`, `cancel` and `bar` may be called
from any thread but the loop's own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final

from holdfast_common.errors import (
    AuthenticationFailed,
    HoldfastError,
    Interrupted,
    Refused,
    TimedOut,
)
from holdfast_common.identity import AgentId, JobId
from holdfast_common.job_spec import Attempt, JobSpec
from holdfast_common.wire import session_pb2
from holdfast_common.wire_codec.results import job_result_from_message
from holdfast_common.wire_codec.specs import job_spec_to_message, spec_digest
from holdfast_common.wire_codec.values import (
    attempt_from_message,
    attempt_to_message,
    progress_from_message,
)
from holdfast_controller.runs.agent_link import AttemptHandler, ConnectedAgent, OrphanResults
from holdfast_controller.service.attempt_desk import AttemptDesk
from holdfast_controller.service.live_session import LiveSession
from holdfast_controller.service.session_timing import SessionTiming
from holdfast_controller.store.agents import AgentTable

log = logging.getLogger(__name__)

EXECUTOR_THREADS: Final = 32  # calls of handlers and of the database at one time


class AgentSessions:
    """The agents that are connected, and the attempts that they work on."""

    def __init__(
        self,
        agents: AgentTable,
        orphans: OrphanResults,
        *,
        timing: SessionTiming | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.timing = timing or SessionTiming()
        self.agents = agents
        self._orphans = orphans
        self._executor = executor or ThreadPoolExecutor(
            EXECUTOR_THREADS, thread_name_prefix="agent-sessions"
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._desk: AttemptDesk | None = None
        self._sessions: dict[AgentId, LiveSession] = {}
        self._barred: dict[AgentId, HoldfastError] = {}
        self._seen_due_at = 0.0
        self._noting: asyncio.Task[None] | None = None

    # For threads.

    def connected(self) -> list[ConnectedAgent]:
        """Agents with a live session now."""
        return [session.agent for session in list(self._sessions.values())]

    def start(
        self,
        agent_id: AgentId,
        attempt: Attempt,
        spec: JobSpec,
        handler: AttemptHandler,
        *,
        lease_seconds: float = 0.0,
    ) -> None:
        """See `AgentLink.start`. When it raises, the agent certainly does not work on the attempt."""
        message = job_spec_to_message(spec)
        start = session_pb2.StartJob(
            attempt=attempt_to_message(attempt),
            spec=message,
            spec_digest=spec_digest(message),
            lease_ms=int(max(lease_seconds, self.timing.job_lease) * 1000),
        )

        async def started() -> None:
            if agent_id not in self._sessions:
                raise TimedOut("the agent is not connected", agent=agent_id)
            await self.desk.start(agent_id, attempt, start, handler)

        self._from_thread(started)

    def cancel(self, attempt: Attempt) -> None:
        """Ask the agent to stop; asked again after a reconnect; harmless when it has ended."""
        self._from_thread(lambda: self.desk.cancel(attempt))

    def limit(self, attempt: Attempt, rates: Mapping[int, int]) -> bool:
        """See `AgentLink.limit`."""
        found: list[bool] = []

        async def limited() -> None:
            found.append(self.desk.limit(attempt, rates))

        self._from_thread(limited)
        return found == [True]

    def may_be_at_work(self, job_id: JobId) -> bool:
        """Whether a welcomed agent may be at work on an attempt that nobody here waits for.

        That is one that it was told to abort, or may still end its commit of.
        """
        return self._desk is not None and self._desk.routes.is_winding_up(job_id)

    def is_revoked(self, agent_id: AgentId) -> bool:
        """Whether the agent was shut out while this controller runs."""
        return agent_id in self._barred

    def bar(self, agent_id: AgentId) -> None:
        """The agent was revoked: its session ends now, and none begins any more."""
        error = AuthenticationFailed(
            "the agent was revoked", agent=agent_id, advice="enrol it again with a new token"
        )

        async def barred() -> None:
            self._barred[agent_id] = error
            if agent_id in self._sessions:
                self._sessions[agent_id].end(error)

        if self._loop is not None:
            self._from_thread(barred)

    # For the event loop.

    def attach(self) -> None:
        """Begin, on the running loop. From here an earlier controller's attempts have one lease left."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._desk = AttemptDesk(
            self._orphans, timing=self.timing, executor=self._executor, post=self._post
        )

    async def watch(self) -> None:
        """Find leases that are over and sessions that fell silent; until cancelled."""
        silence = self.timing.heartbeat * self.timing.silence_heartbeats
        while True:
            await asyncio.sleep(min(1.0, self.timing.job_lease / 20))
            try:
                self._look_once(silence)
            except Exception:
                # Nobody else ends jobs whose agents are gone: a bug must not end this.
                log.exception("the agents' leases could not be looked at; they are again")

    def _look_once(self, silence_seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        for session in list(self._sessions.values()):
            if now - session.last_heard_at > silence_seconds:
                session.end(TimedOut("nothing was heard of the agent"))
        self.desk.lose_expired()
        self._note_seen()

    def stop(self) -> None:
        """End all sessions kindly; no thread's call is taken any more."""
        self._loop = None
        for session in list(self._sessions.values()):
            session.end(Interrupted("the controller is stopping"))

    def close(self) -> None:
        """After `stop`, when no call is served any more: end the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def desk(self) -> AttemptDesk:
        """The attempts. Raises: Interrupted before `attach`."""
        if self._desk is None:
            raise Interrupted("the controller does not listen for agents yet")
        return self._desk

    def register(self, session: LiveSession) -> None:
        """A session begins; an older one of the same agent ends. Raises: Refused, AuthenticationFailed."""
        self.check_not_barred(session.agent_id)
        older = self._sessions.get(session.agent_id)
        if older is not None:
            if older.epoch > session.epoch:
                raise Refused("a newer session of this agent began meanwhile")
            older.end(Refused("a newer session of this agent began"))
        self._sessions[session.agent_id] = session
        log.info("session began", extra={"agent_id": session.agent_id, "epoch": session.epoch})

    def check_not_barred(self, agent_id: AgentId) -> None:
        """For calls that last. Raises: AuthenticationFailed when the agent was revoked meanwhile."""
        barred = self._barred.get(agent_id)
        if barred is not None:
            raise barred

    def unregister(self, session: LiveSession) -> None:
        """A session has ended; what its agent works on goes on until the leases end."""
        if self._sessions.get(session.agent_id) is session:
            del self._sessions[session.agent_id]
        log.info("session ended", extra={"agent_id": session.agent_id, "epoch": session.epoch})

    def received(self, session: LiveSession, message: session_pb2.FromAgent) -> None:
        """One message of a live session. Raises: UsageError for one that cannot be right."""
        agent_id = session.agent_id
        if self._sessions.get(agent_id) is not session:
            return
        match message.WhichOneof("message"):
            case "heartbeat":
                self.desk.heartbeat(agent_id, message.heartbeat.number)
            case "job_state":
                self.desk.job_state(agent_id, message.job_state)
            case "progress":
                attempt = attempt_from_message(message.progress.attempt)
                report = progress_from_message(message.progress)
                handing_on = self.desk.progress(agent_id, attempt, report)
                if handing_on is not None:
                    session.spawn(handing_on)
            case "commit_request":
                attempt = attempt_from_message(message.commit_request.attempt)
                digest = message.commit_request.manifest_digest
                session.spawn(self.desk.commit(agent_id, attempt, digest))
            case "job_finished":
                whole = session.whole_result(message.job_finished)
                if whole is not None:
                    attempt = attempt_from_message(whole.attempt)
                    result = job_result_from_message(whole.result)
                    session.spawn(self.desk.finish(agent_id, attempt, result))
            case _:  # of a newer agent, about a feature that we did not agree on
                log.warning("unknown message", extra={"agent_id": agent_id})

    def _note_seen(self) -> None:
        """Write down now and then who is connected: one transaction for all, beside the loop."""
        now = asyncio.get_running_loop().time()
        if now < self._seen_due_at or not self._sessions:
            return
        if self._noting is not None and not self._noting.done():
            return
        self._seen_due_at = now + self.timing.seen_noted
        seconds_ago = {each.agent_id: now - each.last_heard_at for each in self._sessions.values()}
        self._noting = asyncio.create_task(self._noted_seen(seconds_ago))

    async def _noted_seen(self, seconds_ago: dict[AgentId, float]) -> None:
        try:
            await self.desk.blocking(lambda: self.agents.seen(seconds_ago))
        except HoldfastError as error:  # it is noted again
            log.warning("who is connected could not be written down", extra={"error": error.line()})

    def _post(self, agent_id: AgentId, message: session_pb2.ToAgent) -> None:
        session = self._sessions.get(agent_id)
        if session is not None:
            session.post(message)

    def _from_thread(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert threading.get_ident() != self._loop_thread, "this would wait for itself"
        loop = self._loop
        if loop is None or loop.is_closed():
            raise TimedOut("the controller does not listen for agents now")
        try:
            asyncio.run_coroutine_threadsafe(work(), loop).result()
        except FutureCancelled as error:
            raise Interrupted("the controller is stopping") from error

"""What is said about attempts, in both directions: start, commit, result, progress, loss.

Between the sessions (which carry messages) and the runs' handlers (which decide). Only on the
event loop; handlers run in a bounded executor, one call at a time per attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

from holdfast_common.errors import HoldfastError, Interrupted, LeaseExpired, Refused, TimedOut
from holdfast_common.identity import AgentId
from holdfast_common.job_result import ErrorReport, JobResult, Outcome, ProgressReport
from holdfast_common.job_spec import Attempt
from holdfast_common.wire import session_pb2
from holdfast_common.wire_codec.values import (
    attempt_from_message,
    attempt_to_message,
    error_from_message,
    error_to_message,
)
from holdfast_controller.runs.agent_link import AttemptHandler, OrphanResults
from holdfast_controller.service.attempt_routes import AttemptRoutes, Route
from holdfast_controller.service.session_timing import SessionTiming

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Post = Callable[[AgentId, session_pb2.ToAgent], None]

RESULT_TRIES: Final = 3  # then the agent sends it again at its next welcome


class AttemptDesk:
    """The attempts of all agents. ``post`` queues for an agent's present session, if it has one."""

    def __init__(
        self, orphans: OrphanResults, *, timing: SessionTiming, executor: Executor, post: Post
    ) -> None:
        self._orphans = orphans
        self._timing = timing
        self._executor = executor
        self._post = post
        self.routes = AttemptRoutes(
            lease_seconds=timing.job_lease,
            orphans_until=asyncio.get_running_loop().time() + timing.job_lease,
        )

    async def blocking(self, work: Callable[[], Result]) -> Result:
        """Run something that blocks in the executor."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def handled(self, route: Route, work: Callable[[AttemptHandler], Result]) -> Result:
        """Call an attempt's handler. Raises: LeaseExpired when nobody here waits for it."""
        handler = route.handler
        if handler is None:
            raise LeaseExpired("nobody here waits for this attempt", job=route.attempt.job_id)
        async with route.lock:
            return await self.blocking(lambda: work(handler))

    def leased(self, attempt: Attempt, agent_id: AgentId) -> Route:
        """The route of an attempt that this agent holds a live lease for. Raises: LeaseExpired."""
        return self.routes.leased(attempt, agent_id, asyncio.get_running_loop().time())

    async def start(
        self,
        agent_id: AgentId,
        attempt: Attempt,
        start: session_pb2.StartJob,
        handler: AttemptHandler,
    ) -> None:
        """Send it, and wait for the agent's answer. Raises: Refused, TimedOut."""
        loop = asyncio.get_running_loop()
        route = Route(
            attempt=attempt,
            agent_id=agent_id,
            handler=handler,
            start_message=start,
            lease_seconds=start.lease_ms / 1000,
            lease_ends_at=loop.time() + start.lease_ms / 1000,
            accepted=loop.create_future(),
        )
        self.routes.add(route)
        self._post(agent_id, session_pb2.ToAgent(start_job=start))
        await asyncio.wait({route.accepted}, timeout=self._timing.start_answer)
        route.start_message = None  # it holds secrets
        if not route.accepted.done():
            await self._give_up(route)
            raise TimedOut("the agent did not answer", agent=agent_id, job=attempt.job_id)
        refusal = route.accepted.result()
        if refusal is not None:
            self.routes.close(route)
            raise _refused(refusal)

    async def cancel(self, attempt: Attempt) -> None:
        """Ask the agent to stop, now and after each reconnect."""
        route = self.routes.get(attempt)
        if route is not None:
            route.cancel_asked = True
            self._post(route.agent_id, _cancel_message(attempt))

    def limit(self, attempt: Attempt, rates: Mapping[int, int]) -> bool:
        """Tell an agent how fast it may read, now and after each reconnect; whether the attempt is at work."""
        route = self.routes.get(attempt)
        if route is None or route.finishing:
            return False
        route.rates = rates
        self._post(route.agent_id, _rate_message(route))
        return True

    def catch_up(self, agent_id: AgentId, known: list[Attempt]) -> list[Coroutine[Any, Any, None]]:
        """After a welcome: send again what the agent missed; what ends what it forgot."""
        for route in self.routes:
            if route.agent_id != agent_id:
                continue
            if not route.accepted.done() and route.start_message is not None:
                self._post(agent_id, session_pb2.ToAgent(start_job=route.start_message))
            if route.rates:
                self._post(agent_id, _rate_message(route))
            if route.cancel_asked:
                self._post(agent_id, _cancel_message(route.attempt))
        error = Interrupted("the agent does not know this attempt any more")
        result = JobResult(outcome=Outcome.INTERRUPTED, error=ErrorReport.of(error))
        return [
            self.finish(agent_id, route.attempt, result)
            for route in self.routes.vanished(agent_id, known)
        ]

    def heartbeat(self, agent_id: AgentId, number: int) -> None:
        """Answer with the leases of all that the agent works on."""
        leases = self.routes.renew(agent_id, asyncio.get_running_loop().time())
        ack = session_pb2.HeartbeatAck(
            number=number,
            leases=[
                session_pb2.JobLease(attempt=attempt_to_message(attempt), valid_ms=valid_ms)
                for attempt, valid_ms in leases
            ],
        )
        self._post(agent_id, session_pb2.ToAgent(heartbeat_ack=ack))

    def job_state(self, agent_id: AgentId, state: session_pb2.JobState) -> None:
        """The answer to a StartJob."""
        route = self.routes.get(attempt_from_message(state.attempt))
        if route is None or route.agent_id != agent_id or route.accepted.done():
            return
        refused = state.state == session_pb2.AGENT_JOB_STATE_REFUSED
        route.accepted.set_result(error_from_message(state.error) if refused else None)
        if refused:
            route.ended.set()

    def progress(
        self, agent_id: AgentId, attempt: Attempt, progress: ProgressReport
    ) -> Coroutine[Any, Any, None] | None:
        """Keep the latest; what hands it on, when nothing does yet."""
        route = self.routes.get(attempt)
        if route is None or route.agent_id != agent_id or route.handler is None:
            return None
        route.latest_progress = progress
        if route.progress_running:
            return None
        route.progress_running = True
        return self._hand_on_progress(route)

    async def commit(self, agent_id: AgentId, attempt: Attempt, manifest_digest: bytes) -> None:
        """Answer a request to publish: a grant only after the handler has written it durably."""
        message = session_pb2.ToAgent()
        try:
            route = self.leased(attempt, agent_id)
            grant = await self.handled(route, lambda handler: handler.grant_commit(manifest_digest))
            self.leased(attempt, agent_id)  # it may have been given up meanwhile
            message.commit_grant.attempt.CopyFrom(attempt_to_message(attempt))
            message.commit_grant.manifest_digest = manifest_digest
            message.commit_grant.controller_epoch.epoch = grant.controller_epoch
            message.commit_grant.controller_epoch.signature = grant.signature
        except HoldfastError as error:
            message.commit_refusal.attempt.CopyFrom(attempt_to_message(attempt))
            message.commit_refusal.error.CopyFrom(error_to_message(ErrorReport.of(error)))
        self._post(agent_id, message)

    async def finish(self, agent_id: AgentId, attempt: Attempt, result: JobResult) -> None:
        """Acknowledge a result once it is durable; of an attempt that nobody waits for, too."""
        route = self.routes.get(attempt)
        if route is not None and route.agent_id != agent_id:
            return  # somebody else's attempt: not even an answer
        try:
            if route is None:
                await self.blocking(lambda: self._orphans.finished(agent_id, attempt, result))
            elif route.finishing:
                return  # being written already; its own acknowledgement follows
            else:
                await self._finish_route(route, result)
        except HoldfastError:
            log.exception("a result could not be kept", extra={"job_id": attempt.job_id})
            return
        self.routes.settled(attempt)
        ack = session_pb2.ResultAck(attempt=attempt_to_message(attempt))
        self._post(agent_id, session_pb2.ToAgent(result_ack=ack))

    def lose_expired(self) -> None:
        """Tell the handlers of attempts whose time is over, here and at the agent."""
        now = asyncio.get_running_loop().time()
        for route in self.routes:
            over = now >= route.lease_ends_at + self._timing.lost_after_lease
            if over and route.accepted.done() and not route.finishing:
                route.finishing = True
                self._lose(route)

    async def _finish_route(self, route: Route, result: JobResult) -> None:
        route.finishing = True
        try:
            if not route.abandoned:
                await self._write_result(route, result)
        except BaseException:
            route.finishing = False
            raise
        if not route.accepted.done():
            route.accepted.set_result(None)
        self.routes.close(route)

    async def _write_result(self, route: Route, result: JobResult) -> None:
        for left in reversed(range(RESULT_TRIES)):
            try:
                if route.handler is None:
                    await self.blocking(
                        lambda: self._orphans.finished(route.agent_id, route.attempt, result)
                    )
                else:
                    await self.handled(route, lambda handler: handler.finished(result))
                return
            except HoldfastError as error:
                if not left or not error.retryable:
                    raise
                await asyncio.sleep(1)

    async def _hand_on_progress(self, route: Route) -> None:
        try:
            while route.latest_progress is not None and not route.finishing:
                report, route.latest_progress = route.latest_progress, None
                await self._progressed(route, report)
        finally:
            route.progress_running = False

    async def _progressed(self, route: Route, report: ProgressReport) -> None:
        try:
            await self.handled(route, lambda handler: handler.progressed(report))
        except HoldfastError as error:  # the next one may be kept; nothing depends on it
            log.info("a progress was not kept", extra={"error": error.line()})

    async def _give_up(self, route: Route) -> None:
        """Wait until an agent that does not answer cannot be at work on the attempt."""
        route.abandoned = True
        await self.cancel(route.attempt)
        ends_at = route.lease_ends_at + self._timing.lost_after_lease
        with contextlib.suppress(TimeoutError):
            wait = max(0.0, ends_at - asyncio.get_running_loop().time())
            await asyncio.wait_for(route.ended.wait(), wait)
        self.routes.close(route)

    def _lose(self, route: Route) -> None:
        self.routes.close(route)
        log.warning("attempt lost", extra={"job_id": route.attempt.job_id})
        if route.handler is not None:
            route.handler.lost()


def _refused(refusal: ErrorReport) -> HoldfastError:
    error = refusal.to_error()
    return error if isinstance(error, Refused) else Refused(f"the agent refused the job: {error}")


def _rate_message(route: Route) -> session_pb2.ToAgent:
    disks = [
        session_pb2.DiskRate(device_key=key, bytes_per_second=rate)
        for key, rate in sorted((route.rates or {}).items())
    ]
    attempt = attempt_to_message(route.attempt)
    return session_pb2.ToAgent(job_rate=session_pb2.JobRate(attempt=attempt, disks=disks))


def _cancel_message(attempt: Attempt) -> session_pb2.ToAgent:
    return session_pb2.ToAgent(
        cancel_job=session_pb2.CancelJob(attempt=attempt_to_message(attempt))
    )

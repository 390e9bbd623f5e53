"""The agent's session: dials the controller, keeps one stream, hands jobs to the runner.

Two threads: the session's own reads what the controller says; gRPC's sending thread takes what
`_Sender` gives it. Job threads post to one bounded queue. After a cut, everything that matters is
said again from the runner's state, so nothing in the queue has to outlive its stream.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import grpc

from holdfast_agent.capabilities import Reach
from holdfast_agent.certificates import AgentIdentity
from holdfast_agent.controller_calls import ChannelCalls
from holdfast_agent.job_runner import JobRunner
from holdfast_agent.pipelines.context import Grant
from holdfast_agent.running_attempt import AttemptState, Posted, ProgressMade, StateChanged
from holdfast_agent.session_messages import (
    REQUIRED_FEATURES,
    heartbeat_message,
    hello_message,
    posted_messages,
)
from holdfast_common.clock import Clock
from holdfast_common.errors import (
    AuthenticationFailed,
    ControllerUnreachable,
    HoldfastError,
    TimedOut,
    UsageError,
)
from holdfast_common.identity import new_ulid
from holdfast_common.job_result import ErrorReport
from holdfast_common.job_spec import Attempt
from holdfast_common.pulses import Pulses
from holdfast_common.trust.channels import KEEPALIVE, Keepalive, open_agent_channel
from holdfast_common.wire import session_pb2, session_pb2_grpc
from holdfast_common.wire_codec.call_errors import error_of_call
from holdfast_common.wire_codec.specs import job_spec_from_message
from holdfast_common.wire_codec.values import attempt_from_message, error_from_message

log = logging.getLogger(__name__)

QUEUE_LENGTH_MAX: Final = 1000
PULSE: Final = "session"
PULSE_SECONDS_MAX: Final = 600.0  # dialling, and looking what this host reaches, may take minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTiming:
    """All waits of the session, in seconds. Tests bring shorter ones."""

    reconnect_min: float = 1.0
    reconnect_max: float = (
        15.0  # all agents are back within half a minute, however long it was down
    )
    welcome: float = 20.0
    silence_heartbeats: float = 2.5  # without an answer to any of so many, the stream is dead
    result_again: float = 60.0
    last_results: float = 5.0  # after a stop: for the results to be acknowledged
    poll: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """What each new session starts from: it may have changed since the last one."""

    address: str
    identity: AgentIdentity
    reach: Reach


class AgentSession:
    """Keeps a session until told to stop. `run` is its thread; `post` is for any thread."""

    def __init__(
        self,
        *,
        dialled: Callable[[], Dialled],
        calls: ChannelCalls,
        clock: Clock,
        timing: AgentTiming | None = None,
        keepalive: Keepalive = KEEPALIVE,
        pulses: Pulses | None = None,
        answered: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """``answered`` is told, on the session's thread, how long the answer to each heartbeat took."""
        self._dialled = dialled
        self._answered = answered
        self._pulses = pulses or Pulses(clock)
        self._calls = calls
        self._clock = clock
        self._timing = timing or AgentTiming()
        self._keepalive = keepalive
        self._boot_id = new_ulid()
        self._queue: queue.Queue[Posted] = queue.Queue(QUEUE_LENGTH_MAX)
        self._again = threading.Event()
        self._welcomed = False  # by the present or last stream; the session's thread alone uses it
        self.connected = threading.Event()

    def post(self, posted: Posted) -> None:
        """Queue something for the controller. While there is no session it is dropped: see above."""
        if not self.connected.is_set():
            return
        try:
            self._queue.put_nowait(posted)
        except queue.Full:
            if not isinstance(posted, ProgressMade):
                self.begin_again()

    def begin_again(self) -> None:
        """End the present stream kindly and dial anew, at once: something to be told has changed."""
        self._again.set()

    def run(self, runner: JobRunner, stop: threading.Event) -> None:
        """Dial, keep, dial again, until ``stop`` is set and the last results are with the controller."""
        wait = self._timing.reconnect_min
        while not stop.is_set():
            self._pulses.expect(PULSE, within_seconds=PULSE_SECONDS_MAX)
            self._welcomed = False
            try:
                self._one_session(runner, stop)
            except HoldfastError as error:
                log.warning("no session with the controller", extra={"error": error.line()})
            if self._welcomed:  # however it ended: only dials in vain make the next wait longer
                wait = self._timing.reconnect_min
                if self._again.is_set():
                    continue
            stop.wait(
                random.uniform(self._timing.reconnect_min, max(wait, self._timing.reconnect_min))
            )
            wait = min(wait * 2, self._timing.reconnect_max)
        self._pulses.end(PULSE)

    def _one_session(self, runner: JobRunner, stop: threading.Event) -> None:
        """Until the stream ends. Raises: why it ended, when it was not we who ended it."""
        dialled = self._dialled()
        self._again.clear()
        with open_agent_channel(
            dialled.address, dialled.identity.credentials, keepalive=self._keepalive
        ) as channel:
            stub = session_pb2_grpc.AgentsStub(channel)
            talk = _Talk(
                runner=runner,
                posted=self._queue,
                clock=self._clock,
                timing=self._timing,
                answered=self._answered,
            )
            hello = hello_message(
                boot_id=self._boot_id,
                role=dialled.identity.role,
                reach=dialled.reach,
                running=runner.running(),
                results=[ready.attempt for ready in runner.results()],
            )
            stream = stub.Session(talk.messages(hello))
            watch = threading.Thread(
                target=lambda: talk.watch(stop=stop, again=self._again, cancel=stream.cancel),
                name="session-watch",
                daemon=True,
            )
            watch.start()
            try:
                for message in stream:
                    if message.WhichOneof("message") == "welcome":
                        talk.welcomed(message.welcome)
                        self._pulses.expect(PULSE, within_seconds=talk.silence_seconds_max)
                        self._welcomed = True
                        self._calls.connected(stub)
                        self.connected.set()
                        log.info("session began", extra={"epoch": message.welcome.session_epoch})
                    else:
                        self._received(runner, talk, message)
                        self._pulses.beat(PULSE)
            except grpc.RpcError as error:
                if talk.ended_because is not None:
                    raise talk.ended_because from error
                if not talk.ended_by_us:
                    raise error_of_call(error) from error
            finally:
                self.connected.clear()
                self._calls.connected(None)
                talk.over.set()
                stream.cancel()
                watch.join()

    def _received(self, runner: JobRunner, talk: _Talk, message: session_pb2.ToAgent) -> None:
        match message.WhichOneof("message"):
            case "heartbeat_ack":
                talk.acknowledged(message.heartbeat_ack)
            case "start_job":
                self.post(_started(runner, message.start_job, talk.lease_base))
            case "commit_grant":
                grant = message.commit_grant
                runner.commit_granted(
                    attempt_from_message(grant.attempt),
                    grant.manifest_digest,
                    Grant(
                        controller_epoch=grant.controller_epoch.epoch,
                        signature=grant.controller_epoch.signature,
                    ),
                )
            case "commit_refusal":
                refusal = message.commit_refusal
                attempt = attempt_from_message(refusal.attempt)
                runner.commit_refused(attempt, error_from_message(refusal.error))
            case "result_ack":
                runner.acknowledged(attempt_from_message(message.result_ack.attempt))
            case "cancel_job":
                runner.cancel(attempt_from_message(message.cancel_job.attempt))
            case "job_rate":
                rates = {each.device_key: each.bytes_per_second for each in message.job_rate.disks}
                runner.limit(attempt_from_message(message.job_rate.attempt), rates)
            case "goodbye":
                error = error_from_message(message.goodbye.error).to_error()
                log.warning("the controller said goodbye", extra={"error": error.line()})
                if isinstance(
                    error, AuthenticationFailed
                ):  # revoked: nothing will come of the jobs
                    runner.abort_all(error)
            case _:
                log.warning("unknown message from the controller")


class _Talk:
    """One stream: what goes up it, in order, and when it has to end."""

    def __init__(
        self,
        *,
        runner: JobRunner,
        posted: queue.Queue[Posted],
        clock: Clock,
        timing: AgentTiming,
        answered: Callable[[float], None],
    ) -> None:
        self._runner = runner
        self._answered = answered
        self._posted = posted
        self._clock = clock
        self._timing = timing
        self._heartbeat_seconds = 10.0
        self._sent_at: dict[int, float] = {}
        self._heard_at = clock.monotonic_seconds()
        self.lease_base = self._heard_at  # when the last thing was sent that has been answered
        self.welcome = threading.Event()
        self.over = threading.Event()
        self.ended_by_us = False
        self.ended_because: HoldfastError | None = None

    def welcomed(self, welcome: session_pb2.Welcome) -> None:
        """The controller's verdicts and times. Raises: UsageError when we do not fit together."""
        missing = REQUIRED_FEATURES - set(welcome.features)
        if missing:
            raise UsageError("the controller lacks a feature that we require", feature=min(missing))
        if not welcome.heartbeat_ms or not welcome.job_lease_ms:
            raise UsageError("the controller's welcome has no times")
        self._heartbeat_seconds = welcome.heartbeat_ms / 1000
        self._heard_at = self._clock.monotonic_seconds()
        for running in welcome.running:
            if running.verdict != session_pb2.VERDICT_CONTINUE:
                self._runner.abort(attempt_from_message(running.attempt))
        while not self._posted.empty():  # for an earlier stream: said again from the runner's state
            self._posted.get_nowait()
        self.welcome.set()

    @property
    def silence_seconds_max(self) -> float:
        """Long after our own watch would have ended a stream on which nothing is heard."""
        silence = self._heartbeat_seconds * self._timing.silence_heartbeats
        return max(PULSE_SECONDS_MAX, 4 * silence)

    def acknowledged(self, ack: session_pb2.HeartbeatAck) -> None:
        """Leases, each valid from the moment this heartbeat was sent."""
        self._heard_at = self._clock.monotonic_seconds()
        sent_at = self._sent_at.get(ack.number)
        if sent_at is None:
            return
        for number in [number for number in list(self._sent_at) if number <= ack.number]:
            del self._sent_at[number]
        self._answered(self._heard_at - sent_at)
        self.lease_base = sent_at
        ends_at: dict[Attempt, float] = {
            attempt_from_message(lease.attempt): sent_at + lease.valid_ms / 1000
            for lease in ack.leases
        }
        self._runner.renew_leases(ends_at)

    def messages(self, hello: session_pb2.FromAgent) -> Iterator[session_pb2.FromAgent]:
        """All messages of the stream; for gRPC's sending thread."""
        self.lease_base = self._clock.monotonic_seconds()
        yield hello
        while not self.welcome.wait(self._timing.poll):
            if self.over.is_set():
                return
        number = 1
        heartbeat_at = results_at = self._clock.monotonic_seconds()
        while not self.over.is_set():
            now = self._clock.monotonic_seconds()
            if now >= heartbeat_at:
                heartbeat_at = now + self._heartbeat_seconds
                self._sent_at[number] = now
                yield heartbeat_message(number)
                number += 1
            if now >= results_at:  # first of all a heartbeat, then these: they need its leases
                results_at = now + self._timing.result_again
                again: list[Posted] = [*self._runner.results(), *self._runner.pending_commits()]
                for posted in again:
                    yield from posted_messages(posted)
            wait = min(heartbeat_at - now, self._timing.poll)
            try:
                yield from posted_messages(self._posted.get(timeout=max(0.0, wait)))
            except queue.Empty:
                continue

    def watch(
        self, *, stop: threading.Event, again: threading.Event, cancel: Callable[[], object]
    ) -> None:
        """End the stream when nothing is heard, or when we are told to; a thread of its own."""
        gives_up_at: float | None = None
        while not self.over.wait(self._timing.poll):
            now = self._clock.monotonic_seconds()
            if stop.is_set() and gives_up_at is None:
                gives_up_at = now + (self._timing.last_results if self.welcome.is_set() else 0)
            told = gives_up_at is not None and (now >= gives_up_at or not self._runner.results())
            if told or again.is_set():
                self.ended_by_us = True
            elif self.welcome.is_set():
                if now - self._heard_at > self._heartbeat_seconds * self._timing.silence_heartbeats:
                    self.ended_because = TimedOut("the controller fell silent")
            elif now - self._heard_at > self._timing.welcome:
                self.ended_because = ControllerUnreachable("the controller did not welcome us")
            if self.ended_by_us or self.ended_because is not None:
                cancel()
                return


def _started(runner: JobRunner, message: session_pb2.StartJob, lease_base: float) -> StateChanged:
    """Hand a job on. What cannot be read is refused, not fatal: the next one may be."""
    attempt = attempt_from_message(message.attempt)
    try:
        spec = job_spec_from_message(message.spec)
    except UsageError as error:
        report = ErrorReport.of(error)
        return StateChanged(attempt=attempt, state=AttemptState.REFUSED, error=report)
    # The lease counts from the last thing we said that the controller had answered when it sent
    # this: so a job that was held up on its way has a lease that is over, not a late one.
    ends_at = lease_base + message.lease_ms / 1000
    return runner.start(attempt, spec, message.spec_digest, lease_ends_at=ends_at)

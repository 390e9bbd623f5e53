"""The agents' service: the session's beginning, and the calls beside it.

After the access rules, before the sessions and the attempts' handlers. Only on the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Final, NoReturn

import grpc

from holdfast_common.clock import Clock, utc_text
from holdfast_common.errors import HoldfastError, Refused, UsageError
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, DatastoreId, RepositoryId
from holdfast_common.job_spec import Attempt, TransportKind
from holdfast_common.trust.authority import CertificateAuthority
from holdfast_common.trust.keys import public_key_of_request
from holdfast_common.trust.peer import Peer
from holdfast_common.wire import job_pb2, session_pb2, session_pb2_grpc
from holdfast_common.wire_codec.tickets import ticket_to_message
from holdfast_common.wire_codec.values import (
    EXTENTS_PER_MESSAGE_MAX,
    attempt_from_message,
    attempt_to_message,
    extents_to_messages,
)
from holdfast_controller.runs.agent_link import ConnectedAgent
from holdfast_controller.service.access_rules import current_caller
from holdfast_controller.service.agent_sessions import AgentSessions
from holdfast_controller.service.call_errors import Context, abort_with
from holdfast_controller.service.live_session import LiveSession
from holdfast_controller.store.agents import AgentCapabilities, AgentRow
from holdfast_controller.store.audit import AuditTrail

FEATURES: Final = frozenset({"image-1"})  # whole disks: back up, restore, verify, check, list
REQUIRED_FEATURES: Final = frozenset({"image-1"})
RATES: Final = "rate-1"  # an agent that reads no faster than it is told; older ones do without
OPTIONAL_FEATURES: Final = frozenset({RATES})
SEGMENTS_PER_CALL_MAX: Final = 2000  # sealed headers of some 200 bytes


class AgentsService(session_pb2_grpc.AgentsServicer):
    """What a proxy may ask of the controller."""

    def __init__(
        self,
        sessions: AgentSessions,
        authority: CertificateAuthority,
        audit: AuditTrail,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._authority = authority
        self._audit = audit
        self._clock = clock

    async def Session(self, _request_iterator: object, context: Context) -> None:  # type: ignore[override]  # the stub knows generators only; grpc.aio takes read and write too
        """One agent's stream, from its hello to its end."""
        peer, agent_id = _calling_agent()
        try:
            first = await asyncio.wait_for(context.read(), self._sessions.timing.hello)
        except TimeoutError:
            await abort_with(context, UsageError("the session began without a hello"))
        if first is grpc.aio.EOF or first.WhichOneof("message") != "hello":
            await abort_with(context, UsageError("the session began without a hello"))
        hello: session_pb2.Hello = first.hello
        row = await self._sessions.desk.blocking(lambda: self._sessions.agents.get(agent_id))
        await _check_hello(context, hello, row)
        capabilities = _capabilities(hello.capabilities, self._clock.now())
        features = frozenset(hello.features)
        epoch = await self._sessions.desk.blocking(
            lambda: self._sessions.agents.open_session(
                agent_id, features=features, capabilities=capabilities
            )
        )
        session = LiveSession(
            agent=_connected_agent(row, capabilities, features),
            peer=peer,
            epoch=epoch,
            context=context,
            now=asyncio.get_running_loop().time(),
        )
        self._sessions.register(session)
        try:
            ending = asyncio.get_running_loop().call_later(
                max(0.0, (peer.ends_at - self._clock.now()).total_seconds()),
                lambda: session.end(Refused("the certificate of this session has ended")),
            )
            try:
                self._welcome(session, hello)
                await session.run(lambda message: self._sessions.received(session, message))
            finally:
                ending.cancel()
        finally:
            self._sessions.unregister(session)

    async def FetchExtents(
        self, request: session_pb2.JobDisk, _context: Context
    ) -> AsyncIterator[session_pb2.Extents]:
        """The areas to read of one disk, as a stream of messages below 1 MiB."""
        _, agent_id = _calling_agent()
        desk = self._sessions.desk
        attempt = attempt_from_message(request.attempt)
        extents: Iterator[Extent] | None = None
        while True:
            self._sessions.check_not_barred(agent_id)
            route = desk.leased(attempt, agent_id)
            if extents is None:
                extents = await desk.handled(
                    route, lambda handler: iter(handler.extents(request.device_key))
                )
            chunk = await desk.handled(route, lambda _, source=extents: _next_chunk(source))  # type: ignore[misc]  # mypy does not infer lambdas with defaults
            for message in extents_to_messages(chunk):
                yield message
            if len(chunk) < EXTENTS_PER_MESSAGE_MAX:
                return

    async def OpenSegmentKeys(
        self, request: session_pb2.OpenSegmentKeysRequest, _context: Context
    ) -> session_pb2.OpenSegmentKeysReply:
        """Keys of pack segments; the handler knows whether this kind of job may have them."""
        _, agent_id = _calling_agent()
        if len(request.segments) > SEGMENTS_PER_CALL_MAX:
            raise UsageError("too many segments in one call", count=len(request.segments))
        headers = [segment.header for segment in request.segments]
        route = self._sessions.desk.leased(attempt_from_message(request.attempt), agent_id)
        keys = await self._sessions.desk.handled(
            route, lambda handler: handler.segment_keys(headers)
        )
        return session_pb2.OpenSegmentKeysReply(keys=keys)

    async def RenewTicket(
        self, request: session_pb2.JobDisk, _context: Context
    ) -> job_pb2.DiskTicket:
        """A fresh ticket for one disk."""
        _, agent_id = _calling_agent()
        route = self._sessions.desk.leased(attempt_from_message(request.attempt), agent_id)
        ticket = await self._sessions.desk.handled(
            route, lambda handler: handler.renewed_ticket(request.device_key)
        )
        return ticket_to_message(ticket)

    async def RenewCertificate(
        self, request: session_pb2.RenewCertificateRequest, _context: Context
    ) -> session_pb2.RenewCertificateReply:
        """A new certificate for the same agent and role; the old one is good until it ends."""
        peer, agent_id = _calling_agent()
        key = public_key_of_request(request.certificate_request_pem)

        def renew() -> bytes:
            pem, renewed = self._authority.issue(key, peer.subject, now=self._clock.now())
            self._sessions.agents.certificate_renewed(
                agent_id, serial=renewed.serial, ends_at=utc_text(renewed.ends_at)
            )
            self._audit.append(
                actor=peer.actor(), action="renew-certificate", object=renewed.sha256, result="ok"
            )
            return pem

        pem = await self._sessions.desk.blocking(renew)
        return session_pb2.RenewCertificateReply(certificate_pem=pem)

    def _welcome(self, session: LiveSession, hello: session_pb2.Hello) -> None:
        """Queue the welcome, then what the agent missed while it was away."""
        desk, timing = self._sessions.desk, self._sessions.timing
        now = asyncio.get_running_loop().time()
        known: list[Attempt] = [attempt_from_message(message) for message in hello.results]
        for attempt in known:
            desk.routes.result_is_due(attempt)
        verdicts = []
        for running in hello.running:
            attempt = attempt_from_message(running.attempt)
            goes_on = desk.routes.may_continue(
                session.agent_id,
                attempt,
                committing=running.state == session_pb2.AGENT_JOB_STATE_COMMITTING,
                now=now,
            )
            known.append(attempt)
            verdict = session_pb2.VERDICT_CONTINUE if goes_on else session_pb2.VERDICT_ABORT
            verdicts.append(
                session_pb2.RunningVerdict(attempt=attempt_to_message(attempt), verdict=verdict)
            )
        welcome = session_pb2.Welcome(
            session_epoch=session.epoch,
            features=sorted((FEATURES | OPTIONAL_FEATURES) & set(hello.features)),
            heartbeat_ms=int(timing.heartbeat * 1000),
            job_lease_ms=int(timing.job_lease * 1000),
            running=verdicts,
        )
        session.post(session_pb2.ToAgent(welcome=welcome))
        for work in desk.catch_up(session.agent_id, known):
            session.spawn(work)


def _calling_agent() -> tuple[Peer, AgentId]:
    peer = current_caller().peer
    assert peer is not None, "the access rules let only certificates through"
    return peer, AgentId(peer.subject.name)


def _next_chunk(source: Iterator[Extent]) -> list[Extent]:
    return list(itertools.islice(source, EXTENTS_PER_MESSAGE_MAX))


async def _check_hello(context: Context, hello: session_pb2.Hello, row: AgentRow) -> None:
    """End the call when the two sides do not fit together."""
    if hello.role != row.role:
        await abort_with(context, Refused("the agent was enrolled for another role", role=row.role))
    ours = set(hello.required_features) - FEATURES
    if ours:
        await _unfit(context, "the controller lacks a feature that the agent requires", ours)
    theirs = REQUIRED_FEATURES - set(hello.features)
    if theirs:
        await _unfit(context, "the agent lacks a feature that the controller requires", theirs)
    lost = (row.features & FEATURES) - set(hello.features)
    if lost:  # somebody who stole an agent's key must not talk us down to an older protocol
        await _unfit(context, "the agent lacks a feature that it once had", lost)


async def _unfit(context: Context, problem: str, features: set[str] | frozenset[str]) -> NoReturn:
    error: HoldfastError = UsageError(
        problem,
        feature=min(features),
        advice="install the same version of Holdfast on controller and agents",
    )
    await abort_with(context, error, status=grpc.StatusCode.FAILED_PRECONDITION)


def _capabilities(message: session_pb2.Capabilities, now: datetime) -> AgentCapabilities:
    told = message.unix_ms / 1000
    return AgentCapabilities(
        transports=tuple(message.transports),
        datastores=tuple(reach.datastore_id for reach in message.datastores),
        writable_datastores=tuple(
            reach.datastore_id for reach in message.datastores if reach.writable
        ),
        repositories=tuple(message.repository_ids),
        restore_folders=tuple(message.restore_folders),
        repair_folders=tuple(message.repair_folders),
        vm_bios_uuid=message.vm_bios_uuid,
        version=message.version,
        mac_addresses=tuple(message.mac_addresses),
        clock_ahead_seconds=round(told - now.timestamp(), 3) if told else 0.0,
    )


def _connected_agent(
    row: AgentRow, capabilities: AgentCapabilities, features: frozenset[str]
) -> ConnectedAgent:
    kinds = {kind.value: kind for kind in TransportKind}  # a newer agent may know more than we do
    return ConnectedAgent(
        agent_id=row.agent_id,
        role=row.role,
        host_name=row.host_name,
        version=capabilities.version,
        transports=tuple(kinds[name] for name in capabilities.transports if name in kinds),
        datastores=tuple(DatastoreId(text) for text in capabilities.datastores),
        writable_datastores=tuple(DatastoreId(text) for text in capabilities.writable_datastores),
        repositories=tuple(RepositoryId(text) for text in capabilities.repositories),
        restore_folders=capabilities.restore_folders,
        repair_folders=capabilities.repair_folders,
        vm_bios_uuid=capabilities.vm_bios_uuid,
        mac_addresses=capabilities.mac_addresses,
        can_be_slowed=RATES in features,
        clock_ahead_seconds=capabilities.clock_ahead_seconds,
    )

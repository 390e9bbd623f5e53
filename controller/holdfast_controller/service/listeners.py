"""The controller's listeners: agents, enrolment, operators. Each serves one service and nothing else.

On the event loop of `holdfast controller run`; see `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import grpc

from holdfast_common.clock import Clock
from holdfast_common.errors import ConfigurationError
from holdfast_common.file_lock import only_holder
from holdfast_common.places import Places, private_folder
from holdfast_common.trust.channels import (
    KEEPALIVE,
    OPERATOR_MESSAGE_BYTES_MAX,
    SESSION_MESSAGE_BYTES_MAX,
    Keepalive,
    Options,
    message_limit,
    server_credentials,
)
from holdfast_common.trust.controller_trust import ControllerTrust
from holdfast_common.trust.peer import Role
from holdfast_common.wire import operator_pb2_grpc, session_pb2_grpc
from holdfast_controller.service.access_rules import (
    AccessRules,
    Caller,
    CertificateCheck,
    Identify,
    always,
    certificate_of,
)
from holdfast_controller.service.agent_administration import AgentAdministration, ListeningAt
from holdfast_controller.service.agent_sessions import AgentSessions
from holdfast_controller.service.agents_service import AgentsService
from holdfast_controller.service.call_errors import Context
from holdfast_controller.service.enrolment import EnrolmentService
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.audit import AuditTrail

log = logging.getLogger(__name__)

STOP_GRACE_SECONDS: Final = 2.0  # for calls in work; agents come back by themselves
ENROLMENTS_AT_ONCE_MAX: Final = 32
SOCKET_FOLDER_MODE: Final = 0o750  # its group may reach the socket: whoever connects is an operator
SOCKET_MODE: Final = 0o660
OPERATORS_GROUP: Final = "holdfast"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerAddresses:
    """``host:port`` of each listener; port 0: any free one. ``operators`` empty: Unix socket only.

    ``advertised``: what new agents are told to dial; empty: the host they enrolled at.
    """

    session: str = "0.0.0.0:9440"
    enrolment: str = "0.0.0.0:9441"
    operators: str = ""
    advertised: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundPorts:
    """What the listeners got. ``operators`` and ``metrics`` are 0 when there is none."""

    session: int
    enrolment: int
    operators: int
    operator_socket: Path
    metrics: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerParts:
    """What the listeners serve and ask."""

    places: Places
    trust: ControllerTrust
    agents: AgentTable
    audit: AuditTrail
    clock: Clock
    sessions: AgentSessions
    administration: AgentAdministration
    operators: operator_pb2_grpc.OperatorsServicer


@contextmanager
def only_controller(places: Places) -> Iterator[None]:
    """Be the only controller of these places while it is held. Raises: Locked."""
    path = private_folder(places.controller_state) / "controller.lock"
    with only_holder(path, problem="another controller runs here"):
        yield


async def serve(
    parts: ListenerParts,
    addresses: ListenerAddresses,
    *,
    stop: asyncio.Event,
    ready: Callable[[BoundPorts], None],
    keepalive: Keepalive = KEEPALIVE,
) -> None:
    """Listen until ``stop`` is set, then end kindly. ``ready`` is called once all listeners are up.

    The caller holds `only_controller`. Raises: ConfigurationError when an address cannot be used.
    """
    parts.sessions.attach()
    check = CertificateCheck(parts.agents, parts.clock)

    async def by_certificate(context: Context) -> Caller:
        pem = certificate_of(context)
        return await parts.sessions.desk.blocking(lambda: check.caller(pem))

    async with contextlib.AsyncExitStack() as stack:
        session = _agents_server(parts, by_certificate, keepalive)
        enrolment = _enrolment_server(parts)
        local = _operators_server(parts, always(Role.LOCAL_OPERATOR), keepalive)
        remote = _operators_server(parts, by_certificate, keepalive)
        mutual = partial(server_credentials, parts.trust.credentials, client_certificates=True)
        anybody = partial(server_credentials, parts.trust.credentials, client_certificates=False)
        bound = BoundPorts(
            session=_bind(session, addresses.session, mutual()),
            enrolment=_bind(enrolment, addresses.enrolment, anybody()),
            operators=_bind(remote, addresses.operators, mutual()) if addresses.operators else 0,
            operator_socket=_bind_socket(local, parts.places),
        )
        watching = asyncio.create_task(parts.sessions.watch())
        stack.callback(watching.cancel)
        parts.administration.listening(
            ListeningAt(
                enrolment_port=bound.enrolment,
                session_address=addresses.advertised or f":{bound.session}",
            )
        )
        for server in (session, enrolment, local, *([remote] if bound.operators else [])):
            await stack.enter_async_context(_started(server))
        bound.operator_socket.chmod(SOCKET_MODE)
        _give_to_group(bound.operator_socket)
        ready(bound)
        await stop.wait()
        parts.sessions.stop()
    parts.sessions.close()
    with contextlib.suppress(FileNotFoundError):
        bound.operator_socket.unlink()


def _agents_server(
    parts: ListenerParts, identify: Identify, keepalive: Keepalive
) -> grpc.aio.Server:
    server = _server(
        identify, [*keepalive.server_options(), *message_limit(SESSION_MESSAGE_BYTES_MAX)]
    )
    service = AgentsService(parts.sessions, parts.trust.authority, parts.audit, parts.clock)
    session_pb2_grpc.add_AgentsServicer_to_server(service, server)
    return server


def _enrolment_server(parts: ListenerParts) -> grpc.aio.Server:
    options = [*KEEPALIVE.server_options(), *message_limit(64 * 1024)]
    server = _server(always(Role.JOINER), options, calls_at_once_max=ENROLMENTS_AT_ONCE_MAX)
    service = EnrolmentService(parts.administration)
    session_pb2_grpc.add_EnrolmentServicer_to_server(service, server)
    return server


def _operators_server(
    parts: ListenerParts, identify: Identify, keepalive: Keepalive
) -> grpc.aio.Server:
    options = [*keepalive.server_options(), *message_limit(OPERATOR_MESSAGE_BYTES_MAX)]
    server = _server(identify, options)
    operator_pb2_grpc.add_OperatorsServicer_to_server(parts.operators, server)
    return server


def _server(
    identify: Identify, options: Options, *, calls_at_once_max: int | None = None
) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[AccessRules(identify)],
        options=options,
        maximum_concurrent_rpcs=calls_at_once_max,
    )


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    _check_free(address)
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigurationError(
            "cannot listen at this address", address=address, advice="is another program there?"
        ) from error


def _check_free(address: str) -> None:
    """Whether the address can be bound: gRPC itself tells no reason. Raises: ConfigurationError."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        family, kind, protocol, _, wanted = found[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(wanted)
            trial.listen(1)
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(
            f"cannot listen at this address: {reason}",
            address=address,
            advice="is another program there? Addresses are changed in controller.toml",
        ) from error


def _bind_socket(server: grpc.aio.Server, places: Places) -> Path:
    """The operators' socket. Nobody can reach it before its mode is set: the folder keeps them out."""
    path = places.operator_socket()
    if places.run not in path.parents:
        private_folder(path.parents[1])  # the short folder in /tmp
    private_folder(path.parent, mode=SOCKET_FOLDER_MODE)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigurationError("there is a file where our socket should be", file=str(path))
        path.unlink()  # left by a controller that was killed; `only_controller` says none runs
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise ConfigurationError("cannot listen at this socket", socket=str(path)) from error
    return path


def _give_to_group(path: Path) -> None:
    """As root, members of the group `holdfast` (where there is one) may reach the socket too."""
    if os.geteuid() != 0:
        return
    with contextlib.suppress(KeyError):
        group = grp.getgrnam(OPERATORS_GROUP).gr_gid
        os.chown(path.parent, -1, group)
        os.chown(path, -1, group)


@asynccontextmanager
async def _started(server: grpc.aio.Server) -> AsyncIterator[None]:
    await server.start()
    try:
        yield
    finally:
        await server.stop(STOP_GRACE_SECONDS)

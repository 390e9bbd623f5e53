"""Who may call what: one table, default deny, asked again at every call.

Before every method of every listener. What a caller is comes from its certificate alone (or,
where there is none, from the listener it reached); whether it still is that, from the database.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import grpc

from holdfast_common.clock import Clock
from holdfast_common.errors import AuthenticationFailed, HoldfastError, NotFound, Refused
from holdfast_common.identity import AgentId
from holdfast_common.trust.peer import AGENT_ROLES, Peer, Role, peer_of_pem
from holdfast_controller.service.call_errors import Context, abort_with
from holdfast_controller.store.agents import AgentTable

log = logging.getLogger(__name__)

_OPERATORS: Final = frozenset({Role.ADMINISTRATOR, Role.LOCAL_OPERATOR})
_PROXIES: Final = frozenset({Role.PROXY})

# Guests and restore agents have no method yet: their roles are known, and refused.
RULES: Final[Mapping[str, frozenset[Role]]] = {
    "/holdfast.v1.Agents/Session": _PROXIES,
    "/holdfast.v1.Agents/FetchExtents": _PROXIES,
    "/holdfast.v1.Agents/OpenSegmentKeys": _PROXIES,
    "/holdfast.v1.Agents/RenewTicket": _PROXIES,
    "/holdfast.v1.Agents/RenewCertificate": _PROXIES,
    "/holdfast.v1.Enrolment/Enrol": frozenset({Role.JOINER}),
    "/holdfast.v1.Operators/GetStatus": _OPERATORS,
    "/holdfast.v1.Operators/ShowVcenterCertificate": _OPERATORS,
    "/holdfast.v1.Operators/AddVcenter": _OPERATORS,
    "/holdfast.v1.Operators/ListVcenters": _OPERATORS,
    "/holdfast.v1.Operators/TestVcenter": _OPERATORS,
    "/holdfast.v1.Operators/RefreshVcenter": _OPERATORS,
    "/holdfast.v1.Operators/ListInventory": _OPERATORS,
    "/holdfast.v1.Operators/ShowVm": _OPERATORS,
    "/holdfast.v1.Operators/CreateToken": _OPERATORS,
    "/holdfast.v1.Operators/ListAgents": _OPERATORS,
    "/holdfast.v1.Operators/RevokeAgent": _OPERATORS,
    "/holdfast.v1.Operators/StartBackup": _OPERATORS,
    "/holdfast.v1.Operators/StartRestore": _OPERATORS,
    "/holdfast.v1.Operators/StartCheck": _OPERATORS,
    "/holdfast.v1.Operators/StartRepair": _OPERATORS,
    "/holdfast.v1.Operators/ListJobs": _OPERATORS,
    "/holdfast.v1.Operators/ShowJob": _OPERATORS,
    "/holdfast.v1.Operators/FollowRun": _OPERATORS,
    "/holdfast.v1.Operators/ListDamages": _OPERATORS,
    "/holdfast.v1.Operators/CancelJob": _OPERATORS,
    "/holdfast.v1.Operators/RetryRun": _OPERATORS,
    "/holdfast.v1.Operators/Pause": _OPERATORS,
    "/holdfast.v1.Operators/Resume": _OPERATORS,
    "/holdfast.v1.Operators/Explain": _OPERATORS,
    "/holdfast.v1.Operators/PlanDays": _OPERATORS,
    "/holdfast.v1.Operators/ListPoints": _OPERATORS,
    "/holdfast.v1.Operators/ShowPoint": _OPERATORS,
    "/holdfast.v1.Operators/RunDoctor": _OPERATORS,
    "/holdfast.v1.Operators/Qualify": _OPERATORS,
    "/holdfast.v1.Operators/TestNotification": _OPERATORS,
    "/holdfast.v1.Operators/ConfirmRecoverySheet": _OPERATORS,
    "/holdfast.v1.Operators/ListKeys": _OPERATORS,
    "/holdfast.v1.Operators/AddRecipient": _OPERATORS,
    "/holdfast.v1.Operators/RemoveRecipient": _OPERATORS,
    "/holdfast.v1.Operators/RotateKeys": _OPERATORS,
    "/holdfast.v1.Operators/StartPrune": _OPERATORS,
    "/holdfast.v1.Operators/ListRepositories": _OPERATORS,
    "/holdfast.v1.Operators/ShowRepository": _OPERATORS,
    "/holdfast.v1.Operators/ForgetPoints": _OPERATORS,
    "/holdfast.v1.Operators/HoldPoint": _OPERATORS,
    "/holdfast.v1.Operators/RebuildCatalogue": _OPERATORS,
    "/holdfast.v1.Operators/ListPolicies": _OPERATORS,
    "/holdfast.v1.Operators/ShowPolicy": _OPERATORS,
    "/holdfast.v1.Operators/ApplyPolicies": _OPERATORS,
    "/holdfast.v1.Operators/DeletePolicy": _OPERATORS,
    "/holdfast.v1.Operators/RunPolicy": _OPERATORS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes this call. ``peer`` is None for roles that have no certificate."""

    role: Role
    peer: Peer | None = None

    def actor(self) -> str:
        """As the audit trail names it."""
        return self.peer.actor() if self.peer is not None else str(self.role)


Identify = Callable[[Context], Awaitable[Caller]]
_caller: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Who makes the call that is being served in this task."""
    return _caller.get()


def current_actor() -> str:
    """The same for the audit trail; on a thread outside of any call, the machine's own operator."""
    caller = _caller.get(None)
    return str(Role.LOCAL_OPERATOR) if caller is None else caller.actor()


def certificate_of(context: Context) -> bytes:
    """The certificate that TLS accepted for this call, as PEM. Raises: AuthenticationFailed."""
    shown = list(context.auth_context().get("x509_pem_cert", ()))
    if len(shown) != 1:
        raise AuthenticationFailed("the call has no certificate")
    return bytes(shown[0])


def always(role: Role) -> Identify:
    """On a listener without client certificates everybody is the same."""

    async def identify(_context: Context) -> Caller:
        return Caller(role=role)

    return identify


class CertificateCheck:
    """Who a certificate's holder is, and whether it is still accepted. Blocks: run it in an executor."""

    def __init__(self, agents: AgentTable, clock: Clock) -> None:
        self._agents = agents
        self._clock = clock

    def caller(self, certificate_pem: bytes) -> Caller:
        """Raises: AuthenticationFailed when it has ended, is revoked, or names nobody we know."""
        peer = peer_of_pem(certificate_pem)
        if not peer.starts_at <= self._clock.now() < peer.ends_at:
            raise AuthenticationFailed("the certificate is not valid now")
        if self._agents.certificate_is_revoked(peer.serial):
            raise AuthenticationFailed("the certificate was revoked")
        role = peer.subject.role
        if role in AGENT_ROLES:
            self._check_agent(AgentId(peer.subject.name), role)
        return Caller(role=role, peer=peer)

    def _check_agent(self, agent_id: AgentId, role: Role) -> None:
        try:
            row = self._agents.get(agent_id)
        except NotFound as error:
            raise AuthenticationFailed("the agent is not known here", agent=agent_id) from error
        if row.revoked_at:
            raise AuthenticationFailed("the agent was revoked", agent=agent_id)
        if row.role != role:
            raise AuthenticationFailed("the agent has another role", agent=agent_id)


class AccessRules(grpc.aio.ServerInterceptor):
    """Lets a call through to its method only when the table allows it to the caller."""

    def __init__(self, identify: Identify) -> None:
        self._identify = identify

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - grpc.aio has no type for a method's handler
        """The method behind its rule; a method without a rule is nobody's."""
        method = str(handler_call_details.method)
        allowed = RULES.get(method, frozenset())
        handler = await continuation(handler_call_details)

        async def admit(context: Context) -> None:
            try:
                caller = await self._identify(context)
                if caller.role not in allowed or handler is None:
                    raise Refused("this caller may not call this", role=caller.role, method=method)
            except HoldfastError as error:
                log.warning(
                    "call refused", extra={"method": method, "peer": context.peer(), "why": error}
                )
                await abort_with(context, error)
            _caller.set(caller)

        return _guarded(handler, admit)


def _guarded(handler: Any, admit: Callable[[Context], Awaitable[None]]) -> Any:  # noqa: ANN401 - see above
    if handler is None:

        async def nothing(_request: bytes, context: Context) -> bytes:
            await admit(context)
            return b""

        return grpc.unary_unary_rpc_method_handler(nothing)
    kind = f"{'stream' if handler.request_streaming else 'unary'}_" + (
        "stream" if handler.response_streaming else "unary"
    )
    behaviour = getattr(handler, kind)
    guarded = (
        _guarded_generator(behaviour, admit)
        if inspect.isasyncgenfunction(behaviour)
        else _guarded_coroutine(behaviour, admit)
    )
    build = getattr(grpc, f"{kind}_rpc_method_handler")
    return build(guarded, handler.request_deserializer, handler.response_serializer)


def _guarded_coroutine(
    behaviour: Callable[[Any, Context], Awaitable[Any]], admit: Callable[[Context], Awaitable[None]]
) -> Callable[[Any, Context], Awaitable[Any]]:
    async def guarded(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
        await admit(context)
        try:
            return await behaviour(request, context)
        except HoldfastError as error:
            await abort_with(context, error)

    return guarded


def _guarded_generator(
    behaviour: Callable[[Any, Context], AsyncIterator[Any]],
    admit: Callable[[Context], Awaitable[None]],
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401 - any message
        await admit(context)
        try:
            async for reply in behaviour(request, context):
                yield reply
        except HoldfastError as error:
            await abort_with(context, error)

    return guarded

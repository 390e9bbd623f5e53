"""vCenter's REST interface: one request from its bytes to its answer, logged, with misbehaviour around it.

Two dialects of the same operations. ``/api`` (vCenter 7.0 update 2 and newer): plain values, 201 for what
was made, 204 for no value, errors as ``{"error_type", "messages"}``. ``/rest/com/vmware`` (6.5 and newer):
values in ``{"value"}``, 200 throughout, errors as ``{"type", "value": {"messages"}}``. A single host has
neither. Operations register themselves: `rest_tagging`.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from holdfast_lab.faults import ConnectionCut, SoapFault
from holdfast_lab.http_exchange import HttpExchange
from holdfast_lab.lab_clock import monotonic_seconds, utc_now
from holdfast_lab.method_registry import http_route
from holdfast_lab.sessions import LabUser, Session, cookie_value
from holdfast_lab.tags import INVALID_ARGUMENT, NOT_FOUND, TagRefused

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab

SESSION_NAME = "vmware-api-session-id"  # of the header and of the cookie
HEADER_ONLY = "vmware-use-header-authn"
REST = "rest"
JSON = "application/json"
BODY_BYTES_MAX = 4 << 20
UNAUTHENTICATED, UNAUTHORIZED, ERROR = "UNAUTHENTICATED", "UNAUTHORIZED", "ERROR"
UNAVAILABLE = "SERVICE_UNAVAILABLE"
STATUS: Mapping[str, int] = {
    UNAUTHENTICATED: 401,
    UNAUTHORIZED: 403,
    NOT_FOUND: 404,
    UNAVAILABLE: 503,
    ERROR: 500,
}
OF_FAULT: Mapping[str, str] = {
    "NoPermission": UNAUTHORIZED,
    "NotAuthenticated": UNAUTHENTICATED,
    "NotFound": NOT_FOUND,
    "ManagedObjectNotFound": NOT_FOUND,
    "InvalidArgument": INVALID_ARGUMENT,
}


class RestError(TagRefused):
    """Ends an operation with an error of this kind."""


class RestBody:
    """The JSON object that came with a request."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values

    def text(self, name: str, default: str | None = None) -> str:
        """A text; required without a default. Raises: RestError."""
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise RestError(INVALID_ARGUMENT, f"{name}: a text is required")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts that must be there. Raises: RestError."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise RestError(INVALID_ARGUMENT, f"{name}: a list of texts is required")
        return tuple(value)

    def part(self, name: str) -> RestBody:
        """An object within. Raises: RestError."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise RestError(INVALID_ARGUMENT, f"{name}: an object is required")
        return RestBody(value)

    def parts(self, name: str) -> list[RestBody]:
        """A list of objects. Raises: RestError."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise RestError(INVALID_ARGUMENT, f"{name}: a list of objects is required")
        return [RestBody(each) for each in value]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestCall:
    """One request: on which resource (``identifier`` "": on all of them), by whom, with what."""

    lab: Lab
    user: LabUser
    identifier: str
    body: RestBody
    older: bool  # the dialect below /rest

    def spec(self, name: str) -> RestBody:
        """What is to be made or changed; the older dialect wraps it once more."""
        return self.body.part(name) if self.older else self.body

    def check_privilege(self, privilege: str) -> None:
        """Raises: RestError."""
        if not self.user.may(privilege):
            raise RestError(
                UNAUTHORIZED, f"Permission to perform this operation was denied: {privilege}"
            )


@dataclass(frozen=True, slots=True)
class _Made:
    """A value that the newer dialect answers with 201."""

    value: object


Operation = Callable[[RestCall], object]
OPERATIONS: dict[tuple[str, str, str, bool], Operation] = {}
Body = TypeVar("Body", bound=Operation)


def made(value: object) -> object:
    """Mark the id of something that was made."""
    return _Made(value)


def rest_operation(
    method: str, resource: str, *, action: str = "", one: bool = False
) -> Callable[[Body], Body]:
    """Register an operation on a resource, or on ``one`` of it by id. It runs with ``Lab.lock`` held."""

    def register(body: Body) -> Body:
        OPERATIONS[method, resource, action, one] = body
        return body

    return register


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What the address names."""

    resource: str
    identifier: str
    action: str
    older: bool

    def name(self, method: str) -> str:
        """As misbehaviour matches it and the log shows it: without the id."""
        prefix = "/rest/com/vmware/" if self.older else "/api/"
        if self.older and self.resource == "session":
            prefix += "cis/"
        asked = f"{'~' if self.older else ''}action={self.action}"
        return f"{method} {prefix}{self.resource}" + (f"?{asked}" if self.action else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """An answer that was not sent yet; ``error``: its kind, empty when it is none."""

    status: int
    data: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@http_route("/api")
@http_route("/rest")
def answer_rest(lab: Lab, exchange: HttpExchange) -> None:
    """Answer one request to the REST interface. Raises: ConnectionCut when misbehaviour says so."""
    target = _target(exchange) if lab.mode == "vcenter" else None
    if target is None:
        exchange.reply(404, b"not found")
        return
    body = exchange.whole_body(BODY_BYTES_MAX)
    started = monotonic_seconds()
    session = _session_of(lab, exchange)
    facts = {
        "method": target.name(exchange.method),
        "this": target.identifier,
        "vm": "",
        "user": session.user.name if session and session.user else "",
    }
    reply: _Reply | None = None
    cut = ""
    try:
        reply = _answered(lab, exchange, target, (facts, session, body))
    except ConnectionCut as broken:
        cut = str(broken)
        raise
    finally:
        # before the answer leaves: who has it finds the call in the log
        lab.calls.event(
            "rest",
            **facts,
            session=session.key if session else None,
            fault=reply.error or None if reply else None,
            cut=cut or None,
            milliseconds=round((monotonic_seconds() - started) * 1000, 3),
        )
    exchange.reply(reply.status, reply.data, content_type=JSON, headers=reply.headers)


def _answered(
    lab: Lab,
    exchange: HttpExchange,
    target: _Target,
    given: tuple[Mapping[str, str], Session | None, bytes],
) -> _Reply:
    """What to answer, with misbehaviour around it. Raises: ConnectionCut."""
    facts, session, body = given
    try:
        stranger = Session(identifier="", key="", started=utc_now(), last_active=utc_now())
        if lab.misbehaviour.before_call(facts, session or stranger):
            raise RestError(UNAVAILABLE, "Service Unavailable")
        lab.misbehaviour.around_call("before", facts)
        if target.resource == "session":
            value, headers = _session_operation(lab, exchange, target, session)
        else:
            value, headers = _operation(lab, exchange, target, (session, body)), {}
        lab.misbehaviour.around_call("after", facts)
        lab.misbehaviour.after_call(facts)
    except TagRefused as refused:
        return _error_reply(target, refused.kind, str(refused))
    except SoapFault as fault:
        return _error_reply(target, OF_FAULT.get(fault.name, ERROR), fault.message)
    return _value_reply(target, value, headers)


def _target(exchange: HttpExchange) -> _Target | None:
    path = exchange.path.rstrip("/")
    older = path.startswith("/rest/")
    rest = path.removeprefix("/rest/com/vmware/") if older else path.removeprefix("/api/")
    action = exchange.query.get("~action" if older else "action", "")
    if rest == ("cis/session" if older else "session"):
        return _Target(resource="session", identifier="", action=action, older=older)
    for resource in sorted({key[1] for key in OPERATIONS}, key=len, reverse=True):
        if rest == resource:
            return _Target(resource=resource, identifier="", action=action, older=older)
        if rest.startswith(resource + "/"):
            identifier = rest[len(resource) + 1 :]
            if older and not identifier.startswith("id:"):
                return None
            identifier = identifier.removeprefix("id:") if older else identifier
            return _Target(resource=resource, identifier=identifier, action=action, older=older)
    return None


# sessions -------------------------------------------------------------------------------------


def _session_of(lab: Lab, exchange: HttpExchange) -> Session | None:
    identifier = exchange.header(SESSION_NAME) or cookie_value(
        exchange.header("Cookie"), SESSION_NAME
    )
    with lab.lock:
        session = lab.sessions.find(identifier, interface=REST)
        if session is None:
            return None
        session.call_count += 1
        lab.sessions.note_activity(session)
        return session


def _session_operation(
    lab: Lab, exchange: HttpExchange, target: _Target, session: Session | None
) -> tuple[object, Mapping[str, str]]:
    if exchange.method == "POST" and not target.action:
        return _logged_in(lab, exchange, target)
    if session is None or not session.alive or session.user is None:
        raise RestError(UNAUTHENTICATED, "Authentication required.")
    if exchange.method == "DELETE":
        with lab.lock:
            lab.sessions.end(session)
        return None, {}
    if exchange.method == ("POST" if target.older else "GET"):
        return {
            "user": session.user.name,
            "created_time": session.started.isoformat(),
            "last_accessed_time": session.last_active.isoformat(),
        }, {}
    raise RestError(NOT_FOUND, "there is no such operation")


def _logged_in(
    lab: Lab, exchange: HttpExchange, target: _Target
) -> tuple[object, Mapping[str, str]]:
    user = _user_of(lab, exchange.header("Authorization"))
    if user is None:
        raise RestError(UNAUTHENTICATED, "Unable to authenticate user")
    with lab.lock:
        session = lab.sessions.open(
            address=exchange.address, user_agent=exchange.header("User-Agent"), interface=REST
        )
        session.user = user
    headers = {}
    if not target.older:
        headers[SESSION_NAME] = session.identifier
    elif exchange.header(HEADER_ONLY).lower() != "true":
        headers["Set-Cookie"] = f"{SESSION_NAME}={session.identifier};Path=/rest;Secure;HttpOnly"
    return made(session.identifier), headers


def _user_of(lab: Lab, header: str) -> LabUser | None:
    """Who the header for basic authentication says it is, when the password is right."""
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(given).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    with lab.lock:
        user = lab.users.get(name)
    if user is None or not secrets.compare_digest(user.password.encode(), password.encode()):
        return None
    return user


# operations -----------------------------------------------------------------------------------


def _operation(
    lab: Lab, exchange: HttpExchange, target: _Target, given: tuple[Session | None, bytes]
) -> object:
    session, body = given
    if session is None or not session.alive or session.user is None:
        raise RestError(UNAUTHENTICATED, "Authentication required.")
    found = OPERATIONS.get(
        (exchange.method, target.resource, target.action, bool(target.identifier))
    )
    if found is None:
        raise RestError(NOT_FOUND, "there is no such operation")
    call = RestCall(
        lab=lab,
        user=session.user,
        identifier=target.identifier,
        body=RestBody(_parsed(body)),
        older=target.older,
    )
    with lab.lock:
        return found(call)


def _parsed(body: bytes) -> Mapping[str, object]:
    if not body.strip():
        return {}
    try:
        values = json.loads(body)
    except ValueError as error:
        raise RestError(INVALID_ARGUMENT, "the body is no JSON") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RestError(INVALID_ARGUMENT, "the body is no JSON object")
    return values


def _value_reply(target: _Target, value: object, headers: Mapping[str, str]) -> _Reply:
    status = 200
    if isinstance(value, _Made):
        status, value = (200 if target.older else 201), value.value
    elif value is None:
        return _Reply(status=200 if target.older else 204, headers=headers)
    document = {"value": value} if target.older else value
    return _Reply(status=status, data=json.dumps(document).encode(), headers=headers)


def _error_reply(target: _Target, kind: str, message: str) -> _Reply:
    messages = [{"args": [], "default_message": message, "id": f"lab.{kind.lower()}"}]
    document: dict[str, object] = {"error_type": kind, "messages": messages}
    if target.older:
        document = {
            "type": f"com.vmware.vapi.std.errors.{kind.lower()}",
            "value": {"messages": messages},
        }
    return _Reply(status=STATUS.get(kind, 400), data=json.dumps(document).encode(), error=kind)

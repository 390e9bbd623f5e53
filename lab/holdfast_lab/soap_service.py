"""POST /sdk: one method call from its bytes to its answer, logged, with misbehaviour around it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyVmomi import vim, vmodl

from holdfast_lab import soap
from holdfast_lab.call_log import result_summary, summary
from holdfast_lab.faults import ConnectionCut, LabError, SoapFault
from holdfast_lab.http_exchange import HttpExchange
from holdfast_lab.lab import Lab
from holdfast_lab.lab_clock import monotonic_seconds
from holdfast_lab.method_registry import (
    SOAP_METHODS,
    Arguments,
    Call,
    SoapMethod,
    http_route,
)
from holdfast_lab.property_paths import read_path
from holdfast_lab.sessions import SESSION_COOKIE, Session
from holdfast_lab.wire_types import WireType

XML = "text/xml; charset=utf-8"
ANONYMOUS = "System.Anonymous"
# read before login by every client, to learn what it talks to
PUBLIC_OBJECTS = ("ServiceInstance",)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one call came to."""

    envelope: bytes
    result: str = ""
    fault: SoapFault | None = None


@http_route("/sdk")
def answer_sdk(lab: Lab, exchange: HttpExchange) -> None:
    """Answer one request to the SDK's address."""
    if exchange.method == "POST":
        answer_call(lab, exchange)
    elif exchange.method in ("GET", "HEAD") and exchange.path == "/sdk/vimServiceVersions.xml":
        exchange.reply(200, versions_document(), content_type="text/xml")
    else:
        exchange.reply(404, b"not found")


def versions_document() -> bytes:
    """What clients read to choose a version of the interface."""
    older = "".join(f"<version>{each}</version>" for each in ("8.0.0.1", "7.0", "6.7", "6.5"))
    return (
        '<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace>'
        f"<name>{soap.SOAP_NAMESPACE}</name><version>{soap.API_VERSION}</version>"
        f"<priorVersions>{older}</priorVersions></namespace></namespaces>"
    ).encode()


def answer_call(lab: Lab, exchange: HttpExchange) -> None:
    """One SOAP call. Raises: ConnectionCut when misbehaviour says so."""
    body = exchange.whole_body()
    with lab.lock:
        session = lab.sessions.find(exchange.session_identifier())
        is_new = session is None
        if session is None:
            session = lab.sessions.open(
                address=exchange.address, user_agent=exchange.header("User-Agent")
            )
        lab.sessions.call_started(session)
    try:
        outcome = run_call(lab, exchange, session, body)
    finally:
        with lab.lock:
            lab.sessions.call_ended(session)
    headers = {}
    if is_new:
        cookie = f'{SESSION_COOKIE}="{session.identifier}"; Path=/; HttpOnly; Secure; SameSite=Lax'
        headers["Set-Cookie"] = cookie
    if outcome is None:
        exchange.reply(503, b"Service Unavailable")
        return
    status = 500 if outcome.fault else 200
    exchange.reply(status, outcome.envelope, content_type=XML, headers=headers)


def run_call(lab: Lab, exchange: HttpExchange, session: Session, body: bytes) -> Outcome | None:
    """The call's outcome, logged; None when it is to be answered 503."""
    started = monotonic_seconds()
    try:
        request = soap.parse_request(body)
    except SoapFault as fault:
        lab.calls.event("call", method="?", fault=fault.name, message=fault.message)
        return Outcome(envelope=soap.fault_envelope(fault), fault=fault)
    facts = call_facts(lab, session, request)
    arguments: dict[str, object] = {}
    cut = ""
    outcome: Outcome | None = None
    try:
        if lab.misbehaviour.before_call(facts, session):
            return None
        lab.misbehaviour.around_call("before", facts)
        outcome = perform(lab, exchange, session, request, arguments)
        lab.misbehaviour.around_call("after", facts)
        lab.misbehaviour.after_call(facts)
        return outcome
    except SoapFault as fault:
        outcome = Outcome(envelope=soap.fault_envelope(fault), fault=fault)
        return outcome
    except ConnectionCut as error:
        cut = str(error)
        raise
    finally:
        lab.calls.event(
            "call",
            session=session.key,
            **facts,
            arguments=summary(arguments),
            result=outcome.result if outcome else None,
            fault=outcome.fault.name if outcome and outcome.fault else None,
            cut=cut or None,
            milliseconds=round((monotonic_seconds() - started) * 1000, 3),
        )


def call_facts(lab: Lab, session: Session, request: soap.SoapRequest) -> dict[str, str]:
    """What misbehaviour matches on and the log shows."""
    with lab.lock:
        return {
            "method": request.method,
            "this": str(request.this._moId),
            "vm": lab.vm_name_of(request.this),
            "user": session.user.name if session.user else "",
        }


def perform(
    lab: Lab,
    exchange: HttpExchange,
    session: Session,
    request: soap.SoapRequest,
    arguments: dict[str, object],
) -> Outcome:
    """Check the caller, the object and the arguments, then run the method. Raises: SoapFault."""
    if request.method == "Fetch":
        return fetch(lab, session, request)
    kind: WireType = type(request.this)
    declared = soap.methods_of(kind).get(request.method)
    method = SOAP_METHODS.get(request.method)
    if declared is None:
        raise SoapFault(vmodl.fault.MethodNotFound(receiver=request.this, method=request.method))
    with lab.lock:
        check_right(session, request, declared.privId or "System.View")
        lab.find(request.this, session)
    if method is None:
        raise SoapFault(vmodl.fault.MethodNotFound(receiver=request.this, method=request.method))
    arguments.update(soap.typed_arguments(declared.params, request.elements))
    call = Call(
        lab=lab,
        method=request.method,
        this=request.this,
        arguments=Arguments(arguments),
        session=session,
        exchange=exchange,
    )
    return answered(lab, method, call, declared.result)


def answered(lab: Lab, method: SoapMethod, call: Call, declared: type) -> Outcome:
    """Run the method's answer and write its value while the lock still holds the state."""
    with faults_for_errors(lab, method.name):
        if not method.locked:
            value = method.answer(call)
        with lab.lock:
            if method.locked:
                value = method.answer(call)
            content = soap.value_text(value, declared)
    return Outcome(
        envelope=soap.answer_envelope(call.method, content),
        result=result_summary(value),
    )


@contextmanager
def faults_for_errors(lab: Lab, what: str) -> Iterator[None]:
    """A caller of SOAP gets a fault, whatever went wrong. Raises: SoapFault, ConnectionCut."""
    try:
        yield
    except (SoapFault, ConnectionCut):
        raise
    except LabError as error:
        raise SoapFault(vmodl.fault.SystemError(reason=str(error)), str(error)) from error
    except Exception as error:
        lab.calls.note_bug(what, traceback.format_exc())
        raise SoapFault(vmodl.fault.SystemError(reason=repr(error)), repr(error)) from error


def check_right(session: Session, request: soap.SoapRequest, privilege: str) -> None:
    """Raises: SoapFault: NotAuthenticated before login, NoPermission without the privilege."""
    if session.user is None or not session.alive:
        if privilege == ANONYMOUS:
            return
        raise SoapFault(
            vim.fault.NotAuthenticated(object=request.this, privilegeId=privilege),
            "The session is not authenticated.",
        )
    if not session.user.may(privilege):
        raise SoapFault(
            vim.fault.NoPermission(object=request.this, privilegeId=privilege),
            f"Permission to perform this operation was denied: {privilege}",
        )


def fetch(lab: Lab, session: Session, request: soap.SoapRequest) -> Outcome:
    """A client reads one property by attribute access."""
    elements = request.elements.get("prop", [])
    name = (elements[0].text or "") if elements else ""
    try:
        declared = type(request.this)._GetPropertyInfo(name)
    except AttributeError as error:
        raise SoapFault(vmodl.query.InvalidProperty(name=name)) from error
    with faults_for_errors(lab, f"Fetch {name}"), lab.lock:
        public = request.this._moId in PUBLIC_OBJECTS
        check_right(session, request, ANONYMOUS if public else "System.View")
        value = read_path(lab, request.this, name, session)
        content = soap.value_text(value, declared.type)
    return Outcome(envelope=soap.answer_envelope("Fetch", content), result=name)

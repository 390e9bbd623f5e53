"""Every method of the descriptors, with every role and every bad certificate: default deny."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from holdfast_common.errors import AuthenticationFailed
from holdfast_common.identity import new_ulid
from holdfast_common.job_result import ErrorReport
from holdfast_common.trust.authority import Credentials, create_authority
from holdfast_common.trust.channels import (
    channel_credentials,
    open_enrolment_channel,
    open_operator_channel,
)
from holdfast_common.trust.controller_trust import load_credentials
from holdfast_common.trust.peer import AGENT_ROLES, Role, Subject, peer_of_pem
from holdfast_common.wire import job_pb2, operator_pb2, session_pb2
from holdfast_common.wire_codec.call_errors import error_of_call
from holdfast_controller.service.access_rules import RULES
from support.session_rig import AgentRig, ControllerRig, done_at_once, message_class

OPTIONS = [("grpc.ssl_target_name_override", "controller.holdfast.internal")]


def all_methods() -> list[MethodDescriptor]:
    files = (job_pb2.DESCRIPTOR, operator_pb2.DESCRIPTOR, session_pb2.DESCRIPTOR)
    return [
        method
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    ]


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


METHODS = all_methods()
WHO = [
    "no certificate",
    "wrong authority",
    "expired",
    "not yet valid",
    "revoked certificate",
    "revoked agent",
    "unknown agent",
    "agent of another role",
    "controller",
    "proxy",
    "guest",
    "restore",
    "administrator",
]

KEPT_OUT_BY_TLS = {"no certificate", "wrong authority", "expired", "not yet valid", "controller"}


@dataclass
class Stage:
    """Listeners, and a certificate for everybody who might call."""

    controller: ControllerRig
    certificates: dict[str, Credentials | None]

    def port_of(self, service: str) -> int:
        bound = self.controller.bound
        return {
            "Agents": bound.session,
            "Enrolment": bound.enrolment,
            "Operators": bound.operators,
        }[service]


@pytest.fixture(name="stage", scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("access")
    rig = ControllerRig(home / "controller", operator_address="127.0.0.1:0")
    rig.start()
    now = rig.clock.now()
    proxy = AgentRig(rig, home / "proxy", done_at_once, host_name="proxy")
    revoked = AgentRig(rig, home / "revoked", done_at_once, host_name="revoked")
    rig.administration.revoke(revoked.agent_id)
    mine = load_credentials(proxy.places.agent_state / "identity.pem")
    proxy_subject = Subject(role=Role.PROXY, name=proxy.agent_id)
    issue = rig.trust.authority.issue_with_key
    strange = create_authority(now=now).issue_with_key(proxy_subject, now=now)
    withdrawn = issue(proxy_subject, now=now)
    rig.agents.revoke_certificate(
        serial=peer_of_pem(withdrawn.certificate_pem).serial, subject="proxy", reason="lost"
    )
    long_ago, later = now - dt.timedelta(days=9), now + dt.timedelta(days=9)
    certificates: dict[str, Credentials | None] = {
        "no certificate": None,
        "wrong authority": Credentials(
            authority_pem=mine.authority_pem,
            certificate_pem=strange.certificate_pem,
            key_pem=strange.key_pem,
        ),
        "expired": issue(proxy_subject, now=long_ago, lifetime=dt.timedelta(days=1)),
        "not yet valid": issue(proxy_subject, now=later),
        "revoked certificate": withdrawn,
        "revoked agent": load_credentials(revoked.places.agent_state / "identity.pem"),
        "unknown agent": issue(Subject(role=Role.PROXY, name=new_ulid()), now=now),
        "agent of another role": issue(Subject(role=Role.GUEST, name=proxy.agent_id), now=now),
        "controller": rig.trust.credentials(),
        "proxy": mine,
        "administrator": issue(Subject(role=Role.ADMINISTRATOR, name="ann"), now=now),
    }
    for role in (Role.GUEST, Role.RESTORE):  # nothing enrols them yet: put in by hand
        agent_id = new_ulid()
        certificates[str(role)] = issue(Subject(role=role, name=agent_id), now=now)
        rig.database.execute(
            "INSERT INTO agents (agent_id, role, host_name, signing_public_key, enrolled_at,"
            " last_seen_at, certificate_serial, certificate_ends_at, revoked_at, session_epoch,"
            " features, capabilities) VALUES (?,?,'h',x'00','','','','','',0,'[]','{}')",
            (agent_id, str(role)),
        )
    yield Stage(rig, certificates)
    rig.stop()


def call(channel: grpc.Channel, method: MethodDescriptor) -> grpc.StatusCode:
    """The status of one call with an empty request; OK when the method itself was reached."""
    kind = "_".join(
        "stream" if streaming else "unary"
        for streaming in (method.client_streaming, method.server_streaming)
    )
    request, reply = message_class(method.input_type), message_class(method.output_type)
    rpc = getattr(channel, kind)(
        path(method),
        request_serializer=request.SerializeToString,
        response_deserializer=reply.FromString,
    )
    asked = iter([request()]) if method.client_streaming else request()
    try:
        answer = rpc(asked, timeout=20)
        if method.server_streaming:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        status = error.code()
        assert isinstance(status, grpc.StatusCode)
        ours = error_of_call(error)
        refused_by_rule = isinstance(ours, AuthenticationFailed) or (
            ErrorReport.of(ours).message == "this caller may not call this"
        )
        if refused_by_rule or status is grpc.StatusCode.UNAVAILABLE:
            return status
        return grpc.StatusCode.OK  # the method answered with an error of its own
    return grpc.StatusCode.OK


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    assert set(RULES) == {path(method) for method in METHODS}
    assert len(METHODS) >= 28


@pytest.mark.parametrize("who", WHO)
def test_a_method_is_reached_only_by_whom_its_rule_names(stage: Stage, who: str) -> None:
    credentials = stage.certificates[who]
    reached, statuses = set(), set()
    for listener in ("Agents", "Operators"):
        port = stage.port_of(listener)
        channel = (
            open_enrolment_channel(
                f"127.0.0.1:{port}", stage.controller.trust.authority.certificate_pem
            )
            if credentials is None
            else grpc.secure_channel(
                f"127.0.0.1:{port}",
                channel_credentials(credentials),
                options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)],
            )
        )
        with channel:
            for method in METHODS:  # also those that this listener does not serve
                status = call(channel, method)
                statuses.add(status)
                if status is grpc.StatusCode.OK:
                    reached.add((listener, path(method)))
    role = Role(who) if who in set(Role) else None
    allowed = {
        (listener, name)
        for name, roles in RULES.items()
        for listener in ("Agents", "Operators")
        if role in roles and f".{listener}/" in name
    }
    assert reached == allowed
    # The handshake keeps these out; all others get an answer, which says no.
    assert (statuses == {grpc.StatusCode.UNAVAILABLE}) == (who in KEPT_OUT_BY_TLS)
    assert (grpc.StatusCode.UNAVAILABLE in statuses) == (who in KEPT_OUT_BY_TLS)
    if role in {Role.PROXY, Role.ADMINISTRATOR}:
        assert allowed
    else:
        assert not allowed


def test_nothing_but_enrolment_answers_where_agents_enrol(stage: Stage) -> None:
    for who in ("no certificate", "proxy", "administrator"):
        credentials = stage.certificates[who]
        authority_pem = stage.controller.trust.authority.certificate_pem
        tls = (
            grpc.ssl_channel_credentials(authority_pem)
            if credentials is None
            else channel_credentials(credentials)
        )
        target = f"127.0.0.1:{stage.controller.bound.enrolment}"
        with grpc.secure_channel(target, tls, options=OPTIONS) as channel:
            reached = {path(m) for m in METHODS if call(channel, m) is grpc.StatusCode.OK}
        assert reached <= {"/holdfast.v1.Enrolment/Enrol"}


def test_whoever_opens_the_unix_socket_is_an_operator_and_nothing_else(stage: Stage) -> None:
    with open_operator_channel(stage.controller.places) as channel:
        reached = {path(m) for m in METHODS if call(channel, m) is grpc.StatusCode.OK}
    assert reached == {name for name, roles in RULES.items() if Role.LOCAL_OPERATOR in roles}
    socket = stage.controller.bound.operator_socket
    assert socket.stat().st_mode & 0o777 == 0o660
    assert socket.parent.stat().st_mode & 0o777 == 0o750


def test_a_method_that_does_not_exist_is_refused_like_any_other(stage: Stage) -> None:
    credentials = stage.certificates["administrator"]
    assert credentials is not None
    target = f"127.0.0.1:{stage.controller.bound.operators}"
    with (
        grpc.secure_channel(target, channel_credentials(credentials), options=OPTIONS) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        rpc = channel.unary_unary(
            "/holdfast.v1.Operators/Nothing",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        rpc(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_all_agent_roles_are_tried() -> None:
    assert {str(role) for role in AGENT_ROLES} <= set(WHO)

"""Joining a controller: a token in, keys and a certificate made and kept, a configuration written.

The token carries the authority's certificate, so the controller proves itself before the secret
leaves this host. The private keys never leave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from holdfast_agent.certificates import (
    identity_exists,
    new_request,
    save_certificate,
    save_signing_key,
)
from holdfast_agent.configuration import (
    SESSION_PORT,
    AgentConfiguration,
    HotAddConfiguration,
    RestoreConfiguration,
    bracketed,
    configuration_text,
    split_address,
)
from holdfast_common.errors import AuthenticationFailed, Refused
from holdfast_common.places import Places, private_folder
from holdfast_common.trust.channels import open_enrolment_channel
from holdfast_common.trust.join_token import JoinToken
from holdfast_common.trust.keys import write_private
from holdfast_common.trust.peer import Role, Subject, peer_of_pem
from holdfast_common.wire import session_pb2, session_pb2_grpc
from holdfast_common.wire_codec.call_errors import error_of_call

ENROL_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What the administrator says on the new agent's host. ``controller`` is ``host`` or ``host:port``."""

    token: JoinToken
    controller: str
    role: str
    host_name: str
    repositories: dict[str, str]
    datastores: dict[str, str]
    hot_add: HotAddConfiguration
    restore: RestoreConfiguration
    enrolment_port: int = 0  # 0: as the token says


def enrol(places: Places, wanted: Enrolment) -> AgentConfiguration:
    """Join. Raises: Refused when this agent has joined before, AuthenticationFailed, ControllerUnreachable."""
    folder = private_folder(places.agent_state)
    if identity_exists(folder):
        raise Refused(
            "this agent is enrolled already",
            folder=str(folder),
            advice="to join anew, stop it and remove this folder; change folders with `configure`",
        )
    host, port = split_address(wanted.controller)
    signing_key = Ed25519PrivateKey.generate()
    pending = new_request()
    reply = _ask(
        f"{bracketed(host)}:{wanted.enrolment_port or wanted.token.enrolment_port}",
        wanted.token.authority_pem,
        session_pb2.EnrolRequest(
            token=wanted.token.secret,
            certificate_request_pem=pending.request_pem,
            signing_public_key=signing_key.public_key().public_bytes(
                Encoding.Raw, PublicFormat.Raw
            ),
            role=wanted.role,
            host_name=wanted.host_name,
        ),
    )
    subject = peer_of_pem(reply.certificate_pem).subject
    if subject != Subject(role=Role(wanted.role), name=reply.agent_id):
        raise AuthenticationFailed("the controller answered with somebody else's certificate")
    configuration = AgentConfiguration(
        controller=_session_address(host, port, reply.session_address),
        agent_id=subject.name,
        role=wanted.role,
        repositories=wanted.repositories,
        datastores=wanted.datastores,
        hot_add=wanted.hot_add,
        restore=wanted.restore,
    )
    write_configuration(places, configuration)
    save_signing_key(folder, signing_key)
    # The certificate last: what has one is enrolled.
    save_certificate(
        folder,
        pending,
        certificate_pem=reply.certificate_pem,
        authority_pem=wanted.token.authority_pem,
    )
    return configuration


def write_configuration(places: Places, configuration: AgentConfiguration) -> None:
    """Replace agent.toml. Raises: ConfigurationError."""
    places.configuration.mkdir(parents=True, exist_ok=True)
    write_private(
        places.agent_configuration, configuration_text(configuration).encode(), mode=0o644
    )


def _session_address(host: str, port: int, told: str) -> str:
    """What the administrator said goes first; then what the controller tells; then the usual port."""
    if port:
        return f"{bracketed(host)}:{port}"
    if told.startswith(":"):
        return f"{bracketed(host)}{told}"
    return told or f"{bracketed(host)}:{SESSION_PORT}"


def _ask(
    address: str, authority_pem: bytes, request: session_pb2.EnrolRequest
) -> session_pb2.EnrolReply:
    with open_enrolment_channel(address, authority_pem) as channel:
        try:
            return session_pb2_grpc.EnrolmentStub(channel).Enrol(request, timeout=ENROL_SECONDS)
        except grpc.RpcError as error:
            raise error_of_call(error) from error

"""This agent's identity: its key and certificate, and the key that signs what it writes.

Both lie in the agent's private folder: ``identity.pem`` (key, certificate, the authority's
certificate) and ``signing.key`` (Ed25519). Nothing of them ever leaves the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import AuthenticationFailed, ConfigurationError
from holdfast_common.identity import AgentId
from holdfast_common.trust.authority import Credentials
from holdfast_common.trust.controller_trust import load_credentials, save_credentials
from holdfast_common.trust.keys import (
    certificate_request,
    key_pem,
    load_signing_key,
    new_key,
    read_file,
    write_private,
)
from holdfast_common.trust.peer import Peer, peer_of_pem

_ENROL = "run `holdfast-agent enrol` with a token of `holdfast agent token`"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentIdentity:
    """Who this agent is, as its certificate says."""

    credentials: Credentials
    peer: Peer
    signing_key: Ed25519PrivateKey = field(repr=False)

    @property
    def agent_id(self) -> AgentId:
        """This agent."""
        return AgentId(self.peer.subject.name)

    @property
    def role(self) -> str:
        """What it is enrolled for."""
        return str(self.peer.subject.role)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRequest:
    """A new key that waits for its certificate."""

    key: EllipticCurvePrivateKey = field(repr=False)
    request_pem: bytes


def new_request() -> PendingRequest:
    """A new key for TLS, and the request for its certificate."""
    key = new_key()
    return PendingRequest(key=key, request_pem=certificate_request(key))


def identity_exists(folder: Path) -> bool:
    """Whether this agent was enrolled."""
    return (folder / "identity.pem").exists()


def save_signing_key(folder: Path, key: Ed25519PrivateKey) -> None:
    """Write the signing key. Raises: ConfigurationError."""
    write_private(folder / "signing.key", key_pem(key))


def save_certificate(
    folder: Path, pending: PendingRequest, *, certificate_pem: bytes, authority_pem: bytes
) -> Peer:
    """Write a new certificate with its key; what it says.

    Raises: AuthenticationFailed when it is for another key; ConfigurationError.
    """
    peer = peer_of_pem(certificate_pem)
    credentials = Credentials(
        authority_pem=authority_pem,
        certificate_pem=certificate_pem,
        key_pem=key_pem(pending.key),
    )
    _check_pair(credentials, pending.key)
    save_credentials(folder / "identity.pem", credentials)
    return peer


def load_identity(folder: Path) -> AgentIdentity:
    """Raises: ConfigurationError when this agent was not enrolled, or its files are damaged."""
    credentials = load_credentials(folder / "identity.pem", advice=_ENROL)
    signing_file = folder / "signing.key"
    try:
        peer = peer_of_pem(credentials.certificate_pem)
    except AuthenticationFailed as error:
        raise ConfigurationError(
            f"the agent's certificate is damaged: {error}", folder=str(folder), advice=_ENROL
        ) from error
    signing_key = load_signing_key(read_file(signing_file, advice=_ENROL), file=signing_file)
    return AgentIdentity(credentials=credentials, peer=peer, signing_key=signing_key)


def _check_pair(credentials: Credentials, key: EllipticCurvePrivateKey) -> None:
    certificate = x509.load_pem_x509_certificate(credentials.certificate_pem)
    if certificate.public_key() != key.public_key():
        raise AuthenticationFailed("the controller answered with a certificate for another key")

"""What a certificate says about its holder: one URI, strictly read.

``holdfast://controller/<id>`` · ``holdfast://agent/<ULID>/<role>`` · ``holdfast://operator/<name>/administrator``
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from holdfast_common.errors import AuthenticationFailed


class Role(StrEnum):
    """What a caller is. The last two have no certificate: what they may reach is their listener."""

    CONTROLLER = "controller"
    PROXY = "proxy"
    GUEST = "guest"
    RESTORE = "restore"
    ADMINISTRATOR = "administrator"
    LOCAL_OPERATOR = "local-operator"  # whoever may open the operators' Unix socket
    JOINER = "joiner"  # somebody with nothing but a join token


AGENT_ROLES: Final = frozenset({Role.PROXY, Role.GUEST, Role.RESTORE})

_SUBJECT: Final = {
    "controller": re.compile(r"^holdfast://controller/([0-9A-Z]{26})()$"),
    "agent": re.compile(r"^holdfast://agent/([0-9A-Z]{26})/(proxy|guest|restore)$"),
    "operator": re.compile(r"^holdfast://operator/([a-z0-9][a-z0-9._-]{0,62})/(administrator)$"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom a certificate names: an agent's or controller's id, or an operator's name."""

    role: Role
    name: str

    def uri(self) -> str:
        """The form in the certificate. Raises: AuthenticationFailed when the name has no such form."""
        if self.role is Role.CONTROLLER:
            uri = f"holdfast://controller/{self.name}"
        elif self.role in AGENT_ROLES:
            uri = f"holdfast://agent/{self.name}/{self.role}"
        else:
            uri = f"holdfast://operator/{self.name}/{self.role}"
        if subject_of_uri(uri) != self:
            raise AuthenticationFailed("no certificate can name this", subject=uri[:200])
        return uri


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The holder of one certificate. ``serial`` in decimal, ``sha256`` of the DER in hex; times aware."""

    subject: Subject
    serial: str
    sha256: str
    starts_at: datetime
    ends_at: datetime

    def actor(self) -> str:
        """As the audit trail names it."""
        return f"{self.subject.uri()} {self.sha256}"


def subject_of_uri(uri: str) -> Subject:
    """The inverse of `Subject.uri`. Raises: AuthenticationFailed."""
    for kind, pattern in _SUBJECT.items():
        match = pattern.fullmatch(uri)
        if match is not None:
            return Subject(role=Role(match[2] or kind), name=match[1])
    raise AuthenticationFailed("the certificate names nobody we know", uri=uri[:200])


def peer_of_certificate(certificate: x509.Certificate) -> Peer:
    """Who holds it; that it was signed by our authority is for TLS to check.

    Raises: AuthenticationFailed when it has not exactly one URI of ours.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise AuthenticationFailed("the certificate has no identity") from error
    if len(uris) != 1:
        raise AuthenticationFailed("the certificate has not exactly one identity", count=len(uris))
    return Peer(
        subject=subject_of_uri(uris[0]),
        serial=str(certificate.serial_number),
        sha256=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        starts_at=certificate.not_valid_before_utc,
        ends_at=certificate.not_valid_after_utc,
    )


def peer_of_pem(pem: bytes) -> Peer:
    """`peer_of_certificate` of a PEM text. Raises: AuthenticationFailed."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise AuthenticationFailed("not a certificate") from error
    return peer_of_certificate(certificate)

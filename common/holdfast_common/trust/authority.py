"""Holdfast's own certificate authority: it alone says who somebody is.

One self-signed ECDSA P-256 certificate; it signs leaf certificates only. A controller's
certificate is for servers and has one fixed name, so that agents need not know it by address;
everybody else's is for clients and has no name at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast_common.errors import ConfigurationError, Refused
from holdfast_common.identity import new_ulid
from holdfast_common.trust.keys import key_pem, load_key, new_key, read_file, write_private
from holdfast_common.trust.peer import AGENT_ROLES, Peer, Role, Subject, peer_of_certificate

CONTROLLER_SERVER_NAME: Final = (
    "controller.holdfast.internal"  # only a controller's certificate has it
)
BACKDATED: Final = timedelta(hours=1)  # an agent's clock may be slow
AUTHORITY_LIFETIME: Final = timedelta(days=20 * 365)
AGENT_LIFETIME: Final = timedelta(days=30)
CONTROLLER_LIFETIME: Final = timedelta(days=90)
OPERATOR_LIFETIME: Final = timedelta(days=365)
RENEWED_AFTER: Final = 2 / 3  # of a certificate's life


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A certificate with its key and the authority's certificate, all as PEM."""

    authority_pem: bytes
    certificate_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:  # a key must not reach a log
        return "Credentials(***)"


class CertificateAuthority:
    """The authority's key and certificate. Thread-safe: nothing in it changes."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate
        self.certificate_pem = certificate.public_bytes(Encoding.PEM)
        self.certificate_der = certificate.public_bytes(Encoding.DER)

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        subject: Subject,
        *,
        now: datetime,
        lifetime: timedelta | None = None,
    ) -> tuple[bytes, Peer]:
        """A certificate as PEM, and what it says. ``lifetime`` None: the usual one of the role."""
        is_controller = subject.role is Role.CONTROLLER
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(subject.uri())]
        if is_controller:
            names.append(x509.DNSName(CONTROLLER_SERVER_NAME))
        purpose = (
            ExtendedKeyUsageOID.SERVER_AUTH if is_controller else ExtendedKeyUsageOID.CLIENT_AUTH
        )
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, subject.name)
        ends_at = min(
            now + (lifetime or _usual_lifetime(subject.role)),
            self._certificate.not_valid_after_utc,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([common_name]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now - BACKDATED, ends_at - timedelta(seconds=1)))
            .not_valid_after(ends_at)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_leaf_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), peer_of_certificate(certificate)

    def issue_with_key(
        self, subject: Subject, *, now: datetime, lifetime: timedelta | None = None
    ) -> Credentials:
        """A new key and its certificate, for somebody on this machine."""
        key = new_key()
        certificate_pem, _ = self.issue(key.public_key(), subject, now=now, lifetime=lifetime)
        return Credentials(
            authority_pem=self.certificate_pem,
            certificate_pem=certificate_pem,
            key_pem=key_pem(key),
        )

    def save(self, folder: Path) -> None:
        """Write both into a private folder. Raises: Refused when there is an authority already."""
        if (folder / "authority.key").exists():
            raise Refused("there is a certificate authority already", folder=str(folder))
        write_private(folder / "authority.pem", self.certificate_pem, mode=0o644)
        write_private(folder / "authority.key", key_pem(self._key))


def create_authority(*, now: datetime) -> CertificateAuthority:
    """A new authority; nothing is written."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Holdfast {new_ulid()}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_authority_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificateAuthority(key, certificate)


def load_authority(folder: Path) -> CertificateAuthority:
    """The authority that `CertificateAuthority.save` wrote. Raises: ConfigurationError."""
    advice = "run `holdfast init` first"
    certificate_file, key_file = folder / "authority.pem", folder / "authority.key"
    key = load_key(read_file(key_file, advice=advice), file=key_file)
    try:
        certificate = x509.load_pem_x509_certificate(read_file(certificate_file, advice=advice))
    except ValueError as error:
        raise ConfigurationError("not a certificate", file=str(certificate_file)) from error
    if certificate.public_key() != key.public_key():
        raise ConfigurationError("the authority's key and certificate differ", folder=str(folder))
    return CertificateAuthority(key, certificate)


def renewal_is_due(peer: Peer, *, now: datetime) -> bool:
    """Whether two thirds of a certificate's life are over."""
    life = peer.ends_at - peer.starts_at
    return now >= peer.starts_at + life * RENEWED_AFTER


def _usual_lifetime(role: Role) -> timedelta:
    if role in AGENT_ROLES:
        return AGENT_LIFETIME
    return CONTROLLER_LIFETIME if role is Role.CONTROLLER else OPERATOR_LIFETIME


def _leaf_usage() -> x509.KeyUsage:
    return _usage(digital_signature=True, key_cert_sign=False)


def _authority_usage() -> x509.KeyUsage:
    return _usage(digital_signature=False, key_cert_sign=True)


def _usage(*, digital_signature: bool, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
